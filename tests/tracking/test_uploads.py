"""What happens to measurements that a store does not take: they are kept, and delivered where they belong."""

import http.client
import logging
import shlex
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INVALID_PARAMETER_VALUE

from resnet_bench.base.errors import UserError
from resnet_bench.tracking.cursor import Cursor, store_of
from resnet_bench.tracking.facts import RunFacts
from resnet_bench.tracking.store import Store, where_to_see
from resnet_bench.tracking.tracker import Tracker
from resnet_bench.tracking.uploader import flush_all, flush_command

from .conftest import Server
from .test_tracker import Away, expected_histories, histories, record_all, whole_run

Describe = Callable[..., RunFacts]

QUEUE_POOL = (
    "QueuePool limit of size 5 overflow 10 reached, connection timed out, timeout 30.00 (Background on this error at: "
    "https://sqlalche.me/e/20/3o7r)"
)


@pytest.fixture(autouse=True)
def upload_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resnet_bench.tracking.tracker.UPLOAD_SECONDS", 0.05)
    monkeypatch.setattr("resnet_bench.tracking.uploader.MAX_BACKOFF_SECONDS", 0.1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "project" / "runs" / "small-seed-3"


# --- refusals that are none ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        RestException({"error_code": "BAD_REQUEST", "message": QUEUE_POOL}),
        MlflowException(QUEUE_POOL, error_code=BAD_REQUEST),
        MlflowException(
            "API request to endpoint /api/2.0/mlflow/runs/log-batch failed with error code 400 != 200. Response body: "
            "'<html>Your proxy</html>'",
            error_code=INVALID_PARAMETER_VALUE,
        ),
        RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "No such table"}),
        RestException({"error_code": "TEMPORARILY_UNAVAILABLE", "message": "upgrading"}),
        RestException({"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "slow down"}),
        RestException({"error_code": "ENDPOINT_NOT_FOUND", "message": "not yet"}),
        RestException({"error_code": "PERMISSION_DENIED", "message": "log in again"}),
    ],
    ids=lambda error: f"{error.error_code}-{type(error).__name__}",
)
def test_what_is_not_about_the_record_loses_none(
    error: Exception, store: Store, describe: Describe, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_batch, failures = MlflowClient.log_batch, 7

    def fail_at_first(client: MlflowClient, *words: Any, **named: Any) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise error
        log_batch(client, *words, **named)

    monkeypatch.setattr(MlflowClient, "log_batch", fail_at_first)
    tracker = Tracker.open(store, describe(), folder)
    record_all(tracker, whole_run())
    report = tracker.close("finished", timeout=120)
    assert failures == 0
    assert report.complete, report
    assert histories(store, tracker.run_id) == expected_histories()


def test_what_a_store_keeps_failing_at_stays_on_disk_and_flush_delivers_it(
    store: Store, describe: Describe, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RestException({"error_code": "BAD_REQUEST", "message": QUEUE_POOL})

    tracker = Tracker.open(store, describe(), folder)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", fail)
        record_all(tracker, whole_run())
        report = tracker.close("finished", timeout=1)
    assert (report.refused, report.lost) == (0, 0)
    assert report.left > 0
    assert "QueuePool limit" in report.sentence
    assert flush_all(None, folder.parent, say=lambda _: None)
    assert histories(store, tracker.run_id) == expected_histories()


def test_a_record_that_is_refused_once_is_tried_again(
    store: Store, describe: Describe, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_batch, refusals = MlflowClient.log_batch, 2

    def refuse_at_first(client: MlflowClient, run_id: str, metrics: Any = (), **named: Any) -> None:
        nonlocal refusals
        if refusals and any(metric.key == "train/loss" for metric in metrics):
            refusals -= 1
            raise RestException({"error_code": "INVALID_PARAMETER_VALUE", "message": "no such value"})
        log_batch(client, run_id, metrics=metrics, **named)

    monkeypatch.setattr(MlflowClient, "log_batch", refuse_at_first)
    tracker = Tracker.open(store, describe(), folder)
    record_all(tracker, whole_run())
    report = tracker.close("finished", timeout=120)
    assert refusals == 0
    assert report.complete, report
    assert histories(store, tracker.run_id) == expected_histories()


class Proxy:
    """Stands between a run and a real server, and answers log-batch by itself while it has answers."""

    def __init__(self, server: str) -> None:
        self.answers: deque[tuple[int, str]] = deque()
        proxy, target = self, urlsplit(server)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.path.endswith("log-batch") and proxy.answers:
                    status, text = proxy.answers.popleft()
                    content, kind = text.encode(), "application/json" if text.startswith("{") else "text/html"
                else:
                    connection = http.client.HTTPConnection(str(target.hostname), int(target.port or 80), timeout=30)
                    headers = {"Content-Type": self.headers.get("Content-Type", "")}
                    connection.request(self.command, self.path, body, headers)
                    answer = connection.getresponse()
                    status, content = answer.status, answer.read()
                    kind = answer.headers.get("Content-Type", "")
                    connection.close()
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = forward  # noqa: N815 - the names that the base class calls

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.uri = f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def make_proxy() -> Iterator[Callable[[str], Proxy]]:
    proxies: list[Proxy] = []

    def make(server: str) -> Proxy:
        proxies.append(Proxy(server))
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.stop()


@pytest.mark.slow
def test_a_real_server_behind_a_bad_proxy_and_with_a_full_pool_gets_every_value_once(
    make_server: Callable[[], Server], make_proxy: Callable[[str], Proxy], describe: Describe, folder: Path
) -> None:
    server = make_server()
    server.start()
    proxy = make_proxy(server.uri)
    store = Store.resolve(proxy.uri)
    store.prepare()
    pool = f'{{"error_code": "BAD_REQUEST", "message": "{QUEUE_POOL}"}}'
    for _ in range(2):
        proxy.answers.extend(
            [
                (400, pool),
                (500, pool),
                (400, "<html>Bad request, says a proxy</html>"),
                (408, ""),
                (429, "slow down"),
                (502, "<html>Bad gateway</html>"),
                (503, '{"error_code": "TEMPORARILY_UNAVAILABLE", "message": "upgrading"}'),
                (200, "<html>Please log in</html>"),
                (404, "<html>Not yet deployed</html>"),
            ]
        )
    tracker = Tracker.open(store, describe(), folder)
    record_all(tracker, whole_run())
    report = tracker.close("finished", timeout=60)
    assert not proxy.answers
    assert report.complete, report
    assert histories(Store.resolve(server.uri), tracker.run_id) == expected_histories()


# --- runs that are deleted while they train ------------------------------------------------------------


@pytest.mark.parametrize("what", ["run", "experiment"])
def test_a_run_that_was_deleted_waits_on_disk_until_it_is_restored(
    what: str, store: Store, describe: Describe, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker.open(store, describe(), folder)
    client, events = store.client(), whole_run()
    run_id = str(tracker.run_id)
    record_all(tracker, events[:3])
    experiment_id = client.get_run(run_id).info.experiment_id
    if what == "run":
        client.delete_run(run_id)
    else:
        client.delete_experiment(experiment_id)
    with caplog.at_level(logging.WARNING):
        record_all(tracker, events[3:])
        report = tracker.close("finished", timeout=120)
    assert report.left > 0
    assert (report.refused, report.lost) == (0, 0)
    assert f"{what}s restore" in report.sentence
    assert sum("does not take measurements" in record.message for record in caplog.records) == 1
    assert Cursor.load(folder).arrived < (folder / "journal.jsonl").stat().st_size

    said: list[str] = []
    assert not flush_all(None, folder.parent, say=said.append)
    command = said[-1].rpartition("restore it with: ")[2]
    words = shlex.split(command)
    assert words[0] == f"MLFLOW_TRACKING_URI={store.uri}"
    assert words[-4:-2] == [f"{what}s", "restore"]
    if what == "run":
        client.restore_run(run_id)
    else:
        client.restore_experiment(experiment_id)
    assert flush_all(None, folder.parent, say=said.append), said
    assert histories(store, run_id) == expected_histories()
    assert client.get_run(run_id).info.status == "FINISHED"


def test_a_run_that_is_gone_for_good_is_named_and_kept(
    store: Store, describe: Describe, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker.open(store, describe(), folder)
    store.client()._tracking_client.store._hard_delete_run(tracker.run_id)
    record_all(tracker, whole_run())
    report = tracker.close("finished", timeout=120)
    assert report.left > 0
    assert report.refused == 0
    assert f"run {tracker.run_id} is not in {store.uri}" in report.sentence


# --- which store ---------------------------------------------------------------------------------------


def undelivered(store: Store, describe: Describe, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away = Away(monkeypatch)
    tracker = Tracker.open(store, describe(), folder)
    record_all(tracker, whole_run())
    assert tracker.close("finished", timeout=0.2).left > 0
    away.back()


def test_flush_delivers_each_run_to_the_store_it_was_made_for(
    store: Store,
    empty_database: Path,
    describe: Describe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copy(empty_database, tmp_path / "second.db")
    second = Store.resolve(str(tmp_path / "second.db"))
    second.prepare()
    runs = tmp_path / "runs"
    undelivered(store, describe, runs / "one", monkeypatch)
    undelivered(second, describe, runs / "two", monkeypatch)
    said: list[str] = []
    # The working directory has neither of them.
    assert flush_all(None, runs, say=said.append), said
    for each, name in ((store, "one"), (second, "two")):
        assert histories(each, Cursor.load(runs / name).run_id) == expected_histories()
    assert not (tmp_path / "mlflow.db").exists()


def test_a_folder_that_cannot_be_used_is_named_and_stops_no_other(
    store: Store, describe: Describe, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undelivered(store, describe, folder, monkeypatch)
    for name, file in (("a", "shipping.json"), ("b", "shipping.lock")):
        shutil.copytree(folder, folder.with_name(name))
        (folder.with_name(name) / file).unlink(missing_ok=True)
        # Neither the user of these tests nor a superuser can open it.
        (folder.with_name(name) / file).mkdir()
    said: list[str] = []
    assert not flush_all(None, folder.parent, say=said.append)
    assert [text.partition(": ")[2].partition(":")[0] for text in said[:2]] == ["nothing was delivered"] * 2
    assert said[2] == f"{folder}: everything is in the tracking store"


def test_flush_to_another_store_than_a_runs_own_is_refused(
    store: Store, empty_database: Path, describe: Describe, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undelivered(store, describe, folder, monkeypatch)
    other = folder.parents[2] / "other.db"
    shutil.copy(empty_database, other)
    said: list[str] = []
    assert not flush_all(Store.resolve(str(other)), folder.parent, say=said.append)
    assert f"was made for {store.uri}, not for sqlite:///{other}; leave --tracking out, or name that one" in said[-1]
    assert flush_all(store, folder.parent, say=said.append)


def test_a_run_of_a_project_that_was_moved_goes_to_the_database_beside_it(
    store: Store, describe: Describe, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    undelivered(store, describe, folder, monkeypatch)
    shutil.move(tmp_path / "project", tmp_path / "moved")
    runs = tmp_path / "moved" / "runs"
    assert flush_all(None, runs, say=lambda _: None)
    assert not (tmp_path / "project").exists()
    moved = Store.resolve(None, tmp_path / "moved")
    assert histories(moved, Cursor.load(runs / folder.name).run_id) == expected_histories()


def test_a_run_of_0_1_0_goes_to_the_store_of_its_project(
    store: Store, describe: Describe, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undelivered(store, describe, folder, monkeypatch)
    (folder / "store.json").unlink()
    monkeypatch.chdir(folder.parents[1])
    assert flush_all(None, folder.parent, say=lambda _: None)
    assert histories(store, Cursor.load(folder).run_id) == expected_histories()


def test_a_login_is_not_written_to_the_runs_folder_and_is_asked_for(tmp_path: Path, describe: Describe) -> None:
    server = Store.resolve("http://ann:topsecret@127.0.0.1:9")
    folder = tmp_path / "runs" / "run"
    tracker = Tracker.open(server, describe(), folder)
    report = tracker.close("finished", timeout=0)
    assert not any(b"topsecret" in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    login = "(with MLFLOW_TRACKING_URI set to http://***@127.0.0.1:9 and its login)"
    assert flush_command(server, folder).endswith(login)
    assert "--tracking" not in flush_command(server, folder), "what is printed could not be pasted"
    assert "topsecret" not in report.sentence
    with pytest.raises(UserError, match=r"was made for http://\*\*\*@127.0.0.1:9; set MLFLOW_TRACKING_URI"):
        store_of(folder, None, tmp_path)
    assert store_of(folder, server, tmp_path) is server


def test_hints_repeat_the_folder_unless_it_is_the_usual_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.path is not None
    project = store.path.parent
    assert flush_command(store, project / "my runs" / "x") == (
        f"resnet-bench tracking flush --run-dir '{project}/my runs'"
    )
    monkeypatch.chdir(project)
    assert flush_command(store, project / "runs" / "x") == "resnet-bench tracking flush"


def test_the_hint_to_see_runs_names_the_store_unless_it_is_the_usual_one(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert store.path is not None
    words = shlex.split(where_to_see(store).removeprefix("see them with: "))
    assert words == ["resnet-bench", "ui", "--tracking", store.uri]
    monkeypatch.chdir(store.path.parent)
    assert where_to_see(store) == "see them with: resnet-bench ui"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    assert where_to_see(store) == "see them with: resnet-bench ui"
    spaced = Store.resolve(f"sqlite:///{tmp_path}/my runs/mlflow.db")
    assert where_to_see(spaced).endswith(f"--tracking 'sqlite:///{tmp_path}/my runs/mlflow.db'")
    server = Store.resolve("http://ann:topsecret@tracking:5000/mlflow/")
    assert where_to_see(server) == "open http://tracking:5000/mlflow"
    database = Store.resolve("postgresql://ann:topsecret@db/mlflow")
    assert where_to_see(database) == (
        "see them with: resnet-bench ui (with MLFLOW_TRACKING_URI set to postgresql://ann:***@db/mlflow and its login)"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database.uri)
    assert where_to_see(database) == "see them with: resnet-bench ui"


def test_a_server_that_is_away_is_a_sentence_and_not_an_exceptions_text(
    describe: Describe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        tracker = Tracker.open(Store.resolve("http://127.0.0.1:9"), describe(), tmp_path / "run")
        report = tracker.close("finished", timeout=0.5)
    assert "ConnectionPool" not in caplog.text + report.sentence
    assert caplog.text.count("does not take measurements") == 1
    assert "127.0.0.1:9 does not answer (connection refused)" in report.sentence


def test_artifacts_that_cannot_be_kept_end_a_run_within_seconds(
    store: Store, describe: Describe, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    def refuse(*_: object) -> None:
        raise PermissionError("the bucket is locked")

    tracker = Tracker.open(store, describe(), folder)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", refuse)
        tracker.text("recipe.toml", "[recipe]\n")
        began = time.monotonic()
        report = tracker.close("finished", timeout=600)
    assert time.monotonic() - began < 120
    assert report.left == 1
