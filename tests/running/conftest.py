"""One tracking store for all tests of this folder: making a database takes seconds."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resnet_bench.data.dataset import Dataset, generate_dataset
from resnet_bench.recipe.benchmark import Benchmark, Source
from resnet_bench.recipe.claims import Claim
from resnet_bench.running.run import RunRequest
from resnet_bench.tracking.store import Store
from tests.training.conftest import PLAIN, tiny_recipe


@pytest.fixture(scope="session")
def images() -> Dataset:
    return generate_dataset("cifar10", train_size=64, test_size=32)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store.resolve(None, tmp_path_factory.mktemp("store"))
    store.prepare()
    return store


@pytest.fixture
def request_for() -> Callable[..., RunRequest]:
    """Makes a request for a tiny run; keyword arguments change the request, ``recipe`` the recipe."""

    def make(*, recipe: dict[str, Any] | None = None, **changes: Any) -> RunRequest:
        chosen = tiny_recipe(**(recipe or {}))
        benchmark = Benchmark(
            name="tiny",
            source=Source(title="A tiny run", kind="ours"),
            claims=(Claim(at_least=20.0),),
            recipe=chosen,
            profiles={"smoke": chosen},
        )
        request = RunRequest(benchmark=benchmark, recipe=chosen, profile="smoke", seed=0, execution=PLAIN)
        return replace(request, **changes)

    return make


@pytest.fixture
def runs_folder(tmp_path: Path) -> Path:
    return tmp_path / "runs"
