"""Draw claims: our accuracy minus the claim, and the selection effect."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from resnet_bench.judging.intervals import Interval, mean_interval
from resnet_bench.judging.verdict import best_evaluation, claimed_number
from resnet_bench.recipe.claims import Claim
from resnet_bench.reporting import wording
from resnet_bench.reporting.claims import ClaimRow
from resnet_bench.reporting.figures.style import (
    INK,
    MUTED,
    SHADE,
    STYLES,
    SURFACE,
    Plot,
    add_line,
    add_marks,
    escaped,
    finish_rows,
    label_row,
    mark,
    new_figure,
    zero_line,
)

VERDICT_COLORS: Mapping[str, str] = {
    "reproduced": "#2a9570",
    "exceeded": "#2f74c0",
    "not reproduced": "#c8453b",
    "inconclusive": "#b8860b",
    "not judged": MUTED,
}
_SEED = mark("circle", 6, SURFACE, 1.2, INK)
_CLAIM = mark("line-ns-open", 20, INK, 1.5, INK)
_TUNED = STYLES[3].color
_Line = tuple[ClaimRow, Claim, Sequence[float] | None]
"""A line of the forest: our runs of a claim, or the tuned accuracies beneath them."""


def forest(rows: Sequence[ClaimRow], tuned: Mapping[str, Sequence[float]]) -> Plot | None:
    """Draw our accuracy minus the claim, one row per claim, on one axis.

    Args:
        rows: Rows with a claim; the others are left out.
        tuned: Test accuracies in percent of tuned hyperparameters on new seeds, by benchmark.
    """
    shown = [(row, row.claim) for row in rows if row.claim is not None and row.seeds and not row.group.changed]
    if not shown:
        return None
    lines: list[_Line] = []
    for row, claim in shown:
        lines.append((row, claim, None))
        if row.headline and row.split == "test" and tuned.get(row.benchmark):
            lines.append((row, claim, tuned[row.benchmark]))
    figure = new_figure()
    edge = _forest_edge(lines)
    for place, (row, claim, tuned_values) in enumerate(lines):
        if tuned_values is None:
            _forest_row(figure, row, claim, -place, edge)
        else:
            _forest_tuned(figure, row, claim, -place, tuned_values)
    _forest_legend(figure, with_tuned=any(values for *_, values in lines))
    zero_line(figure)
    finish_rows(figure, len(lines), x="ours − claim, pp", x_range=(-edge, edge))
    return Plot.of(
        figure,
        "forest",
        "Our accuracy minus the claim",
        "One dot per seed. The thick bar is the 90% CI of our mean: the claim is reproduced if the bar lies in the "
        "shaded band (the claim, its rounding and the allowed margin), unless its source leaves open which epoch it is "
        "from and the best would be judged otherwise. The thin bar is the 95% prediction interval for as many further "
        "runs of ours as the claim rests on. The open bracket is the claim with its rounding; a range is measured from "
        "its middle. Both bars allow for images that are not the source's. Rows without bars are not judged; the table "
        "says why.",
        wide=True,
    )


def reference(claim: Claim) -> float:
    """Return the point of a claim that a plot puts at 0: its value, its bound, or the middle of its range."""
    if claim.range is not None:
        return statistics.fmean(claim.range)
    return claimed_number(claim, 0.0)


def selection_effect(rows: Sequence[ClaimRow], tuned: Mapping[str, Sequence[float]]) -> Plot | None:
    """Draw the same runs by ever more favorable statistics, then the claim, then tuned hyperparameters."""
    shown = [
        (row, row.claim, last)
        for row in rows
        if row.headline and row.claim is not None and (last := row.last_epoch) is not None and not row.group.changed
    ]
    if not shown:
        return None
    figure = new_figure()
    names = ("mean last epoch", "mean best epoch", "best seed's best epoch", "claim", "tuned")
    steps: dict[str, tuple[list[float], list[float], list[list[Any]]]] = {name: ([], [], []) for name in names}
    for place, (row, claim, last) in enumerate(shown):
        values = _readings(row, claim, last, tuned)
        for name, value in values.items():
            xs, ys, custom = steps[name]
            xs.append(value - last)
            ys.append(-place)
            custom.append([escaped(row.benchmark), value])
        runs = [values[name] - last for name in names[:3]]
        add_line(figure, runs, [-place] * 3, color=MUTED, width=1, hover="")
        label_row(figure, -place, f"<b>{escaped(row.benchmark)}</b>", f"last {last:.2f}%")
    symbols = ("circle", "diamond-open", "diamond", "line-ns-open", "triangle-up")
    for (name, (xs, ys, custom)), symbol, style in zip(steps.items(), symbols, STYLES, strict=False):
        if xs:
            color = INK if name == "claim" else style.color
            add_marks(
                figure,
                xs,
                ys,
                mark(symbol, 14 if name == "claim" else 9, color, 1.8, color),
                name=name,
                customdata=custom,
                hover=f"%{{customdata[0]}}<br>{name}: %{{customdata[1]:.2f}}%<extra></extra>",
            )
    finish_rows(figure, len(shown), x="pp above our mean at the last epoch")
    return Plot.of(
        figure,
        "selection-effect",
        "Selection effect",
        "The same runs by ever more favorable statistics: the mean of the last epoch, the mean of each seed's best "
        "epoch, the best epoch of the best seed; then the claim and, where there is a study, its tuned "
        "hyperparameters on new seeds.",
        wide=True,
    )


def _readings(row: ClaimRow, claim: Claim, last: float, tuned: Mapping[str, Sequence[float]]) -> dict[str, float]:
    curves = [run.accuracy(row.split, row.metric) for run in row.group.runs]
    bests = [best for curve in curves if (best := best_evaluation(curve)) is not None]
    values = {
        "mean last epoch": last,
        "mean best epoch": statistics.fmean(bests),
        "best seed's best epoch": max(bests),
        "claim": reference(claim),
    }
    if row.split == "test" and tuned.get(row.benchmark):
        values["tuned"] = statistics.fmean(tuned[row.benchmark])
    return values


def _forest_edge(lines: Sequence[_Line]) -> float:
    """Return half the width of the axis: everything of interest, but no single far miss that squeezes the rest."""
    reach = [2.0]
    for row, claim, tuned in lines:
        zero = reference(claim)
        values = [*(tuned or row.seeds.values())]
        if _judged(row) and row.verdict.prediction is not None and tuned is None:
            values += row.verdict.prediction
        reach += [abs(value - zero) for value in values]
    return 1.08 * min(max(reach), 10.0)


def _judged(row: ClaimRow) -> bool:
    return row.verdict.word != "not judged"


def _forest_row(figure: go.Figure, row: ClaimRow, claim: Claim, y: float, edge: float) -> None:
    verdict = row.verdict
    zero = reference(claim)
    low, high = claim.interval
    color = VERDICT_COLORS[verdict.word]
    figure.add_shape(
        type="rect",
        x0=low - claim.margin - zero,
        x1=min(high + claim.margin - zero, edge),
        y0=y - 0.22,
        y1=y + 0.16,
        fillcolor=SHADE,
        line_width=0,
        layer="below",
    )
    if _judged(row) and verdict.prediction is not None:
        _bar(figure, verdict.prediction, zero, y, color, 1.5, "95% prediction interval")
    if _judged(row) and verdict.decision_interval is not None:
        _bar(figure, verdict.decision_interval, zero, y, color, 7, "90% CI of the mean")
    ends = [low - zero] if math.isinf(high) else [low - zero, high - zero]
    add_marks(figure, ends, [y] * len(ends), _CLAIM, hover=f"claim {escaped(row.claim_text)}<extra></extra>")
    add_marks(
        figure,
        [value - zero for value in row.seeds.values()],
        [y - 0.02] * len(row.seeds),
        _SEED,
        customdata=[[seed, value] for seed, value in row.seeds.items()],
        hover="seed %{customdata[0]}: %{customdata[1]:.2f}%<extra></extra>",
    )
    word = f"{wording.VERDICT_MARKS[verdict.word]} {verdict.word}, n = {verdict.n}"
    label_row(figure, y, f"<b>{escaped(row.benchmark)}</b>  {escaped(row.claim_text)}", word, color)


def _forest_tuned(figure: go.Figure, row: ClaimRow, claim: Claim, y: float, values: Sequence[float]) -> None:
    zero = reference(claim)
    interval = mean_interval(values, confidence=0.90)
    if interval is not None:
        _bar(figure, interval, zero, y, _TUNED, 4, "90% CI of the mean, tuned")
    add_marks(
        figure,
        [value - zero for value in values],
        [y] * len(values),
        mark("triangle-up", 9, SURFACE, 1.4, _TUNED),
        customdata=list(values),
        hover="tuned, new seed: %{customdata:.2f}%<extra></extra>",
    )
    label_row(figure, y, f"{escaped(row.benchmark)}, tuned", f"new seeds, n = {len(values)}", _TUNED)


def _forest_legend(figure: go.Figure, *, with_tuned: bool) -> None:
    entries = [
        ("reproduced if the 90% CI lies here", mark("square", 14, SHADE)),
        ("claim ± rounding", mark("line-ns-open", 12, INK, 1.5)),
        ("seed", _SEED),
        ("90% CI of the mean", mark("line-ew-open", 14, INK, 6)),
        ("95% prediction interval", mark("line-ew-open", 14, INK, 1.5)),
    ]
    if with_tuned:
        entries.append(("tuned", mark("triangle-up", 8, _TUNED)))
    for name, marker in entries:
        add_marks(figure, [None], [None], marker, name=name, hover="")


def _bar(figure: go.Figure, ends: Interval, zero: float, y: float, color: str, width: float, name: str) -> None:
    add_line(
        figure,
        [ends.low - zero, ends.high - zero],
        [y, y],
        color=color,
        width=width,
        customdata=[ends.low, ends.high],
        hover=f"{name}: {wording.interval(ends)}<extra></extra>",
    )
