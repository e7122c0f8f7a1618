"""Follow a benchmark over commits and torch versions: accuracy, throughput, and the steps in them."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from resnet_bench.base.machine import kind_marks
from resnet_bench.base.text import DASH
from resnet_bench.judging import intervals
from resnet_bench.judging.intervals import SIGNIFICANCE, TIMING_THRESHOLD, Interval, mean_interval
from resnet_bench.judging.power import smallest_difference
from resnet_bench.reporting.runs import Run, claimed_metric, group
from resnet_bench.reporting.wording import accuracy_name, moment, number, signed


@dataclass(frozen=True)
class Change:
    """How the mean of a point differs from that of the point before it."""

    value: float
    """In percentage points of accuracy, or as a fraction of the throughput before."""
    p: float | None = None
    """Welch's, adjusted by Holm's method over all neighbors; None where one side has one run or neither varies."""
    step: bool = False
    """More than noise: the adjusted p is below 0.05 and, for throughput, the change is beyond 5%."""
    detectable: float | None = None
    """Without a step: the smallest change that these runs would have shown with 80% power, in the unit of value, at the
    level that Holm's method leaves them."""


@dataclass(frozen=True)
class PointValues:
    """One quantity of one point."""

    values: tuple[float, ...]
    """One number per run."""
    mean: float | None
    interval: Interval | None
    """95% CI of the mean (t)."""
    change: Change | None = None
    """None at the first point that has values."""


NOTHING = PointValues((), None, None)


@dataclass(frozen=True)
class HistoryPoint:
    """The runs of one commit and torch version."""

    commit: str
    dirty: bool
    """With uncommitted changes, which are kept apart."""
    torch: str
    started: datetime
    """When its first run started."""
    accuracy: PointValues
    """In percent at the last epoch, once per seed."""
    throughput: Mapping[str, PointValues]
    """In images/s, once per run, by kind of machine; runs that shared their device are left out."""
    shared_runs: int
    """How many those are."""


@dataclass(frozen=True)
class History:
    """The points of one experiment on one device, oldest first; nothing that trains otherwise is mixed in."""

    benchmark: str
    profile: str
    generated: bool
    fingerprint: str
    data_fingerprint: str
    device: str
    precision: str
    split: str
    metric: str
    """What its accuracies are: ``accuracy``, or ``accuracy_tta`` where the first claim is about that."""
    machines: tuple[str, ...]
    """Kinds of machines of that device's name, by what tells them apart; one empty text where there is one kind."""
    points: tuple[HistoryPoint, ...]


def histories(runs: Iterable[Run]) -> list[History]:
    """Follow each experiment on each device and in each precision.

    Accuracies of machines whose processors share a name are put together, throughputs never.

    Neighbors are compared by Welch's t test. Its p values are adjusted by Holm's method over all neighbors of a
    benchmark, accuracies and throughputs separately.

    Args:
        runs: Of any benchmarks; only finished benchmark runs count.

    Returns:
        By benchmark, those with most points first.
    """
    by_benchmark: dict[str, list[History]] = defaultdict(list)
    for members in group(runs):
        places: dict[tuple[str, str], list[Run]] = defaultdict(list)
        for run in members.all_runs:
            places[run.device, run.precision].append(run)
        for (device, precision), there in places.items():
            latest = members.latest
            marks = kind_marks([run.machine for run in sorted(there, key=lambda run: run.started)])
            found = History(
                benchmark=latest.benchmark,
                profile=latest.profile,
                generated=latest.generated,
                fingerprint=latest.fingerprint,
                data_fingerprint=latest.data_fingerprint,
                device=device,
                precision=precision,
                split=members.split,
                metric=claimed_metric(members.definition),
                machines=tuple(marks.values()),
                points=_points(there, members.split, claimed_metric(members.definition), marks),
            )
            by_benchmark[found.benchmark].append(found)
    return [history for _, found in sorted(by_benchmark.items()) for history in _with_steps(found)]


def _points(
    runs: Sequence[Run], split: str, metric: str, marks: Mapping[tuple[str, ...], str]
) -> tuple[HistoryPoint, ...]:
    together: dict[tuple[str, bool, str], list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.started):
        together[run.code_commit, run.code_dirty, str(run.environment.get("torch") or "")].append(run)
    points = []
    for (commit, dirty, torch), there in together.items():
        # Of several runs of a seed the latest counts.
        seeds = {run.id if run.seed is None else run.seed: run for run in there}
        accuracies = [value for run in seeds.values() if (value := run.last_accuracy(split, metric)) is not None]
        rates: dict[str, list[float]] = defaultdict(list)
        for run in there:
            if (rate := run.images_per_second) is not None and rate > 0:
                rates[marks[run.machine]].append(rate)
        throughput = {machine: _measured(values) for machine, values in rates.items()}
        shared = sum(run.shared_device for run in there)
        points.append(HistoryPoint(commit, dirty, torch, there[0].started, _measured(accuracies), throughput, shared))
    return tuple(points)


def _measured(values: Sequence[float]) -> PointValues:
    return PointValues(tuple(values), statistics.fmean(values) if values else None, mean_interval(values))


# --- steps ---------------------------------------------------------------------------------------


def _with_steps(found: Sequence[History]) -> list[History]:
    """Compare the neighbors of all histories of a benchmark."""
    accuracies = _compared([[point.accuracy for point in history.points] for history in found], is_rate=False)
    rates = [
        [point.throughput.get(machine, NOTHING) for point in history.points]
        for history in found
        for machine in history.machines
    ]
    compared = iter(_compared(rates, is_rate=True))
    whole = []
    for history, of_accuracy in zip(found, accuracies, strict=True):
        of_machine = {machine: next(compared) for machine in history.machines}
        points = (
            replace(
                point,
                accuracy=of_accuracy[place],
                throughput={machine: of_machine[machine][place] for machine in point.throughput},
            )
            for place, point in enumerate(history.points)
        )
        whole.append(replace(history, points=tuple(points)))
    return sorted(whole, key=lambda history: (-len(history.points), history.profile, history.device))


def _compared(series: Sequence[Sequence[PointValues]], *, is_rate: bool) -> list[list[PointValues]]:
    """Compare each point with the last one before it that has values, and adjust the p values."""
    made: list[list[tuple[PointValues, Sequence[float]]]] = []
    for points in series:
        before: Sequence[float] = ()
        row = []
        for point in points:
            changed = (
                replace(point, change=_change_from(before, point.values, is_rate)) if before and point.values else point
            )
            row.append((changed, before))
            before = point.values or before
        made.append(row)
    tested = [change.p for row in made for point, _ in row if (change := point.change) and change.p is not None]
    adjusted = iter(zip(intervals.holm(tested), intervals.holm_levels(tested), strict=True))
    return [[_worded(point, before, adjusted, is_rate) for point, before in row] for row in made]


def _change_from(before: Sequence[float], after: Sequence[float], is_rate: bool) -> Change:
    found = intervals.welch(before, after)
    return Change(found.value / (statistics.fmean(before) if is_rate else 1.0), found.p)


def _worded(
    point: PointValues, before: Sequence[float], adjusted: Iterator[tuple[float, float]], is_rate: bool
) -> PointValues:
    change = point.change
    if change is None or change.p is None:
        return point
    p, level = next(adjusted)
    step = p < SIGNIFICANCE and (not is_rate or abs(change.value) > TIMING_THRESHOLD)
    detectable = None if step else _detectable(before, point.values, level, is_rate)
    return replace(point, change=Change(change.value, p, step=step, detectable=detectable))


def _detectable(before: Sequence[float], after: Sequence[float], level: float, is_rate: bool) -> float | None:
    if not is_rate:
        return smallest_difference(before, after, alpha=level)
    mean = statistics.fmean(before)
    seen = smallest_difference(before, after, alpha=level, margin=TIMING_THRESHOLD * mean)
    return None if seen is None else seen / mean


# --- in words ------------------------------------------------------------------------------------

TITLES = ("commit", "torch", "first run (UTC)", "seeds", "accuracy, %", "change, pp", "runs", "images/s", "change")
NOTE = (
    "Step: Welch's test between neighbors, Holm's method over all of them, p < 0.05, and for throughput beyond 5%. "
    "Detectable: the smallest change that these runs would have shown with 80% power, at the level that Holm's method "
    "leaves them. Runs of two commits are seldom interleaved, so a step of the throughput may be the machine's."
)


def title(history: History) -> str:
    """Return what a history is of."""
    images = ", generated images" if history.generated else ""
    several = enumerate(history.machines, 1) if len(history.machines) > 1 else ()
    machines = "".join(f"; machine {number}: {machine}" for number, machine in several)
    return (
        f"{history.benchmark}, {history.profile}{images}, recipe {history.fingerprint[:8]}, "
        f"{history.device or 'unnamed device'}, {history.precision or 'unknown precision'}, "
        f"{accuracy_name(history.split, history.metric)}{machines}"
    )


def rows(history: History) -> list[list[str]]:
    """Return the cells of each point, in the order of :data:`TITLES`; further kinds of machines have further rows."""
    found = []
    for point in history.points:
        cells = [
            f"{point.commit[:12] or DASH}{' + changes' if point.dirty else ''}",
            point.torch or DASH,
            moment(point.started),
            str(len(point.accuracy.values)),
            _mean(point.accuracy, 2),
            _change(point.accuracy, 1.0, ""),
        ]
        for machine, measured in point.throughput.items() or [("", NOTHING)]:
            number = f" (machine {history.machines.index(machine) + 1})" if machine else ""
            times = [str(len(measured.values)), f"{_mean(measured, 0)}{number}", _change(measured, 100.0, "%")]
            found.append([*cells, *times])
            cells = [""] * len(cells)
    return found


def _mean(measured: PointValues, digits: int) -> str:
    ends = measured.interval
    half = "" if ends is None or measured.mean is None else f" ± {number(ends.high - measured.mean, digits)}"
    return f"{number(measured.mean, digits)}{half}"


def _change(measured: PointValues, scale: float, unit: str) -> str:
    change = measured.change
    if change is None:
        return DASH
    text = f"{signed(scale * change.value)}{unit}"
    if change.step:
        return f"{text} {'▲' if change.value > 0 else '▼'} step"
    if change.detectable is not None:
        return f"{text} (detectable {number(scale * change.detectable)}{unit})"
    return f"{text} (not tested)"
