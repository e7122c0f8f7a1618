"""What is kept of a finished run's mistakes."""

from pathlib import Path

import numpy as np

from resnet_bench.data.dataset import ImageLocation, load
from resnet_bench.running.artifacts import confident_mistakes
from resnet_bench.training.events import Predictions
from tests.data import builders


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
