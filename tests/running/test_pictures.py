from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from resnet_bench.running.pictures import (
    confusion_matrix,
    write_confusion_matrix_csv,
    write_confusion_matrix_png,
    write_image_grid,
    write_per_class_accuracy,
    write_predictions,
)

CLASSES = ["cat", "dog", "emu"]
LABELS = np.array([0, 0, 0, 1, 1, 2], dtype=np.int64)
PROBABILITIES = np.array(
    [[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1], [0.5, 0.4, 0.1], [0.1, 0.2, 0.7]],
    dtype=np.float32,
)
PREDICTED = PROBABILITIES.argmax(axis=1)


def test_per_class_accuracy(tmp_path: Path) -> None:
    write_per_class_accuracy(tmp_path / "table.csv", LABELS, PREDICTED, CLASSES)
    table = pd.read_csv(tmp_path / "table.csv")
    assert list(table.columns) == ["class", "images", "correct", "accuracy"]
    assert table.to_dict("list") == {
        "class": CLASSES,
        "images": [3, 2, 1],
        "correct": [2, 1, 1],
        "accuracy": pytest.approx([2 / 3, 0.5, 1.0]),
    }


def test_a_class_without_images_has_no_accuracy(tmp_path: Path) -> None:
    write_per_class_accuracy(tmp_path / "table.csv", LABELS, PREDICTED, [*CLASSES, "fox"])
    assert pd.read_csv(tmp_path / "table.csv")["accuracy"].isna().tolist() == [False, False, False, True]


def test_confusion_matrix_has_true_classes_as_rows() -> None:
    matrix, names = confusion_matrix(LABELS, PREDICTED, CLASSES)
    assert names == CLASSES
    assert matrix.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_outputs_that_mean_no_class_are_counted_as_other() -> None:
    predicted = np.array([0, 0, 999, 1, 3, 2])
    matrix, names = confusion_matrix(LABELS, predicted, CLASSES)
    assert names == [*CLASSES, "(other)"]
    assert matrix.tolist() == [[2, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_predictions_hold_both_probabilities(tmp_path: Path) -> None:
    write_predictions(tmp_path / "predictions.parquet", LABELS, PROBABILITIES, [f"cat/{row}.png" for row in range(6)])
    table = pd.read_parquet(tmp_path / "predictions.parquet")
    assert list(table.columns) == ["index", "label", "predicted", "confidence", "label_probability", "image"]
    assert table["index"].tolist() == list(range(6))
    assert table["label"].tolist() == LABELS.tolist()
    assert table["predicted"].tolist() == PREDICTED.tolist()
    np.testing.assert_array_equal(table["confidence"], PROBABILITIES.max(axis=1))
    np.testing.assert_array_equal(
        table["label_probability"], [PROBABILITIES[i, label] for i, label in enumerate(LABELS)]
    )


@pytest.mark.parametrize("classes", [3, 100])
def test_the_confusion_matrix_as_a_table_and_a_picture(classes: int, tmp_path: Path) -> None:
    names = [f"class {i}" for i in range(classes)]
    generator = np.random.default_rng(0)
    labels = generator.integers(classes, size=500)
    predicted = np.where(generator.random(500) < 0.7, labels, generator.integers(classes, size=500))
    write_confusion_matrix_csv(tmp_path / "matrix.csv", labels, predicted, names)
    matrix = pd.read_csv(tmp_path / "matrix.csv")
    assert list(matrix.columns) == names
    assert matrix.to_numpy().tolist() == confusion_matrix(labels, predicted, names)[0].tolist()
    write_confusion_matrix_png(tmp_path / "matrix.png", labels, predicted, names)
    with Image.open(tmp_path / "matrix.png") as picture:
        assert min(picture.size) >= 300


def test_the_grid_shows_every_image_in_its_place(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(256, size=(5, 3, 32, 32), dtype=np.uint8)
    write_image_grid(tmp_path / "inputs.png", images, columns=3, min_side=64)
    with Image.open(tmp_path / "inputs.png") as picture:
        grid = np.asarray(picture)[::2, ::2]
    assert grid.shape == (2 * 34 + 2, 3 * 34 + 2, 3)
    for i, image in enumerate(images):
        top, left = 2 + (i // 3) * 34, 2 + (i % 3) * 34
        np.testing.assert_array_equal(grid[top : top + 32, left : left + 32], image.transpose(1, 2, 0))
    assert (grid[36:, 70:] == 255).all()
