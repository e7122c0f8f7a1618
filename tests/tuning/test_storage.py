"""Storage URLs: what is understood, what is refused, what is shown."""

import sqlite3
from pathlib import Path

import pytest

from resnet_bench.base.errors import UserError
from resnet_bench.tuning.storage import StudyStorage

MLFLOW = "sqlite:////elsewhere/mlflow.db"


def test_the_default_is_a_database_in_the_working_folder(tmp_path: Path) -> None:
    assert StudyStorage.resolve(None, tmp_path, tracking_uri=MLFLOW).url == f"sqlite:///{tmp_path / 'optuna.db'}"


def test_relative_paths_start_from_the_folder(tmp_path: Path) -> None:
    journal = StudyStorage.resolve("journal:sub/study.log", tmp_path, tracking_uri=MLFLOW)
    assert journal.url == f"journal:{tmp_path / 'sub' / 'study.log'}"
    absolute = StudyStorage.resolve(f"sqlite:///{tmp_path}/x.db", Path("/"), tracking_uri=MLFLOW)
    assert absolute.url == f"sqlite:///{tmp_path}/x.db"


@pytest.mark.parametrize(
    ("url", "tracking_uri"),
    [
        ("sqlite:///mlflow.db", "sqlite:///{folder}/mlflow.db"),
        ("sqlite:///x/../mlflow.db", "sqlite:///{folder}/mlflow.db"),
        ("postgresql://me@db/runs", "postgresql+psycopg://other:secret@db:5432/runs"),
        ("postgresql://127.0.0.1/runs", "postgresql://localhost/runs"),
    ],
)
def test_mlflows_database_is_refused(url: str, tracking_uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is MLflow's database, and Optuna cannot share it"):
        StudyStorage.resolve(url, tmp_path, tracking_uri=tracking_uri.format(folder=tmp_path))


def test_another_database_of_the_same_server_is_allowed(tmp_path: Path) -> None:
    tracking = "postgresql://me:secret@db/mlflow"
    storage = StudyStorage.resolve("postgresql://me:secret@db/optuna", tmp_path, tracking_uri=tracking)
    assert storage.url == "postgresql+psycopg://me:secret@db/optuna"
    assert "secret" not in storage.shown
    assert "secret" not in repr(storage)


@pytest.mark.parametrize("url", ["optuna.db", "redis://host", "sqlite://", "sqlite:///:memory:", "mongodb://host/x"])
def test_what_optuna_does_not_know_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--storage {url.partition(':')[0]}.*write"):
        StudyStorage.resolve(url, tmp_path, tracking_uri=MLFLOW)


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no studies yet; start one with: resnet-bench study run"):
        StudyStorage(f"sqlite:///{tmp_path / 'none.db'}").open(create=False)


def test_a_damaged_database_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "broken.db"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(UserError, match=r"broken.db cannot be opened: .*not a database"):
        StudyStorage(f"sqlite:///{path}").open()


def test_mlflows_own_tables_are_no_study(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
        database.execute("INSERT INTO alembic_version VALUES ('of something else')")
    with pytest.raises(UserError, match="cannot be opened"):
        StudyStorage(f"sqlite:///{path}").open()


def test_a_proxy_that_is_away_or_not_installed_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"grpc://127.0.0.1:1 cannot be opened|needs the packages grpcio"):
        StudyStorage("grpc://127.0.0.1:1").open()
