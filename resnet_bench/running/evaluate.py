"""The test images of another dataset, as a trained network tells them apart."""

from dataclasses import dataclass

import numpy as np
import torch

from resnet_bench.base.errors import UserError
from resnet_bench.data.dataset import Dataset
from resnet_bench.running.trained import TrainedRun

_IMAGES_AT_ONCE = 250


@dataclass(frozen=True)
class ClassResult:
    """How many test images of one class a network recognizes.

    Attributes:
        name: The class.
        images: Its test images.
        correct: Those that are predicted as this class.
    """

    name: str
    images: int
    correct: int


def check_comparable(trained: TrainedRun, dataset: Dataset) -> None:
    """Check that a network can be tested on a dataset.

    Raises:
        UserError: The classes or the image sizes differ.
    """
    facts = trained.benchmark.recipe.data.facts
    if dataset.class_names != facts.class_names:
        differing = next((name for name in dataset.class_names if name not in facts.class_names), None)
        what = f"has the class {differing!r}" if differing else "has other classes, or in another order"
        raise UserError(f"{dataset.name} {what}; {trained.name} was trained on the classes of {facts.name}")
    size = dataset.test.images.shape[-1]
    if size != facts.image_size:
        raise UserError(
            f"{dataset.name} has images of {size} pixels, and {trained.name} was trained on {facts.image_size}"
        )


def evaluate(trained: TrainedRun, dataset: Dataset) -> list[ClassResult]:
    """Count the test images that a network recognizes: in eval mode, per image, without test-time augmentation.

    Raises:
        UserError: The classes or the image sizes differ.
    """
    check_comparable(trained, dataset)
    network, labels = trained.classifier, dataset.test.labels.numpy()
    with torch.inference_mode():
        predicted = [network(part).argmax(1) for part in torch.split(dataset.test.images, _IMAGES_AT_ONCE)]
    is_correct = torch.cat(predicted).numpy() == labels
    totals = np.bincount(labels, minlength=len(dataset.class_names))
    correct = np.bincount(labels[is_correct], minlength=len(dataset.class_names))
    rows = zip(dataset.class_names, totals, correct, strict=True)
    return [ClassResult(name, int(images), int(hits)) for name, images, hits in rows]
