"""One tracking store for all tests of this folder: making a database takes seconds."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resnet_bench.data.dataset import ImageLocation
from resnet_bench.execution.options import ExecutionOptions
from resnet_bench.recipe.benchmark import Benchmark, Source
from resnet_bench.recipe.claims import Claim
from resnet_bench.running.context import Context
from resnet_bench.running.job import Job
from resnet_bench.running.stopping import Stop
from resnet_bench.tracking.store import Store
from tests.training.conftest import tiny_recipe

PLAIN = ExecutionOptions("cpu", mode="plain", precision="fp32", threads=1, deterministic=True, autotune=False)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store.resolve(None, tmp_path_factory.mktemp("store"))
    store.prepare()
    return store


def tiny_job(*, recipe: dict[str, Any] | None = None, **changes: Any) -> Job:
    """Make a tiny job; keyword arguments change the job, ``recipe`` the recipe."""
    chosen = tiny_recipe(**(recipe or {}))
    benchmark = Benchmark(
        name="tiny",
        source=Source(title="A tiny run", kind="ours"),
        claims=(Claim(at_least=20.0),),
        recipe=chosen,
        profiles={"smoke": chosen},
    )
    # The tests share a store, so that what one of them has finished must not count for another.
    job = Job(benchmark=benchmark, recipe=chosen, profile="smoke", seed=0, force=True)
    return replace(job, **changes)


@pytest.fixture
def job_for() -> Callable[..., Job]:
    return tiny_job


@pytest.fixture
def runs_folder(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def context(store: Store, runs_folder: Path) -> Context:
    return tiny_context(store, runs_folder)


def tiny_context(store: Store, runs_folder: Path) -> Context:
    """Where and how tiny jobs run."""
    return Context(store, runs_folder, ImageLocation(runs_folder, generated=(64, 32)), PLAIN, Stop())
