"""Claims as pictures: ours minus the claim, and how such a number arises."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from resnet_bench.recipe.claims import Claim
from resnet_bench.reporting import statistics as rules
from resnet_bench.reporting import text
from resnet_bench.reporting.claims import ClaimRow
from resnet_bench.reporting.figures.style import (
    INK,
    MUTED,
    ROW_HEIGHT,
    SHADE,
    STYLES,
    SURFACE,
    Plot,
    escaped,
    finish,
    label_row,
    new_figure,
    rounded,
    specification,
)

VERDICT_COLORS: Mapping[str, str] = {
    "reproduced": "#2a9570",
    "exceeded": "#2f74c0",
    "not reproduced": "#c8453b",
    "inconclusive": "#b8860b",
    "not judged": MUTED,
}


def forest(rows: Sequence[ClaimRow], tuned: Mapping[str, Sequence[float]]) -> Plot | None:
    """Ours minus the claim, a row a claim, on one axis.

    Args:
        rows: Rows with a claim; the others are left out.
        tuned: Test accuracies in percent of tuned settings on fresh seeds, by benchmark.
    """
    shown = [row for row in rows if row.claim is not None and row.seeds and not row.group.changed]
    if not shown:
        return None
    figure = new_figure()
    lines: list[tuple[ClaimRow, float, Sequence[float] | None]] = []
    position = 0.0
    for row in shown:
        lines.append((row, position, None))
        position -= 1
        if row.headline and row.split == "test" and tuned.get(row.benchmark):
            lines.append((row, position, tuned[row.benchmark]))
            position -= 1
    edge = _forest_edge(lines)
    for row, y, tuned_values in lines:
        if tuned_values is None:
            _forest_row(figure, row, y, edge)
        else:
            _forest_tuned(figure, row, y, tuned_values)
    _forest_legend(figure, any(values for _, _, values in lines))
    figure.add_vline(x=0, line={"color": MUTED, "width": 1, "dash": "dot"}, layer="below")
    height = 110 + ROW_HEIGHT * len(lines)
    finish(figure, height, x="ours − claim, points", x_range=(-edge, edge))
    figure.update_yaxes(visible=False, range=[position + 0.45, 0.75])
    return Plot(
        "forest",
        "Ours minus the claim",
        "Each dot is a seed. The thick bar is the 90% interval of our mean, which must lie in the shaded band "
        "(the claim, its rounding and the allowed margin) to be “reproduced”; the thin bar is where as many "
        "further runs of ours as stand behind the claim would fall, with 95%. The open bracket is the claim "
        "with its rounding width; a range is measured from its middle. Rows without bars have too few seeds.",
        specification(figure),
        height,
        wide=True,
    )


def reference(claim: Claim) -> float:
    """The point of a claim that a plot puts at 0: its value, its bound, or the middle of its range."""
    if claim.range is not None:
        return statistics.fmean(claim.range)
    return rules.claimed_number(claim, 0.0)


def _forest_edge(lines: Sequence[tuple[ClaimRow, float, Sequence[float] | None]]) -> float:
    """Half the width of the axis: everything of interest, but no single far miss that squeezes the rest."""
    reach = [2.0]
    for row, _, tuned in lines:
        assert row.claim is not None
        zero = reference(row.claim)
        values = [*(tuned or row.seeds.values())]
        if _judged(row) and row.verdict.prediction is not None and tuned is None:
            values += row.verdict.prediction
        reach += [abs(value - zero) for value in values]
    return 1.08 * min(max(reach), 10.0)


def _judged(row: ClaimRow) -> bool:
    return row.verdict.word != "not judged"


def _forest_row(figure: go.Figure, row: ClaimRow, y: float, edge: float) -> None:
    claim, verdict = row.claim, row.verdict
    assert claim is not None
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
        _bar(figure, verdict.prediction, zero, y, color, 1.5, "95% prediction")
    if _judged(row) and verdict.decision_interval is not None:
        _bar(figure, verdict.decision_interval, zero, y, color, 7, "90% interval of the mean")
    ends = [low - zero] if math.isinf(high) else [low - zero, high - zero]
    figure.add_trace(
        go.Scatter(
            x=ends,
            y=[y] * len(ends),
            mode="markers",
            marker={"symbol": "line-ns-open", "size": 20, "color": INK, "line": {"width": 1.5, "color": INK}},
            hovertemplate=f"claim {escaped(row.claim_text)}<extra></extra>",
            showlegend=False,
        )
    )
    figure.add_trace(
        go.Scatter(
            x=[value - zero for value in row.seeds.values()],
            y=[y - 0.02] * len(row.seeds),
            mode="markers",
            marker={"symbol": "circle", "size": 6, "color": SURFACE, "line": {"width": 1.2, "color": INK}},
            customdata=[[seed, value] for seed, value in row.seeds.items()],
            hovertemplate="seed %{customdata[0]}: %{customdata[1]:.2f}%<extra></extra>",
            showlegend=False,
        )
    )
    word = f"{text.VERDICT_MARKS[verdict.word]} {verdict.word}, n = {verdict.n}"
    label_row(figure, y, f"<b>{escaped(row.benchmark)}</b>  {escaped(row.claim_text)}", word, color)


def _forest_tuned(figure: go.Figure, row: ClaimRow, y: float, values: Sequence[float]) -> None:
    assert row.claim is not None
    zero = reference(row.claim)
    interval = rules.mean_interval(values, confidence=0.90)
    if interval is not None:
        _bar(figure, interval, zero, y, STYLES[3][0], 4, "90% interval of the mean, tuned")
    figure.add_trace(
        go.Scatter(
            x=[value - zero for value in values],
            y=[y] * len(values),
            mode="markers",
            marker={
                "symbol": "triangle-up",
                "size": 9,
                "color": SURFACE,
                "line": {"width": 1.4, "color": STYLES[3][0]},
            },
            customdata=list(values),
            hovertemplate="tuned, fresh seed: %{customdata:.2f}%<extra></extra>",
            showlegend=False,
        )
    )
    label_row(figure, y, f"{escaped(row.benchmark)}, tuned", f"fresh seeds, n = {len(values)}", STYLES[3][0])


def _forest_legend(figure: go.Figure, with_tuned: bool) -> None:
    entries: list[tuple[str, dict[str, Any]]] = [
        ("still reproduced", {"symbol": "square", "size": 14, "color": SHADE}),
        ("claim ± rounding", {"symbol": "line-ns-open", "size": 12, "color": INK, "line": {"width": 1.5}}),
        ("seed", {"symbol": "circle", "size": 6, "color": SURFACE, "line": {"width": 1.2, "color": INK}}),
        ("90% of the mean", {"symbol": "line-ew-open", "size": 14, "color": INK, "line": {"width": 6}}),
        ("95% of further runs", {"symbol": "line-ew-open", "size": 14, "color": INK, "line": {"width": 1.5}}),
    ]
    if with_tuned:
        entries.append(("tuned", {"symbol": "triangle-up", "size": 8, "color": STYLES[3][0]}))
    for name, marker in entries:
        figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", marker=marker, name=name, hoverinfo="skip"))


def ladder(rows: Sequence[ClaimRow], tuned: Mapping[str, Sequence[float]]) -> Plot | None:
    """How a claim arises: the same runs by ever more favourable statistics, then the claim, then tuning."""
    shown = [
        row
        for row in rows
        if row.headline and row.claim is not None and row.last_epoch is not None and not row.group.changed
    ]
    if not shown:
        return None
    figure = new_figure()
    steps: dict[str, tuple[list[float], list[float], list[list[Any]]]] = {
        name: ([], [], [])
        for name in ("mean last epoch", "mean best epoch", "best seed's best epoch", "claim", "tuned")
    }
    for place, row in enumerate(shown):
        assert row.claim is not None
        assert row.last_epoch is not None
        curves = [run.accuracy(row.split, metric=row.metric) for run in row.group.runs]
        bests = [best for curve in curves if (best := rules.best_evaluation(curve)) is not None]
        values = {
            "mean last epoch": row.last_epoch,
            "mean best epoch": statistics.fmean(bests),
            "best seed's best epoch": max(bests),
            "claim": reference(row.claim),
        }
        if row.split == "test" and tuned.get(row.benchmark):
            values["tuned"] = statistics.fmean(tuned[row.benchmark])
        for name, value in values.items():
            xs, ys, custom = steps[name]
            xs.append(round(value - row.last_epoch, 4))
            ys.append(-place)
            custom.append([escaped(row.benchmark), value])
        ladder_x = [values[name] - row.last_epoch for name in list(values)[:3]]
        figure.add_trace(
            go.Scatter(
                x=ladder_x,
                y=[-place] * 3,
                mode="lines",
                line={"color": MUTED, "width": 1},
                hoverinfo="skip",
                showlegend=False,
            )
        )
        label_row(figure, -place, f"<b>{escaped(row.benchmark)}</b>", f"last {row.last_epoch:.2f}%")
    symbols = ("circle", "diamond-open", "diamond", "line-ns-open", "triangle-up")
    for (name, (xs, ys, custom)), symbol, style in zip(steps.items(), symbols, STYLES, strict=False):
        if not xs:
            continue
        color = INK if name == "claim" else style[0]
        figure.add_trace(
            go.Scatter(
                x=xs,
                y=ys,
                mode="markers",
                name=name,
                marker={
                    "symbol": symbol,
                    "size": 14 if name == "claim" else 9,
                    "color": color,
                    "line": {"width": 1.8, "color": color},
                },
                customdata=custom,
                hovertemplate=f"%{{customdata[0]}}<br>{name}: %{{customdata[1]:.2f}}%<extra></extra>",
            )
        )
    height = 110 + ROW_HEIGHT * len(shown)
    finish(figure, height, x="points above our mean at the last epoch")
    figure.update_yaxes(visible=False, range=[0.45 - len(shown), 0.75])
    return Plot(
        "ladder",
        "How such a number arises",
        "The same runs, read ever more favourably: the mean of the last epoch, the mean of each seed's best "
        "epoch, the best epoch of the best seed; then the claim, and where a study has been made, its tuned "
        "settings on fresh seeds.",
        specification(figure),
        height,
        wide=True,
    )


def _bar(figure: go.Figure, ends: rules.Interval, zero: float, y: float, color: str, width: float, name: str) -> None:
    figure.add_trace(
        go.Scatter(
            x=rounded([ends.low - zero, ends.high - zero]),
            y=[y, y],
            mode="lines",
            line={"color": color, "width": width},
            customdata=[ends.low, ends.high],
            hovertemplate=f"{name}: {text.interval(ends)}<extra></extra>",
            showlegend=False,
        )
    )
