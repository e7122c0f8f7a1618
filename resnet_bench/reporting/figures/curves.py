"""Draw the curves of one group of runs, with the published ones where the source prints them."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

import plotly.graph_objects as go

from resnet_bench.base.text import duration, listed, plural
from resnet_bench.judging.run_times import included
from resnet_bench.recipe.claims import Claim, WallPart
from resnet_bench.reporting.figures.claims import reference
from resnet_bench.reporting.figures.style import (
    INK,
    STYLES,
    SURFACE,
    Plot,
    Style,
    add_line,
    add_marks,
    escaped,
    faded,
    finish,
    mark,
    mark_whole_numbers,
    new_figure,
    present,
)
from resnet_bench.reporting.runs import Run, RunGroup
from resnet_bench.reporting.wall_times import clock, comparable_parts

HEIGHT = 320


def curves(group: RunGroup) -> tuple[Plot, ...]:
    """Draw accuracy and loss by epoch and by training time, and the learning rate by step."""
    return present(
        _accuracy_by_epoch(group),
        _loss(group, against="epoch"),
        _accuracy_by_time(group),
        _loss(group, against="time"),
        _learning_rate(group),
    )


def _accuracy_by_epoch(group: RunGroup) -> Plot | None:
    figure = new_figure()
    described = []
    for split, style in zip(("test", "validation", "train"), STYLES, strict=False):
        series = [run.accuracy(split) for run in group.runs]
        if split == "train":
            _mean_line(figure, series, "train, mean", Style(style.color, "circle", "dot"), width=1.2)
        elif _seed_lines(figure, series, split, style):
            described.append(split)
    _seed_lines(figure, [run.accuracy("test", "accuracy_tta") for run in group.runs], "test with TTA", STYLES[3])
    if not figure.data:
        return None
    _last_and_best(figure, group)
    _published(figure, group)
    seeds = plural(len(group.runs), "seed")
    band = ": a thin line each, their mean, and the band from the lowest to the highest of them"
    finish(figure, HEIGHT, x="epoch", y="accuracy, %")
    mark_whole_numbers(figure)
    return Plot.of(
        figure,
        f"accuracy-epoch-{group.key}",
        "Accuracy by epoch",
        seeds
        + (band if len(group.runs) > 1 else "")
        + (f" ({' and '.join(described)})" if described else "")
        + "; published values over it where the source prints them.",
    )


def _seed_lines(figure: go.Figure, series: Sequence[Mapping[int, float]], name: str, style: Style) -> bool:
    """Draw a thin line per seed, the mean and the band of all; marks where each was evaluated once."""
    there = [curve for curve in series if curve]
    if not there:
        return False
    if max(len(curve) for curve in there) == 1:
        add_marks(
            figure,
            [epoch for curve in there for epoch in curve],
            [value for curve in there for value in curve.values()],
            mark(f"{style.symbol}-open", 9, style.color, 1.5),
            name=f"{name}, one evaluation per seed",
        )
        return True
    common = _common(there)
    if len(there) > 1 and common:
        low = [min(curve[epoch] for curve in there) for epoch in common]
        high = [max(curve[epoch] for curve in there) for epoch in common]
        add_line(
            figure,
            [*common, *reversed(common)],
            [*high, *reversed(low)],
            color=style.color,
            width=0,
            name=f"{name}, lowest to highest seed",
            hover="",
            fill="toself",
            fillcolor=faded(style.color, 0.16),
        )
        xs, ys = _with_gaps([curve.items() for curve in there])
        add_line(figure, xs, ys, color=style.color, width=0.7, hover="", opacity=0.55)
    _mean_line(figure, there, f"{name}, mean" if len(there) > 1 else name, style, width=2)
    return True


def _with_gaps(lines: Iterable[Iterable[tuple[float, float]]]) -> tuple[list[float | None], list[float | None]]:
    """Return several lines as one trace, with a gap between each two: plotly needs milliseconds per trace."""
    points = [point for line in lines for point in (*line, (None, None))][:-1]
    return [x for x, _ in points], [y for _, y in points]


def _mean_line(
    figure: go.Figure,
    series: Sequence[Mapping[int, float]],
    name: str,
    style: Style,
    *,
    width: float,
    times: Sequence[Mapping[int, float]] | None = None,
) -> None:
    """Draw the mean over the seeds at the epochs that all have; by the mean of their times where given."""
    pairs = [
        (curve, clock)
        for curve, clock in zip(series, times or series, strict=True)
        if curve and (times is None or clock)
    ]
    common = _common([curve.keys() & clock.keys() for curve, clock in pairs]) if pairs else []
    if not common:
        return
    xs: list[float] = list(common)
    if times is not None:
        xs = [statistics.fmean(clock[epoch] for _, clock in pairs) for epoch in common]
    add_line(
        figure,
        xs,
        [statistics.fmean(curve[epoch] for curve, _ in pairs) for epoch in common],
        color=style.color,
        width=width,
        dash=style.dash,
        name=name,
        mode="lines" if len(common) > 1 else "markers",
        marker=mark(style.symbol, 7, style.color),
    )


def _common(epochs: Sequence[Mapping[int, float] | set[int]]) -> list[int]:
    return sorted(set.intersection(*(set(each) for each in epochs)))


def _last_and_best(figure: go.Figure, group: RunGroup) -> None:
    found = [curve for run in group.runs if len(curve := run.accuracy(group.curve_split)) > 1]
    if not found:
        return
    for name, symbol, epochs in (
        ("last", "circle", [max(curve) for curve in found]),
        ("best", "star", [max(curve, key=lambda epoch: (curve[epoch], -epoch)) for curve in found]),
    ):
        values = [curve[epoch] for curve, epoch in zip(found, epochs, strict=True)]
        add_marks(figure, epochs, values, mark(symbol, 7, SURFACE, 1.3, INK), name=f"{name} epoch of a seed")


_PUBLISHED = {"test": ("x-thin-open", "dash", ""), "train": ("square-open", "dot", "-dot")}
"""Per split: the mark and the dash of what a source prints, and what is inside the mark of its claim."""


def _published(figure: go.Figure, group: RunGroup) -> None:
    definition = group.definition
    if definition is None or group.changed:
        return
    for claim in definition.claims:
        symbol, dash, inside = _PUBLISHED.get(claim.split, _PUBLISHED["test"])
        if claim.curve is not None:
            add_line(
                figure,
                claim.curve.epochs,
                claim.curve.values,
                color=INK,
                width=1.2,
                dash=dash,
                name=f"published, {claim.split}",
                mode="lines+markers",
                marker=mark(symbol, 6, INK, 1.3),
            )
        low, high = claim.interval
        zero = reference(claim)
        add_marks(
            figure,
            # A claim whose epoch is not stated is drawn at the last one.
            [claim.epoch if claim.epoch is not None else definition.recipe.training.epochs],
            [zero],
            mark(f"{'triangle-up' if claim.at_least is not None else 'diamond'}-open{inside}", 11, INK, 1.6),
            name=f"claim {escaped(claim.text)}, {claim.split}",
            error_y={
                "type": "data",
                "array": [0 if math.isinf(high) else high - zero],
                "arrayminus": [zero - low],
                "color": INK,
                "thickness": 1.2,
            },
        )


def _accuracy_by_time(group: RunGroup) -> Plot | None:
    device, runs = next(iter(group.devices.items()))
    split = group.curve_split
    style = STYLES[0]
    stated = group.definition.claims if group.definition is not None and not group.changed else ()
    stated = tuple(claim for claim in stated if claim.wall_seconds is not None)
    parts = comparable_parts([run for run in runs if run.timed_accuracy(split)], stated)
    clocks = [clock(run, parts) or {} for run in runs]
    timed = [
        points
        for run, seconds in zip(runs, clocks, strict=True)
        if (points := [(seconds[epoch], value) for epoch, value in run.accuracy(split).items() if epoch in seconds])
    ]
    if not timed:
        return None
    figure = new_figure()
    unit, unit_name = _time_unit(max(points[-1][0] for points in timed))
    several = len(timed) > 1
    drawn, single = ([points for points in timed if (len(points) > 1) is curve] for curve in (True, False))
    for mode, seeds in (("lines", drawn), ("markers", single)):
        xs, ys = _with_gaps([[(seconds / unit, value) for seconds, value in points] for points in seeds])
        if not xs:
            continue
        add_line(
            figure,
            xs,
            ys,
            color=style.color,
            width=0.8 if several else 2,
            name="a seed",
            mode=mode,
            marker=mark(f"{style.symbol}-open", 6, style.color),
            opacity=0.6 if several else 1,
            showlegend=mode == "lines" or not drawn,
        )
    if several:
        times = [{epoch: each / unit for epoch, each in seconds.items()} for seconds in clocks]
        _mean_line(figure, [run.accuracy(split) for run in runs], "mean", style, width=2, times=times)
    for claim in stated:
        if claim.wall_seconds is not None and claim.wall_includes == parts:
            add_marks(
                figure,
                [claim.wall_seconds / unit],
                [reference(claim)],
                mark("diamond-open", 11, INK, 1.6),
                name=f"claim {escaped(claim.text)} on the source's machine",
            )
    name = f"training time, {included(parts)}" if parts else "training time"
    finish(figure, HEIGHT, x=f"{name}, {unit_name}", y=f"{split} accuracy, %")
    return Plot.of(
        figure,
        f"accuracy-time-{group.key}",
        f"Accuracy by {name}",
        f"On {device or 'an unnamed device'}; {_what_counts(parts)}.{_not_drawn(stated, parts)}",
    )


def _what_counts(parts: Sequence[WallPart]) -> str:
    left_out = [name for part, name in (("evaluation", "evaluation"), ("setup", "set-up")) if part not in parts]
    without = f"without {listed([*left_out, 'compilation'])}"
    return f"{included(parts)}, as in the time that the source states; {without}" if parts else without


def _not_drawn(stated: Sequence[Claim], parts: Sequence[WallPart]) -> str:
    """Name the times that sources state and that include something else than the times of the runs."""
    return "".join(
        f" The source's {duration(claim.wall_seconds)} for {claim.text} is not drawn: "
        f"{included(claim.wall_includes)}{', which these runs do not tell' if claim.wall_includes else ''}."
        for claim in stated
        if claim.wall_seconds is not None and claim.wall_includes != parts
    )


def _loss(group: RunGroup, *, against: str) -> Plot | None:
    figure = new_figure()
    runs = next(iter(group.devices.values())) if against == "time" else list(group.runs)
    unit, unit_name = _time_unit(max((run.train_seconds or 0.0 for run in runs), default=0.0))
    times = [_clock(run, unit) for run in runs] if against == "time" else None
    keys = ("test/loss", "validation/loss", "train/loss")
    for key, style in zip(keys, STYLES, strict=False):
        series = [run.series(key) for run in runs]
        name = key.partition("/")[0]
        if times is None:
            _seed_lines(figure, series, name, style)
        else:
            _mean_line(figure, series, f"{name}, mean", style, width=1.8, times=times)
    if not figure.data:
        return None
    finish(figure, HEIGHT, x="epoch" if times is None else f"training time, {unit_name}", y="loss, nats")
    if times is None:
        mark_whole_numbers(figure)
    left_out = any(key in run.not_finite for run in runs for key in keys)
    return Plot.of(
        figure,
        f"loss-{against}-{group.key}",
        f"Loss by {'epoch' if times is None else 'training time'}",
        "Training loss as the source reports it, and the loss of the evaluated splits; mean over the seeds"
        + (", with the band from the lowest to the highest." if times is None else ".")
        + (" Losses that are not finite are left out." if left_out else ""),
    )


def _clock(run: Run, unit: float) -> dict[int, float]:
    """Return training time at the end of each epoch, in a unit of so many seconds."""
    return {epoch: seconds / unit for epoch, seconds in run.series("time/train_seconds").items()}


def _learning_rate(group: RunGroup) -> Plot | None:
    rates = next((rates for run in reversed(group.all_runs) if (rates := run.series("step/learning_rate"))), None)
    if rates is None:
        return None
    figure = new_figure()
    figure.add_trace(
        # Small rates need significant digits, which the helpers' fixed decimals would cut.
        go.Scatter(
            x=list(rates),
            y=[float(f"{value:.5g}") for value in rates.values()],
            mode="lines",
            line={"color": STYLES[0].color, "width": 1.8},
            showlegend=False,
            hovertemplate="step %{x}: %{y:.4g}<extra></extra>",
        )
    )
    finish(figure, HEIGHT, x="step", y="learning rate")
    figure.update_yaxes(rangemode="tozero")
    return Plot.of(
        figure,
        f"rate-{group.key}",
        "Learning rate by step",
        "The same for every seed of the recipe.",
        wide=True,
    )


def _time_unit(longest: float) -> tuple[float, str]:
    """Return the seconds of the unit that suits a time axis best, and its name."""
    if longest > 3 * 3600:
        return 3600.0, "hours"
    return (60.0, "minutes") if longest > 300 else (1.0, "seconds")
