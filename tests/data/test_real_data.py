"""On real CIFAR, where there is some."""

from pathlib import Path

import numpy as np
import pytest
import torch

from resnet_bench.data.dataset import Dataset, Split, dataset_status, load_dataset
from resnet_bench.recipe.datasets import DATASETS

pytestmark = [pytest.mark.real_data, pytest.mark.slow]


def channel_statistics(split: Split) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, of pixels between 0 and 1, exactly from a histogram."""
    values = np.arange(256) / 255
    channels = [np.bincount(split.images[:, channel].flatten().numpy(), minlength=256) for channel in range(3)]
    means = [float(np.average(values, weights=counts)) for counts in channels]
    variances = [np.average((values - mean) ** 2, weights=counts) for counts, mean in zip(channels, means, strict=True)]
    return means, [float(np.sqrt(variance)) for variance in variances]


def check(dataset: Dataset, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    num_classes = DATASETS[dataset.name].num_classes
    assert dataset.train.images.shape == (50_000, 3, 32, 32)
    assert dataset.test.images.shape == (10_000, 3, 32, 32)
    assert dataset.train.labels.bincount().tolist() == [50_000 // num_classes] * num_classes
    assert dataset.test.labels.bincount().tolist() == [10_000 // num_classes] * num_classes
    means, stds = channel_statistics(dataset.train)
    assert means == pytest.approx(mean, abs=5e-9)
    assert stds == pytest.approx(std, abs=5e-9)
    assert dataset.official
    assert not dataset.generated


def test_cifar10_is_the_published_one(real_cifar10: Dataset) -> None:
    check(real_cifar10, (0.49139968, 0.48215841, 0.44653091), (0.24703223, 0.24348513, 0.26158784))


def test_cifar100_is_the_published_one(real_data_folder: Path, tmp_path: Path) -> None:
    dataset = load_dataset("cifar100", real_data_folder, cache_folder=tmp_path)
    check(dataset, (0.50707516, 0.48654887, 0.44091784), (0.26733429, 0.25643846, 0.27615047))


def test_the_first_images_are_a_fair_sample(real_cifar10: Dataset) -> None:
    counts = real_cifar10.train.labels[:5000].bincount().float()
    # Six standard deviations of a count of 500 expected.
    assert float((counts - 500).abs().max()) < 6 * 500**0.5


def test_it_comes_from_the_cache_the_second_time(
    real_cifar10: Dataset, real_data_folder: Path, real_cache_folder: Path
) -> None:
    entry = next(
        entry for entry in dataset_status(real_data_folder, cache_folder=real_cache_folder) if entry.name == "cifar10"
    )
    assert (entry.cache, entry.fingerprint) == ("ready", real_cifar10.fingerprint)
    messages: list[str] = []
    again = load_dataset("cifar10", real_data_folder, cache_folder=real_cache_folder, progress=messages.append)
    assert messages == []
    assert torch.equal(again.train.images, real_cifar10.train.images)
