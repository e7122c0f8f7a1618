"""A small benchmark, the events of its training, and stores to track it in."""

import os
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.tracking.facts import RunFacts
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.ui import ui_command

from .training_events import BENCHMARK


@pytest.fixture(autouse=True)
def no_foreign_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test writes to a store that the developer's shell names, or to the folder it is started in."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A prepared SQLite store of the test's own."""
    folder = tmp_path / "project"
    folder.mkdir()
    store = Store.resolve(None, folder)
    store.prepare()
    return store


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A database as MLflow 2.10 made it, with an experiment."""
    import alembic.command
    import sqlalchemy
    from mlflow.store.db.utils import _get_alembic_config
    from mlflow.store.tracking.dbmodels.initial_models import Base

    # SQLAlchemy warns of MLflow's tables when they are first used, which only the product keeps quiet.
    Store.resolve(None, tmp_path / "first").prepare()
    path = tmp_path / "old" / "mlflow.db"
    path.parent.mkdir()
    uri = f"sqlite:///{path}"
    engine = sqlalchemy.create_engine(uri)
    Base.metadata.create_all(engine)
    engine.dispose()
    alembic.command.upgrade(_get_alembic_config(uri), "acf3f17fdcc7")
    with sqlite3.connect(path) as database:
        database.execute(
            "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage) "
            "VALUES (7, 'of old', 'file:///tmp/of-old', 'active')"
        )
    database.close()
    return path


@pytest.fixture
def benchmark_of_the_test() -> Benchmark:
    return Benchmark.model_validate(BENCHMARK)


@pytest.fixture
def describe(benchmark_of_the_test: Benchmark) -> Callable[..., RunFacts]:
    """Describe a run of the small benchmark; anything can be said otherwise."""

    def describe(**changes: Any) -> RunFacts:
        fields: dict[str, Any] = {
            "benchmark": benchmark_of_the_test,
            "recipe": benchmark_of_the_test.recipe,
            "profile": "full",
            "seed": 3,
            "execution": {"device": "cpu", "precision": "fp32", "threads": 1},
            "device_name": "a test processor, 1 thread",
            "dataset_name": "cifar10",
            "data_source": "parquet",
            "data_fingerprint": "0123456789abcdef",
            "generated": False,
        }
        return RunFacts(**{**fields, **changes})

    return describe


class Server:
    """An MLflow server in a separate process, which can be killed and started again."""

    def __init__(self, database: Store, port: int) -> None:
        self._database = database
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def pids(self) -> list[int]:
        """The server's processes, children included."""
        import psutil

        assert self._process is not None
        parent = psutil.Process(self._process.pid)
        return [parent.pid, *(child.pid for child in parent.children(recursive=True))]

    def start(self) -> None:
        command, environment = ui_command(self._database, port=self._port)
        self._process = subprocess.Popen(
            command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                assert self._process.poll() is None, "the server ended"
                time.sleep(0.2)
        raise AssertionError("the server did not start")

    def signal(self, signal: int) -> None:
        """Send a signal to every process of the server."""
        for pid in self.pids:
            os.kill(pid, signal)

    def stop(self) -> None:
        import signal

        if self._process is not None and self._process.poll() is None:
            self.signal(signal.SIGKILL)
            self._process.wait()


@pytest.fixture
def make_server(store: Store) -> Iterator[Callable[[], Server]]:
    """Make a server on the test's database; it is not started yet, and ended with the test."""
    servers: list[Server] = []

    def make() -> Server:
        servers.append(Server(store, free_port()))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run_python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a piece of Python in a separate process."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
        timeout=120,
    )
