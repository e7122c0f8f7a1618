"""Compare two sets of results: what changed, and whether it is more than noise."""

import math
import operator
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from resnet_bench.base.errors import UserError
from resnet_bench.base.text import DASH, listed, plural
from resnet_bench.base.uris import redact
from resnet_bench.judging import intervals
from resnet_bench.judging.intervals import Difference, Interval, Ratio
from resnet_bench.judging.power import smallest_difference, smallest_ratio
from resnet_bench.judging.verdict import best_evaluation, last_evaluation
from resnet_bench.recipe.claims import REPRODUCTION_MARGIN
from resnet_bench.recipe.recipe import unequal_keys
from resnet_bench.reporting import reading
from resnet_bench.reporting.anonymize import machine_name
from resnet_bench.reporting.reading import Source
from resnet_bench.reporting.runs import Run, RunGroup, claimed_metric, group, group_labels, load, place_names
from resnet_bench.reporting.tables import RUN_COLUMNS, Place, Tables
from resnet_bench.reporting.wording import accuracy_name
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.vocabulary import ENERGY, PREFIX, SPLITS

Word = Literal["worse", "better", "same", "unclear", "identical", "not tested"]

MIN_SWITCHES = 3
"""Switches between the sides on one machine from which their runs count as interleaved."""

EPOCH_TIME = "epoch time"
"""The metric that times are compared by."""

MAX_LISTED = 6
"""Names that a sentence lists before it only counts the rest."""

ENVIRONMENT_KEYS = ("gpu", "driver", "cuda", "cudnn", "torch", "torchvision", "python", "cpu", "cores", "threads", "os")


@dataclass(frozen=True)
class ComparisonRow:
    """One metric of one benchmark on both sides."""

    benchmark: str
    profile: str
    metric: str
    unit: str
    primary: bool
    """Tested: the accuracy and the epoch time. Every other metric is only shown."""
    a: float
    b: float
    a_runs: int
    b_runs: int
    difference: float
    """B minus A; for times, the ratio of B to A minus 1."""
    interval: Interval | None
    """95% CI of the difference; for times, the range over all pairs of runs."""
    p: float | None = None
    """As tested, before Holm's adjustment."""
    adjusted_p: float | None = None
    word: Word = "not tested"
    note: str = ""
    generated: bool = False
    label: str = ""
    """The benchmark's name with what tells these runs from others of that name; empty where there are no others."""
    detectable: float | None = None
    """Where unclear: the smallest difference that these runs would have shown with 80% power, at the level that Holm's
    method leaves them: in percentage points, for times as a ratio minus 1. None where they are too few to show any."""
    device: str = ""
    """Of a time or another cost: the device and kind of machine that it is of, where runs on others are left out."""

    @property
    def regression(self) -> bool:
        """Whether B is worse than A by more than noise."""
        return self.word == "worse"


@dataclass(frozen=True)
class ResultComparison:
    """Two sets of results side by side, what got worse first."""

    a: str
    b: str
    environment: tuple[tuple[str, str, str], ...]
    """What differs between the environments: name, on side A, on side B."""
    rows: tuple[ComparisonRow, ...]
    only_a: tuple[str, ...]
    """Benchmarks that only side A has runs of."""
    only_b: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def regressions(self) -> list[ComparisonRow]:
        """Rows in which B is worse than A by more than noise."""
        return [row for row in self.rows if row.regression]


def read_sides(
    a: Source,
    b: Source,
    *,
    sources: Sequence[Source] | None = None,
    benchmarks: Sequence[str] | None = None,
    since: str | datetime | None = None,
) -> tuple["Side", "Side"]:
    """Read two sets of results.

    Args:
        a: The side to start from: a store (tracking URI), a folder with the tables of a report, a tag
            (``key=value``) or a code commit.
        b: The side to compare with it.
        sources: Where to look for tags and commits; by default the store that runs are logged to.
        benchmarks: Only these benchmarks.
        since: Only runs started since then: a date or time in ISO format, or an age such as ``7d``.

    Raises:
        UserError: A side cannot be read or has no finished run.
    """
    specs = [_selector(spec) for spec in (a, b)]
    shared: Tables | None = None
    found = []
    for spec, (keep, read_from) in zip((a, b), specs, strict=True):
        if read_from is not None:
            read = reading.read(read_from, benchmarks=benchmarks, since=since)
        elif shared is not None:
            read = shared
        else:
            read = shared = reading.read(sources or [reading.default_store()], benchmarks=benchmarks, since=since)
        found.append(_side(spec, read, keep))
    return found[0], found[1]


@dataclass(frozen=True)
class Side:
    """One set of results."""

    name: str
    runs: tuple[Run, ...]
    """Finished benchmark runs."""
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class SharedPlace:
    """A place that both sides ran on, and their runs there."""

    place: Place
    name: str
    """Its name, with what tells it from other places of these runs."""
    a: Sequence[Run]
    b: Sequence[Run]


def shared_places(a: Sequence[Run], b: Sequence[Run]) -> list[SharedPlace]:
    """Return each device and kind of machine that some runs of both sides are of, with these runs."""
    found = []
    for place, name in place_names([*a, *b]).items():
        first, second = ([run for run in side if run.place == place] for side in (a, b))
        if first and second:
            found.append(SharedPlace(place, name, first, second))
    return found


def compare_runs(a: Side, b: Side) -> ResultComparison:
    """Compare two sets of results, benchmark by benchmark.

    Accuracy is tested by Welch's t test and the time of an epoch by the exact Mann–Whitney test, each adjusted
    by Holm's method over the benchmarks; every other metric is shown and not tested. Runs are never paired by
    seed. Times and other costs are compared on each device and kind of machine that both sides ran on; only where
    they share none are those of all runs compared.
    """
    left, right = by_benchmark(a.runs), by_benchmark(b.runs)
    measured: list[_Measured] = []
    for key in sorted(left.keys() & right.keys()):
        pairs = matched(left[key], right[key])
        labels = group_labels([second for _, second, _ in pairs])
        for first, second, note in pairs:
            label = labels[second] if len(pairs) > 1 else ""
            measured += [replace(each, row=replace(each.row, label=label)) for each in _measure(first, second, note)]
    rows = _with_words(measured)
    return ResultComparison(
        a=a.name,
        b=b.name,
        environment=_environment_differences(a.runs, b.runs),
        rows=tuple(sorted(rows, key=_order)),
        only_a=_names(left.keys() - right.keys()),
        only_b=_names(right.keys() - left.keys()),
        problems=tuple(dict.fromkeys((*a.problems, *b.problems))),
    )


# --- the two sides -------------------------------------------------------------------------------


def _side(spec: Source, read: Tables, keep: Callable[[Run], bool]) -> Side:
    name = spec.redacted_uri if isinstance(spec, Store) else redact(spec) if isinstance(spec, str) else str(spec)
    runs, problems = load(read)
    chosen = [run for run in runs if run.role == "run" and keep(run)]
    finished = tuple(run for run in chosen if run.finished)
    if not finished:
        ended = f", only {plural(len(chosen), 'run')} that did not finish" if chosen else ""
        raise UserError(f"{name}: there is no finished run{ended}")
    commits = sorted({run.code_commit for run in finished})
    if _is_commit(spec) and len(commits) > 1:
        raise UserError(f"{name}: {len(commits)} commits begin so: {', '.join(commits)}; write more digits of one")
    return Side(name, finished, (*read.problems, *problems))


def _selector(spec: Source) -> tuple[Callable[[Run], bool], list[Source] | None]:
    """Return which runs a side means, and where they are; None where it is not a store by itself."""
    if not isinstance(spec, str) or "://" in spec or (spec and Path(spec).is_dir()):
        return (lambda _: True), [spec]
    if tag := re.fullmatch(r"([^=\s]+)=(.*)", spec):
        return (lambda run: _tag(run, tag[1]) == tag[2]), None
    if _is_commit(spec):
        return (lambda run: run.code_commit.startswith(spec.lower())), None
    raise UserError(
        f"{spec!r} is not a store, folder, tag or commit: write a tracking URI such as sqlite:////path/mlflow.db, "
        "a folder with runs.parquet, key=value, or a commit of at least 4 hexadecimal digits"
    )


def _is_commit(spec: Source) -> bool:
    return isinstance(spec, str) and not Path(spec).is_dir() and bool(re.fullmatch(r"[0-9a-fA-F]{4,40}", spec))


def _tag(run: Run, key: str) -> str | None:
    """Return a tag by its full name, or by its name without our prefix."""
    name = key.removeprefix(PREFIX)
    column = next((column for column in RUN_COLUMNS if column.name == name), None)
    if column is not None:
        value = getattr(run, column.field)
        return str(value).lower() if isinstance(value, bool) else None if value is None else str(value)
    return run.tags.get(key, run.tags.get(f"{PREFIX}{key}"))


def by_benchmark(runs: Sequence[Run]) -> dict[tuple[str, str, bool], list[RunGroup]]:
    """Return the groups of runs under their benchmark, profile and whether their images were generated."""
    together: dict[tuple[str, str, bool], list[RunGroup]] = {}
    for members in group(runs):
        run = members.latest
        together.setdefault((run.benchmark, run.profile, run.generated), []).append(members)
    return together


def matched(left: Sequence[RunGroup], right: Sequence[RunGroup]) -> list[tuple[RunGroup, RunGroup, str]]:
    """Return pairs of groups with the same recipe and images; where there are none, each side's latest."""
    theirs = {(b.latest.fingerprint, b.latest.data_fingerprint): b for b in right}
    pairs = [
        (a, b, "") for a in left if (b := theirs.get((a.latest.fingerprint, a.latest.data_fingerprint))) is not None
    ]
    if pairs:
        return pairs
    a, b = (max(groups, key=lambda members: members.latest.started) for groups in (left, right))
    if a.latest.fingerprint == b.latest.fingerprint:
        return [(a, b, "different images")]
    one, other = a.latest.recipe, b.latest.recipe
    changed = unequal_keys(one, other)
    return [(a, b, f"different recipes: {listed(changed, 3) or 'unknown keys'}")]


def _names(keys: set[tuple[str, str, bool]]) -> tuple[str, ...]:
    return tuple(f"{name} ({profile}{', generated images' if made else ''})" for name, profile, made in sorted(keys))


def _environment_differences(a: Sequence[Run], b: Sequence[Run]) -> tuple[tuple[str, str, str], ...]:
    measures: dict[str, Callable[[Run], Any]] = {
        key: operator.attrgetter(key) for key in ("device", "precision", "code_commit", "version")
    }
    found = {key for run in (*a, *b) for key in run.environment}
    known = [key for key in ENVIRONMENT_KEYS if key in found]
    for key in [*known, *sorted(found - set(known))]:
        measures[key] = _of_environment(key)
    rows = [(key, _values(map(measure, a)), _values(map(measure, b))) for key, measure in measures.items()]
    return tuple(row for row in rows if row[1] != row[2])


def _of_environment(key: str) -> Callable[[Run], Any]:
    return lambda run: run.environment.get(key)


def _values(values: Iterable[Any]) -> str:
    return listed(sorted({DASH if value in (None, "") else str(value)[:60] for value in values}), 3)


# --- the rows ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Measured:
    """A row, and the numbers that it is from."""

    row: ComparisonRow
    first: Sequence[float]
    second: Sequence[float]

    def detectable(self, level: float) -> float | None:
        """The smallest difference that a test at this level would have shown with 80% power."""
        if self.row.metric != EPOCH_TIME:
            return smallest_difference(self.first, self.second, alpha=level)
        ratio = smallest_ratio(self.first, self.second, alpha=level)
        return None if ratio is None else ratio - 1


def _measure(a: RunGroup, b: RunGroup, note: str) -> list[_Measured]:
    found = [_accuracy_row(a, b, note)]
    found += [_timing_row(b, there, note) for there in _places(timed(a), timed(b))]
    split, metric = headline(a, b)
    everywhere = _everywhere(a.runs, b.runs)
    others: tuple[tuple[str, str, Callable[[Run], float | None]], ...] = (
        *([] if metric == "accuracy" else [(f"{split} accuracy", "%", lambda run: run.last_accuracy(split))]),
        (f"standard {split} accuracy", "%", lambda run: run.last_accuracy(split, "accuracy_standard")),
        (f"best {split} accuracy", "%", lambda run: best_evaluation(run.accuracy(split))),
        (f"{split} loss", "", lambda run: last_evaluation(run.metrics.get(f"{split}/loss", {}))),
        ("train loss", "", lambda run: last_evaluation(run.metrics.get("train/loss", {}))),
    )
    found += [_shown_row(b, everywhere, *other) for other in others]
    costs: tuple[tuple[str, str, Callable[[Run], float | None]], ...] = (
        ("throughput", "images/s", lambda run: run.images_per_second),
        ("training time", "s", lambda run: run.train_seconds),
        ("peak memory", "MiB", lambda run: None if run.peak_memory is None else run.peak_memory / 2**20),
        ("energy", "J", lambda run: run.number(ENERGY)),
    )
    for cost, unit, measure in costs:
        sides = ([run for run in side.all_runs if measure(run) is not None] for side in (a, b))
        found += [_shown_row(b, there, cost, unit, measure) for there in _places(*sides)]
    return [each for each in found if each is not None]


def _places(a: Sequence[Run], b: Sequence[Run]) -> list[SharedPlace]:
    """Return where costs are compared: on each place that both sides ran on or, if there is none, over all runs."""
    if not a or not b:
        return []
    shared = shared_places(a, b) if len({run.place for run in (*a, *b)}) > 1 else []
    return shared or [_everywhere(a, b)]


def _everywhere(a: Sequence[Run], b: Sequence[Run]) -> SharedPlace:
    """Stand for all places: nothing is left out, so that none is named."""
    return SharedPlace(("", ()), "", a, b)


def headline(a: RunGroup, b: RunGroup) -> tuple[str, str]:
    """Return the split and the metric that two groups are compared by: those of the first claim, where both have it."""
    stated = a if a.definition is not None else b
    split, metric = stated.split, claimed_metric(stated.definition)
    return split, metric if all(side.values(split, metric) for side in (a, b)) else "accuracy"


def _accuracy_row(a: RunGroup, b: RunGroup, note: str) -> _Measured | None:
    split, metric = headline(a, b)
    first, second = a.values(split, metric), b.values(split, metric)
    if not first or not second:
        return None
    difference = intervals.welch(first, second)
    row = _row(b, accuracy_name(split, metric), "%", first, second, difference)
    same = [] if note else identical_seeds(a, b)
    notes = [note] if note else []
    if same:
        seeds = listed([str(seed) for seed in same], MAX_LISTED)
        notes.append(f"bit-identical for seed{'s' if len(same) > 1 else ''} {seeds}")
    row = replace(row, primary=True, note="; ".join(notes))
    if len(same) == len(a.runs) == len(b.runs):
        row = replace(row, word="identical")
    elif difference.p is None:
        few = min(len(first), len(second)) < 2
        notes.append("one run per side cannot tell noise from change" if few else "neither side varies")
        row = replace(row, word="unclear", note="; ".join(notes))
    else:
        alike = intervals.outcome(difference, None, REPRODUCTION_MARGIN) == "same"
        row = replace(row, p=difference.p, word="same" if alike else "unclear")
    return _Measured(row, first, second)


def _timing_row(group: RunGroup, there: SharedPlace, note: str) -> _Measured:
    first, second = ([run.epoch_seconds or 0.0 for run in side] for side in (there.a, there.b))
    found = intervals.time_ratio(first, second)
    difference = Difference(found.ratio - 1, Interval(found.range.low - 1, found.range.high - 1))
    untested = untested_times(there.a, there.b)
    tested = not untested
    row = replace(
        _row(group, EPOCH_TIME, "s", first, second, difference),
        device=there.name,
        primary=True,
        a=statistics.median(first),
        b=statistics.median(second),
        p=found.p if tested else None,
        word="unclear" if tested else "not tested",
        note="; ".join(part for part in (note, untested) if part),
    )
    return _Measured(row, first, second)


def _shown_row(
    group: RunGroup, there: SharedPlace, metric: str, unit: str, measure: Callable[[Run], float | None]
) -> _Measured | None:
    measured = [[value for run in side if (value := measure(run)) is not None] for side in (there.a, there.b)]
    first, second = ([value for value in values if math.isfinite(value)] for values in measured)
    if not first or not second:
        return None
    row = replace(_row(group, metric, unit, first, second, intervals.welch(first, second)), device=there.name)
    left_out = sum(map(len, measured)) - len(first) - len(second)
    if left_out:
        row = replace(row, note=f"{plural(left_out, 'run')} left out: not finite")
    return _Measured(row, first, second)


def _row(
    b: RunGroup,
    metric: str,
    unit: str,
    first: Sequence[float],
    second: Sequence[float],
    difference: Difference,
) -> ComparisonRow:
    run = b.latest
    return ComparisonRow(
        benchmark=run.benchmark,
        profile=run.profile,
        metric=metric,
        unit=unit,
        primary=False,
        a=statistics.fmean(first),
        b=statistics.fmean(second),
        a_runs=len(first),
        b_runs=len(second),
        difference=difference.value,
        interval=difference.interval,
        generated=run.generated,
    )


def _with_words(measured: Sequence[_Measured]) -> list[ComparisonRow]:
    """Adjust the p values over the benchmarks, accuracies and times separately, and give each row its word."""
    worded = [each.row for each in measured]
    for is_time in (False, True):
        places = [
            place
            for place, row in enumerate(worded)
            if row.primary and row.p is not None and (row.metric == EPOCH_TIME) == is_time
        ]
        p_values = [worded[place].p or 0.0 for place in places]
        tested = zip(places, intervals.holm(p_values), intervals.holm_levels(p_values), strict=True)
        for place, adjusted, level in tested:
            row = replace(worded[place], adjusted_p=adjusted)
            row = replace(row, word=_timing_word(row) if is_time else _accuracy_word(row))
            worded[place] = _with_detectable(row, measured[place], level) if row.word == "unclear" else row
    return worded


def _with_detectable(row: ComparisonRow, measured: _Measured, level: float) -> ComparisonRow:
    detectable = measured.detectable(level)
    if detectable is None:
        few = "too few runs per side for so many comparisons"
        return replace(row, note="; ".join(part for part in (row.note, few) if part))
    return replace(row, detectable=detectable)


def _accuracy_word(row: ComparisonRow) -> Word:
    if row.adjusted_p is not None and row.adjusted_p < intervals.SIGNIFICANCE:
        return "better" if row.difference > 0 else "worse"
    return row.word


def _timing_word(row: ComparisonRow) -> Word:
    ratio = Ratio(row.difference + 1, row.interval or Interval(0.0, math.inf))
    if intervals.timing_differs(ratio, row.adjusted_p):
        return "worse" if row.difference > 0 else "better"
    return "unclear"


def identical_seeds(a: RunGroup, b: RunGroup) -> list[int]:
    """Return the seeds whose losses and accuracies agree to the last bit on both sides."""
    ours = {run.seed: run for run in a.runs}
    same = []
    for run in b.runs:
        other = ours.get(run.seed)
        if other is None or run.seed is None:
            continue
        keys = [key for key in run.metrics if key.partition("/")[0] in SPLITS]
        if keys and all(run.metrics[key] == other.metrics.get(key) for key in keys):
            same.append(run.seed)
    return same


def is_timed(run: Run) -> bool:
    """Return whether a run's epochs were timed; those of runs that shared their device were not."""
    return (run.epoch_seconds or 0.0) > 0


def timed(side: RunGroup) -> list[Run]:
    """Return the runs whose epochs were timed, repeats included."""
    return [run for run in side.all_runs if is_timed(run)]


def untested_times(a: Sequence[Run], b: Sequence[Run]) -> str:
    """Return why two sets of timed runs are not tested; empty where they are."""
    if min(len(a), len(b)) < intervals.MIN_TIMING_RUNS:
        return f"fewer than {intervals.MIN_TIMING_RUNS} runs per side: ratio and range, no verdict"
    if _share_a_machine(a, b) and not _interleaved(a, b):
        return "the sides were not interleaved on the machine: ratio and range, no verdict"
    return ""


def _share_a_machine(a: Sequence[Run], b: Sequence[Run]) -> bool:
    one, other = ({(machine_name(run.host), *run.place) for run in side} for side in (a, b))
    return not one.isdisjoint(other)


def _interleaved(a: Sequence[Run], b: Sequence[Run]) -> bool:
    """Return whether the sides were interleaved, so that a machine that slows down does not look like a change."""
    sides = [side for _, side in sorted([(run.started, 0) for run in a] + [(run.started, 1) for run in b])]
    return sum(one != other for one, other in pairwise(sides)) >= MIN_SWITCHES


def _order(row: ComparisonRow) -> tuple[object, ...]:
    importance = ("worse", "unclear", "better", "same", "identical", "not tested")
    return not row.primary, importance.index(row.word), row.benchmark, row.profile, row.metric, row.device
