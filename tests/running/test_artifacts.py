"""What is kept of a finished run's mistakes."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from resnet_bench.data.dataset import ImageLocation, generate_dataset, load
from resnet_bench.running.artifacts import confident_mistakes
from resnet_bench.training.events import Predictions
from tests.data import builders


def test_a_file_name_that_is_not_utf_8_stays_printable() -> None:
    class Origin:
        def place(self, split_name: str, row: int) -> str:
            return os.fsdecode(b"test/cat/\xff.png")

    dataset = generate_dataset("cifar10", train_size=10, test_size=1)
    rows = torch.zeros(1, dtype=torch.int64)
    dataset = replace(dataset, origin=Origin(), test=replace(dataset.test, rows=rows))
    label = int(dataset.test.labels[0])
    probabilities = np.eye(10, dtype=np.float32)[[(label + 1) % 10]]
    (mistake,) = confident_mistakes(Predictions("test", np.array([label]), probabilities), dataset)
    assert mistake["image"] == "test/cat/\ufffd.png"


def test_a_mistake_is_named_as_in_the_source(tmp_path: Path) -> None:
    info = builders.small_info()
    content = builders.random_content(info)
    builders.write_parquet(tmp_path / "cifar10", info, content)
    dataset = load(info, ImageLocation(tmp_path))
    labels = dataset.test.labels[:5].numpy()
    probabilities = np.full((5, 10), 0.05, dtype=np.float32)
    probabilities[np.arange(5), (labels + 1) % 10] = np.linspace(0.5, 0.9, 5)
    mistakes = confident_mistakes(Predictions("test", labels, probabilities), dataset)
    assert [mistake["confidence"] for mistake in mistakes] == sorted(
        (float(value) for value in probabilities.max(1)), reverse=True
    )
    assert dataset.test.rows is not None
    for mistake, place in zip(mistakes, range(4, -1, -1), strict=True):
        assert mistake["index"] == int(dataset.test.rows[place])
        assert mistake["image"] == f"row {mistake['index']} of test-00000-of-00001.parquet"
        assert np.array_equal(content.test.images[mistake["index"]], dataset.test.images[place].numpy())
