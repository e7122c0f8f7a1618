"""Groups of runs beside one another: accuracy, time, throughput, memory, classes and confusions."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from resnet_bench.reporting import statistics as rules
from resnet_bench.reporting.claims import evaluation_interval, median, times_to_accuracy
from resnet_bench.reporting.figures.style import (
    INK,
    MUTED,
    ROW_HEIGHT,
    STYLES,
    SURFACE,
    Plot,
    escaped,
    finish,
    group_label,
    label_row,
    new_figure,
    rounded,
    specification,
)
from resnet_bench.reporting.results import Group, Run

MAX_CLASSES_SHOWN = 20
SHOWN_TARGETS = 30.0
"""Points below its best accuracy from which a benchmark's time to an accuracy is drawn."""
TIME_MARKS = (
    *(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30),
    *(60, 120, 300, 600, 1200, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 345_600, 604_800),
)
"""Seconds that may be marked on an axis of time; neighbours lie apart by a factor of 2.5 or less."""
COARSE_TIME_MARKS = frozenset((0.01, 0.1, 1, 10, 60, 600, 3600, 21_600, 86_400, 604_800))
MAX_TIME_MARKS = 9
MIN_TIME_SPAN = 6.5
"""Factor between the ends of an axis of time, so that two marks fall on it."""


def pareto(groups: Sequence[Group], dataset: str) -> Plot | None:
    """Accuracy against training time, with the front of those that nothing beats in both."""
    figure = new_figure()
    points: list[tuple[float, float]] = []
    every_seed: list[tuple[float, float]] = []
    for (group, device, runs), style in zip(_on_devices(groups, dataset), cycle(STYLES), strict=False):
        measured = [
            (run.train_seconds, value)
            for run in runs
            if run.train_seconds and (value := run.last_accuracy(group.split)) is not None
        ]
        if not measured:
            continue
        center = (statistics.median(t for t, _ in measured), statistics.fmean(a for _, a in measured))
        points.append(center)
        every_seed += measured
        label = group_label(group, groups)
        figure.add_trace(
            go.Scatter(
                x=rounded(t for t, _ in measured),
                y=rounded(a for _, a in measured),
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
    finish(figure, 400, x="training time", y="accuracy, %")
    figure.update_xaxes(_time_axis([seconds for seconds, _ in every_seed]))
    return Plot(
        f"pareto-{dataset}",
        f"Accuracy against training time, {dataset}",
        "A filled mark is a benchmark on a device (mean accuracy of the last epoch, median training time); "
        "open marks are its seeds. No benchmark beats those on the dashed front in both."
        + _not_augmented(groups, dataset),
        specification(figure),
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
    figure = new_figure()
    intervals = set()
    for (group, device, runs), style in zip(_on_devices(groups, dataset), cycle(STYLES), strict=False):
        reached = [value for run in runs for _, value in run.timed_accuracy(group.curve_split)]
        if not reached:
            continue
        top = max(reached)
        bottom = max(min(reached), top - SHOWN_TARGETS)
        targets = [bottom + (top - bottom) * place / 80 for place in range(81)]
        medians = [times_to_accuracy(group, target, device) for target in targets]
        curve = [(t.target, t.median) for t in medians if t is not None and math.isfinite(t.median)]
        if not curve:
            continue
        label = group_label(group, groups)
        intervals.add(evaluation_interval(runs, group.curve_split) or 1)
        figure.add_trace(
            go.Scatter(
                x=rounded(target for target, _ in curve),
                y=rounded(seconds for _, seconds in curve),
                # A run that was evaluated once has one time for every accuracy up to its own: a single point.
                mode="lines" if len(set(curve)) > 1 else "markers",
                line={"color": style[0], "width": 2, "dash": style[2], "shape": "vh"},
                marker={"symbol": style[1], "color": style[0], "size": 9},
                name=escaped(f"{label}, {device}" if device else label),
                hovertemplate="%{x:.1f}% by %{y:,.1f} s<extra>%{fullData.name}</extra>",
            )
        )
    if not figure.data:
        return None
    every = " or ".join("epoch" if interval == 1 else f"{interval} epochs" for interval in sorted(intervals))
    finish(figure, 360, x="accuracy to reach, %", y="median training time")
    figure.update_yaxes(_time_axis([seconds for trace in figure.data for seconds in trace.y]))
    # A line alone has no entry in the legend otherwise, and so no name.
    figure.update_layout(margin_l=74, showlegend=True)
    return Plot(
        f"time-to-{dataset}",
        f"Time to a chosen accuracy, {dataset}",
        "Training time until the mean of a run's last three evaluations holds the accuracy, median over the seeds; "
        f"a line ends where half of them or more miss it. Evaluated every {every}; evaluation is not in the time."
        + _not_augmented(groups, dataset),
        specification(figure),
        360,
        wide=True,
    )


def strip(groups: Sequence[Group], dataset: str) -> Plot | None:
    """Every seed's last accuracy, a row a benchmark."""
    shown = [group for group in _of_dataset(groups, dataset) if group.values(group.split)]
    if not shown:
        return None
    figure = new_figure()
    for place, (group, style) in enumerate(zip(shown, cycle(STYLES), strict=False)):
        runs = [(run, value) for run in group.runs if (value := run.last_accuracy(group.split)) is not None]
        values = [value for _, value in runs]
        mean = statistics.fmean(values)
        figure.add_trace(
            go.Scatter(
                x=rounded(value - mean for value in values),
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
        label_row(figure, -place, escaped(group_label(group, groups)), f"{mean:.2f}%, {spread}")
    height = 70 + ROW_HEIGHT * len(shown)
    finish(figure, height, x="points from the mean of the seeds, last epoch")
    figure.update_yaxes(visible=False, range=[0.45 - len(shown), 0.75])
    figure.add_vline(x=0, line={"color": MUTED, "width": 1, "dash": "dot"}, layer="below")
    caption = "A mark is one seed; each benchmark's are measured from their own mean, so that spreads compare."
    caption += _not_augmented(groups, dataset)
    return Plot(f"strip-{dataset}", f"Seeds, {dataset}", caption, specification(figure), height)


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
    figure = new_figure()
    for device, style in zip(devices, cycle(STYLES), strict=False):
        places = [(place, values) for place, (_, its, values) in enumerate(rows) if its == device]
        figure.add_trace(
            go.Scatter(
                x=rounded(value for _, values in places for value in values),
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
        label_row(figure, -place, escaped(group_label(group, groups)), f"median {shown}")
    height = 110 + ROW_HEIGHT * len(rows)
    finish(figure, height, x=unit)
    figure.update_yaxes(visible=False, range=[0.45 - len(rows), 0.75])
    if log and max(max(values) for *_, values in rows) > 10 * min(min(values) for *_, values in rows):
        figure.update_xaxes(type="log")
    else:
        figure.update_xaxes(rangemode="tozero")
    return Plot(name, title, "A mark is one run; marks and colours are devices.", specification(figure), height)


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
    figure = new_figure()
    names = [escaped(name) for name, _ in ranked]
    figure.add_trace(
        go.Scatter(
            x=rounded(value for _, values in ranked for value in values),
            y=[name for name, (_, values) in zip(names, ranked, strict=True) for _ in values],
            mode="markers",
            name="a seed",
            marker={"symbol": "circle-open", "size": 5, "color": MUTED},
            hovertemplate="%{y}: %{x:.1f}%<extra>a seed</extra>",
        )
    )
    figure.add_trace(
        go.Scatter(
            x=rounded(statistics.fmean(values) for _, values in ranked),
            y=names,
            mode="markers",
            name="mean",
            marker={"symbol": "diamond", "size": 8, "color": STYLES[0][0]},
            hovertemplate="%{y}: %{x:.1f}%<extra>mean</extra>",
        )
    )
    height = 110 + 19 * len(ranked)
    finish(figure, height, x="accuracy of the class, %", named=True)
    figure.update_yaxes(autorange="reversed", type="category", showgrid=True)
    note = (
        f" The {MAX_CLASSES_SHOWN // 2} hardest and easiest; {left_out} between them are left out."
        if left_out > 0
        else ""
    )
    return Plot(
        f"classes-{group.key}",
        "Accuracy by class",
        f"In eval mode, hardest first.{note}",
        specification(figure),
        height,
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
    figure = new_figure()
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
    finish(figure, height, x="predicted", y="true class", named=True)
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category", showticklabels=size <= 30)
    figure.update_xaxes(showgrid=False, type="category", tickangle=-45, showticklabels=size <= 30)
    return Plot(
        f"confusion-{group.key}",
        "Confusions",
        "Percent of the images of a true class (row) that were taken for another (column), all seeds together; "
        "the diagonal, which would drown the rest, has no colour.",
        specification(figure),
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


def _of_dataset(groups: Sequence[Group], dataset: str) -> list[Group]:
    return [group for group in groups if group.latest.dataset == dataset]


def _on_devices(groups: Sequence[Group], dataset: str) -> list[tuple[Group, str, list[Run]]]:
    """Each group on each of its devices, as its times belong to both."""
    return [(group, device, runs) for group in _of_dataset(groups, dataset) for device, runs in group.devices.items()]


def _not_augmented(groups: Sequence[Group], dataset: str) -> str:
    """What to say of accuracies of which a claim is higher, because it is of augmented test images."""
    definitions = [group.definition for group in _of_dataset(groups, dataset) if group.definition is not None]
    claims = [claim for definition in definitions for claim in definition.claims]
    augmented = any(claim.is_tta for claim in claims)
    return " Accuracies are without test-time augmentation (TTA)." if augmented else ""


def _time_axis(seconds: Sequence[float]) -> dict[str, Any]:
    """A logarithmic axis that holds these seconds, with the marks that people think in and no fewer than two."""
    low, high = min(seconds), max(seconds)
    room = math.sqrt(max(1.5, MIN_TIME_SPAN * low / high))
    low, high = low / room, high * room
    ticks = [mark for mark in TIME_MARKS if low <= mark <= high]
    if len(ticks) > MAX_TIME_MARKS:
        ticks = [mark for mark in ticks if mark in COARSE_TIME_MARKS]
    return {
        "type": "log",
        "range": [math.log10(low), math.log10(high)],
        "tickvals": ticks,
        "ticktext": [_time_mark(mark) for mark in ticks],
    }


def _time_mark(seconds: float) -> str:
    for unit, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:g} {name}"
    return f"{seconds:g} s"
