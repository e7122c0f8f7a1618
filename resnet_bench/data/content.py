"""The arrays of a dataset, in one order and under one fingerprint whatever file format they came from."""

import hashlib
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from resnet_bench.base.errors import UserError
from resnet_bench.recipe.datasets import DatasetFacts

Progress = Callable[[str], None]
"""Called with a line of text for a person, now and then."""


class SplitArrays(NamedTuple):
    """One split.

    Attributes:
        images: uint8 `[N, 3, H, W]`.
        labels: int64 `[N]`.
        rows: Each image's index in the source, int64 `[N]`; None while the images are in the source's order.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64] | None = None


class Content(NamedTuple):
    """Both splits of a dataset."""

    train: SplitArrays
    test: SplitArrays


def sha256_of_array(array: npt.NDArray[Any]) -> str:
    """Compute the SHA-256 of an array's values in C order, in hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def in_canonical_order(content: Content) -> Content:
    """Sort the images of each split by the SHA-256 of their pixels, then by label, and number their rows.

    Formats store a dataset in different orders; this one needs nothing but the images. It is as good as a random
    one, so that the first images of a split are a fair sample of it.
    """
    return Content(*map(_in_canonical_order, content))


def _in_canonical_order(split: SplitArrays) -> SplitArrays:
    digests = [hashlib.sha256(image.data).digest() for image in split.images]
    order = sorted(range(len(digests)), key=lambda index: (digests[index], split.labels[index]))
    return SplitArrays(split.images[order], split.labels[order], np.array(order, dtype=np.int64))


def count_shared_images(content: Content) -> int:
    """Count the test images whose pixels are those of a training image."""
    train = {hashlib.sha256(image.data).digest() for image in content.train.images}
    return sum(hashlib.sha256(image.data).digest() in train for image in content.test.images)


def fingerprint(name: str, content: Content) -> str:
    """Compute the SHA-256 over name, shapes, images and labels of content in canonical order, in hexadecimal."""
    description: dict[str, object] = {"name": name}
    for split_name, split in content._asdict().items():
        description[split_name] = {
            "shape": list(split.images.shape),
            "images": sha256_of_array(split.images),
            "labels": sha256_of_array(split.labels.astype("<i8")),
        }
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def check_complete(facts: DatasetFacts, split_name: str, found: int, where: str) -> None:
    """Reject a split of a published dataset that lacks images or has too many.

    Args:
        facts: The dataset.
        split_name: "train" or "test".
        found: Number of images found.
        where: The files, for the message.

    Raises:
        UserError: The number is not the published one.
    """
    expected = facts.train_size if split_name == "train" else facts.test_size
    if found != expected:
        raise UserError(
            f"{where} has {found:,} {split_name} images of {facts.name} and {expected:,} are expected: "
            "a file is missing, cut short or there twice"
        )
