"""Fixtures for the tests of images: small datasets, and real CIFAR decoded once a session."""

from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_bench.data.content import Content
from resnet_bench.data.dataset import Dataset, ImageLocation, load, load_dataset
from resnet_bench.recipe.datasets import DatasetFacts
from tests.data.builders import random_content, small_info

Load = Callable[..., Dataset]


@pytest.fixture(autouse=True)
def user_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the cache of the user who runs it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    return tmp_path / "user-cache" / "resnet-bench"


@pytest.fixture
def info() -> DatasetFacts:
    return small_info()


@pytest.fixture
def content(info: DatasetFacts) -> Content:
    return random_content(info)


@pytest.fixture
def messages() -> list[str]:
    """What `load_small` said."""
    return []


@pytest.fixture
def load_small(messages: list[str]) -> Load:
    """Loads a dataset that is not in the catalogue."""

    def load_it(info: DatasetFacts, folder: Path, **options: object) -> Dataset:
        archive = options.pop("archive", None)
        return load(info, ImageLocation(folder, **options), messages.append, archive)  # type: ignore[arg-type]

    return load_it


@pytest.fixture(scope="session")
def real_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def real_cifar10(real_data_folder: Path, real_cache_folder: Path) -> Dataset:
    return load_dataset("cifar10", real_data_folder, cache_folder=real_cache_folder)
