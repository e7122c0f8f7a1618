"""The splits of a recipe, from sources that keep the published order and from others."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from resnet_bench.data.content import Content
from resnet_bench.data.dataset import Dataset, Split
from resnet_bench.data.of_recipe import (
    as_batched,
    split_train_validation,
    splits_of,
    uses_official_batches,
    uses_official_split,
)
from resnet_bench.recipe.datasets import DATASETS, DatasetFacts
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.recipe.settings import ValidationSplit
from tests.data import builders
from tests.training.conftest import tiny_recipe

Load = Callable[..., Dataset]


@pytest.mark.parametrize(("size", "images", "seed"), [(50_000, 5_000, 42), (7, 3, 0), (5, 5, 1)])
def test_split_equals_the_articles_code(size: int, images: int, seed: int) -> None:
    indices = list(range(size))
    np.random.seed(seed)
    np.random.shuffle(indices)
    train, validation = split_train_validation(size, ValidationSplit(images=images, seed=seed))
    assert validation.tolist() == indices[:images]
    assert train.tolist() == indices[images:]


def test_split_leaves_the_global_random_state_alone() -> None:
    np.random.seed(7)
    expected = np.random.random()
    np.random.seed(7)
    split_train_validation(100, ValidationSplit(images=10, seed=42))
    assert np.random.random() == expected


@pytest.fixture
def recipe(info: DatasetFacts, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recipe]:
    """Recipes on the small dataset: its 60 training images, 12 of them to validate."""
    monkeypatch.setattr("resnet_bench.recipe.settings.DATASETS", {**DATASETS, info.name: info})

    def build(evaluation: dict[str, object] | None = None, **data: object) -> Recipe:
        data = {"train_images": 60, "test_images": 20, "validation": {"images": 12, "seed": 42}, **data}
        return tiny_recipe(data=data, evaluation={"splits": ["validation", "test"], **(evaluation or {})})

    return build


def of(images: np.ndarray, labels: np.ndarray) -> list[tuple[bytes, int]]:
    return [(image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)]


def pairs(split: Split) -> list[tuple[bytes, int]]:
    return of(split.images.numpy(), split.labels.numpy())


def test_validation_split_counts_in_the_published_order_if_the_source_kept_it(
    info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load, recipe: Callable[..., Recipe]
) -> None:
    archive = builders.write_extracted_archive(tmp_path, info, content)
    dataset = load_small(info, tmp_path, archive=archive)
    assert dataset.official_order
    assert uses_official_split(recipe(), dataset)
    splits = splits_of(recipe(), dataset)
    # What a script does that shuffles the indices of torchvision's dataset.
    indices = list(range(60))
    np.random.RandomState(42).shuffle(indices)
    published = of(content.train.images, content.train.labels)
    assert pairs(splits["validation"]) == [published[index] for index in indices[:12]]
    assert pairs(splits["train"]) == [published[index] for index in indices[12:]]


@pytest.mark.parametrize("source", ["parquet", "folders"])
def test_validation_split_counts_in_canonical_order_otherwise(
    source: str, info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load, recipe: Callable[..., Recipe]
) -> None:
    write = builders.write_parquet if source == "parquet" else builders.write_class_folders
    write(tmp_path / "cifar10", info, content)
    dataset = load_small(info, tmp_path)
    assert not dataset.official_order
    assert not uses_official_split(recipe(), dataset)
    indices = list(range(60))
    np.random.RandomState(42).shuffle(indices)
    canonical = pairs(dataset.train)
    assert pairs(splits_of(recipe(), dataset)["validation"]) == [canonical[index] for index in indices[:12]]


IN_BATCHES = {"mode": "batch_statistics"}
"""An evaluation that depends on which images share a batch."""


def test_test_images_are_batched_in_the_published_order_if_the_source_kept_it(
    info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load, recipe: Callable[..., Recipe]
) -> None:
    archive = builders.write_extracted_archive(tmp_path, info, content)
    dataset = load_small(info, tmp_path, archive=archive)
    splits = splits_of(recipe(IN_BATCHES), dataset)
    batched = as_batched(recipe(IN_BATCHES), dataset, splits)
    assert uses_official_batches(recipe(IN_BATCHES), dataset)
    assert pairs(batched["test"]) == of(content.test.images, content.test.labels)
    assert pairs(splits["test"]) == pairs(dataset.test), "what names an image stays in canonical order"
    assert batched["validation"] is splits["validation"], "its indices count in the published order already"


@pytest.mark.parametrize(
    ("source", "evaluation", "test_images"),
    [
        ("parquet", IN_BATCHES, 20),
        ("archive", {}, 20),
        ("archive", {**IN_BATCHES, "shuffle": True}, 20),
        ("archive", IN_BATCHES, 10),
    ],
    ids=["unknown order", "per image", "shuffled", "part of the test set"],
)
def test_test_images_are_batched_in_canonical_order_otherwise(
    source: str,
    evaluation: dict[str, object],
    test_images: int,
    info: DatasetFacts,
    content: Content,
    tmp_path: Path,
    load_small: Load,
    recipe: Callable[..., Recipe],
) -> None:
    archive = builders.write_extracted_archive(tmp_path, info, content) if source == "archive" else None
    if source == "parquet":
        builders.write_parquet(tmp_path / "cifar10", info, content)
    dataset = load_small(info, tmp_path, archive=archive)
    asked = recipe(evaluation, test_images=test_images)
    splits = splits_of(asked, dataset)
    assert not uses_official_batches(asked, dataset)
    assert as_batched(asked, dataset, splits)["test"] is splits["test"]


def test_part_of_the_training_images_is_the_same_from_every_source(
    info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load, recipe: Callable[..., Recipe]
) -> None:
    archive = builders.write_extracted_archive(tmp_path / "archive", info, content)
    builders.write_parquet(tmp_path / "parquet" / "cifar10", info, content)
    datasets = [load_small(info, tmp_path / name, archive=archive) for name in ("archive", "parquet")]
    part = recipe(train_images=40)
    assert not uses_official_split(part, datasets[0])
    for name, split in splits_of(part, datasets[0]).items():
        assert torch.equal(split.images, splits_of(part, datasets[1])[name].images)


def test_order_survives_the_cache(info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load) -> None:
    archive = builders.write_extracted_archive(tmp_path, info, content)
    for _ in range(2):
        dataset = load_small(info, tmp_path, archive=archive)
        assert dataset.train.rows is not None
        published = content.train.images[dataset.train.rows.numpy()]
        assert np.array_equal(published, dataset.train.images.numpy())


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("archive", r"image \d+ of the test set"),
        ("parquet", r"row \d+ of test-00000-of-00001.parquet"),
        ("folders", r"test/\w+/\d{4}.png"),
    ],
)
def test_an_image_is_named_as_in_its_source(
    source: str, place: str, info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load
) -> None:
    archive = builders.write_extracted_archive(tmp_path, info, content) if source == "archive" else None
    if source == "parquet":
        builders.write_parquet(tmp_path / "cifar10", info, content)
    elif source == "folders":
        builders.write_class_folders(tmp_path / "cifar10", info, content)
    dataset = load_small(info, tmp_path, archive=archive)
    names = [dataset.place("test", index) for index in range(20)]
    assert len(set(names)) == 20
    for index, name in enumerate(names):
        assert re.fullmatch(place, name), name
        number = int(re.findall(r"\d+", name)[0])
        assert np.array_equal(content.test.images[number], dataset.test.images[index].numpy())


def test_rows_of_several_files_are_counted_in_their_file(
    info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load
) -> None:
    builders.write_parquet(tmp_path / "cifar10", info, content)
    dataset = load_small(info, tmp_path)
    assert dataset.train.rows is not None
    last = int(dataset.train.rows.argmax())
    assert dataset.place("train", last) == "row 29 of train-00001-of-00002.parquet"


def test_an_image_of_unknown_origin_is_named_by_its_place_in_the_dataset(
    info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load
) -> None:
    builders.write_parquet(tmp_path / "cifar10", info, content)
    dataset = dataclasses.replace(load_small(info, tmp_path), origin=None)
    assert dataset.place("test", 3) == "image 3 of test, sorted by content"
