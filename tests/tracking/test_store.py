import logging
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from resnet_bench.base.errors import UserError
from resnet_bench.tracking.experiments import VIEW_KEY
from resnet_bench.tracking.mlflow_client import load
from resnet_bench.tracking.sqlite_files import network_file_system_notice
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.vocabulary import EXPERIMENTS

from .conftest import free_port, run_python


def test_the_named_store_comes_before_the_environment_and_that_before_the_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert Store.resolve(None, tmp_path).uri == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert Store.resolve(None, tmp_path).uri == "http://tracking:5000"
    assert Store.resolve("postgresql://host/db", tmp_path).uri == "postgresql://host/db"


def test_artifacts_lie_beside_the_database(tmp_path: Path) -> None:
    assert Store.resolve(None, tmp_path).artifact_root == str(tmp_path / "mlartifacts")
    elsewhere = tmp_path / "elsewhere"
    assert Store.resolve(f"sqlite:///{elsewhere}/runs.db", tmp_path).artifact_root == str(elsewhere / "mlartifacts")
    assert Store.resolve("https://tracking", tmp_path).artifact_root is None


def test_a_relative_database_is_pinned_to_where_it_was_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store = Store.resolve("sqlite:///runs.db", tmp_path / "project")
    monkeypatch.chdir("/")
    assert store.uri == f"sqlite:///{tmp_path}/runs.db"


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "/tmp/mlruns", "mlruns"])
def test_the_file_store_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"file store .* sqlite:////"):
        Store.resolve(uri, tmp_path)


@pytest.mark.parametrize(
    "uri", ["ftp://host/x", "s3://bucket/runs", "javascript://x", "sqlite://", "sqlite:///:memory:"]
)
def test_other_schemes_and_databases_in_memory_are_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        Store.resolve(uri, tmp_path)


SECRETS = [
    ("postgresql://ann:s3cr%40t@host:5432/db", ["s3cr%40t", "s3cr@t"]),
    ("postgresql+psycopg://ann@host/db?password=s3cr%40t&sslmode=require", ["s3cr%40t", "s3cr@t"]),
    ("mysql+pymysql://ann:topsecret@host/db", ["topsecret"]),
    ("https://ann:topsecret@tracking.example.org/mlflow", ["topsecret"]),
    ("https://topsecret@tracking.example.org", ["topsecret"]),
]


@pytest.mark.parametrize(("uri", "secrets"), SECRETS)
def test_passwords_are_never_shown(uri: str, secrets: list[str]) -> None:
    store = Store.resolve(uri)
    error = OSError(f"cannot reach {uri} with password {secrets[-1]}")
    for text in (store.redacted_uri, repr(store), str(store), store.describe_error(error), store.run_url("abc", "0")):
        assert not any(secret in text for secret in secrets), text
    assert "***" in store.redacted_uri


def test_what_is_no_secret_is_shown() -> None:
    assert Store.resolve("postgresql://ann:secret@host:1/db?sslmode=require").redacted_uri == (
        "postgresql://ann:***@host:1/db?sslmode=require"
    )
    assert Store.resolve("http://127.0.0.1:5000").redacted_uri == "http://127.0.0.1:5000"


def test_the_package_imports_fast_and_without_mlflow() -> None:
    code = (
        "import sys, builtins\n"
        "real = builtins.__import__\n"
        "def guarded(name, *rest, **more):\n"
        "    assert name.partition('.')[0] not in ('mlflow', 'torch', 'pandas', 'matplotlib'), name\n"
        "    return real(name, *rest, **more)\n"
        "builtins.__import__ = guarded\n"
        "import resnet_bench.tracking.store, resnet_bench.tracking.tracker\n"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_the_database_and_experiments_are_made_once(store: Store) -> None:
    client = store.client()
    ids = {name: client.get_experiment_by_name(name).experiment_id for name in EXPERIMENTS}
    store.prepare()
    assert {name: client.get_experiment_by_name(name).experiment_id for name in EXPERIMENTS} == ids
    for name in EXPERIMENTS:
        experiment = client.get_experiment_by_name(name)
        assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
        assert f"mlflow.sharedViewState.{VIEW_KEY}" in experiment.tags
        assert experiment.artifact_location.startswith(Path(store.artifact_root).as_uri())


def test_nothing_is_left_in_the_working_directory(store: Store, tmp_path: Path) -> None:
    assert {path.name for path in tmp_path.iterdir()} == {"project"}
    assert {path.name for path in (tmp_path / "project").iterdir()} <= {"mlflow.db", "mlflow.db.lock"}


def test_a_deleted_experiment_is_named_with_what_brings_it_back(store: Store) -> None:
    client = store.client()
    client.delete_experiment(client.get_experiment_by_name("resnet-bench").experiment_id)
    with pytest.raises(UserError, match=r"'resnet-bench' was deleted.*experiments restore"):
        store.prepare()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is a letter, not a database\n" * 100)
    store = Store.resolve(None, tmp_path)
    assert "not a SQLite database" in (store.check() or "")
    with pytest.raises(UserError, match="not a SQLite database"):
        store.prepare()


def test_a_server_that_is_away_is_said_quickly_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    store = Store.resolve(f"http://ann:topsecret@127.0.0.1:{free_port()}")
    # On a busy machine its import takes longer than what is tested.
    load()
    began = time.monotonic()
    problem = store.check()
    assert problem is not None
    assert "does not answer" in problem
    with caplog.at_level(logging.WARNING):
        store.prepare()
    # MLflow itself would try for minutes.
    assert time.monotonic() - began < 60
    assert "kept on disk" in caplog.text
    assert "topsecret" not in problem + caplog.text


def test_a_database_server_that_is_away_is_said_quickly() -> None:
    store = Store.resolve(f"postgresql+psycopg://ann:topsecret@127.0.0.1:{free_port()}/db")
    began = time.monotonic()
    assert "does not answer" in (store.check() or "")
    with pytest.raises(UserError, match="does not answer") as refused:
        store.prepare()
    # MLflow itself would try for minutes.
    assert time.monotonic() - began < 60
    assert "topsecret" not in str(refused.value)


def test_check_is_content_with_a_store_that_works(store: Store, tmp_path: Path) -> None:
    assert store.check() is None
    assert Store.resolve(None, tmp_path / "not" / "there" / "yet").check() is None


def test_a_database_on_a_network_file_system_is_warned_about(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert network_file_system_notice(tmp_path / "mlflow.db") is None
    shares = type(psutil.disk_partitions(all=True)[0])
    mounts = [shares("/dev/sda", "/", "ext4", "rw"), shares("host:/runs", str(tmp_path), "nfs4", "rw")]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)  # noqa: A006
    notice = network_file_system_notice(tmp_path / "mlflow.db")
    assert notice is not None
    assert "nfs4" in notice
    assert "http://" in notice


PREPARE = """
import pathlib, sys
from resnet_bench.tracking.store import Store

Store.resolve(None, pathlib.Path(sys.argv[1])).prepare()
"""


@pytest.mark.slow
def test_eight_processes_make_one_fresh_database_at_once(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", PREPARE, str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
    client = Store.resolve(None, tmp_path).client()
    names = [experiment.name for experiment in client.search_experiments()]
    assert sorted(names) == sorted({"Default", *EXPERIMENTS})


@pytest.mark.slow
def test_a_database_of_an_older_mlflow_is_upgraded_and_kept(older: Path) -> None:
    store = Store.resolve(None, older.parent)
    store.prepare()
    assert store.client().get_experiment_by_name("of old").experiment_id == "7"
    (backup,) = older.parent.glob("*.backup")
    assert "acf3f17fdcc7" in backup.name


@pytest.mark.slow
def test_an_upgrade_that_broke_off_keeps_the_copy_that_was_made_before_it(older: Path) -> None:
    backup = older.with_name(f"{older.name}.acf3f17fdcc7.backup")
    backup.write_bytes(b"as it was before the first attempt")
    store = Store.resolve(None, older.parent)
    store.prepare()
    assert store.client().get_experiment_by_name("of old").experiment_id == "7"
    assert backup.read_bytes() == b"as it was before the first attempt"


@pytest.mark.slow
def test_an_upgrade_without_a_place_for_the_copy_is_one_sentence(older: Path) -> None:
    before = older.read_bytes()
    older.with_name(f"{older.name}.acf3f17fdcc7.unfinished").mkdir()
    with pytest.raises(UserError, match=r"mlflow\.db: this database cannot be brought up to date \(unable to open"):
        Store.resolve(None, older.parent).prepare()
    assert older.read_bytes() == before


@pytest.mark.slow
def test_a_database_of_a_newer_mlflow_is_refused_and_left_alone(empty_database: Path, tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    shutil.copy(empty_database, path)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    database.close()
    before = path.read_bytes()
    with pytest.raises(UserError, match="made by a newer MLflow"):
        Store.resolve(None, tmp_path).prepare()
    assert path.read_bytes() == before
