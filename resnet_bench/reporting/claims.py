"""Compare each claim with our runs: the rows that the Markdown and the page share."""

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from resnet_bench.base.text import listed
from resnet_bench.judging.intervals import Interval, bootstrap_interval
from resnet_bench.judging.planned import seeds_text
from resnet_bench.judging.target import TimesToAccuracy, held_levels, time_to_accuracy
from resnet_bench.judging.verdict import MIN_SEEDS, RECOMMENDED_SEEDS, Verdict, describe, selected, verdict
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.claims import Claim
from resnet_bench.recipe.datasets import DATASETS
from resnet_bench.recipe.files import scan_benchmarks
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.reporting import reading
from resnet_bench.reporting import runs as report_runs
from resnet_bench.reporting.run_cost import RunCost, run_cost
from resnet_bench.reporting.runs import Run, RunGroup
from resnet_bench.tracking.vocabulary import current_metric, tag

_PUBLISHED = ["published"]
"""The orders of runs that all took images in the source's order."""


@dataclass(frozen=True)
class ClaimRow:
    """One claim of one benchmark, and what a group of our runs says about it."""

    group: RunGroup
    claim: Claim | None
    """None for a benchmark that claims nothing, or whose record cannot be read."""
    verdict: Verdict
    headline: bool
    """The first claim of the benchmark; the others stand beneath it."""
    cost: RunCost
    """What one run takes."""
    notes: tuple[str, ...] = ()

    @property
    def benchmark(self) -> str:
        return self.group.name

    @property
    def title(self) -> str:
        definition = self.group.definition
        return definition.source.title if definition else ""

    @property
    def split(self) -> str:
        return self.claim.split if self.claim else self.group.split

    @property
    def claim_text(self) -> str:
        """The claim as a table shows it."""
        if self.claim is None:
            return "no number claimed"
        where = "" if self.claim.split == "test" else f" {self.claim.split}"
        return self.claim.text + where

    @cached_property
    def seeds(self) -> dict[str, float]:
        """Accuracy by the claim's own statistic, by seed."""
        found = {}
        for run in self.group.runs:
            value = self.accuracy(run)
            if value is not None:
                found[str(run.seed if run.seed is not None else run.id[:8])] = value
        return found

    def accuracy(self, run: Run) -> float | None:
        """Return a run's accuracy in percent by the claim's own statistic; None where it has none."""
        if self.claim is None:
            return run.last_accuracy(self.split)
        return selected(self.claim, run.accuracy(self.split, self.claim.metric))

    @property
    def metric(self) -> str:
        """What the claim is about: ``accuracy``, or ``accuracy_tta`` with test-time augmentation."""
        return current_metric(self.claim.metric) if self.claim is not None else "accuracy"

    @cached_property
    def last_epoch(self) -> float | None:
        """Mean accuracy at the last epoch: our headline, whatever the claim selects."""
        values = self.group.values(self.split, self.metric)
        return statistics.fmean(values) if values else None

    @cached_property
    def standard(self) -> float | None:
        """Mean standard accuracy at the last epoch: in eval mode, per image, without TTA."""
        values = self.group.values(self.split, "accuracy_standard")
        return statistics.fmean(values) if values else None

    @cached_property
    def selection_gain(self) -> float | None:
        """Mean over the seeds of best epoch minus last epoch, in percentage points."""
        return self.group.selection_gain(self.split, self.metric)

    @cached_property
    def bootstrap(self) -> Interval | None:
        """95% percentile bootstrap interval of the mean, for those who ask."""
        return bootstrap_interval(list(self.seeds.values()))

    @property
    def device(self) -> str:
        """The device that most seeds with a time ran on, and without times most seeds."""
        return next(iter(self.group.devices))

    @property
    def command(self) -> str | None:
        """The command that trains the runs a verdict lacks; None where it lacks none."""
        word = self.verdict.word
        too_few = word == "not judged" and self.verdict.n < MIN_SEEDS
        missing, definition = self.group.missing_seeds, self.group.definition
        if definition is None or definition.name != self.benchmark:
            # The name is a tag that anybody may have written, and this text is there to be pasted into a shell.
            return None
        undecided = word == "inconclusive" and self.verdict.detectable is not None
        if undecided and self.claim is not None and _other_images(self.group, self.claim.split) is not None:
            # Their chance is as large with any number of seeds; the reason says what would help.
            return None
        if self.claim is None or not (undecided or self.group.apart or too_few or missing):
            return None
        if self.group.changed and not self.group.apart:
            return None
        if missing and not self.group.apart:
            return resume_command(self.benchmark, self.group.planned, missing)
        return run_command(self.benchmark, 2 * RECOMMENDED_SEEDS if undecided else None)


@dataclass(frozen=True)
class Missing:
    """A benchmark without a run that could be judged."""

    benchmark: Benchmark
    why: str

    @property
    def command(self) -> str:
        """The command that trains the runs."""
        return run_command(self.benchmark.name)


@dataclass(frozen=True)
class Claims:
    """Every row; those that may be judged, and those that never are."""

    rows: tuple[ClaimRow, ...]
    """Full profile, real images; one row per claim, headline first. Of one benchmark, the recipe of today's file comes
    first, then published images, then the latest runs."""
    apart: tuple[ClaimRow, ...]
    """Smoke profile or generated images: for trying the software."""
    missing: tuple[Missing, ...]

    @property
    def headlines(self) -> list[ClaimRow]:
        """The row that stands for each benchmark, as its source describes it; of several recipes the first."""
        first: dict[str, ClaimRow] = {}
        for row in self.rows:
            if row.headline and not row.group.changed:
                first.setdefault(row.benchmark, row)
        return list(first.values())


def run_command(benchmark: str, seeds: int | None = None) -> str:
    """Return the command that runs a benchmark so that it can be judged."""
    return f"resnet-bench run {benchmark} --profile full --seeds {seeds or RECOMMENDED_SEEDS}"


def read_claims(sources: Sequence[reading.Source], benchmarks: Sequence[str] | None = None) -> Claims:
    """Compare the runs in stores or tables of reports with the claims of their benchmarks.

    Args:
        sources: MLflow stores (tracking URIs), or folders with the tables of a report.
        benchmarks: Only these.

    Raises:
        UserError: No source could be read, or none holds a run.
    """
    loaded, _ = report_runs.load(reading.read(sources, benchmarks=benchmarks))
    return build(report_runs.group(loaded), scan_benchmarks()[0], benchmarks)


def resume_command(benchmark: str, planned: Collection[int], missing: Sequence[int]) -> str:
    """Return the command that finishes planned seeds."""
    from_zero = len(planned) == max(planned) + 1
    seeds = f"--seeds {len(planned)}" if from_zero else " ".join(f"--seed {seed}" for seed in missing)
    return f"resnet-bench run {benchmark} --profile full {seeds} --resume"


def build(groups: Sequence[RunGroup], registry: Mapping[str, Benchmark], names: Sequence[str] | None = None) -> Claims:
    """Compare every group of runs with the claims of its benchmark.

    Args:
        groups: Finished runs, those that repeat one experiment together.
        registry: The benchmarks there are, in the order to show them.
        names: Only these benchmarks; all where not given.
    """
    order = {name: place for place, name in enumerate(registry)}

    def place(group: RunGroup) -> tuple[object, ...]:
        return (
            order.get(group.name, len(order)),
            group.name,
            bool(group.changed),
            _is_current(group, registry.get(group.name)) is not True,
            not group.published_images,
            -group.latest.started.timestamp(),
        )

    costs = {group: run_cost(group, groups) for group in sorted(groups, key=place)}
    only_timed = {cost.timed for cost in costs.values()}
    rows = [
        row
        for group, cost in costs.items()
        if group not in only_timed
        for row in _rows(group, registry.get(group.name), cost)
    ]
    shown = [benchmark for name, benchmark in registry.items() if names is None or name in names]
    judgeable = {row.benchmark for row in rows if not row.group.apart and not row.group.changed}
    why = {row.benchmark: "only smoke runs or generated images so far" for row in rows if row.group.apart}
    why |= {row.benchmark: "only runs of a changed recipe so far" for row in rows if not row.group.apart}
    return Claims(
        rows=tuple(row for row in rows if not row.group.apart),
        apart=tuple(row for row in rows if row.group.apart and row.headline),
        missing=tuple(
            Missing(benchmark, why.get(benchmark.name, "no finished run yet"))
            for benchmark in shown
            if benchmark.name not in judgeable
        ),
    )


def times_to_accuracy(group: RunGroup, targets: Sequence[float], device: str) -> list[TimesToAccuracy]:
    """Return when the runs of a group reached each of several accuracies on a device.

    Args:
        group: Runs of one experiment.
        targets: Accuracies in percent, on the split that is evaluated during training.
        device: Times of different devices are never mixed.

    Returns:
        One entry per target; none at all where no run has both times and accuracies.
    """
    timed = [(run, points) for run in group.devices[device] if (points := run.timed_accuracy(group.curve_split))]
    if not timed:
        return []
    total = sum(run.train_seconds or 0.0 for run, _ in timed)
    levels = [held_levels(points) for _, points in timed]
    return [
        TimesToAccuracy(
            target,
            tuple(next((seconds for seconds, level in run if level >= target), math.inf) for run in levels),
            total,
        )
        for target in targets
    ]


def joules_to_accuracy(group: RunGroup, target: float, device: str) -> float | None:
    """Return the median energy at which the runs of a group reached an accuracy on a device.

    Args:
        group: Runs of one experiment.
        target: Accuracy in percent, on the split that is evaluated during training.
        device: Energies of different devices are never mixed.

    Returns:
        Joules, infinite where half of the runs or more missed it; None where no counter could be read.
    """
    measured = [points for run in group.devices[device] if (points := run.joules_to_accuracy(group.curve_split))]
    return statistics.median(time_to_accuracy(points, target) for points in measured) if measured else None


def evaluation_interval(runs: Sequence[Run], split: str) -> int | None:
    """Return the epochs between two evaluations: the resolution of a time to an accuracy."""
    gaps: list[int] = []
    for run in runs:
        epochs = [epoch for epoch in run.accuracy(split) if epoch > 0]
        gaps += [later - earlier for earlier, later in pairwise(epochs)]
    return int(statistics.median(gaps)) if gaps else None


def _rows(group: RunGroup, current: Benchmark | None, cost: RunCost) -> list[ClaimRow]:
    definition = group.definition
    notes = _notes(group, current, cost)
    if definition is None or not definition.claims:
        unknown = "the benchmark's record cannot be read, so its claims are unknown"
        described = describe(group.values(group.split))
        if definition is None:
            described = Verdict(**{**vars(described), "reason": unknown})
        return [ClaimRow(group, None, described, headline=True, cost=cost, notes=notes)]
    # A changed recipe says nothing about the other claims.
    claims = definition.claims[:1] if group.changed else definition.claims
    return [
        ClaimRow(group, claim, _verdict(group, claim), headline=place == 0, cost=cost, notes=notes)
        for place, claim in enumerate(claims)
    ]


def _verdict(group: RunGroup, claim: Claim) -> Verdict:
    latest = _judge_runs(group, claim, group.runs)
    first = _judge_runs(group, claim, group.first_runs) if group.doubled_seeds else latest
    if first.word == latest.word:
        return latest
    reason = f"seeds were repeated: by their first runs the claim is {first.word}, by their latest {latest.word}"
    return replace(latest, word="inconclusive", reason=reason)


def _judge_runs(group: RunGroup, claim: Claim, runs: Sequence[Run]) -> Verdict:
    run = group.latest
    return verdict(
        claim,
        [member.accuracy(claim.split, claim.metric) for member in runs],
        profile=run.profile,
        generated=run.generated,
        same_dataset=group.apart or group.published_images,
        changed=group.changed,
        missing=group.missing_seeds,
        other_images=_other_images(group, claim.split),
    )


def _other_images(group: RunGroup, split: str) -> int | None:
    """Count the images of a split where they are others than the source's: the order that chose them is not published.

    Returns:
        None where they are the source's, and where no claim is judged anyway.
    """
    recipe = _judged_recipe(group)
    if recipe is None or split == "test" or recipe.data.validation is None:
        return None
    if _orders(group, "validation_order") == _PUBLISHED:
        return None
    return recipe.data.validation.images if split == "validation" else recipe.data.num_train


def _judged_recipe(group: RunGroup) -> Recipe | None:
    """Return the source's recipe, where the runs may be judged by what it claims."""
    if group.definition is None or group.apart or group.changed or not group.published_images:
        return None
    return group.definition.recipe


def _orders(group: RunGroup, name: str) -> list[str]:
    """Return in which orders of the published images runs took some, by a tag; older ones took theirs unsaid."""
    return sorted({run.tags.get(tag(name), "") or "unknown" for run in group.runs})


def _notes(group: RunGroup, current: Benchmark | None, cost: RunCost) -> tuple[str, ...]:
    notes = []
    if len(group.devices) > 1:
        chosen = {run.id for run in group.runs}
        counted = ", ".join(
            f"{sum(run.id in chosen for run in runs)} on {device or 'an unnamed device'}"
            for device, runs in group.devices.items()
        )
        notes.append(f"seeds from several devices: {counted}")
    if group.doubled_seeds:
        seeds = seeds_text(group.doubled_seeds).replace(",", ", ")
        notes.append(f"seeds that finished more than once: {seeds}; the latest run of each counts")
    precisions = sorted({run.precision for run in group.runs})
    if len(precisions) > 1:
        notes.append(f"several precisions: {', '.join(precisions)}")
    notes += _order_notes(group)
    if any(run.shared_device for run in group.runs):
        notes.append("some seeds shared a device, and their times are left out")
    if cost.extrapolated_from:
        notes.append(f"time and images/s are extrapolated from {cost.extrapolated_from}")
    commits = {run.code_commit for run in group.runs}
    if len(commits) > 1:
        notes.append(f"{len(commits)} code commits")
    if not group.apart and group.definition is not None and not group.published_images:
        dataset = group.definition.recipe.data.dataset
        own = "your own dataset, on which no claim is judged"
        notes.append(f"the images are not the published ones of {dataset}" if dataset in DATASETS else own)
    if any(run.code_dirty for run in group.runs):
        notes.append("some runs were made from uncommitted code")
    if not group.changed and _is_current(group, current) is False:
        notes.append("the benchmark's file has changed since these runs")
    if current is None:
        notes.append("no file of this name in benchmarks/")
    notes += _left_out(group)
    return tuple(notes)


def _order_notes(group: RunGroup) -> list[str]:
    """Say which images are not the source's, because runs took them in another order than the published one."""
    notes = []
    orders = _orders(group, "validation_order")
    if len(orders) > 1:
        notes.append(f"validation images are taken in several orders: {listed(orders)}")
    elif (images := _other_images(group, "validation")) is not None:
        chosen = "chosen in canonical order, not in the published one"
        notes.append(f"the {images:,} validation images are not the source's: they were {chosen}")
    orders = _orders(group, "test_order")
    if len(orders) > 1:
        notes.append(f"test batches are filled in several orders: {listed(orders)}")
    elif (recipe := _judged_recipe(group)) is not None and recipe.evaluation.depends_on_order and orders != _PUBLISHED:
        filled = "filled in canonical order, not in the published one"
        notes.append(f"the test batches are not the source's: they were {filled}")
    return notes


def _is_current(group: RunGroup, current: Benchmark | None) -> bool | None:
    """Return whether the runs are of the recipe that the benchmark's file has today; None where it has none."""
    recipe = None if current is None else current.profiles.get("smoke") if group.apart else current.recipe
    return None if recipe is None else recipe.fingerprint == group.latest.fingerprint


def _left_out(group: RunGroup) -> list[str]:
    """Return what is said about values that are not finite, which no mean and no axis has."""
    found: dict[str, list[str]] = {}
    for run in group.all_runs:
        for metric in run.not_finite:
            found.setdefault(metric, []).append(str(run.seed if run.seed is not None else run.id[:8]))
    return [
        f"values of {metric} that are not finite are left out (seed {listed(seeds, 6)})"
        for metric, seeds in found.items()
    ]
