"""Draw groups of runs beside one another: accuracy, time, throughput and memory."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from resnet_bench.judging.intervals import standard_deviation
from resnet_bench.reporting.claims import evaluation_interval, times_to_accuracy
from resnet_bench.reporting.figures.style import (
    Plot,
    add_front,
    add_line,
    add_marks,
    escaped,
    finish,
    finish_rows,
    label_row,
    mark,
    new_figure,
    styled,
    zero_line,
)
from resnet_bench.reporting.runs import Run, RunGroup

Labels = Mapping[RunGroup, str]
"""The groups to compare, in order, with their names."""

SHOWN_TARGETS = 30.0
"""Percentage points below its best accuracy from which a benchmark's time to an accuracy is drawn."""
TIME_MARKS = (
    *(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30),
    *(60, 120, 300, 600, 1200, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 345_600, 604_800),
)
"""Seconds that may be marked on an axis of time; neighbors lie apart by a factor of 2.5 or less."""
COARSE_TIME_MARKS = frozenset((0.01, 0.1, 1, 10, 60, 600, 3600, 21_600, 86_400, 604_800))
MAX_TIME_MARKS = 9
MIN_TIME_SPAN = 6.5
"""Factor between the ends of an axis of time, so that two marks fall on it."""


def pareto(labels: Labels, dataset: str) -> Plot | None:
    """Draw accuracy against training time, with the front of those that nothing beats in both."""
    figure = new_figure()
    points: list[tuple[float, float]] = []
    every_time: list[float] = []
    for (group, device, runs), style in styled(_on_devices(labels, dataset)):
        measured = [
            (seconds, value)
            for run in runs
            if (seconds := run.train_seconds or 0.0) > 0 and (value := run.last_accuracy(group.split)) is not None
        ]
        if not measured:
            continue
        center = (statistics.median(t for t, _ in measured), statistics.fmean(a for _, a in measured))
        points.append(center)
        every_time += [seconds for seconds, _ in measured]
        if len(measured) > 1:
            # The mean of a single run is that run: one mark, and not two over one another.
            add_marks(
                figure,
                [seconds for seconds, _ in measured],
                [accuracy for _, accuracy in measured],
                mark(f"{style.symbol}-open", 6, style.color),
                hover=f"{escaped(labels[group])}, a seed<br>%{{y:.2f}}% in %{{x:,.1f}} s<extra></extra>",
            )
        add_marks(
            figure,
            [center[0]],
            [center[1]],
            mark(style.symbol, 11, style.color),
            name=_name(labels[group], device),
            hover="%{y:.2f}% in %{x:,.1f} s<extra>%{fullData.name}</extra>",
        )
    if not points:
        return None
    add_front(figure, points)
    finish(figure, 400, x="training time", y="accuracy, %")
    figure.update_xaxes(time_axis(every_time))
    return Plot.of(
        figure,
        f"pareto-{dataset}",
        f"Accuracy against training time, {dataset}",
        "A filled mark is a benchmark on a device (mean accuracy of the last epoch, median training time); "
        "open marks are its seeds, where there are several. No benchmark beats those on the dashed front in both."
        + _without_tta(labels, dataset),
        wide=True,
    )


def time_to_accuracy(labels: Labels, dataset: str) -> Plot | None:
    """Draw, for every target, the median time at which a benchmark's seeds reached it."""
    figure = new_figure()
    intervals = set()
    for (group, device, runs), style in styled(_on_devices(labels, dataset)):
        reached = [value for run in runs for _, value in run.timed_accuracy(group.curve_split)]
        if not reached:
            continue
        top = max(reached)
        bottom = max(min(reached), top - SHOWN_TARGETS)
        targets = [bottom + (top - bottom) * place / 80 for place in range(81)]
        medians = [(times.target, times.median) for times in times_to_accuracy(group, targets, device)]
        curve = [point for point in medians if 0 < point[1] < math.inf]
        if not curve:
            continue
        intervals.add(evaluation_interval(runs, group.curve_split) or 1)
        add_line(
            figure,
            [target for target, _ in curve],
            [seconds for _, seconds in curve],
            color=style.color,
            width=2,
            dash=style.dash,
            shape="vh",
            name=_name(labels[group], device),
            hover="%{x:.1f}% by %{y:,.1f} s<extra>%{fullData.name}</extra>",
            # A run that was evaluated once has one time for every accuracy up to its own: a single point.
            mode="lines" if len(set(curve)) > 1 else "markers",
            marker=mark(style.symbol, 9, style.color),
        )
    if not figure.data:
        return None
    every = " or ".join("epoch" if interval == 1 else f"{interval} epochs" for interval in sorted(intervals))
    finish(figure, 360, x="accuracy to reach, %", y="median training time")
    figure.update_yaxes(time_axis([seconds for trace in figure.data for seconds in trace.y]))
    # A line alone has no entry in the legend otherwise, and so no name.
    figure.update_layout(showlegend=True)
    return Plot.of(
        figure,
        f"time-to-{dataset}",
        f"Time to a chosen accuracy, {dataset}",
        "Training time until the mean of a run's last three evaluations reaches the accuracy, median over the seeds; "
        f"a line ends where half of them or more miss it. Evaluated every {every}; evaluation is not in the time."
        + _without_tta(labels, dataset),
        wide=True,
    )


def strip(labels: Labels, dataset: str) -> Plot | None:
    """Draw every seed's last accuracy, one row per benchmark."""
    shown = [group for group in _of_dataset(labels, dataset) if group.values(group.split)]
    if not shown:
        return None
    figure = new_figure()
    for place, (group, style) in enumerate(styled(shown)):
        runs = [(run, value) for run in group.runs if (value := run.last_accuracy(group.split)) is not None]
        values = [value for _, value in runs]
        mean = statistics.fmean(values)
        add_marks(
            figure,
            [value - mean for value in values],
            [-place] * len(values),
            mark(f"{style.symbol}-open", 9, style.color, 1.4),
            customdata=[[str(run.seed), value, escaped(run.device)] for run, value in runs],
            hover="seed %{customdata[0]}: %{customdata[1]:.2f}%, %{customdata[2]}<extra></extra>",
        )
        spread = f"SD {standard_deviation(values):.2f}, n = {len(values)}" if len(values) > 1 else "n = 1"
        label_row(figure, -place, escaped(labels[group]), f"{mean:.2f}%, {spread}")
    finish_rows(figure, len(shown), x="pp from the mean of the seeds, last epoch", with_legend=False)
    zero_line(figure)
    caption = "One mark per seed; each benchmark's are measured from their own mean, so that spreads compare."
    caption += _without_tta(labels, dataset)
    return Plot.of(figure, f"strip-{dataset}", f"Seeds, {dataset}", caption)


def throughput(labels: Labels) -> Plot | None:
    """Draw the training throughput of every run, by benchmark and device."""
    return _by_device_and_run(
        labels, "throughput", "Throughput", "images/s in training", lambda run: run.images_per_second, log=True
    )


def memory(labels: Labels) -> Plot | None:
    """Draw the peak memory of every run, by benchmark and device."""
    return _by_device_and_run(
        labels,
        "memory",
        "Peak memory",
        "GiB",
        lambda run: None if run.peak_memory is None else run.peak_memory / 2**30,
    )


def time_axis(seconds: Sequence[float]) -> dict[str, Any]:
    """Describe a logarithmic axis for these seconds, with the marks that people think in and no fewer than two."""
    low, high = min(seconds), max(seconds)
    room = math.sqrt(max(1.5, MIN_TIME_SPAN * low / high))
    low, high = low / room, high * room
    ticks = [tick for tick in TIME_MARKS if low <= tick <= high]
    if len(ticks) > MAX_TIME_MARKS:
        ticks = [tick for tick in ticks if tick in COARSE_TIME_MARKS]
    return {
        "type": "log",
        "range": [math.log10(low), math.log10(high)],
        "tickvals": ticks,
        "ticktext": [_time_mark(tick) for tick in ticks],
        # These marks are fixed, so plotly may make room for them, and for the title beyond them.
        "tickangle": None,
        "automargin": True,
    }


def _by_device_and_run(
    labels: Labels,
    name: str,
    title: str,
    unit: str,
    measure: Callable[[Run], float | None],
    *,
    log: bool = False,
) -> Plot | None:
    devices = sorted({device for group in labels for device in group.devices})
    rows = [
        (group, device, values)
        for group in labels
        for device in devices
        if (values := [v for run in group.devices.get(device, ()) if (v := measure(run)) is not None])
    ]
    if not rows:
        return None
    figure = new_figure()
    for device, style in styled(devices):
        places = [(place, values) for place, (_, its, values) in enumerate(rows) if its == device]
        add_marks(
            figure,
            [value for _, values in places for value in values],
            [-place for place, values in places for _ in values],
            mark(f"{style.symbol}-open", 9, style.color, 1.4),
            name=escaped(device or "unnamed device"),
            hover=f"%{{x:,.4g}} {unit}<extra>%{{fullData.name}}</extra>",
        )
    for place, (group, _, values) in enumerate(rows):
        middle = statistics.median(values)
        shown = f"{middle:,.0f}" if middle >= 100 else f"{middle:.3g}"
        label_row(figure, -place, escaped(labels[group]), f"median {shown}")
    finish_rows(figure, len(rows), x=unit)
    lowest, highest = min(min(values) for *_, values in rows), max(max(values) for *_, values in rows)
    if log and highest > 10 * lowest > 0:
        figure.update_xaxes(type="log")
    else:
        figure.update_xaxes(rangemode="tozero")
    return Plot.of(figure, name, title, "One mark per run; marks and colors are devices.")


def _of_dataset(labels: Labels, dataset: str) -> list[RunGroup]:
    return [group for group in labels if group.latest.dataset == dataset]


def _on_devices(labels: Labels, dataset: str) -> list[tuple[RunGroup, str, list[Run]]]:
    """Return each group on each of its devices, as its times belong to both."""
    return [(group, device, runs) for group in _of_dataset(labels, dataset) for device, runs in group.devices.items()]


def _name(label: str, device: str) -> str:
    return escaped(f"{label}, {device}" if device else label)


def _without_tta(labels: Labels, dataset: str) -> str:
    """Return what to say about accuracies of which a claim is higher, because it is about TTA."""
    definitions = [group.definition for group in _of_dataset(labels, dataset) if group.definition is not None]
    claims = [claim for definition in definitions for claim in definition.claims]
    tta = any(claim.is_tta for claim in claims)
    return " Accuracies are without test-time augmentation (TTA)." if tta else ""


def _time_mark(seconds: float) -> str:
    for unit, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:g} {name}"
    return f"{seconds:g} s"
