"""What a finished run leaves in the tracking store besides its numbers."""

import base64
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from resnet_bench.data.dataset import Dataset
from resnet_bench.data.of_recipe import augmented_examples
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.recipe.writing import to_toml
from resnet_bench.running import pictures
from resnet_bench.running.classifier import classifier_of
from resnet_bench.running.run_folder import RunFolder
from resnet_bench.tracking.run_files import CHECKPOINTS
from resnet_bench.tracking.tracker import Tracker
from resnet_bench.training import checkpoint
from resnet_bench.training.events import Finished, Predictions

EXAMPLE_IMAGES = 64
CONFIDENT_MISTAKES = 24


def log_recipe(benchmark: Benchmark, recipe: Recipe, tracker: Tracker) -> None:
    """Log the recipe as it is run, as a benchmark file that runs it again, and the benchmark as it is published."""
    # The source claims nothing of a shortened or changed recipe.
    claims = benchmark.claims if recipe == benchmark.recipe else ()
    as_run = benchmark.model_copy(update={"recipe": recipe, "profiles": {}, "claims": claims})
    tracker.text("recipe.toml", to_toml(as_run))
    tracker.text("benchmark.json", benchmark.model_dump_json(indent=1, exclude_none=True))


def log_outcome(
    recipe: Recipe, dataset: Dataset, event: Finished, tracker: Tracker, folder: RunFolder, *, seed: int, model: bool
) -> None:
    """Log what the trained network says of the test images, what it saw, and the network itself."""
    if event.predictions is not None:
        _log_predictions(event.predictions, dataset, tracker, folder.artifacts)
    inputs = folder.artifacts / "inputs.png"
    pictures.write_image_grid(inputs, augmented_examples(recipe, dataset, seed, count=EXAMPLE_IMAGES))
    tracker.artifact(inputs)
    if model:
        _log_model(recipe, event, tracker)


def log_best_weights(event: Finished, tracker: Tracker, folder: RunFolder) -> None:
    """Log the weights of the best epoch, unless that is the last one, whose weights the model has."""
    best = folder.best_checkpoint
    if best.is_file() and checkpoint.load(best)["epoch"] != event.epoch:
        tracker.artifact(best, CHECKPOINTS)


def _log_predictions(predictions: Predictions, dataset: Dataset, tracker: Tracker, folder: Path) -> None:
    labels, probabilities, classes = predictions.labels, predictions.probabilities, dataset.class_names
    predicted = probabilities.argmax(axis=1).astype(np.int64)
    pictures.write_per_class_accuracy(folder / "per_class_accuracy.csv", labels, predicted, classes)
    pictures.write_confusion_matrix_csv(folder / "confusion_matrix.csv", labels, predicted, classes)
    pictures.write_confusion_matrix_png(folder / "confusion_matrix.png", labels, predicted, classes)
    images = [_place(dataset, index) for index in range(len(labels))]
    pictures.write_predictions(folder / "predictions.parquet", labels, probabilities, images)
    mistakes = folder / "confident_mistakes.json"
    mistakes.write_text(json.dumps(confident_mistakes(predictions, dataset)))
    for name in (
        "per_class_accuracy.csv",
        "confusion_matrix.csv",
        "confusion_matrix.png",
        "predictions.parquet",
        "confident_mistakes.json",
    ):
        tracker.artifact(folder / name)


def confident_mistakes(predictions: Predictions, dataset: Dataset) -> list[dict[str, Any]]:
    """The test images that the network is wrong about and surest of, as small PNGs, the surest first.

    An image's ``index`` is its row in the source's order, and ``image`` names it there; without a source that is known,
    it is the image's place among those that were evaluated.
    """
    predicted = predictions.probabilities.argmax(axis=1)
    confidence = predictions.probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != predictions.labels)
    surest = wrong[np.argsort(-confidence[wrong], kind="stable")][:CONFIDENT_MISTAKES]
    return [
        {
            "index": int(index) if dataset.test.rows is None else int(dataset.test.rows[int(index)]),
            "image": _place(dataset, int(index)),
            "label": _class_name(dataset, int(predictions.labels[index])),
            "predicted": _class_name(dataset, int(predicted[index])),
            "confidence": float(confidence[index]),
            "png_base64": _png(dataset.test.images[int(index)].numpy()),
        }
        for index in surest
    ]


def _place(dataset: Dataset, index: int) -> str:
    # A file's name need not be UTF-8, which JSON and tables are.
    return os.fsencode(dataset.place("test", index)).decode("utf-8", "replace")


def _class_name(dataset: Dataset, label: int) -> str:
    return dataset.class_names[label] if label < len(dataset.class_names) else pictures.OTHER


def _png(image: npt.NDArray[np.uint8]) -> str:
    """An RGB image [3, H, W] as a base64 PNG."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def _log_model(recipe: Recipe, event: Finished, tracker: Tracker) -> None:
    side = recipe.data.facts.image_size
    # Two images, because from one the export would learn that batches are of one.
    tracker.log_model(classifier_of(recipe, event.snapshot()["network"]), np.zeros((2, 3, side, side), dtype=np.uint8))
