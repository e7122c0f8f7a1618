"""What changed between two sets of results, and whether it is more than noise."""

import json
import math
import operator
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from resnet_bench.base.errors import UserError
from resnet_bench.recipe.claims import REPRODUCTION_MARGIN
from resnet_bench.reporting import results, schema, table, text
from resnet_bench.reporting import statistics as rules
from resnet_bench.reporting.published import machine_name
from resnet_bench.reporting.results import Group, Run
from resnet_bench.reporting.schema import Tables
from resnet_bench.reporting.statistics import Difference, Interval, Ratio
from resnet_bench.reporting.table import Source
from resnet_bench.tracking.store import Store

if TYPE_CHECKING:
    from rich.console import RenderableType

Word = Literal["worse", "better", "same", "unclear", "identical", "not tested"]

MIN_SWITCHES = 3
"""Times the runs of two sides must take turns on one machine to count as interleaved."""

ENVIRONMENT_KEYS = ("gpu", "driver", "cuda", "cudnn", "torch", "torchvision", "python", "cpu", "cores", "threads", "os")


@dataclass(frozen=True)
class ComparisonRow:
    """One metric of one benchmark on both sides."""

    benchmark: str
    profile: str
    metric: str
    unit: str
    primary: bool
    """Tested: the accuracy and the epoch time. Every other metric is shown only."""
    a: float
    b: float
    a_runs: int
    b_runs: int
    difference: float
    """B minus A; for times, the ratio of B to A minus 1."""
    interval: Interval | None
    """95% interval of the difference; for times, the range over all pairs of runs."""
    p: float | None = None
    """As tested, before Holm's adjustment."""
    adjusted_p: float | None = None
    word: Word = "not tested"
    note: str = ""
    generated: bool = False

    @property
    def regression(self) -> bool:
        """Whether B is worse than A by more than noise."""
        return self.word == "worse"


@dataclass(frozen=True)
class Comparison:
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

    def render(self) -> "RenderableType":
        """The comparison for a terminal."""
        from rich import box
        from rich.console import Group as Stack
        from rich.table import Table
        from rich.text import Text

        parts: list[RenderableType] = [Text(line) for line in self._preamble()]
        shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
        # A name is there to be copied, and half a number says something else.
        shown.add_column("benchmark", no_wrap=True, overflow="fold")
        shown.add_column("metric", overflow="fold")
        for name in ("A (n)", "B (n)", "difference", "95%", "p (Holm)"):
            shown.add_column(name, justify="right", no_wrap=True)
        shown.add_column("", no_wrap=True)
        styles = {"worse": "bold red", "better": "green", "same": "green", "identical": "green"}
        for row in self.rows:
            cells = [Text(cell) for cell in _cells(row)]
            cells[-1].stylize(styles.get(row.word, "" if row.primary else "dim"))
            shown.add_row(*cells)
        return Stack(*parts, shown, *(Text(note) for note in self.notes), Text(self.summary))

    def markdown(self) -> str:
        """The comparison as Markdown."""
        lines = ["# Comparison", ""]
        lines += [f"{_md(line)}  " for line in self._preamble()]
        lines += [
            "",
            "| benchmark | metric | A (n) | B (n) | difference | 95% | p (Holm) | |",
            "|---|---|--:|--:|--:|--:|--:|---|",
        ]
        lines += ["| " + " | ".join(_md(cell) for cell in _cells(row)) + " |" for row in self.rows]
        lines += ["", *(f"- {_md(note)}" for note in self.notes), "", _md(self.summary), ""]
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))

    def json(self) -> str:
        """The comparison as JSON; numbers that are not finite are null."""
        found = {
            "a": self.a,
            "b": self.b,
            "environment": [{"name": name, "a": a, "b": b} for name, a, b in self.environment],
            "rows": [{**asdict(row), "regression": row.regression} for row in self.rows],
            "only_a": list(self.only_a),
            "only_b": list(self.only_b),
            "problems": list(self.problems),
            "regressions": len(self.regressions),
        }
        return json.dumps(_finite(found), indent=2, allow_nan=False, ensure_ascii=False) + "\n"

    @property
    def notes(self) -> list[str]:
        """What stands behind a word, a sentence for each that needs one."""
        together: dict[str, list[str]] = {}
        for row in self.rows:
            if row.note:
                together.setdefault(row.note, []).append(f"{_name(row)} ({row.metric})")
        return [f"{text.listed(names)}: {note}" for note, names in together.items()]

    @property
    def summary(self) -> str:
        """One sentence that says how it ended."""
        tested = [row for row in self.rows if row.primary]
        if not tested:
            return "no benchmark has runs on both sides, so nothing was compared"
        counts = {word: sum(row.word == word for row in tested) for word in dict.fromkeys(row.word for row in tested)}
        return ", ".join(f"{count} {word}" for word, count in counts.items())

    def _preamble(self) -> list[str]:
        lines = [f"A: {self.a}", f"B: {self.b}"]
        if self.environment:
            lines.append("Different environments, so a difference below may be theirs:")
            lines += [f"  {name}: {a} → {b}" for name, a, b in self.environment]
        else:
            lines.append("The same environment on both sides.")
        for names, side in ((self.only_a, "A"), (self.only_b, "B")):
            if names:
                lines.append(f"Only {side} has runs of {text.listed(names)}.")
        lines += self.problems
        return lines


def compare(
    a: Source,
    b: Source,
    *,
    sources: Sequence[Source] | None = None,
    benchmarks: Sequence[str] | None = None,
    since: str | datetime | None = None,
) -> Comparison:
    """Compare two sets of results, benchmark by benchmark.

    Accuracy is tested by Welch's t test and the time of an epoch by the exact Mann–Whitney test, each adjusted
    by Holm's method over the benchmarks; every other metric is shown and not tested. Runs are never paired by
    seed.

    Args:
        a: The side to start from: a store (tracking URI), a folder with the tables of a report, a tag
            (``key=value``) or a code commit.
        b: The side to hold against it.
        sources: Where to look for tags and commits; by default the store that runs are logged to.
        benchmarks: Only these benchmarks.
        since: Only runs started since then: a date or time in ISO format, or an age such as ``7d``.

    Raises:
        UserError: A side cannot be read or has no finished run.
    """
    specs = [_selector(spec) for spec in (a, b)]
    shared: Tables | None = None
    if any(read_from is None for _, read_from in specs):
        shared = table.read(sources or [table.default_store()], benchmarks=benchmarks, since=since)
    found = []
    for spec, (keep, read_from) in zip((a, b), specs, strict=True):
        read = shared if read_from is None else table.read(read_from, benchmarks=benchmarks, since=since)
        assert read is not None
        found.append(_side(spec, read, keep))
    return compare_runs(*found)


@dataclass(frozen=True)
class Side:
    """One set of results."""

    name: str
    runs: tuple[Run, ...]
    """Finished benchmark runs."""
    problems: tuple[str, ...] = ()


def compare_runs(a: Side, b: Side) -> Comparison:
    """Compare two sets of runs that are already read; see :func:`compare`."""
    left, right = _by_benchmark(a.runs), _by_benchmark(b.runs)
    rows: list[ComparisonRow] = []
    for key in sorted(left.keys() & right.keys()):
        for first, second, note in _matched(left[key], right[key]):
            rows += _rows(first, second, note)
    rows = _with_words(rows)
    return Comparison(
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
    name = schema.hidden(spec.shown if isinstance(spec, Store) else str(spec))
    chosen = [run for run in results.load(read) if run.role == "run" and keep(run)]
    finished = tuple(run for run in chosen if run.finished)
    if not finished:
        ended = f", only {text.plural(len(chosen), 'run')} that did not finish" if chosen else ""
        raise UserError(f"{name}: there is no finished run{ended}")
    commits = sorted({run.code_commit for run in finished})
    if _is_commit(spec) and len(commits) > 1:
        raise UserError(f"{name}: {len(commits)} commits begin so: {', '.join(commits)}; write more digits of one")
    return Side(name, finished, read.problems)


def _selector(spec: Source) -> tuple[Callable[[Run], bool], list[Source] | None]:
    """Which runs a side means, and where they are; None where it is not a store by itself."""
    if not isinstance(spec, str) or "://" in spec or (spec and Path(spec).is_dir()):
        return (lambda _: True), [spec]
    if tag := re.fullmatch(r"([^=\s]+)=(.*)", spec):
        return (lambda run: _tag(run, tag[1]) == tag[2]), None
    if _is_commit(spec):
        return (lambda run: run.code_commit.startswith(spec.lower())), None
    raise UserError(
        f"{spec!r} is no store, folder, tag or commit: write a tracking URI such as sqlite:////path/mlflow.db, "
        "a folder with runs.parquet, key=value, or a commit of at least 4 hexadecimal digits"
    )


def _is_commit(spec: Source) -> bool:
    return isinstance(spec, str) and not Path(spec).is_dir() and bool(re.fullmatch(r"[0-9a-fA-F]{4,40}", spec))


def _tag(run: Run, key: str) -> str | None:
    """A tag by its full name, or by its name without ours in front."""
    field = key.removeprefix(schema.TAG)
    if field in schema.RUN_DTYPES and hasattr(run, field):
        value = getattr(run, field)
        return str(value).lower() if isinstance(value, bool) else None if value is None else str(value)
    return run.tags.get(key, run.tags.get(f"{schema.TAG}{key}"))


def _by_benchmark(runs: Sequence[Run]) -> dict[tuple[str, str, bool], list[Group]]:
    together: dict[tuple[str, str, bool], list[Group]] = {}
    for group in results.group(runs):
        run = group.latest
        together.setdefault((run.benchmark, run.profile, run.generated), []).append(group)
    return together


def _matched(left: Sequence[Group], right: Sequence[Group]) -> list[tuple[Group, Group, str]]:
    """Pairs of groups with the same recipe and images; where there are none, each side's latest."""
    pairs = [
        (a, b, "")
        for a in left
        for b in right
        if (a.latest.fingerprint, a.latest.data_fingerprint) == (b.latest.fingerprint, b.latest.data_fingerprint)
    ]
    if pairs:
        return pairs
    a, b = (max(groups, key=lambda group: group.latest.started) for groups in (left, right))
    if a.latest.fingerprint == b.latest.fingerprint:
        return [(a, b, "different images")]
    ours, theirs = a.latest.recipe, b.latest.recipe
    changed = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    return [(a, b, f"different recipes: {text.listed(changed, 3) or 'unknown keys'}")]


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
    return text.listed(sorted({text.DASH if value in (None, "") else str(value)[:60] for value in values}), 3)


# --- the rows ------------------------------------------------------------------------------------


def _rows(a: Group, b: Group, note: str) -> list[ComparisonRow]:
    rows = [_accuracy_row(a, b, note), _timing_row(a, b, note)]
    split = a.split
    others: tuple[tuple[str, str, Callable[[Run], float | None]], ...] = (
        (f"{split} accuracy, eval mode", "%", lambda run: run.last_accuracy(split, plain=True)),
        (f"best {split} accuracy", "%", lambda run: rules.best_evaluation(run.accuracy(split))),
        (f"{split} loss", "", lambda run: rules.last_evaluation(run.metrics.get(f"{split}/loss", {}))),
        ("train loss", "", lambda run: rules.last_evaluation(run.metrics.get("train/loss", {}))),
        ("images a second", "", lambda run: run.images_per_second),
        ("training time", "s", lambda run: run.train_seconds),
        ("peak memory", "MiB", lambda run: None if run.peak_memory is None else run.peak_memory / 2**20),
        ("energy", "J", lambda run: run.once.get("energy/joules")),
    )
    rows += [_shown_row(a, b, *other) for other in others]
    return [row for row in rows if row is not None]


def _accuracy_row(a: Group, b: Group, note: str) -> ComparisonRow | None:
    split = a.split
    first, second = a.values(split), b.values(split)
    if not first or not second:
        return None
    difference = rules.welch(first, second)
    row = _row(b, f"{split} accuracy", "%", first, second, difference)
    same = [] if note else _identical_seeds(a, b)
    notes = [note] if note else []
    if same:
        seeds = text.listed([str(seed) for seed in same])
        notes.append(f"bit-identical for seed{'s' if len(same) > 1 else ''} {seeds}")
    row = replace(row, primary=True, note="; ".join(notes))
    if len(same) == len(a.runs) == len(b.runs):
        return replace(row, word="identical")
    if difference.p is None:
        few = min(len(first), len(second)) < 2
        notes.append("one run a side cannot tell noise from change" if few else "no spread on either side")
        return replace(row, word="unclear", note="; ".join(notes))
    alike = rules.outcome(difference, None, REPRODUCTION_MARGIN) == "same"
    return replace(row, p=difference.p, word="same" if alike else "unclear")


def _timing_row(a: Group, b: Group, note: str) -> ComparisonRow | None:
    sides = [[run for run in group.all_runs if run.epoch_seconds] for group in (a, b)]
    first, second = ([run.epoch_seconds or 0.0 for run in side] for side in sides)
    if not first or not second:
        return None
    found = rules.time_ratio(first, second)
    difference = Difference(found.ratio - 1, Interval(found.range.low - 1, found.range.high - 1))
    row = _row(b, "epoch time", "s", first, second, difference)
    notes = [note] if note else []
    tested = found.p is not None
    if not tested:
        notes.append(f"fewer than {rules.MIN_TIMING_RUNS} runs a side: ratio and range, no verdict")
    elif _one_machine(*sides) and not _interleaved(*sides):
        tested = False
        notes.append("the sides did not take turns on the machine: ratio and range, no verdict")
    return replace(
        row,
        primary=True,
        a=statistics.median(first),
        b=statistics.median(second),
        p=found.p if tested else None,
        word="unclear" if tested else "not tested",
        note="; ".join(notes),
    )


def _shown_row(
    a: Group, b: Group, metric: str, unit: str, measure: Callable[[Run], float | None]
) -> ComparisonRow | None:
    first, second = (
        [value for run in group.runs if (value := measure(run)) is not None and math.isfinite(value)]
        for group in (a, b)
    )
    if not first or not second:
        return None
    return _row(b, metric, unit, first, second, rules.welch(first, second))


def _row(
    b: Group,
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
        difference=difference.difference,
        interval=difference.interval,
        generated=run.generated,
    )


def _with_words(rows: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    """Adjust the p values over the benchmarks, accuracies and times apart, and say what each row means."""
    worded = list(rows)
    for is_time in (False, True):
        places = [
            place
            for place, row in enumerate(worded)
            if row.primary and row.p is not None and (row.metric == "epoch time") == is_time
        ]
        for place, adjusted in zip(places, rules.holm([worded[place].p or 0.0 for place in places]), strict=True):
            row = replace(worded[place], adjusted_p=adjusted)
            worded[place] = replace(row, word=_timing_word(row) if is_time else _accuracy_word(row))
    return worded


def _accuracy_word(row: ComparisonRow) -> Word:
    if row.adjusted_p is not None and row.adjusted_p < rules.SIGNIFICANCE:
        return "better" if row.difference > 0 else "worse"
    return row.word


def _timing_word(row: ComparisonRow) -> Word:
    ratio = Ratio(row.difference + 1, row.interval or Interval(0.0, math.inf))
    if rules.timing_differs(ratio, row.adjusted_p):
        return "worse" if row.difference > 0 else "better"
    return "unclear"


def _identical_seeds(a: Group, b: Group) -> list[int]:
    """Seeds whose losses and accuracies agree to the last bit on both sides."""
    ours = {run.seed: run for run in a.runs}
    same = []
    for run in b.runs:
        other = ours.get(run.seed)
        if other is None or run.seed is None:
            continue
        keys = [key for key in run.metrics if key.partition("/")[0] in schema.SPLITS]
        if keys and all(run.metrics[key] == other.metrics.get(key) for key in keys):
            same.append(run.seed)
    return same


def _one_machine(a: Sequence[Run], b: Sequence[Run]) -> bool:
    return {(machine_name(run.host), run.device) for run in a} == {(machine_name(run.host), run.device) for run in b}


def _interleaved(a: Sequence[Run], b: Sequence[Run]) -> bool:
    """Whether the sides took turns, so that a machine that slows down cannot be taken for a change."""
    sides = [side for _, side in sorted([(run.started, 0) for run in a] + [(run.started, 1) for run in b])]
    return sum(one != other for one, other in pairwise(sides)) >= MIN_SWITCHES


def _order(row: ComparisonRow) -> tuple[object, ...]:
    importance = ("worse", "unclear", "better", "same", "identical", "not tested")
    return not row.primary, importance.index(row.word), row.benchmark, row.profile, row.metric


# --- writing -------------------------------------------------------------------------------------


def _cells(row: ComparisonRow) -> list[str]:
    unit = "" if row.unit in ("", "%") else f" {row.unit}"
    metric = f"{row.metric}{', %' if row.unit == '%' else ''}"
    timed = row.metric == "epoch time"
    # Points of accuracy have two digits wherever they stand.
    digits = (lambda _: 2) if row.unit == "%" else _digits
    difference = f"×{row.difference + 1:.3f}" if timed else text.signed(row.difference, digits(row.difference))
    interval = ""
    if row.interval is not None:
        low, high = row.interval
        interval = (
            f"×{low + 1:.3f} to ×{high + 1:.3f}"
            if timed
            else f"{text.signed(low, digits(low))} to {text.signed(high, digits(high))}"
        )
    return [
        _name(row),
        metric,
        f"{_significant(row.a)}{unit} ({row.a_runs})",
        f"{_significant(row.b)}{unit} ({row.b_runs})",
        difference,
        interval,
        text.DASH if row.adjusted_p is None else "<0.001" if row.adjusted_p < 0.001 else f"{row.adjusted_p:.3f}",
        row.word if row.primary else "",
    ]


def _name(row: ComparisonRow) -> str:
    name = row.benchmark if row.profile == "full" else f"{row.benchmark}, {row.profile}"
    return f"{name}, generated images" if row.generated else name


def _digits(value: float) -> int:
    return 0 if abs(value) >= 1000 else 2 if abs(value) >= 0.1 or value == 0 else 4


def _significant(value: float) -> str:
    if not math.isfinite(value):
        return text.DASH
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.4g}"


def _md(cell: str) -> str:
    single = " ".join(cell.split())
    return re.sub(r"([\\`*_|#])", r"\\\1", single).replace("<", "&lt;").replace(">", "&gt;")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(below) for below in value]
    return value
