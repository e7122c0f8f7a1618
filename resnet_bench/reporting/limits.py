"""Check two sets of runs by the limits of ``limits.toml``: kept, broken or unclear."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from resnet_bench.judging import intervals
from resnet_bench.judging.intervals import Interval
from resnet_bench.judging.power import smallest_difference, smallest_excess
from resnet_bench.recipe.limits import Limit
from resnet_bench.reporting.compare import (
    EPOCH_TIME,
    ComparisonRow,
    Side,
    by_benchmark,
    headline,
    identical_seeds,
    is_timed,
    matched,
    shared_places,
    timed,
    untested_times,
)
from resnet_bench.reporting.runs import Run, RunGroup, group_labels
from resnet_bench.reporting.tables import Place
from resnet_bench.reporting.wording import accuracy_name

LimitWord = Literal["broken", "unclear", "kept"]

DEVICE_TYPES = ("cpu", "cuda", "mps")
IDENTICAL = "bit-identical"


@dataclass(frozen=True)
class LimitRow:
    """One limit of one benchmark on one device. Accuracies are in percentage points, times are ratios of B to A."""

    benchmark: str
    profile: str
    generated: bool
    device: str
    metric: str
    limit: float
    """The largest drop of the accuracy, or the largest ratio of the times."""
    change: float
    """B minus A, or the ratio of B to A."""
    interval: Interval | None
    """Of the change; all intervals of accuracies, and all of times, are right together with 95% probability."""
    a_runs: int
    b_runs: int
    word: LimitWord
    note: str = ""
    detectable: float | None = None
    """Where unclear: the smallest drop, or ratio, that these runs would have called broken with 80% power."""
    label: str = ""
    """The benchmark's name with what tells these runs from others of that name; empty where there are no others."""


@dataclass(frozen=True)
class CheckedLimits:
    """Every limit that could be checked, the broken ones first."""

    rows: tuple[LimitRow, ...] = ()
    unchecked: tuple[str, ...] = ()
    """What could not be checked and why, such as ``time_factor of b, smoke on cpu: no times on both sides``."""
    decided: frozenset[tuple[str, str, bool, str]] = frozenset()
    """Benchmark, profile, whether generated, and metric where limits decide on every device that both sides ran on."""

    @property
    def broken(self) -> list[LimitRow]:
        """The limits that are broken."""
        return [row for row in self.rows if row.word == "broken"]

    def decide(self, row: ComparisonRow) -> bool:
        """Return whether limits say what a row of the comparison may lose, in place of "worse"."""
        return (row.benchmark, row.profile, row.generated, row.metric) in self.decided


def check_limits(limits: Sequence[Limit], a: Side, b: Side) -> CheckedLimits:
    """Check each limit on each device that both sides ran on, never one device by another.

    Times are checked on each kind of machine: processors of one name may be of several.

    A limit is broken where the whole interval of the change lies beyond it, kept where the whole interval lies within
    it, and unclear otherwise. Intervals are Welch's for accuracies and those of the exact Mann–Whitney test for times.
    Each has a confidence of 1 − 0.05 / k, for k limits of its kind (Bonferroni).

    Args:
        limits: What each benchmark may lose.
        a: The side to start from.
        b: The side that may have lost.
    """
    each = [_checks(limit, a, b) for limit in limits]
    checks = [check for found, _ in each for check in found]
    counts = {timing: sum(check.testable for check in checks if check.timing == timing) for timing in (False, True)}
    rows = [_row(check, intervals.SIGNIFICANCE / max(1, counts[check.timing])) for check in checks]
    seen: dict[tuple[str, str, bool, str], set[Place]] = {}
    for check, row in zip(checks, rows, strict=True):
        seen.setdefault((row.benchmark, row.profile, row.generated, row.metric), set()).add(check.place)
    importance = ("broken", "unclear", "kept")
    return CheckedLimits(
        rows=tuple(sorted(rows, key=lambda row: (importance.index(row.word), row.benchmark, row.device, row.metric))),
        unchecked=tuple(sentence for _, unchecked in each for sentence in unchecked),
        decided=frozenset(key for key, places in seen.items() if places == _places(a, key) & _places(b, key)),
    )


def _places(side: Side, key: tuple[str, str, bool, str]) -> set[Place]:
    """Return the places that a side has numbers of; runs that shared their device have accuracies and no times."""
    found = [run for run in side.runs if (run.benchmark, run.profile, run.generated) == key[:3]]
    if key[3] == EPOCH_TIME:
        return {run.place for run in found if is_timed(run)}
    return {(run.device, ()) for run in found}


# --- what is checked -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Check:
    """One limit, and the numbers of one device that it is checked by."""

    limit: Limit
    place: Place
    """A device and, for times, a kind of machine."""
    device: str
    """Its name, with what tells its machine from others of that name."""
    timing: bool
    groups: tuple[RunGroup, RunGroup]
    first: list[float]
    second: list[float]
    note: str
    """What recipes or images differ in, or why nothing is tested."""
    testable: bool
    label: str = ""


def _checks(limit: Limit, a: Side, b: Side) -> tuple[list[_Check], list[str]]:
    """Return what a limit is checked by, and what of it cannot be checked."""
    checks: list[_Check] = []
    unchecked: list[str] = []
    for device in sorted({run.device for run in a.runs} & {run.device for run in b.runs}):
        left, right = (by_benchmark([run for run in side.runs if _is_for(limit, run, device)]) for side in (a, b))
        for key in sorted(left.keys() & right.keys()):
            pairs = matched(left[key], right[key])
            labels = group_labels([second for _, second, _ in pairs])
            for first, second, note in pairs:
                label = labels[second] if len(pairs) > 1 else ""
                found = {
                    "drop": [] if limit.drop is None else _of_accuracy(limit, device, first, second, note),
                    "time_factor": [] if limit.time_factor is None else _of_time(limit, first, second, note),
                }
                checks += [replace(check, label=label) for of_kind in found.values() for check in of_kind]
                where = f"{label or first.name}, {second.latest.profile}, on {device or 'an unnamed device'}"
                times = "times" if not (timed(first) and timed(second)) else "times of one kind of machine"
                unchecked += [
                    f"{name} of {where}: no {times if name == 'time_factor' else 'accuracies'} on both sides"
                    for name, of_kind in found.items()
                    if not of_kind and getattr(limit, name) is not None
                ]
    if not checks and not unchecked:
        unchecked.append(f"{limit.scope}: no such runs on both sides of one device")
    return checks, unchecked


def _is_for(limit: Limit, run: Run, device: str) -> bool:
    if run.benchmark != limit.benchmark or run.device != device or limit.profile not in (None, run.profile):
        return False
    wanted = (limit.device or "").casefold()
    return wanted == run.device_type or (wanted not in DEVICE_TYPES and wanted in device.casefold())


def _of_accuracy(limit: Limit, device: str, first: RunGroup, second: RunGroup, note: str) -> list[_Check]:
    split, metric = headline(first, second)
    values = first.values(split, metric), second.values(split, metric)
    if not all(values):
        return []
    testable = intervals.welch_interval(*values) is not None
    if not note and len(identical_seeds(first, second)) == len(first.runs) == len(second.runs):
        note, testable = IDENTICAL, False
    elif not testable:
        few = min(map(len, values)) < 2
        note = _joined(note, "one run per side cannot tell noise from change" if few else "neither side varies")
    return [_Check(limit, (device, ()), device, False, (first, second), *values, note, testable)]


def _of_time(limit: Limit, first: RunGroup, second: RunGroup, note: str) -> list[_Check]:
    checks = []
    for there in shared_places(timed(first), timed(second)):
        untested = untested_times(there.a, there.b)
        before, after = ([run.epoch_seconds or 0.0 for run in side] for side in (there.a, there.b))
        said, sides = _joined(note, untested), (first, second)
        checks.append(_Check(limit, there.place, there.name, True, sides, before, after, said, not untested))
    return checks


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


# --- what is found -------------------------------------------------------------------------------


def _row(check: _Check, alpha: float) -> LimitRow:
    """Check a limit by an interval that is right with probability 1 − alpha."""
    group, of_other = check.groups
    if check.timing:
        metric, limit = EPOCH_TIME, check.limit.time_factor or 0.0
        change = intervals.time_ratio(check.first, check.second).ratio
        find, smallest = intervals.ratio_interval, smallest_excess
    else:
        metric, limit = accuracy_name(*headline(group, of_other)), check.limit.drop or 0.0
        change = statistics.fmean(check.second) - statistics.fmean(check.first)
        find, smallest = intervals.welch_interval, smallest_difference
    row = LimitRow(
        benchmark=group.name,
        profile=of_other.latest.profile,
        generated=of_other.latest.generated,
        device=check.device,
        metric=metric,
        limit=limit,
        change=change,
        interval=find(check.first, check.second, 1 - alpha) if check.testable else None,
        a_runs=len(check.first),
        b_runs=len(check.second),
        word="kept" if check.note == IDENTICAL else "unclear",
        note=check.note,
        label=check.label,
    )
    if row.interval is None:
        few = "too few runs for so many limits" if check.testable else ""
        return replace(row, note=_joined(row.note, few))
    # A loss is a fall of the accuracy, or a rise of the time.
    least, most = row.interval if check.timing else (-row.interval.high, -row.interval.low)
    if least > limit:
        return replace(row, word="broken")
    if most <= limit:
        return replace(row, word="kept")
    beyond = smallest(check.first, check.second, alpha=alpha)
    if beyond is None:
        return row
    return replace(row, detectable=limit * beyond if check.timing else limit + beyond)
