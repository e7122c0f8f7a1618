"""Curves of one group of runs, over the published ones where the source prints them."""

import math
import statistics
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from resnet_bench.reporting import text
from resnet_bench.reporting.figures.claim_plots import reference
from resnet_bench.reporting.figures.style import (
    INK,
    STYLES,
    SURFACE,
    Plot,
    escaped,
    finish,
    mark_whole_numbers,
    new_figure,
    rounded,
    specification,
)
from resnet_bench.reporting.results import Group, Run


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
    figure = new_figure()
    described = []
    for split, style in zip(("test", "validation", "train"), STYLES, strict=False):
        series = [run.accuracy(split) for run in group.runs]
        if split == "train":
            _mean_line(figure, series, "train, mean", (style[0], "", "dot"), width=1.2)
        elif _seed_lines(figure, series, split, style):
            described.append(split)
    augmented = [run.accuracy("test", metric="accuracy_augmented") for run in group.runs]
    _seed_lines(figure, augmented, "test with TTA", STYLES[3])
    if not figure.data:
        return None
    _last_and_best(figure, group)
    _published(figure, group)
    seeds = text.plural(len(group.runs), "seed")
    band = ": a thin line each, their mean, and the band from the lowest to the highest of them"
    finish(figure, 320, x="epoch", y="accuracy, %")
    mark_whole_numbers(figure)
    return Plot(
        f"accuracy-epoch-{group.key}",
        "Accuracy by epoch",
        seeds
        + (band if len(group.runs) > 1 else "")
        + (f" ({' and '.join(described)})" if described else "")
        + "; published values over it where the source prints them.",
        specification(figure),
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
                y=rounded(value for curve in present for value in curve.values()),
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
                y=rounded([*high, *reversed(low)]),
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
                    y=rounded(curve.values()),
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
            x=rounded(xs),
            y=rounded(statistics.fmean(curve[epoch] for curve, _ in pairs) for epoch in common),
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
                    y=rounded(ys),
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
    figure = new_figure()
    split = group.curve_split
    color, symbol, dash = STYLES[0]
    timed = [points for run in runs if (points := run.timed_accuracy(split))]
    unit, unit_name = _time_unit(max((points[-1][0] for points in timed), default=0.0))
    for points in timed:
        figure.add_trace(
            go.Scatter(
                x=rounded(seconds / unit for seconds, _ in points),
                y=rounded(value for _, value in points),
                mode="lines" if len(points) > 1 else "markers",
                line={"color": color, "width": 0.8 if len(timed) > 1 else 2},
                marker={"symbol": f"{symbol}-open", "color": color},
                opacity=0.6 if len(timed) > 1 else 1,
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
    finish(figure, 320, x=f"training time, {unit_name}", y=f"{split} accuracy, %")
    return Plot(
        f"accuracy-time-{group.key}",
        "Accuracy by training time",
        f"On {device or 'an unnamed device'}; evaluation, set-up and compilation are not in the time.",
        specification(figure),
        320,
    )


def _loss(group: Group, *, against: str) -> Plot | None:
    figure = new_figure()
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
    finish(figure, 320, x=axis, y="loss, nats")
    if against == "epoch":
        mark_whole_numbers(figure)
    return Plot(
        f"loss-{against}-{group.key}",
        f"Loss by {'epoch' if against == 'epoch' else 'training time'}",
        "Training loss as the source reports it, and the loss of what is evaluated; mean over the seeds"
        + (", with the band from the lowest to the highest." if against == "epoch" else "."),
        specification(figure),
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
    figure = new_figure()
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
    finish(figure, 320, x="batch", y="learning rate")
    figure.update_yaxes(rangemode="tozero")
    return Plot(
        f"rate-{group.key}",
        "Learning rate by batch",
        "The same for every seed of the recipe.",
        specification(figure),
        320,
        wide=True,
    )


def _time_unit(longest: float) -> tuple[float, str]:
    """Seconds of the unit in which a time axis is read best, and its name."""
    if longest > 3 * 3600:
        return 3600.0, "hours"
    return (60.0, "minutes") if longest > 300 else (1.0, "seconds")


def _faded(color: str, opacity: float) -> str:
    red, green, blue = (int(color[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"
