"""Stores in every state: what is said of them, what pasted advice does, and that reading changes nothing."""

import json
import shlex
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from resnet_bench.base.errors import UserError
from resnet_bench.tracking.experiments import VIEW_KEY, experiment_tags, outdated_tags
from resnet_bench.tracking.facts import RunFacts
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.tracker import Tracker
from resnet_bench.tracking.vocabulary import EXPERIMENT, NOTE
from tests.killed_writer import kill_in_the_middle

from .conftest import free_port, run_python
from .test_tracker import record_all, whole_run

Describe = Callable[..., RunFacts]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tracked(store: Store, describe: Describe, folder: Path) -> str:
    """A finished run with an artifact; gives its id."""
    tracker = Tracker.open(store, describe(), folder)
    tracker.text("recipe.toml", "[recipe]\n")
    record_all(tracker, whole_run())
    assert tracker.close("finished").complete
    assert tracker.run_id is not None
    return tracker.run_id


# --- reading changes nothing ---------------------------------------------------------------------------


def test_reading_a_current_store_changes_no_byte(store: Store, describe: Describe, tmp_path: Path) -> None:
    run_id = tracked(store, describe, tmp_path / "run")
    assert store.path is not None
    before = snapshot(store.path.parent)
    reader = store.reader()
    assert store.check() is None
    assert reader.get_run(run_id).info.status == "FINISHED"
    assert [artifact.path for artifact in reader.list_artifacts(run_id)] == ["recipe.toml"]
    assert snapshot(store.path.parent) == before


@pytest.mark.slow
def test_reading_an_older_store_leaves_it_and_writing_upgrades_it_and_keeps_the_old(older: Path) -> None:
    store = Store.resolve(str(older))
    before = snapshot(older.parent)
    assert store.check() is None
    assert store.check(to_write=False) is None
    assert store.reader().get_experiment_by_name("of old").experiment_id == "7"
    assert snapshot(older.parent) == before
    store.prepare()
    assert store.client().get_experiment_by_name("of old").experiment_id == "7"
    (backup,) = older.parent.glob("*.backup")
    assert backup.name == "mlflow.db.acf3f17fdcc7.backup"


def test_reading_makes_nothing_where_nothing_is(tmp_path: Path) -> None:
    folder = tmp_path / "none"
    folder.mkdir()
    store = Store.resolve(None, folder)
    with pytest.raises(UserError, match="does not exist; the first run creates it"):
        store.reader()
    assert "no runs yet" in (store.check(to_write=False) or "")
    assert store.check() is None
    (folder / "mlflow.db").touch()
    with pytest.raises(UserError, match="holds no runs yet"):
        store.reader()
    assert snapshot(folder) == {"mlflow.db": b""}


# --- files of others -----------------------------------------------------------------------------------


def application(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE customers (name TEXT)")
    database.close()


def optuna_storage(path: Path) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    optuna.create_study(storage=f"sqlite:///{path}", study_name="s")


@pytest.mark.parametrize(("make", "whose"), [(application, "another application"), (optuna_storage, "Optuna")])
def test_a_database_of_others_is_refused_and_left_alone(
    make: Callable[[Path], None], whose: str, tmp_path: Path
) -> None:
    path = tmp_path / "theirs.db"
    make(path)
    before = snapshot(tmp_path)
    store = Store.resolve(str(path))
    for refuse in (store.prepare, store.reader):
        with pytest.raises(UserError, match=f"database of {whose}, not of MLflow"):
            refuse()
    assert snapshot(tmp_path) == before
    # The advice can be pasted.
    advice = shlex.split(str(store.check()).rpartition("--tracking ")[2])[0]
    assert Store.resolve(advice).check() is None


def newer(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    database.close()


def test_a_database_of_a_newer_mlflow_is_named_as_such(store: Store) -> None:
    assert store.path is not None
    newer(store.path)
    before = snapshot(store.path.parent)
    for refuse in (store.prepare, store.reader):
        with pytest.raises(UserError, match=r"newer MLflow .*pip install --upgrade mlflow"):
            refuse()
    assert "newer MLflow" in str(store.check(to_write=False))
    assert snapshot(store.path.parent) == before


def test_a_link_to_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").symlink_to(tmp_path / "gone.db")
    store = Store.resolve(None, tmp_path)
    assert "is a link to" in str(store.check())
    with pytest.raises(UserError, match=r"gone\.db, which does not exist"):
        store.prepare()
    assert not (tmp_path / "gone.db").exists()


def test_a_locked_database_is_named_with_what_finds_the_process(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.path is not None
    monkeypatch.setattr("resnet_bench.tracking.sqlite_files.BUSY_SECONDS", 0.1)
    with sqlite3.connect(store.path) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        assert f"is locked by another process; wait for it, or find it: fuser {store.path}" in str(store.check())
        holder.rollback()
    holder.close()
    assert store.check() is None


@pytest.mark.slow
def test_a_deleted_experiment_is_restored_by_the_command_that_is_printed(store: Store) -> None:
    client = store.client()
    client.delete_experiment(client.get_experiment_by_name(EXPERIMENT).experiment_id)
    command = str(store.check()).rpartition("restore it with: ")[2]
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert store.check() is None


def test_a_deleted_experiment_can_be_read_and_is_not_written_to(store: Store) -> None:
    client = store.client()
    client.delete_experiment(client.get_experiment_by_name(EXPERIMENT).experiment_id)
    problem = str(store.check())
    assert "'resnet-bench' was deleted" in problem
    assert store.check(to_write=False) is None, "what is left can be read"
    with pytest.raises(UserError) as refusal:
        store.prepare()
    assert str(refusal.value) == problem
    client.restore_experiment(client.get_experiment_by_name(EXPERIMENT).experiment_id)
    assert store.check() is None


# --- paths ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a b", "a[1]", "a@b", "a~b", "ä", "a;b", "a&b=c", "a'b"])
def test_odd_folders_work_for_writing_reading_and_artifacts(
    name: str, empty_database: Path, describe: Describe, tmp_path: Path
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    for spelled in (None, f"sqlite:///{folder}/mlflow.db", str(folder / "mlflow.db")):
        store = Store.resolve(spelled, folder)
        assert store.path == folder / "mlflow.db"
    store.prepare()
    run_id = tracked(store, describe, folder / "runs" / "run")
    assert [artifact.path for artifact in store.reader().list_artifacts(run_id)] == ["recipe.toml"]
    assert {path.name for path in folder.iterdir()} == {"mlflow.db", "mlflow.db.lock", "mlartifacts", "runs"}


@pytest.mark.parametrize("sign", "%?#")
def test_paths_that_mlflow_cannot_open_are_refused_in_one_way(sign: str, tmp_path: Path) -> None:
    for spelled in (f"sqlite:///{tmp_path}/a{sign}b/mlflow.db", f"{tmp_path}/a{sign}b/mlflow.db"):
        with pytest.raises(UserError, match=r"cannot open a tracking store whose path has \?, # or % in it; move it"):
            Store.resolve(spelled)


def test_a_path_is_stored_without_dots_and_the_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    store = Store.resolve("sqlite:///../b/../mlflow.db")
    assert store.path == tmp_path / "mlflow.db"
    assert store.artifact_root == str(tmp_path / "mlartifacts")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store.resolve("sqlite:///~/x.db").path == tmp_path / "x.db"


# --- moved projects ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_artifacts_of_a_project_that_was_moved_or_copied_lie_beside_its_database(
    how: str, store: Store, describe: Describe, tmp_path: Path
) -> None:
    old, new = tmp_path / "project", tmp_path / "p q"
    first = tracked(store, describe, old / "runs" / "first")
    (shutil.move if how == "moved" else shutil.copytree)(old, new)
    there = snapshot(old) if how == "copied" else {}
    store = Store.resolve(None, new)

    before = snapshot(new)
    reader = store.reader()
    assert [artifact.path for artifact in reader.list_artifacts(first)] == ["recipe.toml"]
    assert Path(reader.download_artifacts(first, "recipe.toml", str(tmp_path))).read_text() == "[recipe]\n"
    assert snapshot(new) == before, "reading changes nothing"

    store.prepare()
    second = tracked(store, describe, new / "runs" / "second")
    client = store.client()
    for run_id in (first, second):
        assert client.get_run(run_id).info.artifact_uri.startswith((new / "mlartifacts").as_uri())
        assert [artifact.path for artifact in client.list_artifacts(run_id)] == ["recipe.toml"]
    assert (snapshot(old) if old.exists() else {}) == there


def test_artifacts_that_are_kept_elsewhere_on_purpose_stay_there(
    store: Store, describe: Describe, tmp_path: Path
) -> None:
    run_id = tracked(store, describe, tmp_path / "run")
    assert store.path is not None
    (tmp_path / "elsewhere").mkdir()
    shutil.move(store.path, tmp_path / "elsewhere" / "mlflow.db")
    moved = Store.resolve(None, tmp_path / "elsewhere")
    moved.prepare()
    assert [artifact.path for artifact in moved.client().list_artifacts(run_id)] == ["recipe.toml"]


# --- what users write ----------------------------------------------------------------------------------


def test_a_users_description_of_an_experiment_stays(store: Store) -> None:
    client = store.client()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    client.set_experiment_tag(experiment.experiment_id, NOTE, "Ann's runs")
    client.set_experiment_tag(experiment.experiment_id, "mlflow.experimentKind", "genai_development")
    store.prepare()
    tags = client.get_experiment_by_name(EXPERIMENT).tags
    assert tags[NOTE] == "Ann's runs"
    assert tags["mlflow.experimentKind"] == "genai_development"


def test_a_description_of_0_1_0_is_brought_up_to_date() -> None:
    old = (
        "Benchmark runs: one recipe × one seed × one execution each. Accuracies are fractions. "
        "`final/test_accuracy` is measured as the source measures it, `final/test_accuracy_plain` in eval mode; "
        "`resnet_bench.claim` is what the source says. A `smoke` profile and generated images judge no claim."
    )
    assert "final/test_accuracy_standard" in outdated_tags(EXPERIMENT, {NOTE: old})[NOTE]
    assert NOTE not in outdated_tags(EXPERIMENT, {NOTE: f"{old} And Ann's."})


def test_searched_keys_of_each_study_become_columns_once() -> None:
    name = "resnet-bench studies"
    tags = experiment_tags(name)
    tags |= outdated_tags(name, tags, ["optimizer.lr"])
    tags |= outdated_tags(name, tags, ["optimizer.weight_decay", "optimizer.lr"])
    columns = json.loads(tags[f"mlflow.sharedViewState.{VIEW_KEY}"])["selectedColumns"]
    assert columns[:3] == [
        "metrics.`validation/accuracy`",
        "params.`optimizer.lr`",
        "params.`optimizer.weight_decay`",
    ]
    assert outdated_tags(name, tags) == {}


# --- servers -------------------------------------------------------------------------------------------


@pytest.fixture
def answering() -> Iterator[Callable[..., str]]:
    """Start a web server that gives the same answer to everything but, if asked, its health; gives its address."""
    servers = []

    def start(status: int, body: str, *, health: int = 200) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found, text = (health, "OK") if self.path.endswith("/health") else (status, body)
                self.send_response(found)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (401, "You are not authenticated.", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        (403, "Invalid Host header", "--allowed-hosts"),
        (404, "<html>nothing here</html>", "answers, but is not an MLflow server"),
        (200, "<html>welcome</html>", "answers, but is not an MLflow server"),
    ],
)
def test_a_server_that_does_not_let_us_in_is_told_from_one_that_is_away(
    status: int, body: str, sentence: str, answering: Callable[..., str]
) -> None:
    store = Store.resolve(answering(status, body))
    assert sentence in str(store.check())
    if status in (401, 403):
        with pytest.raises(UserError, match="does not let us in"):
            store.prepare()


def test_each_problem_of_a_server_has_one_advice(answering: Callable[..., str]) -> None:
    for uri in (answering(401, ""), answering(200, "<html>"), answering(200, "{}", health=503), "http://127.0.0.1:9"):
        problem = str(Store.resolve(uri).check())
        assert ("--tracking URI" in problem) + ("MLFLOW_TRACKING_USERNAME" in problem) == 1, problem


def test_a_server_that_is_up_for_nobody_is_named_with_its_status(answering: Callable[..., str]) -> None:
    assert "answers with status 503" in str(Store.resolve(answering(200, "{}", health=503)).check())


@pytest.mark.slow
def test_no_proxy_stands_between_this_machine_and_itself(
    answering: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a separate process, because the environment is changed once per process."""
    experiment = {"experiment_id": "3", "name": EXPERIMENT, "lifecycle_stage": "active"}
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "intranet.example")
    code = (
        "import os, sys\n"
        "from resnet_bench.tracking.store import Store\n"
        "store = Store.resolve(sys.argv[1])\n"
        "assert store.check() is None, store.check()\n"
        "assert store.client().get_experiment_by_name('resnet-bench').experiment_id == '3'\n"
        "assert 'intranet.example' in os.environ['NO_PROXY']\n"
    )
    done = run_python(code, answering(200, json.dumps({"experiment": experiment})))
    assert done.returncode == 0, done.stderr


def test_a_link_to_a_run_names_its_experiment(store: Store, describe: Describe, tmp_path: Path) -> None:
    tracker = Tracker.open(store, describe(), tmp_path / "run")
    tracker.close("finished")
    experiment = store.client().get_experiment_by_name(EXPERIMENT).experiment_id
    page = f"#/experiments/{experiment}/runs/{tracker.run_id}?workflowType=machine_learning"
    assert tracker.url == f"http://127.0.0.1:5000/{page}"
    assert store.run_url(str(tracker.run_id)) == tracker.url
    assert Store.resolve("https://ann:pw@host/mlflow/").run_url("r", "3") == (
        "https://host/mlflow/#/experiments/3/runs/r?workflowType=machine_learning"
    )
    # A run that 0.1.0 began does not know its experiment's number; the store does.
    cursor = tmp_path / "run" / "shipping.json"
    assert json.loads(cursor.read_text().partition(" ")[2])["experiment_id"] == experiment


def test_a_store_whose_writer_was_killed_in_the_middle_of_a_change_serves_without_that_change(tmp_path: Path) -> None:
    store = Store.resolve(None, tmp_path)
    store.prepare()
    before = (tmp_path / "mlflow.db").read_bytes()
    kill_in_the_middle(
        tmp_path / "mlflow.db",
        "UPDATE experiments SET name = name || ' half-done'",
        "INSERT INTO experiment_tags VALUES (?, ?, 0)",
    )
    assert store.check() is None
    assert EXPERIMENT in {experiment.name for experiment in store.reader().search_experiments()}
    assert (tmp_path / "mlflow.db").read_bytes() == before
    store.prepare()


@pytest.fixture(params=["first tables", "an older version"])
def half_made(request: pytest.FixtureRequest, empty_database: Path, tmp_path: Path) -> Store:
    """A store whose maker is at it still, or was killed."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            if table != "alembic_version":
                database.execute(f"DELETE FROM {table}")
        if request.param == "first tables":
            database.execute("DROP TABLE alembic_version")
        else:
            database.execute("UPDATE alembic_version SET version_num = '90e64c465722'")
    return Store.resolve(None, tmp_path)


def test_a_store_that_another_process_is_making_is_read_as_one_without_runs_and_not_made_again(
    half_made: Store, tmp_path: Path
) -> None:
    before = (tmp_path / "mlflow.db").read_bytes()
    assert not half_made.exists
    with pytest.raises(UserError, match="holds no runs yet"):
        half_made.reader()
    assert (tmp_path / "mlflow.db").read_bytes() == before


def test_a_store_whose_maker_was_killed_is_made_again(
    half_made: Store,
    tmp_path: Path,
    describe: Describe,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("resnet_bench.tracking.sqlite_files.ABANDONED_SECONDS", 0)
    half_made.prepare()
    run_id = tracked(half_made, describe, tmp_path / "runs" / "small")
    assert half_made.reader().get_run(run_id).info.status == "FINISHED"
    assert "was interrupted; it is made again" in caplog.text
    assert not list(tmp_path.glob("*.backup"))


def test_a_database_of_others_with_a_table_named_as_one_of_mlflow_s_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("CREATE TABLE tags (name TEXT)")
        database.execute("INSERT INTO tags VALUES ('mine')")
    with pytest.raises(UserError, match="another application"):
        Store.resolve(None, tmp_path).prepare()
