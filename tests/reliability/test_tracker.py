"""A tracking server that answers wrongly, and one that is away for long: training neither waits nor swells."""

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from resnet_bench.tracking.facts import RunFacts
from resnet_bench.tracking.journal import Entry, read
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.tracker import Tracker
from tests.tracking.conftest import (  # noqa: F401 - fixtures
    benchmark_of_the_test,
    describe,
    no_foreign_store,
)
from tests.tracking.training_events import loss, steps

Describe = Callable[..., RunFacts]


class Answers500(BaseHTTPRequestHandler):
    """Says that it is broken, whatever it is asked."""

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = do_PATCH = answer  # noqa: N815 - names of the library

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def broken_server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers500)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def journaled_losses(folder: Path) -> list[tuple[int, float]]:
    found = []
    for entry in read(folder / "journal.jsonl", final=True):
        assert isinstance(entry, Entry)
        if "step/loss" in entry.record.get("values", {}):
            found += list(enumerate(entry.record["values"]["step/loss"], start=entry.record["first_step"]))
    return found


def test_a_server_that_answers_500_costs_no_step_and_no_value(
    broken_server: str,
    describe: Describe,  # noqa: F811 - the fixture
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("resnet_bench.tracking.tracker.UPLOAD_SECONDS", 0.05)
    for name, value in (("MAX_RETRIES", "1"), ("TIMEOUT", "2"), ("BACKOFF_FACTOR", "0")):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
    tracker = Tracker.open(Store.resolve(broken_server), describe(), tmp_path / "run")
    assert tracker.run_id is None
    delays = []
    for step in range(1, 401):
        began = time.perf_counter()
        tracker.record(steps(step, step))
        delays.append(time.perf_counter() - began)
        time.sleep(0.002)
    report = tracker.close("finished", timeout=1)
    # A machine that is busy with other things may hold up many of them, but not most.
    assert statistics.median(delays) < 0.1
    assert report.left > 400
    assert "tracking flush" in report.sentence
    assert journaled_losses(tmp_path / "run") == [(step, loss(step)) for step in range(1, 401)]


def test_a_store_that_is_away_for_long_holds_no_memory(
    describe: Describe,  # noqa: F811 - the fixture
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An hour of the fastest steps: 200,000 of them, written down in chunks as a GPU gives them."""
    monkeypatch.setattr("resnet_bench.tracking.tracker.UPLOAD_SECONDS", 0.05)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = Tracker.open(Store.resolve("http://127.0.0.1:9"), describe(), tmp_path / "run")
    process = psutil.Process()
    tracker.record(steps(1, 50))
    before = process.memory_info().rss
    for first in range(51, 200_001, 50):
        tracker.record(steps(first, first + 49))
    grown = process.memory_info().rss - before
    tracker.close("finished", timeout=0)
    assert grown < 30e6
    assert len(journaled_losses(tmp_path / "run")) == 200_000
