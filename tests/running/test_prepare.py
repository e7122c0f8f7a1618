"""What a run is tracked as, from its request and its images."""

from dataclasses import replace
from typing import Any

import pytest

from resnet_bench.data.dataset import Dataset, generate_dataset
from resnet_bench.running.prepare import facts_of
from tests.running.conftest import tiny_job
from tests.training.conftest import PLAIN


@pytest.fixture(scope="module")
def images() -> Dataset:
    return generate_dataset("cifar10", train_size=64, test_size=32)


@pytest.mark.parametrize(
    ("source", "order"), [("torchvision archive", "published"), ("parquet", "canonical"), ("generated", "canonical")]
)
@pytest.mark.parametrize(
    ("recipe", "tags"),
    [
        ({}, set()),
        ({"evaluation": {"mode": "batch_statistics"}}, {"test_order"}),
        ({"evaluation": {"mode": "batch_statistics", "shuffle": True}}, set()),
        ({"data": {"validation": {"images": 16, "seed": 0}}}, {"validation_order"}),
    ],
    ids=["per image", "by batch", "by shuffled batch", "validation"],
)
def test_a_run_says_in_which_order_its_images_were_taken_where_that_decides(
    images: Dataset, source: str, order: str, recipe: dict[str, Any], tags: set[str]
) -> None:
    whole = {**recipe, "data": {"train_images": 64, "test_images": 32, **recipe.get("data", {})}}
    found = facts_of(tiny_job(recipe=whole), PLAIN, replace(images, source=source)).tags()
    orders = {name: found.get(f"resnet_bench.{name}") for name in ("test_order", "validation_order")}
    assert orders == {name: order if name in tags else None for name in orders}
