"""A machine that was only cut off: another one takes its run over, and when it returns it writes nothing into it."""

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_bench.data.dataset import ImageLocation
from resnet_bench.running.context import Context
from resnet_bench.running.events import Opened
from resnet_bench.running.prepare import prepare
from resnet_bench.running.run import run
from resnet_bench.tracking.run_files import TAKEN_OVER
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.uploader import has_unsent
from resnet_bench.tracking.vocabulary import POSTS
from resnet_bench.tracking.watching import watching
from tests.reliability import tiny
from tests.running.clusters import SHORT
from tests.running.conftest import PLAIN, tiny_job
from tests.tracking.conftest import Server, free_port
from tests.weights import weights_at_the_end

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SECONDS_FOR_ANYTHING = 300.0
FIRST = """
import pickle, socket, sys, time
from pathlib import Path

socket.gethostname = lambda: "south"

import pytest
from resnet_bench.running.events import Closed
from resnet_bench.running.prepare import prepare
from resnet_bench.running.run import run
from resnet_bench.running.stopping import Stopped
from resnet_bench.training.events import EpochEnded
from tests.reliability import tiny

short, job, context = pickle.loads(Path(sys.argv[1]).read_bytes())
go = Path(sys.argv[2])
patch = pytest.MonkeyPatch()
tiny.speed_up(patch)
for name, value in short.items():
    patch.setattr(name, value)
try:
    for event in run(prepare(job, context), context):
        if isinstance(event, EpochEnded) and event.epoch == 1:
            print("one epoch is done", flush=True)
            while not go.exists():
                time.sleep(0.05)
            time.sleep(1)
        if isinstance(event, Closed):
            print("ended:", event.upload.problem, flush=True)
except Stopped as stopped:
    print("stopped:", stopped.reason, flush=True)
"""


class Cable:
    """The network path to a server, which can be cut and mended."""

    def __init__(self, target: int) -> None:
        self._target, self.port = target, free_port()
        self._listener: socket.socket | None = None
        self._ends: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.answers = 0
        """How often something came back since it was mended last."""
        self.mend()

    def mend(self) -> None:
        self.answers = 0
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        """Let nothing through, in either direction, whatever is under way."""
        if self._listener is not None:
            # A thread that waits in accept is not woken by closing alone.
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        with self._lock:
            ends, self._ends = self._ends, set()
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            with self._lock:
                if self._listener is not listener:
                    client.close()
                    server.close()
                    return
                self._ends |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, sink, source is server), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(65536):
                sink.sendall(content)
                self.answers += is_answer
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    database = Store.resolve(None, tmp_path_factory.mktemp("server"))
    database.prepare()
    found = Server(database, free_port())
    found.start()
    yield found
    found.stop()


@pytest.fixture
def cable(server: Server) -> Iterator[Cable]:
    found = Cable(int(server.uri.rpartition(":")[2]))
    yield found
    found.cut()


@contextlib.contextmanager
def first_machine(folder: Path, seed: int, context: Context) -> Iterator[subprocess.Popen[str]]:
    """Another machine, which has trained for an epoch; it continues when there is a file ``go`` in the folder."""
    work = folder / "work.pickle"
    work.write_bytes(pickle.dumps((SHORT, tiny_job(seed=seed), context)))
    with subprocess.Popen(
        [sys.executable, "-c", FIRST, str(work), str(folder / "go")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "one epoch is done\n"
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()


def run_of(store: Store, seed: int) -> str:
    """The id of the run of a seed, which is the only one."""
    client = store.client()
    (begun,) = client.search_runs([store.experiment_id(client, "resnet-bench")], f"tags.`resnet_bench.seed` = '{seed}'")
    return str(begun.info.run_id)


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + SECONDS_FOR_ANYTHING
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.1)
    return found


def everything_of(store: Store, run_id: str) -> dict[str, Any]:
    """What a store has of a run: its state, tags, and every value of every metric."""
    client = store.client()
    found = client.get_run(run_id)
    histories = {
        key: [(point.step, point.value, point.timestamp) for point in client.get_metric_history(run_id, key)]
        for key in found.data.metrics
    }
    return {"status": found.info.status, "end": found.info.end_time, "tags": found.data.tags, "metrics": histories}


def is_all_sent(run_dir: Path) -> bool:
    """Whether the first machine's journal is in the store, as far as it goes."""
    (folder,) = (file.parent for file in run_dir.glob("*/run.json"))
    return not has_unsent(folder)


@pytest.mark.parametrize("how", ["paused", "cut off", "cut off, without a shared folder"])
def test_a_machine_that_returns_cannot_write_into_a_run_that_another_has_taken_over(
    how: str, server: Server, cable: Cable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESNET_BENCH_STEP_VALUES", "all")
    for name, value in SHORT.items():
        monkeypatch.setattr(name, value)
    tiny.speed_up(monkeypatch)
    seed = 80 + len(how)
    shared = "without" not in how
    images = ImageLocation(tmp_path, generated=(64, 32))
    here = Context(Store.resolve(server.uri), tmp_path / "runs", images, PLAIN)
    alone = replace(here, store=Store.resolve(None, tmp_path), run_dir=tmp_path / "undisturbed")
    alone.store.prepare()
    undisturbed = list(run(prepare(tiny_job(seed=seed), alone), alone))
    there = replace(
        here,
        store=Store.resolve(f"http://127.0.0.1:{cable.port}"),
        run_dir=here.run_dir if shared else tmp_path / "elsewhere",
        upload_checkpoints=not shared,
    )
    with first_machine(tmp_path, seed, there) as process:
        client, run_id = here.store.client(), run_of(here.store, seed)

        def has_arrived() -> bool:
            tags = client.get_run(run_id).data.tags
            positions = [found.path for found in client.list_artifacts(run_id, "checkpoints")]
            return "resnet_bench.beat" in tags and (shared or bool(positions)) and is_all_sent(there.run_dir)

        until(has_arrived, "what was measured to arrive")
        if how == "paused":
            process.send_signal(signal.SIGSTOP)
        else:
            cable.cut()
        events = list(run(prepare(tiny_job(seed=seed, resume=True), here), here))
        opened = events[0]
        assert isinstance(opened, Opened)
        assert (opened.run_id, opened.step > 0) == (run_id, True)
        finished = everything_of(here.store, run_id)
        cable.answers = 0
        if how == "paused":
            process.send_signal(signal.SIGCONT)
        else:
            cable.mend()
        until(lambda: cable.answers, "the first machine to hear of it")
        (tmp_path / "go").touch()
        assert process.stdout is not None
        last_words = process.stdout.read()
        assert process.wait(SECONDS_FOR_ANYTHING) == 0, last_words
    assert "was taken over by attempt" in last_words
    assert everything_of(here.store, run_id) == finished
    assert finished["status"] == "FINISHED"
    assert finished["tags"]["resnet_bench.host"] == socket.gethostname()
    for key, points in finished["metrics"].items():
        steps = [step for step, *_ in points]
        assert len(steps) == len(set(steps)), f"{key} has a value twice"
    theirs = everything_of(alone.store, undisturbed[0].run_id)["metrics"]
    for key in ("step/loss", "train/accuracy", "test/accuracy"):
        assert [point[:2] for point in finished["metrics"][key]] == [point[:2] for point in theirs[key]], key
    weights, expected = weights_at_the_end(events), weights_at_the_end(undisturbed)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    if shared:
        assert len(list(here.run_dir.glob(f"*/{TAKEN_OVER}"))) == 1


def test_a_run_that_lost_its_machine_is_closed_by_whatever_host_trains(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SHORT.items():
        monkeypatch.setattr(name, value)
    here = Context(Store.resolve(server.uri), tmp_path / "runs", ImageLocation(tmp_path, generated=(64, 32)), PLAIN)
    with first_machine(tmp_path, 70, here) as process:
        client, run_id = here.store.client(), run_of(here.store, 70)
        until(lambda: "resnet_bench.beat" in client.get_run(run_id).data.tags, "a sign of life")
        with watching(here.store):
            process.kill()
            until(lambda: client.get_run(run_id).info.status == "KILLED", "the run to be closed")
        experiment = client.get_experiment_by_name("resnet-bench")
        assert [experiment.tags.get(post, "") for post in POSTS] == ["", ""], "the post is free again"
    lost = client.get_run(run_id).data.tags
    assert lost["resnet_bench.attempt"] == "2", "should it come back, it has lost its run"
    assert lost["resnet_bench.reason"].startswith("south has shown no sign of life")
    opened = next(events := run(prepare(tiny_job(seed=70, resume=True), here), here))
    assert isinstance(opened, Opened)
    assert (opened.run_id, opened.step > 0) == (run_id, True)
    events.close()
