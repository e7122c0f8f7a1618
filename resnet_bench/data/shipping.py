"""A dataset in memory as bytes and arrays, for a process on a machine that does not see its files."""

import pickle  # what is loaded was written by the same user  # nosec B403
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from resnet_bench.data.dataset import Dataset, Split

Parcel = tuple[bytes, tuple[npt.NDArray[Any], ...]]
"""All of a dataset but its arrays; and these: images, labels and rows, which may be empty, of training and test split.

It is made of nothing of ours, so that who passes it on imports nothing.
"""


def pack(dataset: Dataset) -> Parcel:
    """Take a dataset apart without copying its images."""
    nothing = Split(torch.empty(0), torch.empty(0))
    arrays = []
    for split in (dataset.train, dataset.test):
        rows = np.empty(0, np.int64) if split.rows is None else split.rows.numpy()
        arrays += [split.images.numpy(), split.labels.numpy(), rows]
    return pickle.dumps(replace(dataset, train=nothing, test=nothing)), tuple(arrays)


def unpack(parcel: Parcel) -> Dataset:
    """Put a dataset together without copying its images."""
    head, arrays = parcel
    described: Dataset = pickle.loads(head)  # noqa: S301  # nosec B301
    with warnings.catch_warnings():
        # Arrays that processes share are read-only, and nothing writes into a dataset.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensors = [torch.from_numpy(array) for array in arrays]
    train, test = (
        Split(images, labels, rows if len(rows) == len(labels) else None)
        for images, labels, rows in (tensors[:3], tensors[3:])
    )
    return replace(described, train=train, test=test)
