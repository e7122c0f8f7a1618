"""Write a comparison of two sets of results: for a terminal, as Markdown and as JSON."""

import math
import re
from dataclasses import asdict

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from resnet_bench.base.json_document import json_document
from resnet_bench.base.text import DASH, listed
from resnet_bench.reporting import wording
from resnet_bench.reporting.compare import EPOCH_TIME, MAX_LISTED, ComparisonRow, ResultComparison
from resnet_bench.reporting.limits import CheckedLimits, LimitRow
from resnet_bench.reporting.wording import markdown_text as _md

LIMIT_COLUMNS = ("benchmark", "metric", "device", "limit", "change (n)", "simultaneous 95% CI", "")
COLUMNS = ("benchmark", "metric", "A (n)", "B (n)", "difference", "95% CI", "p (Holm)", "")


def table(comparison: ResultComparison, limits: CheckedLimits | None = None) -> Group:
    """Return a comparison for a terminal, with what the limits say about it."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    benchmark, metric, *numbers, word = COLUMNS
    # Users copy and paste names, and half a number is another number: neither is wrapped.
    shown.add_column(benchmark, no_wrap=True, overflow="fold")
    shown.add_column(metric, overflow="fold")
    for name in numbers:
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column(word, no_wrap=True)
    styles = {"worse": "bold red", "better": "green", "same": "green", "identical": "green"}
    for row in comparison.rows:
        cells = [Text(cell) for cell in _cells(row)]
        cells[-1].stylize(styles.get(row.word, "" if row.primary else "dim"))
        shown.add_row(*cells)
    return Group(
        *(Text(line) for line in _preamble(comparison)),
        shown,
        *(Text(note) for note in notes(comparison)),
        Text(summary(comparison)),
        *([] if limits is None else _limits_table(limits)),
    )


def _limits_table(limits: CheckedLimits) -> list[RenderableType]:
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    for name in LIMIT_COLUMNS[:-1]:
        shown.add_column(name, overflow="fold")
    shown.add_column(LIMIT_COLUMNS[-1], no_wrap=True)
    for row in limits.rows:
        cells = [Text(cell) for cell in _limit_cells(row)]
        cells[-1].stylize({"broken": "bold red", "kept": "green"}.get(row.word, ""))
        shown.add_row(*cells)
    return [*([shown] if limits.rows else []), *(Text(line) for line in limit_notes(limits))]


def markdown(comparison: ResultComparison, limits: CheckedLimits | None = None) -> str:
    """Return a comparison as Markdown, with what the limits say about it."""
    lines = ["# Comparison", ""]
    lines += [f"{_md(line)}  " for line in _preamble(comparison)]
    lines += ["", "| " + " | ".join(COLUMNS[:-1]) + " | |", "|---|---|--:|--:|--:|--:|--:|---|"]
    lines += ["| " + " | ".join(_md(cell) for cell in _cells(row)) + " |" for row in comparison.rows]
    lines += ["", *(f"- {_md(note)}" for note in notes(comparison)), "", _md(summary(comparison)), ""]
    if limits is not None:
        lines += ["## Limits", ""]
        if limits.rows:
            lines += ["| " + " | ".join(LIMIT_COLUMNS[:-1]) + " | |", "|---|---|---|--:|--:|--:|---|"]
            lines += ["| " + " | ".join(_md(cell) for cell in _limit_cells(row)) + " |" for row in limits.rows]
        lines += ["", *(f"- {_md(note)}" for note in limit_notes(limits)), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def as_json(comparison: ResultComparison, limits: CheckedLimits | None = None) -> str:
    """Return a comparison as JSON; numbers that are not finite are null. Without limits, their list is empty."""
    limits = limits or CheckedLimits()
    found = {
        "a": comparison.a,
        "b": comparison.b,
        "environment": [{"name": name, "a": a, "b": b} for name, a, b in comparison.environment],
        "rows": [{**asdict(row), "regression": row.regression} for row in comparison.rows],
        "only_a": list(comparison.only_a),
        "only_b": list(comparison.only_b),
        "problems": list(comparison.problems),
        "regressions": len(comparison.regressions),
        "limits": [asdict(row) for row in limits.rows],
        "limits_unchecked": list(limits.unchecked),
    }
    return json_document("compare", found)


def notes(comparison: ResultComparison) -> list[str]:
    """Return what explains a word, one sentence for each that needs one."""
    together: dict[str, list[str]] = {}
    for row in comparison.rows:
        if row.note:
            together.setdefault(row.note, []).append(f"{_name(row)} ({_metric(row)})")
    found = [f"{listed(names, MAX_LISTED)}: {note}" for note, names in together.items()]
    if any(_detectable(row) for row in comparison.rows):
        found.append(
            "detectable: the smallest difference that these runs would have shown with 80% power, at the level that "
            "Holm's method leaves them"
        )
    return found


def limit_notes(limits: CheckedLimits) -> list[str]:
    """Return what explains the words of the limits, one sentence for each that needs one, and the result."""
    found = [f"{_name(row)} ({row.metric}, {row.device}): {row.note}" for row in limits.rows if row.note]
    found += [f"limit not checked: {what}" for what in limits.unchecked]
    if any(row.detectable is not None for row in limits.rows):
        found.append(
            "detectable: the smallest loss that these runs would have called broken with 80% power, at the level of as "
            "many limits"
        )
    counts = {word: sum(row.word == word for row in limits.rows) for word in ("broken", "unclear", "kept")}
    result = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    return [*found, f"limits: {result or 'none checked'}"]


def summary(comparison: ResultComparison) -> str:
    """Return one sentence with the result."""
    tested = [row for row in comparison.rows if row.primary]
    if not tested:
        return "no benchmark has runs on both sides, so nothing was compared"
    counts = {word: sum(row.word == word for row in tested) for word in dict.fromkeys(row.word for row in tested)}
    return ", ".join(f"{count} {word}" for word, count in counts.items())


def _preamble(comparison: ResultComparison) -> list[str]:
    lines = [f"A: {comparison.a}", f"B: {comparison.b}"]
    if comparison.environment:
        lines.append("Different environments, which may explain a difference below:")
        lines += [f"  {name}: {a} → {b}" for name, a, b in comparison.environment]
    else:
        lines.append("The same environment on both sides.")
    for names, side in ((comparison.only_a, "A"), (comparison.only_b, "B")):
        if names:
            lines.append(f"Only {side} has runs of {listed(names, MAX_LISTED)}.")
    return [*lines, *comparison.problems]


def _cells(row: ComparisonRow) -> list[str]:
    unit = "" if row.unit in ("", "%") else f" {row.unit}"
    metric = f"{_metric(row)}{', %' if row.unit == '%' else ''}"
    timed = row.metric == EPOCH_TIME
    # Percentage points of accuracy have two digits everywhere.
    digits = (lambda _: 2) if row.unit == "%" else _digits
    difference = f"×{row.difference + 1:.3f}" if timed else wording.signed(row.difference, digits(row.difference))
    interval = ""
    if row.interval is not None:
        low, high = row.interval
        interval = (
            f"×{low + 1:.3f} to ×{high + 1:.3f}"
            if timed
            else f"{wording.signed(low, digits(low))} to {wording.signed(high, digits(high))}"
        )
    return [
        _name(row),
        metric,
        f"{_significant(row.a)}{unit} ({row.a_runs})",
        f"{_significant(row.b)}{unit} ({row.b_runs})",
        difference,
        interval,
        DASH if row.adjusted_p is None else "<0.001" if row.adjusted_p < 0.001 else f"{row.adjusted_p:.3f}",
        f"{row.word}{_detectable(row)}" if row.primary else "",
    ]


def _limit_cells(row: LimitRow) -> list[str]:
    times = row.metric == EPOCH_TIME

    def amount(value: float) -> str:
        return f"×{value:.3f}" if times else wording.signed(value)

    ends = "" if row.interval is None else f"{amount(row.interval.low)} to {amount(row.interval.high)}"
    detectable = (
        "" if row.detectable is None else f", detectable {amount(row.detectable if times else -row.detectable)}"
    )
    return [
        _name(row),
        f"{row.metric}{'' if times else ', pp'}",
        row.device or DASH,
        amount(row.limit if times else -row.limit),
        f"{amount(row.change)} ({row.a_runs}, {row.b_runs})",
        ends,
        f"{row.word}{detectable}",
    ]


def _detectable(row: ComparisonRow) -> str:
    if row.word != "unclear" or row.detectable is None:
        return ""
    smallest = f"×{row.detectable + 1:.3f}" if row.metric == EPOCH_TIME else f"{row.detectable:.2f} pp"
    return f", detectable {smallest}"


def _name(row: ComparisonRow | LimitRow) -> str:
    name = row.label or row.benchmark
    name = name if row.profile == "full" else f"{name}, {row.profile}"
    return f"{name}, generated images" if row.generated else name


def _metric(row: ComparisonRow) -> str:
    return f"{row.metric}, {row.device}" if row.device else row.metric


def _digits(value: float) -> int:
    return 0 if abs(value) >= 1000 else 2 if abs(value) >= 0.1 or value == 0 else 4


def _significant(value: float) -> str:
    if not math.isfinite(value):
        return DASH
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.4g}"
