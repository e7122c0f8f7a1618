"""The runs of the tables as values: which belong together, which count, and what each measured."""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import Any

import pandas as pd
from pydantic import ValidationError

from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.datasets import DATASETS
from resnet_bench.recipe.settings import relative_pixels
from resnet_bench.reporting.schema import TAG, Tables
from resnet_bench.reporting.statistics import best_evaluation, last_evaluation, typical_epoch

Series = Mapping[int, float]
"""Values of one metric under the epoch or the optimizer step that they belong to."""


@dataclass(frozen=True, eq=False)
class Run:
    """One run: who, what, where, and everything it measured."""

    id: str
    store: str
    name: str
    role: str
    status: str
    reason: str
    benchmark: str
    profile: str
    seed: int | None
    fingerprint: str
    dataset: str
    data_source: str
    data_fingerprint: str
    generated: bool
    device: str
    device_type: str
    precision: str
    host: str
    code_commit: str
    code_dirty: bool
    version: str
    parameters: int | None
    macs: int | None
    started: datetime
    parent_run_id: str
    study: str
    arm: str
    trial_number: int | None
    trial_state: str
    recipe: Mapping[str, str] = field(repr=False)
    """Dotted recipe keys and their values as text."""
    environment: Mapping[str, Any] = field(repr=False)
    execution: Mapping[str, Any] = field(repr=False)
    tags: Mapping[str, str] = field(repr=False)
    benchmark_json: str = field(repr=False)
    trial_params: Mapping[str, Any] = field(repr=False)
    search_space: Mapping[str, Any] = field(repr=False)
    sampler: str = field(repr=False)
    pruner: str = field(repr=False)
    metrics: Mapping[str, Series] = field(repr=False, default_factory=dict)
    """Per-epoch and per-step metrics by key; fractions and seconds as they were logged."""
    once: Mapping[str, float] = field(repr=False, default_factory=dict)
    """Metrics logged once."""

    @property
    def finished(self) -> bool:
        """Whether the run was trained to its end."""
        return self.status == "FINISHED"

    @property
    def shared_device(self) -> bool:
        """Whether other runs shared the device; its times are left out then, as they say nothing about it alone."""
        return f"{TAG}seeds_per_device" in self.tags

    def accuracy(self, split: str, *, plain: bool = False, metric: str = "accuracy") -> dict[int, float]:
        """Accuracy in percent by epoch; the final one stands at the last epoch where none was logged there.

        Args:
            split: ``train``, ``validation`` or ``test``.
            plain: In eval mode over all images, instead of the source's way.
            metric: ``accuracy``, or ``accuracy_augmented`` for that with test-time augmentation.
        """
        name = "accuracy_plain" if plain else metric
        curve = {
            epoch: 100 * value
            for epoch, value in self.metrics.get(f"{split}/{name}", {}).items()
            if math.isfinite(value)
        }
        final = self.once.get(f"final/{split}_{name}")
        if final is not None and math.isfinite(final) and self.epochs is not None:
            curve.setdefault(self.epochs, 100 * final)
        return dict(sorted(curve.items()))

    def last_accuracy(self, split: str, *, plain: bool = False, metric: str = "accuracy") -> float | None:
        """Accuracy in percent at the last epoch that was evaluated."""
        return last_evaluation(self.accuracy(split, plain=plain, metric=metric))

    def selection_gain(self, split: str, *, metric: str = "accuracy") -> float | None:
        """Points that picking the best epoch would add to the last one; None where there is nothing to pick from."""
        curve = self.accuracy(split, metric=metric)
        best, last = best_evaluation(curve), last_evaluation(curve)
        return None if best is None or last is None or len(curve) < 2 else best - last

    @cached_property
    def epochs(self) -> int | None:
        """Epochs that the recipe trains for."""
        text = self.recipe.get("training.epochs", "")
        return int(text) if text.isdigit() else None

    @cached_property
    def train_seconds(self) -> float | None:
        """Training time of the whole run: evaluation, set-up and compilation are not in it."""
        final = self.once.get("final/train_seconds")
        return final if final is not None else last_evaluation(self.metrics.get("time/train_seconds", {}))

    @cached_property
    def images_per_second(self) -> float | None:
        """Throughput while training: the median over the epochs, the first dropped."""
        return self._typical("time/images_per_second")

    @cached_property
    def epoch_seconds(self) -> float | None:
        """Training time of an epoch: the median over the epochs, the first dropped."""
        return self._typical("time/epoch_seconds")

    @cached_property
    def peak_memory(self) -> float | None:
        """Peak memory in bytes over all epochs."""
        return best_evaluation(self.metrics.get("memory/peak_bytes", {}))

    @cached_property
    def flops(self) -> float | None:
        """Model FLOP/s: three forward passes an image (backward costs two), two operations a multiply-add.

        Where images grow while training, epochs are no repeats of one another, and the whole run counts.
        """
        rate = self.images_per_second if self._image_area == 1 else self._images_per_second_overall
        if self.macs is None or rate is None:
            return None
        return 3 * 2 * self.macs * self._image_area * rate

    @property
    def _image_area(self) -> float:
        """Pixels of a training image, on average over the run, as a part of those that operations are counted for."""
        sizes = self.recipe.get("augmentation.sizes")
        if sizes is None or self.epochs is None:
            return 1.0
        return relative_pixels(
            [(size["pixels"], size["epochs"]) for size in json.loads(sizes)],
            full_size=int(self.recipe.get("augmentation.resize", DATASETS[self.dataset].image_size)),
            epochs=self.epochs,
        )

    @property
    def _images_per_second_overall(self) -> float | None:
        rates, seconds = self.metrics.get("time/images_per_second", {}), self.metrics.get("time/epoch_seconds", {})
        epochs = [epoch for epoch in rates if epoch in seconds]
        spent = sum(seconds[epoch] for epoch in epochs)
        return sum(rates[epoch] * seconds[epoch] for epoch in epochs) / spent if spent else None

    def timed_accuracy(self, split: str) -> list[tuple[float, float]]:
        """Training seconds so far and accuracy in percent of each evaluation after the first epoch."""
        seconds = self.metrics.get("time/train_seconds", {})
        return [(seconds[epoch], value) for epoch, value in self.accuracy(split).items() if epoch in seconds]

    def _typical(self, key: str) -> float | None:
        series = self.metrics.get(key, {})
        values = [series[epoch] for epoch in sorted(series) if math.isfinite(series[epoch])]
        return typical_epoch(values) if values else None


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that repeat one experiment: the same benchmark, profile, recipe and images."""

    runs: tuple[Run, ...]
    """One finished run a seed: those that count. Runs with different recipes are never in one group."""
    repeats: tuple[Run, ...]
    """Finished runs of seeds that are in ``runs`` already; they count for times only."""
    definition: Benchmark | None
    """The benchmark as the latest run recorded it; None where its artifact is missing or damaged."""

    @cached_property
    def latest(self) -> Run:
        """The run that was started last: the one to ask for what all have in common."""
        return max(self.runs, key=lambda run: run.started)

    @property
    def name(self) -> str:
        """The benchmark's name."""
        return self.latest.benchmark

    @property
    def key(self) -> str:
        """An identifier of the group that is the same every time."""
        run = self.latest
        return "-".join((run.benchmark, run.profile, run.fingerprint[:8], run.data_fingerprint[:8])).rstrip("-")

    @property
    def apart(self) -> bool:
        """Whether the runs were made to try the software: in the smoke profile or on generated images."""
        return self.latest.profile != "full" or self.latest.generated

    @cached_property
    def published_images(self) -> bool:
        """Whether the runs used exactly the dataset that the benchmark's recipe names, as it was published."""
        run = self.latest
        if self.definition is None or run.dataset != self.definition.recipe.data.dataset:
            return False
        return run.dataset in DATASETS and run.data_fingerprint == DATASETS[run.dataset].fingerprint

    @cached_property
    def all_runs(self) -> tuple[Run, ...]:
        """Every finished run, repeated seeds included."""
        return (*self.runs, *self.repeats)

    @cached_property
    def devices(self) -> dict[str, list[Run]]:
        """Every finished run by the device it ran on, the device with most seeds first."""
        return _by_device(self.all_runs)

    @cached_property
    def changed(self) -> tuple[str, ...]:
        """Recipe keys in which the runs differ from the benchmark that they are named after."""
        if self.definition is None:
            return ()
        run = self.latest
        profile = self.definition.profiles.get("smoke") if run.profile == "smoke" else self.definition.recipe
        if profile is None or profile.fingerprint == run.fingerprint:
            return ()
        ours = {key: _plain(value) for key, value in run.recipe.items()}
        theirs = {key: _plain(value) for key, value in profile.flat().items()}
        keys = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        return tuple(keys) or ("its fingerprint",)

    @property
    def split(self) -> str:
        """The split that the headline number is from: that of the first claim, else the test set."""
        if self.definition is not None and self.definition.claims:
            return self.definition.claims[0].split
        return "test"

    @property
    def curve_split(self) -> str:
        """The split with an accuracy at more than one epoch, the headline's where it has one."""
        for split in (self.split, "test", "validation"):
            if any(len(run.accuracy(split)) > 1 for run in self.runs):
                return split
        return self.split

    def values(self, split: str, *, plain: bool = False, metric: str = "accuracy") -> list[float]:
        """Last accuracy of each seed in percent."""
        found = (run.last_accuracy(split, plain=plain, metric=metric) for run in self.runs)
        return [value for value in found if value is not None]

    def selection_gain(self, split: str, *, metric: str = "accuracy") -> float | None:
        """Mean over the seeds of what picking the best epoch would add, in points."""
        gains = [gain for run in self.runs if (gain := run.selection_gain(split, metric=metric)) is not None]
        return statistics.fmean(gains) if gains else None


def load(tables: Tables) -> list[Run]:
    """Every run of the tables, oldest first."""
    series: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    once: dict[str, dict[str, float]] = defaultdict(dict)
    for run_id, metric, axis, step, value in tables.metrics[["run_id", "metric", "axis", "step", "value"]].itertuples(
        index=False, name=None
    ):
        if axis == "once":
            once[run_id][metric] = value
        else:
            series[run_id][metric][step] = value
    return [
        _run(row, series.get(row["run_id"], {}), once.get(row["run_id"], {}))
        for row in tables.runs.sort_values(["started", "run_id"]).to_dict("records")
    ]


def group(runs: Iterable[Run]) -> list[Group]:
    """Finished benchmark runs, those that repeat one experiment together.

    Within a group a seed counts once. Where several devices ran it, the device with the most seeds comes
    first, and others add only the seeds that it lacks; of several runs the latest counts.
    """
    together: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in runs:
        if run.role == "run" and run.finished:
            key = (run.benchmark, run.profile, run.fingerprint, run.data_fingerprint, str(run.generated))
            together[key].append(run)
    return [_group(members) for _, members in sorted(together.items())]


def of_run_ids(frame: pd.DataFrame, runs: Sequence[Run]) -> pd.DataFrame:
    """The rows of a table that belong to some runs."""
    return frame[frame["run_id"].isin([run.id for run in runs])]


def _group(members: Sequence[Run]) -> Group:
    counted: dict[object, Run] = {}
    for runs in _by_device(members).values():
        latest = {run.seed if run.seed is not None else run.id: run for run in runs}
        counted = latest | counted
    chosen = {run.id for run in counted.values()}
    definitions = [definition for run in members if (definition := _definition(run)) is not None]
    return Group(
        runs=tuple(sorted(counted.values(), key=lambda run: (run.seed is None, run.seed or 0))),
        repeats=tuple(run for run in members if run.id not in chosen),
        definition=definitions[-1] if definitions else None,
    )


def _by_device(runs: Sequence[Run]) -> dict[str, list[Run]]:
    devices: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        devices[run.device].append(run)

    def seeds_and_age(device: str) -> tuple[int, float]:
        return len({run.seed for run in devices[device]}), devices[device][-1].started.timestamp()

    return {device: devices[device] for device in sorted(devices, key=seeds_and_age, reverse=True)}


def _definition(run: Run) -> Benchmark | None:
    if not run.benchmark_json:
        return None
    try:
        return Benchmark.model_validate_json(run.benchmark_json)
    except ValidationError:
        return None


def _run(row: Mapping[Any, Any], series: Mapping[str, Series], once: Mapping[str, float]) -> Run:
    plain: dict[str, Any] = {
        str(key): None if value is pd.NA or value is pd.NaT else value for key, value in row.items()
    }
    for name in ("recipe", "environment", "execution", "tags", "trial_params", "search_space"):
        plain[name] = _json_object(plain[name])
    for name in ("experiment", "ended"):
        del plain[name]
    plain["id"] = plain.pop("run_id")
    plain["started"] = plain["started"].to_pydatetime()
    run = Run(**plain, metrics=series, once=once)
    return replace(run, metrics=_without_times(series), once=_without_times(once)) if run.shared_device else run


def _without_times(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not key.startswith("time/") and not key.endswith("_seconds")}


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _plain(value: Any) -> Any:
    """A value in one spelling, whether it comes from a recipe or was logged as text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return value
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, dict):
        return tuple(sorted((key, _plain(below)) for key, below in value.items()))
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
