"""Turn the rows of the tables into runs: which belong together, which count, and what each measured."""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pandas as pd
from pydantic import ValidationError

from resnet_bench.base.describe_error import describe_error
from resnet_bench.base.machine import kind_marks
from resnet_bench.base.text import listed
from resnet_bench.base.throughput import settled
from resnet_bench.judging.planned import parse_seeds
from resnet_bench.judging.seeds import by_place, one_per_seed
from resnet_bench.judging.verdict import apart, best_evaluation, last_evaluation
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.datasets import DATASETS, is_published
from resnet_bench.recipe.recipe import Recipe, unequal_keys
from resnet_bench.recipe.settings import relative_pixels
from resnet_bench.reporting.tables import GROUP_COLUMNS, Place, RunRow, Tables
from resnet_bench.tracking.vocabulary import (
    OLD_PEAK_FLOPS,
    PREFIX,
    SPLITS,
    TRAIN_JOULES,
    TRAIN_SECONDS,
    current_metric,
    tag,
)

Series = Mapping[int, float]
"""Values of one metric under the epoch or the optimizer step that they belong to."""

LENGTH = ("training.epochs", "data.train_images", "data.test_images")
"""Recipe keys that decide how long a run is."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Run(RunRow):
    """One run: its row of the table, and everything it measured."""

    metrics: Mapping[str, Series] = field(repr=False, default_factory=dict)
    """Per-epoch and per-step metrics by name; fractions and seconds as they were logged."""
    once: Mapping[str, float] = field(repr=False, default_factory=dict)
    """Metrics logged once."""

    @property
    def finished(self) -> bool:
        """Whether the run was trained to its end."""
        return self.status == "FINISHED"

    @property
    def shared_device(self) -> bool:
        """Whether other runs shared the device; its times are left out then, as they mean nothing for it alone."""
        return f"{PREFIX}seeds_per_device" in self.tags

    def series(self, metric: str) -> dict[int, float]:
        """Return the finite values of a metric by epoch or step."""
        return {place: value for place, value in self.metrics.get(metric, {}).items() if math.isfinite(value)}

    def number(self, metric: str) -> float | None:
        """Return a metric that was logged once; None where it was not, or is not finite."""
        value = self.once.get(metric)
        return value if value is not None and math.isfinite(value) else None

    @cached_property
    def not_finite(self) -> tuple[str, ...]:
        """Metrics with values that are not finite; means and axes leave these out."""
        found = {name for name, value in self.once.items() if not math.isfinite(value)}
        found |= {name for name, series in self.metrics.items() if not all(map(math.isfinite, series.values()))}
        return tuple(sorted(found))

    def accuracy(self, split: str, metric: str = "accuracy") -> dict[int, float]:
        """Return an accuracy in percent by epoch; the final one stands at the last epoch where none was logged there.

        Args:
            split: ``train``, ``validation`` or ``test``.
            metric: ``accuracy`` (the source's protocol), ``accuracy_standard`` (eval mode, per image) or
                ``accuracy_tta`` (with test-time augmentation).
        """
        name = current_metric(metric)
        curve = {epoch: 100 * value for epoch, value in self.series(f"{split}/{name}").items()}
        final = self.number(f"final/{split}_{name}")
        if final is not None and self.epochs is not None:
            curve.setdefault(self.epochs, 100 * final)
        return dict(sorted(curve.items()))

    def last_accuracy(self, split: str, metric: str = "accuracy") -> float | None:
        """Return an accuracy in percent at the last epoch that was evaluated."""
        return last_evaluation(self.accuracy(split, metric))

    @cached_property
    def epochs(self) -> int | None:
        """Epochs that the recipe trains for."""
        text = str(self.recipe.get("training.epochs", ""))
        return int(text) if text.isdecimal() else None

    @cached_property
    def train_seconds(self) -> float | None:
        """Training time of the whole run, without evaluation, set-up and compilation."""
        final = self.number("final/train_seconds")
        return final if final is not None else last_evaluation(self.series("time/train_seconds"))

    @cached_property
    def images_per_second(self) -> float | None:
        """Training throughput, as everywhere else: see :mod:`resnet_bench.base.throughput`."""
        return settled(_in_order(self.series("time/images_per_second")))

    @cached_property
    def epoch_seconds(self) -> float | None:
        """Training time per epoch, likewise."""
        return settled(_in_order(self.series("time/epoch_seconds")))

    @cached_property
    def peak_memory(self) -> float | None:
        """Peak memory in bytes over all epochs."""
        return best_evaluation(self.series("memory/peak_bytes"))

    @cached_property
    def flops(self) -> float | None:
        """Model FLOP/s: three forward passes per image (backward costs two), two operations per multiply-add.

        Where images grow during training, epochs do not repeat one another, and the whole run counts.
        """
        pixels = _relative_pixels(self)
        rate = self.images_per_second if pixels == 1 else _overall_images_per_second(self)
        return None if self.macs is None or rate is None else 3 * 2 * self.macs * pixels * rate

    def timed_accuracy(self, split: str) -> list[tuple[float, float]]:
        """Return training seconds so far and accuracy in percent of each evaluation after the first epoch."""
        return _accuracy_by_cost(self, split, TRAIN_SECONDS)

    def joules_to_accuracy(self, split: str) -> list[tuple[float, float]]:
        """Return training joules so far and accuracy likewise; empty where no counter was read to the end."""
        # A run that was resumed has those of its first part alone.
        to_the_end = max(self.series(TRAIN_JOULES), default=-1) >= max(self.accuracy(split), default=0)
        return _accuracy_by_cost(self, split, TRAIN_JOULES) if to_the_end else []


def _accuracy_by_cost(run: Run, split: str, cost: str) -> list[tuple[float, float]]:
    so_far = run.series(cost)
    return [(so_far[epoch], value) for epoch, value in run.accuracy(split).items() if epoch in so_far]


@dataclass(frozen=True, eq=False)
class RunGroup:
    """Runs that repeat one experiment: the same benchmark, profile, recipe and images."""

    runs: tuple[Run, ...]
    """One finished run per seed: those that count. Runs with different recipes are never in one group."""
    repeats: tuple[Run, ...]
    """Finished runs of seeds that are in ``runs`` already; they count for times only."""
    definition: Benchmark | None
    """The benchmark as the latest run recorded it; None where its artifact is missing or damaged."""
    planned: frozenset[int] = frozenset()
    """Seeds of every command that made a run of this experiment, finished or not."""

    @cached_property
    def latest(self) -> Run:
        """The run that was started last: the one to ask for what all have in common."""
        return max(self.runs, key=lambda run: run.started)

    @property
    def name(self) -> str:
        """The benchmark's name."""
        return self.latest.benchmark

    @cached_property
    def key(self) -> str:
        """An identifier of the group that is the same every time."""
        run = self.latest
        return "-".join((run.benchmark, run.profile, run.fingerprint[:8], run.data_fingerprint[:8])).rstrip("-")

    @cached_property
    def apart(self) -> bool:
        """Whether the runs were made to try the software: in the smoke profile or on generated images."""
        return apart(self.latest.profile, generated=self.latest.generated)

    @cached_property
    def published_images(self) -> bool:
        """Whether the runs used exactly the dataset that the benchmark's recipe names, as it was published."""
        run = self.latest
        if self.definition is None or run.dataset != self.definition.recipe.data.dataset:
            return False
        return is_published(run.dataset, run.data_fingerprint)

    @cached_property
    def all_runs(self) -> tuple[Run, ...]:
        """Every finished run, repeated seeds included."""
        return (*self.runs, *self.repeats)

    @cached_property
    def missing_seeds(self) -> tuple[int, ...]:
        """Seeds that were planned and have no finished run."""
        return tuple(sorted(self.planned - {run.seed for run in self.runs}))

    @cached_property
    def doubled_seeds(self) -> tuple[int, ...]:
        """Seeds with several finished runs."""
        return tuple(sorted({run.seed for run in self.repeats if run.seed is not None}))

    @cached_property
    def first_runs(self) -> tuple[Run, ...]:
        """For each of ``runs`` the earliest one of the same seed, device and code: what counted before a repeat."""

        def repeated(run: Run) -> tuple[object, ...]:
            return run.seed, run.device, run.precision, run.tags.get(tag("code_fingerprint"))

        first = {repeated(run): run for run in reversed(self.repeats) if run.seed is not None}
        earlier = ((run, first.get(repeated(run), run)) for run in self.runs)
        return tuple(min(pair, key=lambda run: run.started) for pair in earlier)

    @cached_property
    def devices(self) -> dict[str, list[Run]]:
        """Every finished run by the device it ran on: most seeds with a time first, and of as many, most seeds.

        Machines whose processors share a name are told apart: their times have nothing to do with one another.
        """
        names = place_names(self.all_runs)
        found = by_place(self.all_runs, lambda run: names[run.place])

        def timed_seeds(device: str) -> int:
            return len({run.seed for run in found[device] if run.train_seconds is not None})

        return {device: found[device] for device in sorted(found, key=timed_seeds, reverse=True)}

    @cached_property
    def changed(self) -> tuple[str, ...]:
        """Recipe keys in which the runs differ from the benchmark that they are named after."""
        return () if self.definition is None else _changed_keys(self.latest, self.definition)

    @cached_property
    def split(self) -> str:
        """The split that the headline number is from: that of the first claim, else the test set."""
        if self.definition is not None and self.definition.claims:
            return self.definition.claims[0].split
        return "test"

    @cached_property
    def curve_split(self) -> str:
        """The split with an accuracy at more than one epoch, the headline's where it has one."""
        for split in (self.split, "test", "validation"):
            if any(len(run.accuracy(split)) > 1 for run in self.runs):
                return split
        return self.split

    def values(self, split: str, metric: str = "accuracy") -> list[float]:
        """Return the last accuracy of each seed in percent."""
        found = (run.last_accuracy(split, metric) for run in self.runs)
        return [value for value in found if value is not None]

    def selection_gain(self, split: str, metric: str = "accuracy") -> float | None:
        """Return what picking the best epoch would add to the last one, in percentage points.

        Returns:
            The mean over the seeds; None where there is nothing to pick from.
        """
        curves = [curve for run in self.runs if len(curve := run.accuracy(split, metric)) > 1]
        gains = [max(curve.values()) - curve[max(curve)] for curve in curves]
        return statistics.fmean(gains) if gains else None


# --- from the tables -----------------------------------------------------------------------------


def load(tables: Tables) -> tuple[list[Run], tuple[str, ...]]:
    """Return every run of the tables, oldest first.

    Returns:
        The runs, and one sentence per run that is left out because its numbers cannot be used.
    """
    series: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    once: dict[str, dict[str, float]] = defaultdict(dict)
    for run_id, metric, axis, step, value in tables.metrics[["run_id", "metric", "axis", "step", "value"]].itertuples(
        index=False, name=None
    ):
        if axis == "once":
            once[run_id][metric] = value
        else:
            series[run_id][metric][step] = value
    runs: list[Run] = []
    problems: list[str] = []
    rows = tables.runs.sort_values(["started", "run_id"]).to_dict("records")
    # Only the latest run of an experiment has its record, and what is picked from the runs may lack that one.
    records = {_experiment(row): row["benchmark_json"] for row in rows if row["benchmark_json"]}
    for row in rows:
        if row["role"] == "run":
            row["benchmark_json"] = row["benchmark_json"] or records.get(_experiment(row), "")
        run_id = row["run_id"]
        try:
            run = _run(row, series.get(run_id, {}), once.get(run_id, {}))
            _measure(run)
        except Exception as error:  # whatever a forged or damaged value makes of a computation
            problems.append(f"run {run_id} is left out: {type(error).__name__}: {describe_error(error, limit=160)}")
        else:
            runs.append(run)
    return runs, tuple(problems)


def group(runs: Iterable[Run]) -> list[RunGroup]:
    """Return finished benchmark runs, those that repeat one experiment together.

    Within a group a seed counts once. Where several devices ran it, the device with the most seeds comes
    first, and others add only the seeds that it lacks; of several runs the latest counts.
    """
    together: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    planned: dict[tuple[str, ...], frozenset[int]] = defaultdict(frozenset)
    for run in runs:
        if run.role != "run":
            continue
        key = _experiment(vars(run))
        planned[key] |= parse_seeds(run.tags.get(tag("planned_seeds"), ""))
        if run.finished:
            together[key].append(run)
    return [_group(members, planned[key]) for key, members in sorted(together.items())]


def _experiment(row: Mapping[Any, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in GROUP_COLUMNS)


def claimed_metric(definition: Benchmark | None) -> str:
    """Return what a benchmark's first claim is about: ``accuracy``, or ``accuracy_tta``."""
    claims = definition.claims if definition is not None else ()
    return claims[0].metric if claims else "accuracy"


def devices_text(group: RunGroup) -> str:
    """Name every device that a run which counts was trained on, without the marks that only times need."""
    return listed(list(dict.fromkeys(run.device or "an unnamed device" for run in group.runs)))


def group_labels(groups: Sequence[RunGroup]) -> dict[RunGroup, str]:
    """Return each group's name: its benchmark's, with what tells it from another group of the same name."""
    alike: dict[tuple[bool, str], list[RunGroup]] = defaultdict(list)
    for group in groups:
        # Smoke runs and generated images carry a badge, so that they need no other name.
        alike[group.apart, _own_label(group)].append(group)
    return {
        group: f"{label} ({mark})" if len(members) > 1 else label
        for (_, label), members in alike.items()
        for group, mark in zip(members, _marks(members), strict=True)
    }


def _marks(groups: Sequence[RunGroup]) -> list[str]:
    """Return by which each group is known among groups of one name: its recipe or, where they share it, its images."""
    recipes = [group.latest.fingerprint[:6] for group in groups]
    return [
        recipe if recipes.count(recipe) == 1 else f"{recipe}, images {group.latest.data_fingerprint[:6] or 'unknown'}"
        for group, recipe in zip(groups, recipes, strict=True)
    ]


def _own_label(group: RunGroup) -> str:
    if not group.changed:
        return group.name
    return f"{group.name} ({group.changed[0] if len(group.changed) == 1 else 'changed recipe'})"


def by_run(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the rows of a table by the run that they belong to."""
    return {str(run_id): rows for run_id, rows in frame.groupby("run_id", sort=False)}


def of_group(frames: Mapping[str, pd.DataFrame], members: RunGroup, empty: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the runs of a group, from what :func:`by_run` returned.

    Args:
        frames: Rows by run.
        members: The group.
        empty: A table without rows, for a group that has none.
    """
    found = [frames[run.id] for run in members.runs if run.id in frames]
    return pd.concat(found, ignore_index=True) if found else empty.head(0)


def _run(row: Mapping[Any, Any], series: Mapping[str, Series], once: Mapping[str, float]) -> Run:
    run = Run(**RunRow.fields_of(row), metrics=series, once=once)
    return replace(run, metrics=_without_times(series), once=_without_times(once)) if run.shared_device else run


def _measure(run: Run) -> None:
    """Compute once whatever is computed from a single run, so that it fails here or nowhere."""
    for name in (
        "not_finite",
        "epochs",
        "train_seconds",
        "images_per_second",
        "epoch_seconds",
        "peak_memory",
        "flops",
    ):
        getattr(run, name)
    for split in SPLITS:
        run.timed_accuracy(split)
    run.started.timestamp()
    json.dumps(run.environment, sort_keys=True)
    hash(tuple(run.trial_params.values()))
    for value in (*run.recipe.values(), *run.trial_params.values()):
        comparable(value)


def _without_times(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not key.startswith("time/") and not key.endswith("_seconds")}


def _group(members: Sequence[Run], planned: frozenset[int]) -> RunGroup:
    counted = one_per_seed(members)
    chosen = {run.id for run in counted}
    texts = dict.fromkeys(run.benchmark_json for run in members if run.benchmark_json)
    return RunGroup(
        runs=tuple(sorted(counted, key=lambda run: (run.seed is None, run.seed or 0))),
        repeats=tuple(run for run in members if run.id not in chosen),
        definition=next((found for text in reversed(texts) if (found := _definition(text)) is not None), None),
        planned=planned,
    )


def place_names(runs: Sequence[Run]) -> dict[Place, str]:
    """Return each place that runs are of, with its device's name and what tells its machine from others of it."""
    kinds: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for run in runs:
        kinds[run.device].append(run.machine)
    return {
        (device, kind): f"{device} ({mark})" if mark else device
        for device, found in kinds.items()
        for kind, mark in kind_marks(found).items()
    }


def _definition(text: str) -> Benchmark | None:
    try:
        return Benchmark.model_validate_json(text)
    except ValidationError:
        return None


def _changed_keys(run: Run, definition: Benchmark) -> tuple[str, ...]:
    recipe = definition.profiles.get("smoke") if run.profile == "smoke" else definition.recipe
    if recipe is None or recipe.fingerprint == run.fingerprint:
        return ()
    return differing_keys(run, recipe) or ("its fingerprint",)


def differing_keys(run: Run, recipe: Recipe) -> tuple[str, ...]:
    """Return the recipe keys in which a run differs from a recipe."""
    ours = {key: comparable(value) for key, value in run.recipe.items()}
    theirs = {key: comparable(value) for key, value in recipe.flat().items()}
    return tuple(unequal_keys(ours, theirs))


def comparable(value: Any) -> Any:
    """Return a value in one spelling, whether it comes from a recipe or was logged as text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return value
    if isinstance(value, list | tuple):
        return tuple(comparable(item) for item in value)
    if isinstance(value, dict):
        return tuple(sorted((key, comparable(below)) for key, below in value.items()))
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


# --- what one run measured -----------------------------------------------------------------------


def peak_flops(run: Run) -> float | None:
    """Return the FLOP/s of a large matrix multiplication on the run's device."""
    try:
        found = float(run.tags[tag("peak_flops")])
    except (KeyError, ValueError):
        found = run.number(OLD_PEAK_FLOPS) or 0.0
    return found if found > 0 and math.isfinite(found) else None


def _in_order(series: Series) -> list[float]:
    return [series[epoch] for epoch in sorted(series)]


def _relative_pixels(run: Run) -> float:
    """Return the pixels of a training image, on average over the run, per pixel that operations are counted for."""
    sizes = run.recipe.get("augmentation.sizes")
    if sizes is None or run.epochs is None:
        return 1.0
    return relative_pixels(
        [(size["pixels"], size["epochs"]) for size in json.loads(sizes)],
        full_size=_full_size(run),
        epochs=run.epochs,
    )


def _full_size(run: Run) -> int:
    """Return the height and width of the images that operations are counted for."""
    given = run.recipe.get("augmentation.resize") or run.recipe.get("data.description.image_size")
    return int(given or DATASETS[run.dataset].image_size)


def _overall_images_per_second(run: Run) -> float | None:
    rates, seconds = run.series("time/images_per_second"), run.series("time/epoch_seconds")
    epochs = [epoch for epoch in rates if epoch in seconds]
    spent = sum(seconds[epoch] for epoch in epochs)
    return sum(rates[epoch] * seconds[epoch] for epoch in epochs) / spent if spent else None
