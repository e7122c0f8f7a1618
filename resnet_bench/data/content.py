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
"""Called with a line of text for a human, now and then."""


class SplitArrays(NamedTuple):
    """One split: `images` uint8 `[N, 3, H, W]` and `labels` int64 `[N]`."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


class Content(NamedTuple):
    """Both splits of a dataset."""

    train: SplitArrays
    test: SplitArrays


def sha256_of_array(array: npt.NDArray[Any]) -> str:
    """SHA-256 of an array's values in C order, in hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def in_canonical_order(split: SplitArrays) -> SplitArrays:
    """The same images sorted by the SHA-256 of their pixels, then by label.

    Formats store a dataset in different orders; this one needs nothing but the images. It is as good as a random
    one, so that the first images of a split are a fair sample of it.
    """
    digests = [hashlib.sha256(image.data).digest() for image in split.images]
    order = sorted(range(len(digests)), key=lambda index: (digests[index], split.labels[index]))
    return SplitArrays(split.images[order], split.labels[order])


def fingerprint(name: str, content: Content) -> str:
    """SHA-256 over name, shapes, images and labels, in hexadecimal; the content is in canonical order."""
    description: dict[str, object] = {"name": name}
    for split_name, split in content._asdict().items():
        description[split_name] = {
            "shape": list(split.images.shape),
            "images": sha256_of_array(split.images),
            "labels": sha256_of_array(split.labels.astype("<i8")),
        }
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def check_complete(info: DatasetFacts, split_name: str, found: int, where: str) -> None:
    """Refuses a split of a published dataset that lacks images or has too many.

    Args:
        info: The dataset.
        split_name: "train" or "test".
        found: Number of images found.
        where: The files, for the message.

    Raises:
        UserError: The number is not the published one.
    """
    expected = info.train_size if split_name == "train" else info.test_size
    if found != expected:
        raise UserError(
            f"{where} holds {found:,} {split_name} images of {info.name} and {expected:,} are expected: "
            "a file is missing, cut short or there twice"
        )
