"""The files that a finished run leaves: what it got right and wrong, and what its images looked like."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]
OTHER = "(other)"
"""The class that stands for outputs of the network that mean no class of the dataset."""


def write_per_class_accuracy(path: Path, labels: Labels, predicted: Labels, classes: Sequence[str]) -> None:
    """Write a CSV with a row a class: ``class``, ``images``, ``correct``, ``accuracy`` (a fraction).

    Args:
        path: The file to write.
        labels: True classes, shape [N].
        predicted: Predicted classes, shape [N].
        classes: Names of the classes.
    """
    import pandas as pd

    images = np.bincount(labels, minlength=len(classes))
    correct = np.bincount(labels[labels == predicted], minlength=len(classes))
    with np.errstate(invalid="ignore"):
        accuracy = correct / images
    table = {"class": list(classes), "images": images, "correct": correct, "accuracy": accuracy}
    pd.DataFrame(table).to_csv(path, index=False)


def confusion_matrix(
    labels: Labels, predicted: Labels, classes: Sequence[str]
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Images by true class (rows) and predicted class (columns), and the names of both.

    Where a network with more outputs than classes predicted one of the others, a last class stands for them.
    """
    names = list(classes)
    if predicted.size and predicted.max() >= len(classes):
        predicted = np.minimum(predicted, len(classes))
        names.append(OTHER)
    matrix = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix, names


def write_confusion_matrix_csv(path: Path, labels: Labels, predicted: Labels, classes: Sequence[str]) -> None:
    """Write the confusion matrix, square, with the class names as header; row i is true class i."""
    import pandas as pd

    matrix, names = confusion_matrix(labels, predicted, classes)
    pd.DataFrame(matrix, columns=names).to_csv(path, index=False)


def write_confusion_matrix_png(path: Path, labels: Labels, predicted: Labels, classes: Sequence[str]) -> None:
    """Draw the confusion matrix in percent of each true class."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    matrix, names = confusion_matrix(labels, predicted, classes)
    percent = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    written_out = len(names) <= 20
    side = 2.5 + 0.55 * len(names) if written_out else 16.0
    figure = Figure(figsize=(side, side), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    size = 9 if written_out else 5
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true class")
    accuracy = np.trace(matrix) / max(matrix.sum(), 1)
    axes.set_title(f"{matrix.sum():,} images, {accuracy:.2%} correct")
    if written_out:
        for (row, column), value in np.ndenumerate(percent):
            color = "white" if value > 50 else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=color)
    figure.colorbar(image, ax=axes, shrink=0.6, label="% of the true class")
    figure.savefig(path)


def write_predictions(
    path: Path, labels: Labels, probabilities: npt.NDArray[np.float32], images: Sequence[str]
) -> None:
    """Write a Parquet table with a row per image, in the dataset's canonical order.

    Columns: ``index``, ``label``, ``predicted``, ``confidence`` (probability of the predicted class),
    ``label_probability`` (probability of the true class) and ``image`` (what it is called in its source).

    Args:
        path: The file to write.
        labels: True classes, shape [N].
        probabilities: What the network says, shape [N, classes].
        images: What each image is called in its source.
    """
    import pandas as pd

    rows = np.arange(len(labels))
    predicted = probabilities.argmax(axis=1)
    columns = {
        "index": rows.astype(np.int32),
        "label": labels.astype(np.int16),
        "predicted": predicted.astype(np.int16),
        "confidence": probabilities[rows, predicted],
        "label_probability": probabilities[rows, labels],
        "image": list(images),
    }
    # Names of images are much alike.
    pd.DataFrame(columns).to_parquet(path, index=False, compression="zstd")


def write_image_grid(path: Path, images: npt.NDArray[np.uint8], *, columns: int = 8, min_side: int = 96) -> None:
    """Draw images as a grid, row by row.

    Args:
        path: The PNG to write.
        images: RGB images, shape [N, 3, height, width].
        columns: Images in a row.
        min_side: Smaller images are enlarged by a whole factor to at least this many pixels.
    """
    from PIL import Image

    count, _, height, width = images.shape
    rows = -(-count // columns)
    gap = 2
    grid = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, dtype=np.uint8)
    for i, image in enumerate(images.transpose(0, 2, 3, 1)):
        top, left = gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap)
        grid[top : top + height, left : left + width] = image
    factor = max(1, -(-min_side // width))
    Image.fromarray(grid.repeat(factor, axis=0).repeat(factor, axis=1)).save(path)
