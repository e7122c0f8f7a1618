"""A recipe small enough to train in seconds, and images for it."""

from typing import Any

import pytest

from resnet_bench.data.dataset import Dataset, generate_dataset
from resnet_bench.execution.execution import Execution
from resnet_bench.recipe.changes import merge
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.recipe.schema import parse

PLAIN = Execution("cpu", "fp32", channels_last=False, compile=False, deterministic=True, threads=1)


def tiny_recipe(**changes: Any) -> Recipe:
    """A ResNet-20 of 0.3 million parameters on 40 images in batches of 16: two whole batches and one of 8."""
    table = {
        "data": {
            "dataset": "cifar10",
            "mean": [0.4914, 0.4822, 0.4465],
            "std": [0.2023, 0.1994, 0.2010],
            "train_images": 40,
            "test_images": 30,
        },
        "augmentation": {"crop_padding": 4, "padding_mode": "reflect", "flip": True},
        "model": {"name": "he_resnet20"},
        "optimizer": {"name": "sgd", "lr": 0.02, "momentum": 0.9, "weight_decay": 5e-4},
        "schedule": {"name": "constant"},
        "training": {"epochs": 2, "batch_size": 16},
        "evaluation": {"batch_size": 20},
    }
    return parse(Recipe, merge(table, changes), where="test")


@pytest.fixture(scope="session")
def images() -> Dataset:
    """Generated images: 64 to train on, 32 to test on."""
    return generate_dataset("cifar10", train_size=64, test_size=32)
