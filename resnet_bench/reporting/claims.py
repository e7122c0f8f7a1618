"""Each claim beside our runs: the rows that the terminal, the Markdown and the page share."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.claims import Claim
from resnet_bench.reporting import statistics as rules
from resnet_bench.reporting.results import Group, Run
from resnet_bench.reporting.statistics import RECOMMENDED_SEEDS, Interval, TimesToAccuracy, Verdict


@dataclass(frozen=True)
class ClaimRow:
    """One claim of one benchmark, and what a group of our runs says of it."""

    group: Group
    claim: Claim | None
    """None for a benchmark that claims nothing, or whose record cannot be read."""
    verdict: Verdict
    headline: bool
    """The first claim of the benchmark; the others are shown beneath it."""
    notes: tuple[str, ...] = ()

    @property
    def benchmark(self) -> str:
        """The benchmark's name."""
        return self.group.name

    @property
    def title(self) -> str:
        """Title of the source."""
        definition = self.group.definition
        return definition.source.title if definition else ""

    @property
    def split(self) -> str:
        """The split that the numbers are from."""
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
            value = run.last_accuracy(self.split)
            if self.claim is not None:
                value = rules.selected(self.claim, run.accuracy(self.split, metric=self.claim.metric))
            if value is not None:
                found[str(run.seed if run.seed is not None else run.id[:8])] = value
        return found

    @property
    def metric(self) -> str:
        """What the claim is of: ``accuracy``, or ``accuracy_augmented`` with test-time augmentation."""
        return self.claim.metric if self.claim is not None else "accuracy"

    @property
    def last_epoch(self) -> float | None:
        """Mean accuracy at the last epoch: our headline, whatever the claim selects."""
        values = self.group.values(self.split, metric=self.metric)
        return statistics.fmean(values) if values else None

    @property
    def plain(self) -> float | None:
        """Mean accuracy at the last epoch in eval mode over all images, none of them augmented."""
        values = self.group.values(self.split, plain=True)
        return statistics.fmean(values) if values else None

    @property
    def selection_gain(self) -> float | None:
        """Mean over the seeds of best epoch minus last epoch, in points."""
        return self.group.selection_gain(self.split, metric=self.metric)

    @cached_property
    def bootstrap(self) -> Interval | None:
        """95% percentile bootstrap interval of the mean, shown on demand."""
        return rules.bootstrap_interval(list(self.seeds.values()))

    @property
    def device(self) -> str:
        """The device that most seeds ran on; times and throughput are its."""
        return next(iter(self.group.devices))

    @property
    def seconds(self) -> float | None:
        """Median training time of a run on that device."""
        return median(run.train_seconds for run in self.group.devices[self.device])

    @property
    def images_per_second(self) -> float | None:
        """Median throughput of a run on that device."""
        return median(run.images_per_second for run in self.group.devices[self.device])

    @property
    def command(self) -> str | None:
        """What makes the runs that a verdict lacks; None where it lacks none."""
        verdict = self.verdict
        too_few = verdict.word == "not judged" and verdict.n < rules.MIN_SEEDS
        if self.claim is None or not (verdict.word == "inconclusive" or self.group.apart or too_few):
            return None
        if self.group.changed and not self.group.apart:
            return None
        return run_command(self.benchmark, 2 * RECOMMENDED_SEEDS if verdict.word == "inconclusive" else None)


@dataclass(frozen=True)
class Missing:
    """A benchmark without a run that could be judged."""

    benchmark: Benchmark
    why: str

    @property
    def command(self) -> str:
        """What makes the runs."""
        return run_command(self.benchmark.name)


@dataclass(frozen=True)
class Claims:
    """Every row, those that may be judged apart from those that never are."""

    rows: tuple[ClaimRow, ...]
    """Full profile, real images; a row a claim, headline first."""
    apart: tuple[ClaimRow, ...]
    """Smoke profile or generated images: for trying the software."""
    missing: tuple[Missing, ...]

    @property
    def headlines(self) -> list[ClaimRow]:
        """The rows that stand for their benchmark, as its source describes it."""
        return [row for row in self.rows if row.headline and not row.group.changed]


def run_command(benchmark: str, seeds: int | None = None) -> str:
    """The command that runs a benchmark so that it can be judged."""
    return f"resnet-bench run {benchmark} --profile full --seeds {seeds or RECOMMENDED_SEEDS}"


def build(groups: Sequence[Group], registry: Mapping[str, Benchmark], names: Sequence[str] | None = None) -> Claims:
    """Hold every group of runs against the claims of its benchmark.

    Args:
        groups: Finished runs, those that repeat one experiment together.
        registry: The benchmarks there are, in the order to show them.
        names: Only these benchmarks; all where not given.
    """
    order = {name: place for place, name in enumerate(registry)}

    def place(group: Group) -> tuple[object, ...]:
        return order.get(group.name, len(order)), group.name, bool(group.changed), -group.latest.started.timestamp()

    rows = [row for group in sorted(groups, key=place) for row in _rows(group, registry.get(group.name))]
    shown = [benchmark for name, benchmark in registry.items() if names is None or name in names]
    judgeable = {row.benchmark for row in rows if not row.group.apart}
    apart = {row.benchmark for row in rows if row.group.apart}
    return Claims(
        rows=tuple(row for row in rows if not row.group.apart),
        apart=tuple(row for row in rows if row.group.apart and row.headline),
        missing=tuple(
            Missing(
                benchmark,
                "only smoke runs or generated images so far" if benchmark.name in apart else "no finished run yet",
            )
            for benchmark in shown
            if benchmark.name not in judgeable
        ),
    )


def times_to_accuracy(group: Group, target: float, device: str) -> TimesToAccuracy | None:
    """When the runs of a group reached an accuracy on a device.

    Args:
        group: Runs of one experiment.
        target: Accuracy in percent, on the split that is evaluated while training.
        device: Times of different devices are never mixed.

    Returns:
        None where no run has both times and accuracies.
    """
    runs = [run for run in group.devices[device] if run.timed_accuracy(group.curve_split)]
    if not runs:
        return None
    return TimesToAccuracy(
        target,
        tuple(rules.time_to_accuracy(run.timed_accuracy(group.curve_split), target) for run in runs),
        sum(run.train_seconds or 0.0 for run in runs),
    )


def evaluation_interval(runs: Sequence[Run], split: str) -> int | None:
    """Epochs between two evaluations: how finely a time to an accuracy can be told."""
    gaps: list[int] = []
    for run in runs:
        epochs = [epoch for epoch in run.accuracy(split) if epoch > 0]
        gaps += [later - earlier for earlier, later in pairwise(epochs)]
    return int(statistics.median(gaps)) if gaps else None


def median(values: Iterable[float | None]) -> float | None:
    """Median of the values that are there; None where there are none."""
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None


def _rows(group: Group, current: Benchmark | None) -> list[ClaimRow]:
    definition = group.definition
    notes = _notes(group, current)
    if definition is None or not definition.claims:
        unknown = "the benchmark's record cannot be read, so its claims are not known"
        described = rules.describe(group.values(group.split))
        if definition is None:
            described = Verdict(**{**vars(described), "reason": unknown})
        return [ClaimRow(group, None, described, headline=True, notes=notes)]
    # What a changed recipe does to the other claims is of no interest.
    claims = definition.claims[:1] if group.changed else definition.claims
    return [
        ClaimRow(group, claim, _verdict(group, claim), headline=place == 0, notes=notes)
        for place, claim in enumerate(claims)
    ]


def _verdict(group: Group, claim: Claim) -> Verdict:
    run = group.latest
    return rules.verdict(
        claim,
        [member.accuracy(claim.split, metric=claim.metric) for member in group.runs],
        full_profile=run.profile == "full",
        generated=run.generated,
        same_dataset=group.apart or group.published_images,
        changed=group.changed,
    )


def _notes(group: Group, current: Benchmark | None) -> tuple[str, ...]:
    notes = []
    if len(group.devices) > 1:
        counted = ", ".join(
            f"{sum(run.id in {chosen.id for chosen in group.runs} for run in runs)} on {device or 'an unnamed device'}"
            for device, runs in group.devices.items()
        )
        notes.append(f"seeds from several devices: {counted}")
    precisions = sorted({run.precision for run in group.runs})
    if len(precisions) > 1:
        notes.append(f"several precisions: {', '.join(precisions)}")
    if any(run.shared_device for run in group.runs):
        notes.append("some seeds were trained at once on one device, and their times are left out")
    commits = {run.code_commit for run in group.runs}
    if len(commits) > 1:
        notes.append(f"{len(commits)} code commits")
    if not group.apart and group.definition is not None and not group.published_images:
        notes.append(f"the images are not the published ones of {group.definition.recipe.data.dataset}")
    if any(run.code_dirty for run in group.runs):
        notes.append("some runs were made from uncommitted code")
    recipe = None if current is None else current.profiles.get("smoke") if group.apart else current.recipe
    if recipe is not None and not group.changed and recipe.fingerprint != group.latest.fingerprint:
        notes.append("the benchmark's file has changed since these runs")
    if current is None:
        notes.append("no file of this name in benchmarks/")
    return tuple(notes)
