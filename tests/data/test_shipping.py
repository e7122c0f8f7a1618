"""A dataset that another machine gets: the same to the last bit, and never written to."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from resnet_bench.data.dataset import Dataset, ImageLocation, load_images
from resnet_bench.data.shipping import pack, unpack


def same(ours: Dataset, theirs: Dataset) -> bool:
    for one, other in ((ours.train, theirs.train), (ours.test, theirs.test)):
        assert (one.rows is None) == (other.rows is None)
        assert one.rows is None or torch.equal(one.rows, other.rows)
        if not torch.equal(one.images, other.images) or not torch.equal(one.labels, other.labels):
            return False
    assert (ours.fingerprint, ours.source, ours.origin) == (theirs.fingerprint, theirs.source, theirs.origin)
    return True


def test_a_dataset_arrives_as_it_was_sent() -> None:
    dataset = load_images("cifar10", ImageLocation(Path("nowhere"), generated=(20, 10)))
    assert same(unpack(pickle.loads(pickle.dumps(pack(dataset)))), dataset)
    without = replace(dataset, train=replace(dataset.train, rows=None))
    assert same(unpack(pack(without)), without)


def test_images_that_processes_share_are_neither_copied_nor_warned_of() -> None:
    dataset = load_images("cifar10", ImageLocation(Path("nowhere"), generated=(20, 10)))
    head, arrays = pack(dataset)
    assert np.shares_memory(arrays[0], dataset.train.images.numpy())
    for array in arrays:
        array.flags.writeable = False
    shared = unpack((head, arrays))
    assert shared.train.images.data_ptr() == arrays[0].ctypes.data
    assert same(shared, dataset)
