"""Storages: URLs that are accepted or refused, what is printed, and what a full disk or a foreign file does."""

import contextlib
import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import sqlalchemy

from resnet_bench.base.errors import UserError
from resnet_bench.tracking.store import Store
from resnet_bench.tuning.storage import OpenStorage, StudyStorage
from tests.killed_writer import kill_in_the_middle

MLFLOW = "sqlite:////elsewhere/mlflow.db"


def test_default_is_a_database_in_the_working_folder(tmp_path: Path) -> None:
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


def test_another_database_on_the_same_server_is_allowed(tmp_path: Path) -> None:
    tracking = "postgresql://me:secret@db/mlflow"
    storage = StudyStorage.resolve("postgresql://me:secret@db/optuna", tmp_path, tracking_uri=tracking)
    assert storage.url == "postgresql+psycopg://me:secret@db/optuna"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:s3cret@db/optuna",
        "postgresql://db/optuna?user=me&password=s3cret",
        "mysql://db/x?password=s3cret",
    ],
)
def test_passwords_are_not_printed(url: str, tmp_path: Path) -> None:
    storage = StudyStorage.resolve(url, tmp_path, tracking_uri=MLFLOW)
    assert "s3cret" in storage.url
    assert "s3cret" not in f"{storage.redacted_url} {storage.dashboard} {storage!r}"


@pytest.mark.parametrize(
    "url", ["postgresql://me:s3cret@127.0.0.1:1/x", "postgresql://127.0.0.1:1/x?password=s3cret", "me:s3cret@host"]
)
def test_errors_print_no_password(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        StudyStorage.resolve(url, tmp_path, tracking_uri=MLFLOW).open()
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["optuna.db", "redis://host", "sqlite://", "sqlite:///:memory:", "mongodb://host/x"])
def test_url_that_optuna_does_not_know_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--storage {url.partition(':')[0]}.*write"):
        StudyStorage.resolve(url, tmp_path, tracking_uri=MLFLOW)


def test_a_damaged_database_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "broken.db"
    path.write_bytes(b"no database at all" * 100)
    for connect in (StudyStorage(f"sqlite:///{path}").open, StudyStorage(f"sqlite:///{path}").read):
        with pytest.raises(UserError, match=r"broken.db cannot be opened: .*not a database"):
            connect()


def test_a_proxy_that_is_away_or_not_installed_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy_class = optuna.storages.GrpcStorageProxy
    wait = proxy_class.wait_server_ready
    monkeypatch.setattr(proxy_class, "wait_server_ready", lambda proxy, timeout: wait(proxy, timeout / 50))
    with pytest.raises(UserError, match=r"grpc://127.0.0.1:1 cannot be opened|needs the packages grpcio"):
        StudyStorage("grpc://127.0.0.1:1").open()


# --- files of others ---------------------------------------------------------------------------------


def _foreign_database(path: Path, table: str) -> bytes:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute(f"CREATE TABLE {table} (value TEXT)")
        database.commit()
    return path.read_bytes()


@pytest.mark.parametrize("table", ["experiments", "alembic_version", "bookmarks"])
def test_mlflows_own_tables_are_no_study(tmp_path: Path, table: str) -> None:
    path = tmp_path / "other.db"
    before = _foreign_database(path, table)
    for connect in (StudyStorage(f"sqlite:///{path}").open, StudyStorage(f"sqlite:///{path}").read):
        with pytest.raises(UserError, match=f"belongs to another application .*{table}.*name another database"):
            connect()
    assert path.read_bytes() == before


def test_the_tracking_store_of_another_project_is_refused(tmp_path: Path, store: Store) -> None:
    with pytest.raises(UserError, match="belongs to another application"):
        StudyStorage(store.uri).read()


@pytest.mark.parametrize("text", ["# Notes\n", "{}\n", "SQLite format 3\0"])
def test_a_file_that_is_not_a_journal_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "notes.md"
    path.write_text(text)
    for connect in (StudyStorage(f"journal:{path}").open, StudyStorage(f"journal:{path}").read):
        with pytest.raises(UserError, match="is not a journal of Optuna; name another file"):
            connect()
    assert path.read_text() == text


@pytest.mark.parametrize("url", ["sqlite:///{}/none.db", "journal:{}/none.log"])
def test_reading_creates_nothing(tmp_path: Path, url: str) -> None:
    storage = StudyStorage(url.format(tmp_path))
    with pytest.raises(UserError, match="there are no studies yet; start one with: resnet-bench study run"):
        storage.read()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["sqlite:///{}/optuna.db", "journal:{}/optuna.log"])
def test_reading_changes_nothing(tmp_path: Path, url: str) -> None:
    storage = StudyStorage(url.format(tmp_path))
    optuna.create_study(storage=storage.open().optuna, study_name="one")
    assert storage.file is not None
    content, names = storage.file.read_bytes(), sorted(tmp_path.iterdir())
    assert optuna.load_study(study_name="one", storage=storage.read().optuna).trials == []
    assert (storage.file.read_bytes(), sorted(tmp_path.iterdir())) == (content, names)


@pytest.mark.parametrize("connect", [StudyStorage.open, StudyStorage.read])
def test_a_study_whose_writer_was_killed_in_the_middle_of_a_change_serves_without_that_change(
    tmp_path: Path, connect: Callable[[StudyStorage], OpenStorage]
) -> None:
    storage = StudyStorage(f"sqlite:///{tmp_path / 'optuna.db'}")
    optuna.create_study(storage=storage.open().optuna, study_name="one")
    kill_in_the_middle(
        tmp_path / "optuna.db",
        "UPDATE studies SET study_name = study_name || ' half-done'",
        "INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (1, ?, ?)",
    )
    assert optuna.load_study(study_name="one", storage=connect(storage).optuna).user_attrs == {}


# --- full disks --------------------------------------------------------------------------------------


def _journal_with_a_study(path: Path) -> optuna.Study:
    return optuna.create_study(storage=StudyStorage(f"journal:{path}").open().optuna, study_name="one")


def test_an_incomplete_last_line_of_a_journal_is_cut_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "optuna.log"
    _journal_with_a_study(path).set_user_attr("kept", 1)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code":2,"worker_id":"x","study_id":0,"user_a')

    assert optuna.load_study(study_name="one", storage=StudyStorage(f"journal:{path}").read().optuna).user_attrs
    assert path.read_bytes() != whole, "reading changes nothing"

    study = optuna.load_study(study_name="one", storage=StudyStorage(f"journal:{path}").open().optuna)
    assert path.read_bytes() == whole
    assert "its last line was incomplete (49 bytes)" in caplog.text
    study.set_user_attr("added", 2)
    again = optuna.load_study(study_name="one", storage=StudyStorage(f"journal:{path}").read().optuna)
    assert again.user_attrs == {"kept": 1, "added": 2}


def test_a_line_that_another_process_left_incomplete_is_cut_off_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "optuna.log"
    study = _journal_with_a_study(path)
    with path.open("ab") as file:
        file.write(b'{"op_code":2,')
    study.set_user_attr("added", 2)
    again = optuna.load_study(study_name="one", storage=StudyStorage(f"journal:{path}").open().optuna)
    assert again.user_attrs == {"added": 2}


def test_a_full_disk_leaves_whole_lines_and_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "optuna.log"
    study = _journal_with_a_study(path)
    whole = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    storage = StudyStorage(f"journal:{path}")
    with (
        pytest.raises(UserError, match=r"optuna.log stopped working: No space left on device$"),
        storage.errors_in_words(),
    ):
        study.set_user_attr("lost", 1)
    assert path.read_bytes() == whole


def test_a_full_database_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "optuna.db"
    storage = StudyStorage(f"sqlite:///{path}")
    opened = storage.open().optuna
    assert isinstance(opened, optuna.storages.RDBStorage)
    study = optuna.create_study(storage=opened, study_name="one")
    opened.engine.dispose()
    # SQLite says the same where its own limit is reached as where the disk's is; pages of a new file are 4096 bytes.
    pages = path.stat().st_size // 4096
    sqlalchemy.event.listen(opened.engine, "connect", lambda raw, _: raw.execute(f"PRAGMA max_page_count = {pages}"))
    with (
        pytest.raises(UserError, match=r"optuna.db stopped working: database or disk is full$"),
        storage.errors_in_words(),
    ):
        study.set_user_attr("lost", "x" * 100_000)
