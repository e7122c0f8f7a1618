"""Tracking through a real MLflow server, which is killed, started again and stopped in its tracks."""

import json
import signal
import statistics
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_bench.base.errors import UserError
from resnet_bench.tracking.experiments import VIEW_KEY
from resnet_bench.tracking.facts import RunFacts
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.tracker import Tracker
from resnet_bench.tracking.uploader import flush
from resnet_bench.tracking.vocabulary import EXPERIMENT
from resnet_bench.training.events import Event, Steps

from .conftest import Server
from .test_tracker import expected_histories, histories, record_all, whole_run
from .training_events import loss, steps

Describe = Callable[..., RunFacts]
MakeServer = Callable[[], Server]


@pytest.fixture(autouse=True)
def ship_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resnet_bench.tracking.tracker.UPLOAD_SECONDS", 0.2)
    for name, value in (("MAX_RETRIES", "1"), ("TIMEOUT", "2"), ("BACKOFF_FACTOR", "1")):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)


@pytest.mark.slow
def test_a_run_is_tracked_and_seen_through_a_server(
    make_server: MakeServer, store: Store, describe: Describe, tmp_path: Path
) -> None:
    server = make_server()
    away = Store.resolve(server.uri)
    # It starts while the server is away.
    tracker = Tracker.open(away, describe(), tmp_path / "run")
    assert tracker.run_id is None
    tracker.text("recipe.toml", "[recipe]\n")
    events = whole_run()
    record_all(tracker, events[:8])
    server.start()
    assert away.check() is None
    record_all(tracker, events[8:])
    report = tracker.close("finished")
    assert report.complete, report

    experiment = away.client().get_experiment_by_name(EXPERIMENT).experiment_id
    page = f"#/experiments/{experiment}/runs/{tracker.run_id}?workflowType=machine_learning"
    assert tracker.url == f"{server.uri}/{page}"
    assert histories(away, tracker.run_id) == expected_histories()
    # The same run, seen in the database behind the server.
    assert histories(store, tracker.run_id) == expected_histories()
    assert store.client().get_run(tracker.run_id).info.status == "FINISHED"

    address = f"{server.uri}/get-artifact?path=recipe.toml&run_uuid={tracker.run_id}"
    with urllib.request.urlopen(address) as answer:
        assert answer.read() == b"[recipe]\n"
    with urllib.request.urlopen(
        f"{server.uri}/ajax-api/2.0/mlflow/experiments/get-by-name?experiment_name={EXPERIMENT}"
    ) as answer:
        experiment = json.load(answer)["experiment"]
    tags = {tag["key"]: tag["value"] for tag in experiment["tags"]}
    assert "metrics.`final/test_accuracy`" in json.loads(tags[f"mlflow.sharedViewState.{VIEW_KEY}"])["selectedColumns"]
    # Another name for this machine, as a web page might use that was opened beside the runs, is turned away.
    request = urllib.request.Request(
        f"{server.uri}/ajax-api/2.0/mlflow/experiments/get", headers={"Host": "evil.example"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 403
    refused.value.close()


def train(tracker: Tracker, last_step: int, disturb: dict[int, Callable[[], None]]) -> list[float]:
    """Record steps ten at a time, and disturb the server behind some of them; gives the seconds of each record."""
    seconds = []
    for first in range(1, last_step, 10):
        event: Steps = steps(first, first + 9)
        began = time.perf_counter()
        tracker.record(event)
        seconds.append(time.perf_counter() - began)
        if first + 9 in disturb:
            disturb[first + 9]()
        time.sleep(0.02)
    return seconds


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_server_that_goes_and_comes_back_misses_doubles_and_reorders_nothing(
    how: str, make_server: MakeServer, describe: Describe, tmp_path: Path
) -> None:
    server = make_server()
    server.start()
    store = Store.resolve(server.uri)
    store.prepare()
    tracker = Tracker.open(store, describe(), tmp_path / "run")
    assert tracker.run_id is not None
    starter = threading.Thread(target=server.start)
    if how == "killed":
        disturb = {500: server.stop, 1500: starter.start}
    else:
        disturb = {500: lambda: server.signal(signal.SIGSTOP), 1500: lambda: server.signal(signal.SIGCONT)}
    seconds = train(tracker, 2500, disturb)
    if how == "killed":
        starter.join()
    report = tracker.close("finished", timeout=120)
    assert report.complete, report
    # The server is away for 100 of the 250. A busy machine may hold up many, but not most.
    assert statistics.quantiles(seconds, n=5)[-1] < 0.5

    found = store.client().get_metric_history(tracker.run_id, "step/loss")
    assert sorted((m.step, m.value) for m in found) == [(step, loss(step)) for step in range(1, 2501)]
    stamps = [metric.timestamp for metric in sorted(found, key=lambda metric: metric.step)]
    assert len(stamps) == 2500
    assert store.client().get_run(tracker.run_id).info.status == "FINISHED"


@pytest.mark.slow
def test_a_server_that_never_answers_delays_the_end_by_no_more_than_it_was_given(
    make_server: MakeServer, describe: Describe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")
    server = make_server()
    server.start()
    store = Store.resolve(server.uri)
    store.prepare()
    tracker = Tracker.open(store, describe(), tmp_path / "run")
    server.signal(signal.SIGSTOP)
    record_all(tracker, whole_run())
    began = time.monotonic()
    report = tracker.close("finished", timeout=3)
    # The client waits ten minutes for an answer.
    assert time.monotonic() - began < 60
    assert report.left > 0
    server.signal(signal.SIGCONT)
    deadline = time.monotonic() + 120
    while True:
        # The thread may still be in its last call; it gives the folder up behind it.
        try:
            assert flush(store, tmp_path / "run").complete
            break
        except UserError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert histories(store, tracker.run_id) == expected_histories()


@pytest.mark.slow
def test_several_runs_at_once_through_one_server(make_server: MakeServer, describe: Describe, tmp_path: Path) -> None:
    server = make_server()
    server.start()
    store = Store.resolve(server.uri)
    store.prepare()
    trackers = [Tracker.open(store, describe(seed=seed), tmp_path / f"run-{seed}") for seed in range(4)]
    events: list[Event] = whole_run()
    for event in events:
        for tracker in trackers:
            tracker.record(event)
    for tracker in trackers:
        assert tracker.close("finished").complete
        assert histories(store, tracker.run_id) == expected_histories()
