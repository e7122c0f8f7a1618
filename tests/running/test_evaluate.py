"""Trained networks on the test images of another dataset."""

import dataclasses

import numpy as np
import pytest
import torch

from resnet_bench.base.errors import UserError
from resnet_bench.data.dataset import Dataset, generate_dataset
from resnet_bench.judging.intervals import proportion_interval
from resnet_bench.models.of_recipe import build_network
from resnet_bench.recipe.files import load_benchmark
from resnet_bench.running.evaluate import evaluate
from resnet_bench.running.trained import TrainedRun


@pytest.fixture
def trained() -> TrainedRun:
    torch.manual_seed(0)
    benchmark = load_benchmark("he-resnet20")
    weights = build_network(benchmark.recipe).state_dict()
    return TrainedRun("he-resnet20 seed 0", None, benchmark, {}, {}, weights)


@pytest.fixture
def others() -> Dataset:
    """A dataset of the same classes under another name."""
    return dataclasses.replace(generate_dataset("cifar10", train_size=10, test_size=40), name="new")


def test_each_class_is_counted(trained: TrainedRun, others: Dataset) -> None:
    results = evaluate(trained, others)
    with torch.inference_mode():
        predicted = trained.classifier(others.test.images).argmax(1)
    hits = (predicted == others.test.labels).numpy()
    assert [row.images for row in results] == [4] * 10
    for label, row in enumerate(results):
        assert row.name == others.class_names[label]
        assert row.correct == int(hits[others.test.labels.numpy() == label].sum())


def test_other_classes_and_sizes_are_refused(trained: TrainedRun, others: Dataset) -> None:
    names = others.class_names
    for wrong, sentence in (
        (("plane", *names[1:]), "new has the class 'plane'; he-resnet20 seed 0 was trained on the classes of cifar10"),
        (names[::-1], "new has other classes, or in another order"),
    ):
        with pytest.raises(UserError, match=sentence):
            evaluate(trained, dataclasses.replace(others, class_names=wrong))
    small = dataclasses.replace(others.test, images=others.test.images[..., ::2, ::2])
    with pytest.raises(UserError, match="new has images of 16 pixels, and he-resnet20 seed 0 was trained on 32"):
        evaluate(trained, dataclasses.replace(others, test=small))


@pytest.mark.parametrize(("hits", "total"), [(0, 10), (10, 10), (832, 1000), (1, 2)])
def test_interval_of_an_accuracy_is_wilsons(hits: int, total: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(hits, total).proportion_ci(method="wilson")
    assert np.allclose(proportion_interval(hits, total), (expected.low, expected.high), atol=1e-6)
