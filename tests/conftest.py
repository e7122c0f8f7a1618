"""Fixtures that every test may ask for."""

import os
import shlex
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from resnet_bench.cli import app
from resnet_bench.tracking import mlflow_client

if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    # Under nohup the commands that tests start would ignore it as well.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Result(NamedTuple):
    """What a command gave."""

    code: int
    out: str
    err: str


@pytest.fixture
def invoke(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[[str], Result]:
    """Type a command in an empty folder, in this process: starting another takes seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def type_command(command: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["resnet-bench", *shlex.split(command)])
        with pytest.raises(SystemExit) as exit_:
            app.main()
        return Result(int(exit_.value.code or 0), *capsys.readouterr())

    return type_command


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tests measure of the machine is not remembered for its user, nor by the processes that they start."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    # Tests of uploads count every value, through servers too.
    os.environ["RESNET_BENCH_STEP_VALUES"] = "all"
    # The developer's images are for the tests that ask for them.
    os.environ.pop("RESNET_BENCH_DATA", None)


@pytest.fixture(scope="session", autouse=True)
def database_template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Path]]:
    """Copy each new database from one that is empty: making MLflow's tables takes a second of processor time."""
    template = tmp_path_factory.mktemp("template") / "mlflow.db"
    connect = mlflow_client.connect

    def make_template() -> Path:
        if not template.exists():
            connect(f"sqlite:///{template}")
            with closing(sqlite3.connect(template)) as database, database:
                # The only row, of the default experiment, names the folder that its artifacts go to.
                database.execute("DELETE FROM experiments")
        return template

    def connect_to_copy(uri: str) -> Any:
        path = Path(uri.removeprefix("sqlite:///"))
        if uri.startswith("sqlite:///") and path.parent.is_dir() and not path.exists():
            with suppress(OSError):
                shutil.copy(make_template(), path)
        return connect(uri)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlflow_client, "connect", connect_to_copy)
        yield make_template


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Leave it to the system when what is written reaches the disk: only a power failure could tell."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def commit_without_waiting(connection: Any, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            # What is wrong with a database is for the code that is tested to find.
            with suppress(sqlite3.Error):
                connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", commit_without_waiting)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
    event.remove(Engine, "connect", commit_without_waiting)


@pytest.fixture(scope="session", autouse=True)
def known_migrations() -> Iterator[None]:
    """Ask once for the latest migration: Optuna imports every one it has each time that a storage is opened."""
    from alembic.script import ScriptDirectory

    ask = ScriptDirectory.get_current_head
    known: dict[str, str | None] = {}

    def ask_once(self: ScriptDirectory) -> str | None:
        if self.dir not in known:
            known[self.dir] = ask(self)
        return known[self.dir]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptDirectory, "get_current_head", ask_once)
        yield


@pytest.fixture(scope="session")
def empty_database(database_template: Callable[[], Path]) -> Path:
    """A database with MLflow's tables and nothing in them, to be copied."""
    return database_template()


@pytest.fixture(scope="session")
def real_data_folder(request: pytest.FixtureRequest) -> Path:
    """The folder with real CIFAR that RESNET_BENCH_TEST_DATA names; the test skips where none is named."""
    folder = _real_data_folder(request.config)
    if folder is None:
        pytest.skip("set RESNET_BENCH_TEST_DATA to a folder with CIFAR to run this test")
    return folder


def _real_data_folder(config: pytest.Config) -> Path | None:
    folder = os.environ.get("RESNET_BENCH_TEST_DATA")
    return (config.invocation_params.dir / Path(folder).expanduser()).resolve() if folder else None


def pytest_configure(config: pytest.Config) -> None:
    """Stop where the folder that is named holds no images: its tests would skip, and nobody would notice."""
    folder = _real_data_folder(config)
    if folder is None or hasattr(config, "workerinput"):
        return

    from resnet_bench.data.dataset import dataset_status

    if not any(status.sources for status in dataset_status(folder)):
        raise pytest.UsageError(f"RESNET_BENCH_TEST_DATA: {folder} holds no CIFAR; name another folder, or none")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that regenerates the golden files."""
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write tests/golden from what the code does now; with -m '' the slow parts too",
    )
