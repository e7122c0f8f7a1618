"""The plots of a report, as plotly specifications that follow the page's light or dark theme.

Every colour that depends on the theme is written as a placeholder (see ``THEME``), which the page replaces.
Every series has a mark or a dash of its own beside its colour.
"""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from resnet_bench.benchmark import Claim
from resnet_bench.reporting import statistics as rules
from resnet_bench.reporting import text
from resnet_bench.reporting.claims import ClaimRow, evaluation_interval, median, times_to_accuracy
from resnet_bench.reporting.results import Group, Run

INK, MUTED, GRID, SURFACE, SHADE = "#010101", "#020202", "#030303", "#040404", "#050505"
THEME: Mapping[str, str] = {"ink": INK, "muted": MUTED, "grid": GRID, "surface": SURFACE, "shade": SHADE}
"""Placeholder colours by the name of the page's CSS variable that takes their place."""

STYLES = (
    ("#2f74c0", "circle", "solid"),
    ("#d1741f", "square", "dash"),
    ("#2a9570", "diamond", "dot"),
    ("#a8508f", "triangle-up", "dashdot"),
    ("#8a7a17", "cross", "longdash"),
    ("#5b6fd6", "x", "longdashdot"),
    ("#c0504d", "star", "solid"),
    ("#4b8a99", "hexagon", "dash"),
)
VERDICT_COLORS: Mapping[str, str] = {
    "reproduced": "#2a9570",
    "exceeded": "#2f74c0",
    "not reproduced": "#c8453b",
    "inconclusive": "#b8860b",
    "not judged": MUTED,
}
VERDICT_SYMBOLS: Mapping[str, str] = {
    "reproduced": "diamond",
    "exceeded": "triangle-right",
    "not reproduced": "x",
    "inconclusive": "diamond-open",
    "not judged": "circle-open",
}
ROW_HEIGHT = 54
LABEL_OFFSET = 0.30
"""How far above its row, in rows, a label stands."""
MAX_CLASSES_SHOWN = 20
SHOWN_TARGETS = 30.0
"""Points below its best accuracy from which a benchmark's time to an accuracy is drawn."""


@dataclass(frozen=True)
class Plot:
    """One plot with the words that go with it."""

    id: str
    title: str
    caption: str
    """What is shown and what every mark and band means; also what a screen reader reads."""
    spec: Mapping[str, Any]
    """``data`` and ``layout`` as plotly.js takes them."""
    height: int
    wide: bool = False


def escaped(name: object) -> str:
    """A name as plotly shows it: its text is a little markup language, in which a name must mean nothing."""
    return str(name).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


# --- claims --------------------------------------------------------------------------------------


def forest(rows: Sequence[ClaimRow], tuned: Mapping[str, Sequence[float]]) -> Plot | None:
    """Ours minus the claim, a row a claim, on one axis.

    Args:
        rows: Rows with a claim; the others are left out.
        tuned: Test accuracies in percent of tuned settings on fresh seeds, by benchmark.
    """
    shown = [row for row in rows if row.claim is not None and row.seeds and not row.group.changed]
    if not shown:
        return None
    figure = _figure()
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
    _finish(figure, height, x="ours − claim, points", x_range=(-edge, edge))
    figure.update_yaxes(visible=False, range=[position + 0.45, 0.75])
    return Plot(
        "forest",
        "Ours minus the claim",
        "Each dot is a seed. The thick bar is the 90% interval of our mean, which must lie in the shaded band "
        "(the claim, its rounding and the allowed margin) to be “reproduced”; the thin bar is where as many "
        "further runs of ours as stand behind the claim would fall, with 95%. The open bracket is the claim "
        "with its rounding width; a range is measured from its middle. Rows without bars have too few seeds.",
        _spec(figure),
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
    _row_label(figure, y, f"<b>{escaped(row.benchmark)}</b>  {escaped(row.claim_text)}", word, color)


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
    _row_label(figure, y, f"{escaped(row.benchmark)}, tuned", f"fresh seeds, n = {len(values)}", STYLES[3][0])


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
    figure = _figure()
    steps: dict[str, tuple[list[float], list[float], list[list[Any]]]] = {
        name: ([], [], [])
        for name in ("mean last epoch", "mean best epoch", "best seed's best epoch", "claim", "tuned")
    }
    for place, row in enumerate(shown):
        assert row.claim is not None
        assert row.last_epoch is not None
        curves = [run.accuracy(row.split) for run in row.group.runs]
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
        _row_label(figure, -place, f"<b>{escaped(row.benchmark)}</b>", f"last {row.last_epoch:.2f}%")
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
                    "size": 18 if name == "claim" else 9,
                    "color": color,
                    "line": {"width": 1.8, "color": color},
                },
                customdata=custom,
                hovertemplate=f"%{{customdata[0]}}<br>{name}: %{{customdata[1]:.2f}}%<extra></extra>",
            )
        )
    height = 110 + ROW_HEIGHT * len(shown)
    _finish(figure, height, x="points above our mean at the last epoch")
    figure.update_yaxes(visible=False, range=[0.45 - len(shown), 0.75])
    return Plot(
        "ladder",
        "How such a number arises",
        "The same runs, read ever more favourably: the mean of the last epoch, the mean of each seed's best "
        "epoch, the best epoch of the best seed; then the claim, and where a study has been made, its tuned "
        "settings on fresh seeds.",
        _spec(figure),
        height,
        wide=True,
    )


# --- curves --------------------------------------------------------------------------------------


def curves(group: Group) -> list[Plot]:
    """Accuracy and loss against epoch and against training time, and the learning rate against the batch."""
    plots = [
        _accuracy_by_epoch(group),
        _loss(group, against="epoch"),
        _accuracy_by_time(group),
        _loss(group, against="time"),
        _learning_rate(group),
    ]
    return [plot for plot in plots if plot is not None]


def _accuracy_by_epoch(group: Group) -> Plot | None:
    figure = _figure()
    described = []
    for split, style in zip(("test", "validation", "train"), STYLES, strict=False):
        series = [run.accuracy(split) for run in group.runs]
        if split == "train":
            _mean_line(figure, series, "train, mean", (style[0], "", "dot"), width=1.2)
        elif _seed_lines(figure, series, split, style):
            described.append(split)
    if not figure.data:
        return None
    _last_and_best(figure, group)
    _published(figure, group)
    seeds = text.plural(len(group.runs), "seed")
    _finish(figure, 320, x="epoch", y="accuracy, %")
    return Plot(
        f"accuracy-epoch-{group.key}",
        "Accuracy by epoch",
        f"{seeds}: a thin line each, their mean, and the band from the lowest to the highest of them"
        + (f" ({' and '.join(described)})" if described else "")
        + "; published values over it where the source prints them.",
        _spec(figure),
        320,
    )


def _seed_lines(
    figure: go.Figure, series: Sequence[Mapping[int, float]], name: str, style: tuple[str, str, str]
) -> bool:
    """A thin line a seed, the mean and the band of all; a mark where there is a single evaluation."""
    color, symbol, dash = style
    present = [curve for curve in series if curve]
    if not present:
        return False
    if max(len(curve) for curve in present) == 1:
        figure.add_trace(
            go.Scatter(
                x=[epoch for curve in present for epoch in curve],
                y=_rounded(value for curve in present for value in curve.values()),
                mode="markers",
                name=f"{name}, once a seed",
                marker={"symbol": f"{symbol}-open", "size": 9, "color": color, "line": {"width": 1.5}},
            )
        )
        return True
    common = sorted(set.intersection(*(set(curve) for curve in present)))
    if len(present) > 1 and common:
        low = [min(curve[epoch] for curve in present) for epoch in common]
        high = [max(curve[epoch] for curve in present) for epoch in common]
        figure.add_trace(
            go.Scatter(
                x=[*common, *reversed(common)],
                y=_rounded([*high, *reversed(low)]),
                fill="toself",
                fillcolor=_faded(color, 0.16),
                line={"width": 0},
                mode="lines",
                name=f"{name}, lowest to highest seed",
                hoverinfo="skip",
            )
        )
        for curve in present:
            figure.add_trace(
                go.Scatter(
                    x=list(curve),
                    y=_rounded(curve.values()),
                    mode="lines",
                    line={"color": color, "width": 0.7},
                    opacity=0.55,
                    hoverinfo="skip",
                    showlegend=False,
                )
            )
    _mean_line(figure, present, f"{name}, mean" if len(present) > 1 else name, (color, symbol, dash), width=2)
    return True


def _mean_line(
    figure: go.Figure,
    series: Sequence[Mapping[int, float]],
    name: str,
    style: tuple[str, str, str],
    *,
    width: float,
    times: Sequence[Mapping[int, float]] | None = None,
) -> None:
    """The mean over the seeds at the epochs that all have; against the mean of their times where given."""
    pairs = [
        (curve, clock)
        for curve, clock in zip(series, times or series, strict=True)
        if curve and (times is None or clock)
    ]
    if not pairs:
        return
    common = sorted(set.intersection(*(set(curve) & set(clock) for curve, clock in pairs)))
    if not common:
        return
    xs: list[float] = list(common)
    if times is not None:
        xs = [statistics.fmean(clock[epoch] for _, clock in pairs) for epoch in common]
    figure.add_trace(
        go.Scatter(
            x=_rounded(xs),
            y=_rounded(statistics.fmean(curve[epoch] for curve, _ in pairs) for epoch in common),
            mode="lines" if len(common) > 1 else "markers",
            name=name,
            line={"color": style[0], "width": width, "dash": style[2]},
            marker={"symbol": style[1] or "circle", "color": style[0], "size": 7},
        )
    )


def _last_and_best(figure: go.Figure, group: Group) -> None:
    split = group.curve_split
    for name, symbol, pick in (("last", "circle", max), ("best", "star", None)):
        xs, ys = [], []
        for run in group.runs:
            curve = run.accuracy(split)
            if len(curve) < 2:
                continue
            epoch = pick(curve) if pick else max(curve, key=lambda epoch: (curve[epoch], -epoch))
            xs.append(epoch)
            ys.append(curve[epoch])
        if xs:
            figure.add_trace(
                go.Scatter(
                    x=xs,
                    y=_rounded(ys),
                    mode="markers",
                    name=f"{name} epoch of a seed",
                    marker={"symbol": symbol, "size": 7, "color": SURFACE, "line": {"width": 1.3, "color": INK}},
                )
            )


def _published(figure: go.Figure, group: Group) -> None:
    definition = group.definition
    if definition is None or group.changed:
        return
    for claim in definition.claims:
        if claim.curve is not None:
            figure.add_trace(
                go.Scatter(
                    x=list(claim.curve.epochs),
                    y=list(claim.curve.values),
                    mode="lines+markers",
                    name=f"published, {claim.split}",
                    line={"color": INK, "width": 1.2, "dash": "dash"},
                    marker={"symbol": "x-thin-open", "size": 6, "color": INK, "line": {"width": 1.3}},
                )
            )
        epoch = claim.epoch if claim.epoch is not None else definition.recipe.training.epochs
        low, high = claim.interval
        # A claim whose epoch is not stated is drawn at the last one.
        figure.add_trace(
            go.Scatter(
                x=[epoch],
                y=[reference(claim)],
                error_y={
                    "type": "data",
                    "array": [0 if math.isinf(high) else high - reference(claim)],
                    "arrayminus": [reference(claim) - low],
                    "color": INK,
                    "thickness": 1.2,
                },
                mode="markers",
                name=f"claim {escaped(claim.text)}, {claim.split}",
                marker={
                    "symbol": "triangle-up-open" if claim.at_least is not None else "diamond-open",
                    "size": 11,
                    "color": INK,
                    "line": {"width": 1.6},
                },
            )
        )


def _accuracy_by_time(group: Group) -> Plot | None:
    device, runs = next(iter(group.devices.items()))
    figure = _figure()
    split = group.curve_split
    color, symbol, dash = STYLES[0]
    timed = [points for run in runs if (points := run.timed_accuracy(split))]
    unit, unit_name = _time_unit(max((points[-1][0] for points in timed), default=0.0))
    for points in timed:
        figure.add_trace(
            go.Scatter(
                x=_rounded(seconds / unit for seconds, _ in points),
                y=_rounded(value for _, value in points),
                mode="lines" if len(points) > 1 else "markers",
                line={"color": color, "width": 0.8},
                marker={"symbol": f"{symbol}-open", "color": color},
                opacity=0.6,
                name="a seed",
                showlegend=points is timed[0],
            )
        )
    if not timed:
        return None
    times = [_clock(run, unit) for run in runs]
    if len(timed) > 1:
        _mean_line(figure, [run.accuracy(split) for run in runs], "mean", (color, symbol, dash), width=2, times=times)
    claims = group.definition.claims if group.definition and not group.changed else ()
    for claim in claims:
        if claim.wall_seconds is not None:
            figure.add_trace(
                go.Scatter(
                    x=[claim.wall_seconds / unit],
                    y=[reference(claim)],
                    mode="markers",
                    name=f"claim {escaped(claim.text)} on the source's machine",
                    marker={"symbol": "diamond-open", "size": 11, "color": INK, "line": {"width": 1.6}},
                )
            )
    _finish(figure, 320, x=f"training time, {unit_name}", y=f"{split} accuracy, %")
    return Plot(
        f"accuracy-time-{group.key}",
        "Accuracy by training time",
        f"On {device or 'an unnamed device'}; evaluation, set-up and compilation are not in the time.",
        _spec(figure),
        320,
    )


def _loss(group: Group, *, against: str) -> Plot | None:
    figure = _figure()
    runs = list(group.runs)
    if against == "time":
        runs = next(iter(group.devices.values()))
    unit, unit_name = _time_unit(max((run.train_seconds or 0.0 for run in runs), default=0.0))
    times = [_clock(run, unit) for run in runs] if against == "time" else None
    for (key, name), style in zip(
        (("test/loss", "test"), ("validation/loss", "validation"), ("train/loss", "train")), STYLES, strict=False
    ):
        series = [
            {epoch: value for epoch, value in run.metrics.get(key, {}).items() if math.isfinite(value)} for run in runs
        ]
        if times is None:
            _seed_lines(figure, series, name, style)
        else:
            _mean_line(figure, series, f"{name}, mean", style, width=1.8, times=times)
    if not figure.data:
        return None
    axis = "epoch" if against == "epoch" else f"training time, {unit_name}"
    _finish(figure, 320, x=axis, y="loss, nats")
    return Plot(
        f"loss-{against}-{group.key}",
        f"Loss by {'epoch' if against == 'epoch' else 'training time'}",
        "Training loss as the source reports it, and the loss of what is evaluated; mean over the seeds"
        + (", with the band from the lowest to the highest." if against == "epoch" else "."),
        _spec(figure),
        320,
    )


def _clock(run: Run, unit: float) -> dict[int, float]:
    """Training time at the end of each epoch, in a unit of so many seconds."""
    return {epoch: seconds / unit for epoch, seconds in run.metrics.get("time/train_seconds", {}).items()}


def _learning_rate(group: Group) -> Plot | None:
    series: Mapping[int, float] = next(
        (rates for run in reversed(group.all_runs) if (rates := run.metrics.get("step/learning_rate"))), {}
    )
    if not series:
        return None
    figure = _figure()
    figure.add_trace(
        go.Scatter(
            x=list(series),
            y=[float(f"{value:.5g}") for value in series.values()],
            mode="lines",
            line={"color": STYLES[0][0], "width": 1.8},
            showlegend=False,
            hovertemplate="batch %{x}: %{y:.4g}<extra></extra>",
        )
    )
    _finish(figure, 320, x="batch", y="learning rate")
    figure.update_yaxes(rangemode="tozero")
    return Plot(
        f"rate-{group.key}", "Learning rate by batch", "The same for every seed of the recipe.", _spec(figure), 320
    )


# --- comparing -----------------------------------------------------------------------------------


def pareto(groups: Sequence[Group], dataset: str) -> Plot | None:
    """Accuracy against training time, with the front of those that nothing beats in both."""
    figure = _figure()
    points: list[tuple[float, float]] = []
    for group, style in zip(_of_dataset(groups, dataset), cycle(STYLES), strict=False):
        for device, runs in group.devices.items():
            measured = [
                (run.train_seconds, value)
                for run in runs
                if run.train_seconds and (value := run.last_accuracy(group.split)) is not None
            ]
            if not measured:
                continue
            center = (statistics.median(t for t, _ in measured), statistics.fmean(a for _, a in measured))
            points.append(center)
            label = group_label(group, groups)
            figure.add_trace(
                go.Scatter(
                    x=_rounded(t for t, _ in measured),
                    y=_rounded(a for _, a in measured),
                    mode="markers",
                    marker={"symbol": f"{style[1]}-open", "size": 6, "color": style[0]},
                    hovertemplate=f"{escaped(label)}, a seed<br>%{{y:.2f}}% in %{{x:,.1f}} s<extra></extra>",
                    showlegend=False,
                )
            )
            figure.add_trace(
                go.Scatter(
                    x=[round(center[0], 3)],
                    y=[round(center[1], 3)],
                    mode="markers",
                    name=escaped(f"{label}, {device}" if device else label),
                    marker={"symbol": style[1], "size": 11, "color": style[0]},
                    hovertemplate="%{y:.2f}% in %{x:,.1f} s<extra>%{fullData.name}</extra>",
                )
            )
    if not points:
        return None
    front = pareto_front(points)
    figure.add_trace(
        go.Scatter(
            x=[round(t, 3) for t, _ in front],
            y=[round(a, 3) for _, a in front],
            mode="lines",
            line={"color": MUTED, "width": 1.2, "dash": "dash", "shape": "hv"},
            name="Pareto front",
            hoverinfo="skip",
        )
    )
    _finish(figure, 400, x="training time", y="accuracy, %")
    figure.update_xaxes(_logarithmic_time({}))
    return Plot(
        f"pareto-{dataset}",
        f"Accuracy against training time, {dataset}",
        "A filled mark is a benchmark on a device (mean accuracy of the last epoch, median training time); "
        "open marks are its seeds. No benchmark beats those on the dashed front in both.",
        _spec(figure),
        400,
        wide=True,
    )


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, gain) that no other beats in both, by rising cost."""
    front: list[tuple[float, float]] = []
    for cost, gain in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or gain > front[-1][1]:
            front.append((cost, gain))
    return front


def time_to_accuracy(groups: Sequence[Group], dataset: str) -> Plot | None:
    """For every target at once: the median time at which a benchmark's seeds reached it."""
    figure = _figure()
    intervals = set()
    for group, style in zip(_of_dataset(groups, dataset), cycle(STYLES), strict=False):
        for device, runs in group.devices.items():
            reached = [value for run in runs for _, value in run.timed_accuracy(group.curve_split)]
            if not reached:
                continue
            top = max(reached)
            bottom = max(min(reached), top - SHOWN_TARGETS)
            targets = [bottom + (top - bottom) * place / 80 for place in range(81)]
            medians = [times_to_accuracy(group, target, device) for target in targets]
            curve = [(t.target, t.median) for t in medians if t is not None and math.isfinite(t.median)]
            label = group_label(group, groups)
            intervals.add(evaluation_interval(runs, group.curve_split) or 1)
            figure.add_trace(
                go.Scatter(
                    x=_rounded(target for target, _ in curve),
                    y=_rounded(seconds for _, seconds in curve),
                    mode="lines",
                    line={"color": style[0], "width": 2, "dash": style[2], "shape": "vh"},
                    name=escaped(f"{label}, {device}" if device else label),
                    hovertemplate="%{x:.1f}% by %{y:,.1f} s<extra>%{fullData.name}</extra>",
                )
            )
    if not figure.data:
        return None
    every = " or ".join("epoch" if interval == 1 else f"{interval} epochs" for interval in sorted(intervals))
    _finish(figure, 360, x="accuracy to reach, %", y="median training time")
    figure.update_yaxes(_logarithmic_time({}))
    return Plot(
        f"time-to-{dataset}",
        f"Time to a chosen accuracy, {dataset}",
        "Training time until the mean of a run's last three evaluations holds the accuracy, median over the seeds; "
        f"a line ends where half of them or more miss it. Evaluated every {every}; evaluation is not in the time.",
        _spec(figure),
        360,
        wide=True,
    )


def strip(groups: Sequence[Group], dataset: str) -> Plot | None:
    """Every seed's last accuracy, a row a benchmark."""
    shown = [group for group in _of_dataset(groups, dataset) if group.values(group.split)]
    if not shown:
        return None
    figure = _figure()
    for place, (group, style) in enumerate(zip(shown, cycle(STYLES), strict=False)):
        runs = [(run, value) for run in group.runs if (value := run.last_accuracy(group.split)) is not None]
        values = [value for _, value in runs]
        mean = statistics.fmean(values)
        figure.add_trace(
            go.Scatter(
                x=_rounded(value - mean for value in values),
                y=[-place] * len(values),
                mode="markers",
                marker={"symbol": f"{style[1]}-open", "size": 9, "color": style[0], "line": {"width": 1.4}},
                customdata=[[str(run.seed), value, escaped(run.device)] for run, value in runs],
                hovertemplate="seed %{customdata[0]}: %{customdata[1]:.2f}%, %{customdata[2]}<extra></extra>",
                showlegend=False,
            )
        )
        sd = rules.standard_deviation(values)
        spread = f"sd {sd:.2f}, n = {len(values)}" if len(values) > 1 else "n = 1"
        _row_label(figure, -place, escaped(group_label(group, groups)), f"{mean:.2f}%, {spread}")
    height = 70 + ROW_HEIGHT * len(shown)
    _finish(figure, height, x="points from the mean of the seeds, last epoch")
    figure.update_yaxes(visible=False, range=[0.45 - len(shown), 0.75])
    figure.add_vline(x=0, line={"color": MUTED, "width": 1, "dash": "dot"}, layer="below")
    caption = "A mark is one seed; each benchmark's are measured from their own mean, so that spreads compare."
    return Plot(f"strip-{dataset}", f"Seeds, {dataset}", caption, _spec(figure), height)


def throughput(groups: Sequence[Group]) -> Plot | None:
    """Images a second of every run, by benchmark and device."""
    return _by_device_and_run(
        groups, "throughput", "Throughput", "training images a second", lambda run: run.images_per_second, log=True
    )


def memory(groups: Sequence[Group]) -> Plot | None:
    """Peak memory of every run, by benchmark and device."""
    return _by_device_and_run(
        groups,
        "memory",
        "Peak memory",
        "GiB",
        lambda run: None if run.peak_memory is None else run.peak_memory / 2**30,
    )


def _by_device_and_run(
    groups: Sequence[Group], name: str, title: str, unit: str, measure: Any, *, log: bool = False
) -> Plot | None:
    devices = sorted({device for group in groups for device in group.devices})
    rows = [
        (group, device, values)
        for group in groups
        for device in devices
        if (values := [v for run in group.devices.get(device, ()) if (v := measure(run)) is not None])
    ]
    if not rows:
        return None
    figure = _figure()
    for device, style in zip(devices, cycle(STYLES), strict=False):
        places = [(place, values) for place, (_, its, values) in enumerate(rows) if its == device]
        figure.add_trace(
            go.Scatter(
                x=_rounded(value for _, values in places for value in values),
                y=[-place for place, values in places for _ in values],
                mode="markers",
                name=escaped(device or "unnamed device"),
                marker={"symbol": f"{style[1]}-open", "size": 9, "color": style[0], "line": {"width": 1.4}},
                hovertemplate=f"%{{x:,.4g}} {unit}<extra>%{{fullData.name}}</extra>",
            )
        )
    for place, (group, _, values) in enumerate(rows):
        middle = median(values)
        assert middle is not None
        shown = f"{middle:,.0f}" if middle >= 100 else f"{middle:.3g}"
        _row_label(figure, -place, escaped(group_label(group, groups)), f"median {shown}")
    height = 110 + ROW_HEIGHT * len(rows)
    _finish(figure, height, x=unit)
    figure.update_yaxes(visible=False, range=[0.45 - len(rows), 0.75])
    if log and max(max(values) for *_, values in rows) > 10 * min(min(values) for *_, values in rows):
        figure.update_xaxes(type="log")
    else:
        figure.update_xaxes(rangemode="tozero")
    return Plot(name, title, "A mark is one run; marks and colours are devices.", _spec(figure), height)


def per_class(group: Group, confusion: pd.DataFrame) -> Plot | None:
    """Accuracy of each class, the hardest first; with many classes the hardest and the easiest."""
    if confusion.empty:
        return None
    by_seed: dict[str, list[float]] = defaultdict(list)
    for (_, label), rows in confusion.groupby(["run_id", "label"], sort=False):
        correct = rows.loc[rows["label_index"] == rows["predicted_index"], "images"].sum()
        by_seed[str(label)].append(100 * float(correct) / float(rows["images"].sum()))
    ranked = sorted(by_seed.items(), key=lambda item: statistics.fmean(item[1]))
    left_out = len(ranked) - MAX_CLASSES_SHOWN
    if left_out > 0:
        half = MAX_CLASSES_SHOWN // 2
        ranked = [*ranked[:half], *ranked[-half:]]
    figure = _figure()
    names = [escaped(name) for name, _ in ranked]
    figure.add_trace(
        go.Scatter(
            x=_rounded(value for _, values in ranked for value in values),
            y=[name for name, (_, values) in zip(names, ranked, strict=True) for _ in values],
            mode="markers",
            name="a seed",
            marker={"symbol": "circle-open", "size": 5, "color": MUTED},
            hovertemplate="%{y}: %{x:.1f}%<extra>a seed</extra>",
        )
    )
    figure.add_trace(
        go.Scatter(
            x=_rounded(statistics.fmean(values) for _, values in ranked),
            y=names,
            mode="markers",
            name="mean",
            marker={"symbol": "diamond", "size": 8, "color": STYLES[0][0]},
            hovertemplate="%{y}: %{x:.1f}%<extra>mean</extra>",
        )
    )
    height = 110 + 19 * len(ranked)
    _finish(figure, height, x="accuracy of the class, %", named=True)
    figure.update_yaxes(autorange="reversed", type="category", showgrid=True)
    note = (
        f" The {MAX_CLASSES_SHOWN // 2} hardest and easiest; {left_out} between them are left out."
        if left_out > 0
        else ""
    )
    return Plot(
        f"classes-{group.key}", "Accuracy by class", f"In eval mode, hardest first.{note}", _spec(figure), height
    )


def confusion_matrix(group: Group, confusion: pd.DataFrame) -> Plot | None:
    """Which class is taken for which, all seeds together, in percent of the true class."""
    if confusion.empty:
        return None
    names = confusion.drop_duplicates("label_index").set_index("label_index")["label"].sort_index()
    size = int(max(confusion["label_index"].max(), confusion["predicted_index"].max())) + 1
    labels = [str(names.get(index, index)) for index in range(size)]
    counts = [[0] * size for _ in range(size)]
    for label, predicted, images in confusion[["label_index", "predicted_index", "images"]].itertuples(index=False):
        counts[label][predicted] += images
    shares = [[round(100 * count / (sum(row) or 1), 2) for count in row] for row in counts]
    off_diagonal = [[None if i == j else value for j, value in enumerate(row)] for i, row in enumerate(shares)]
    figure = _figure()
    written = [[f"{shares[i][j]:.0f}" if size <= 12 else "" for j in range(size)] for i in range(size)]
    figure.add_trace(
        go.Heatmap(
            z=off_diagonal,
            x=[escaped(label) for label in labels],
            y=[escaped(label) for label in labels],
            text=written,
            texttemplate="%{text}",
            textfont={"color": INK},
            colorscale=[[0, SURFACE], [1, STYLES[1][0]]],
            xgap=1 if size <= 12 else 0,
            ygap=1 if size <= 12 else 0,
            colorbar={"title": {"text": "%"}, "thickness": 10, "outlinewidth": 0},
            hovertemplate="%{y} taken for %{x}: %{z:.1f}%<extra></extra>",
        )
    )
    height = 440
    _finish(figure, height, x="predicted", y="true class", named=True)
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category", showticklabels=size <= 30)
    figure.update_xaxes(showgrid=False, type="category", tickangle=-45, showticklabels=size <= 30)
    return Plot(
        f"confusion-{group.key}",
        "Confusions",
        "Percent of the images of a true class (row) that were taken for another (column), all seeds together; "
        "the diagonal, which would drown the rest, is left blank.",
        _spec(figure),
        height,
    )


def most_confused(confusion: pd.DataFrame, limit: int = 8) -> list[tuple[str, str, float]]:
    """The pairs of classes that are confused most: true class, predicted class, percent of the true class."""
    if confusion.empty:
        return []
    totals = confusion.groupby("label")["images"].sum()
    wrong = confusion[confusion["label_index"] != confusion["predicted_index"]]
    if wrong.empty:
        return []
    pairs = wrong.groupby(["label", "predicted"])["images"].sum().reset_index()
    pairs["share"] = 100 * pairs["images"] / pairs["label"].map(totals)
    worst = pairs.sort_values(["share", "label", "predicted"], ascending=[False, True, True]).head(limit)
    return list(zip(worst["label"].tolist(), worst["predicted"].tolist(), worst["share"].tolist(), strict=True))


# --- what all plots share ------------------------------------------------------------------------


def restyled(figure: go.Figure, height: int) -> dict[str, Any]:
    """The specification of a plot that another library made, in the style of the page."""
    figure.update_layout(template=None, title=None)
    _finish(figure, height, named=True)
    for axis in (*figure.select_xaxes(), *figure.select_yaxes()):
        axis.title.font = {"size": 11, "color": MUTED}
        axis.title.standoff = 6
    return _spec(figure)


def _figure() -> go.Figure:
    return go.Figure(layout={"template": None})


def _finish(
    figure: go.Figure,
    height: int,
    *,
    x: str | None = None,
    y: str | None = None,
    x_range: tuple[float, float] | None = None,
    named: bool = False,
) -> None:
    """Give a plot its height, its axes and the style that all share.

    Args:
        figure: Changed in place.
        height: Pixels.
        x: Title of the horizontal axis.
        y: Title of the vertical axis.
        x_range: Ends of the horizontal axis; found from the data where not given.
        named: The marks of an axis are names, which need room according to their length. Numbers get a fixed
            margin, because plotly otherwise may redraw again and again to settle on one.
    """
    axis = {
        "gridcolor": GRID,
        "zerolinecolor": GRID,
        "linecolor": MUTED,
        "tickcolor": MUTED,
        "ticks": "outside",
        "ticklen": 4,
        "automargin": named,
        "tickfont": {"color": MUTED, "size": 11},
        "zeroline": False,
    }
    figure.update_layout(
        height=height,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK, "size": 12},
        margin={"l": 12 if named or y is None else 58, "r": 12, "t": 12, "b": 12 if named else 44},
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "font": {"size": 11}, "maxheight": 0.9},
        hoverlabel={"bgcolor": SURFACE, "bordercolor": MUTED, "font": {"color": INK}},
        hovermode="closest",
    )
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    if x is not None:
        figure.update_xaxes(title={"text": x, "font": {"size": 11, "color": MUTED}, "standoff": 6})
    if y is not None:
        figure.update_yaxes(title={"text": y, "font": {"size": 11, "color": MUTED}, "standoff": 6})
    if x_range is not None:
        figure.update_xaxes(range=list(x_range))


def _spec(figure: go.Figure) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(figure.to_json())
    spec["layout"].pop("template", None)
    return spec


def _row_label(figure: go.Figure, y: float, left: str, right: str, color: str = MUTED) -> None:
    for content, place, anchor, ink in ((left, 0, "left", INK), (right, 1, "right", color)):
        figure.add_annotation(
            x=place,
            xref="x domain",
            y=y + LABEL_OFFSET,
            yref="y",
            text=content,
            showarrow=False,
            xanchor=anchor,
            yanchor="middle",
            font={"size": 12, "color": ink},
        )


def _bar(figure: go.Figure, ends: rules.Interval, zero: float, y: float, color: str, width: float, name: str) -> None:
    figure.add_trace(
        go.Scatter(
            x=_rounded([ends.low - zero, ends.high - zero]),
            y=[y, y],
            mode="lines",
            line={"color": color, "width": width},
            customdata=[ends.low, ends.high],
            hovertemplate=f"{name}: {text.interval(ends)}<extra></extra>",
            showlegend=False,
        )
    )


def _of_dataset(groups: Sequence[Group], dataset: str) -> list[Group]:
    return [group for group in groups if group.latest.dataset == dataset]


def group_label(group: Group, groups: Sequence[Group]) -> str:
    """The benchmark's name, with what tells it from another group of the same name."""
    label = _own_label(group)
    # Smoke runs and generated images carry a badge, so that they need no other name.
    alike = [
        other for other in groups if other is not group and other.apart == group.apart and _own_label(other) == label
    ]
    return f"{label} ({group.latest.fingerprint[:6]})" if alike else label


def _own_label(group: Group) -> str:
    if not group.changed:
        return group.name
    return f"{group.name} ({group.changed[0] if len(group.changed) == 1 else 'changed recipe'})"


def _time_unit(longest: float) -> tuple[float, str]:
    """Seconds of the unit in which a time axis is read best, and its name."""
    if longest > 3 * 3600:
        return 3600.0, "hours"
    return (60.0, "minutes") if longest > 300 else (1.0, "seconds")


def _logarithmic_time(axis: dict[str, Any]) -> dict[str, Any]:
    """An axis of seconds with the marks that people think in."""
    marks = {
        1: "1 s",
        10: "10 s",
        60: "1 min",
        600: "10 min",
        3600: "1 h",
        21_600: "6 h",
        86_400: "1 d",
        604_800: "7 d",
    }
    return {**axis, "type": "log", "tickvals": list(marks), "ticktext": list(marks.values())}


def _rounded(values: Iterable[float], digits: int = 4) -> list[float]:
    return [round(value, digits) for value in values]


def _faded(color: str, opacity: float) -> str:
    red, green, blue = (int(color[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"
