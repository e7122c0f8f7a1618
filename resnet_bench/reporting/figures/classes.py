"""Draw which classes a group of runs gets right, and which it predicts instead."""

import statistics
from collections import defaultdict

import pandas as pd
import plotly.graph_objects as go

from resnet_bench.reporting.figures.style import (
    INK,
    MUTED,
    STYLES,
    SURFACE,
    Plot,
    add_marks,
    escaped,
    finish,
    mark,
    new_figure,
)
from resnet_bench.reporting.runs import RunGroup

MAX_CLASSES_SHOWN = 20
MAX_LABELED = 30
"""Classes up to which a confusion matrix has their names, on both axes."""
MAX_WRITTEN = 12
"""Classes up to which a confusion matrix has its numbers in its cells."""


def per_class(group: RunGroup, confusion: pd.DataFrame) -> Plot | None:
    """Draw the accuracy of each class, the hardest first; of many classes the hardest and the easiest."""
    if confusion.empty:
        return None
    by_seed: dict[str, list[float]] = defaultdict(list)
    totals = confusion.groupby(["run_id", "label"], sort=False)["images"].sum()
    right = confusion[confusion["label_index"] == confusion["predicted_index"]]
    correct = right.groupby(["run_id", "label"], sort=False)["images"].sum().reindex(totals.index, fill_value=0)
    for label, accuracy in zip(totals.index.get_level_values("label"), 100 * correct / totals, strict=True):
        by_seed[str(label)].append(float(accuracy))
    ranked = sorted(by_seed.items(), key=lambda item: statistics.fmean(item[1]))
    left_out = len(ranked) - MAX_CLASSES_SHOWN
    half = MAX_CLASSES_SHOWN // 2
    if left_out > 0:
        ranked = [*ranked[:half], *ranked[-half:]]
    figure = new_figure()
    names = [escaped(name) for name, _ in ranked]
    add_marks(
        figure,
        [value for _, values in ranked for value in values],
        [name for name, (_, values) in zip(names, ranked, strict=True) for _ in values],
        mark("circle-open", 5, MUTED),
        name="a seed",
        hover="%{y}: %{x:.1f}%<extra>a seed</extra>",
    )
    add_marks(
        figure,
        [statistics.fmean(values) for _, values in ranked],
        names,
        mark("diamond", 8, STYLES[0].color),
        name="mean",
        hover="%{y}: %{x:.1f}%<extra>mean</extra>",
    )
    finish(figure, 110 + 19 * len(ranked), x="accuracy of the class, %", named=True)
    figure.update_yaxes(autorange="reversed", type="category", showgrid=True)
    note = f" The {half} hardest and easiest; {left_out} between them are left out." if left_out > 0 else ""
    return Plot.of(
        figure,
        f"classes-{group.key}",
        "Accuracy by class",
        f"In eval mode, hardest first.{note}",
    )


def confusion_matrix(group: RunGroup, confusion: pd.DataFrame) -> Plot | None:
    """Draw which class is predicted as which, all seeds together, in percent of the true class."""
    if confusion.empty:
        return None
    names = confusion.drop_duplicates("label_index").set_index("label_index")["label"].sort_index()
    size = int(max(confusion["label_index"].max(), confusion["predicted_index"].max())) + 1
    labels = [escaped(names.get(index, index)) for index in range(size)]
    counts = [[0] * size for _ in range(size)]
    for label, predicted, images in confusion[["label_index", "predicted_index", "images"]].itertuples(index=False):
        counts[label][predicted] += images
    shares = [[round(100 * count / (sum(row) or 1), 2) for count in row] for row in counts]
    off_diagonal = [[None if i == j else value for j, value in enumerate(row)] for i, row in enumerate(shares)]
    gap = 1 if size <= MAX_WRITTEN else 0
    figure = new_figure()
    figure.add_trace(
        go.Heatmap(
            z=off_diagonal,
            x=labels,
            y=labels,
            text=[[f"{share:.0f}" if size <= MAX_WRITTEN else "" for share in row] for row in shares],
            texttemplate="%{text}",
            textfont={"color": INK},
            colorscale=[[0, SURFACE], [1, STYLES[1].color]],
            xgap=gap,
            ygap=gap,
            colorbar={"title": {"text": "%"}, "thickness": 10, "outlinewidth": 0},
            hovertemplate="%{y} predicted as %{x}: %{z:.1f}%<extra></extra>",
        )
    )
    finish(figure, 440, x="predicted", y="true class", named=True)
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category", showticklabels=size <= MAX_LABELED)
    figure.update_xaxes(showgrid=False, type="category", tickangle=-45, showticklabels=size <= MAX_LABELED)
    return Plot.of(
        figure,
        f"confusion-{group.key}",
        "Confusion matrix",
        "Percent of the images of a true class (row) that were predicted as another (column), all seeds together; "
        "the diagonal, which would drown the rest, has no color.",
    )


def most_confused(confusion: pd.DataFrame, limit: int = 8) -> list[tuple[str, str, float]]:
    """Return the pairs of classes that are confused most.

    Returns:
        True class, predicted class, and percent of the true class, for at most ``limit`` pairs.
    """
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
