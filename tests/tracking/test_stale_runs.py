import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from resnet_bench.base.machine import process_start
from resnet_bench.tracking.facts import RunFacts
from resnet_bench.tracking.stale_runs import close_stale_runs
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.tracker import Tracker
from resnet_bench.tracking.vocabulary import EXPERIMENT

Describe = Callable[..., RunFacts]


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Another process, which does nothing until it is ended."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield child
    child.kill()
    child.wait()


def start_run(store: Store, tags: dict[str, str]) -> str:
    client = store.client()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    named = {f"resnet_bench.{key}": value for key, value in tags.items()}
    return str(client.create_run(experiment.experiment_id, tags=named).info.run_id)


def status(store: Store, run_id: str) -> str:
    return str(store.client().get_run(run_id).info.status)


def tags_of(pid: int) -> dict[str, str]:
    import socket

    return {"host": socket.gethostname(), "pid": str(pid), "pid_start": process_start(pid) or ""}


TRACK = """
import pathlib, sys, time
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.tracking.facts import RunFacts
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.tracker import Tracker
from tests.tracking.training_events import BENCHMARK, started, training

benchmark = Benchmark.model_validate(BENCHMARK)
description = RunFacts(
    benchmark=benchmark, recipe=benchmark.recipe, profile="full", seed=0, execution={"device": "cpu"},
    device_name="x", dataset_name="cifar10", data_source="parquet", data_fingerprint="f", generated=False,
)
tracker = Tracker.open(Store.resolve(None, pathlib.Path(sys.argv[1])), description, pathlib.Path(sys.argv[2]))
tracker.record(started())
print(tracker.run_id, flush=True)
time.sleep(600)
"""


def test_a_run_whose_process_was_killed_is_closed_with_the_reason(
    store: Store, process: subprocess.Popen[bytes]
) -> None:
    run_id = start_run(store, tags_of(process.pid))
    assert close_stale_runs(store) == []
    process.send_signal(signal.SIGKILL)
    process.wait()
    (dead,) = close_stale_runs(store)
    assert dead.run_id == run_id
    assert status(store, run_id) == "KILLED"
    assert f"process {process.pid}" in store.client().get_run(run_id).data.tags["resnet_bench.reason"]
    assert close_stale_runs(store) == []


@pytest.mark.slow
def test_a_tracker_that_was_killed_is_found_closed_and_gone_on_with(
    store: Store, describe: Describe, tmp_path: Path
) -> None:
    project, folder = tmp_path / "project", tmp_path / "run"
    root = Path(__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, "-c", TRACK, str(project), str(folder)], stdout=subprocess.PIPE, text=True, cwd=root
    )
    try:
        assert child.stdout is not None
        run_id = child.stdout.readline().strip()
        assert close_stale_runs(store) == []
        assert status(store, run_id) == "RUNNING"
        child.send_signal(signal.SIGKILL)
        child.wait()
    finally:
        child.kill()
        assert child.stdout is not None
        child.stdout.close()
    (dead,) = close_stale_runs(store)
    assert dead.run_id == run_id
    assert status(store, run_id) == "KILLED"
    reason = store.client().get_run(run_id).data.tags["resnet_bench.reason"]
    assert f"process {child.pid}" in reason
    assert close_stale_runs(store) == []

    # It can be resumed.
    resumed = Tracker.open(store, describe(seed=0), folder, resume_run_id=run_id, resume_step=0)
    assert resumed.close("finished").complete
    assert status(store, run_id) == "FINISHED"


def test_living_processes_and_other_machines_are_left_alone(store: Store, process: subprocess.Popen[bytes]) -> None:
    ours = tags_of(os.getpid())
    theirs = tags_of(process.pid)
    alive = [
        start_run(store, ours),
        start_run(store, theirs),
        start_run(store, {**theirs, "host": "another-machine", "pid": "999999999"}),
        # Another container of this machine: its processes have other names.
        start_run(store, {**theirs, "pid_start": theirs["pid_start"].replace("pid:", "pid:9"), "pid": "999999999"}),
        start_run(store, {}),
        start_run(store, {"host": theirs["host"], "pid": "none of your business", "pid_start": "x"}),
    ]
    assert close_stale_runs(store) == []
    assert {status(store, run_id) for run_id in alive} == {"RUNNING"}


def test_a_process_that_took_over_the_number_of_a_dead_one_does_not_hide_it(
    store: Store, process: subprocess.Popen[bytes]
) -> None:
    tags = tags_of(process.pid)
    boot, _, start = tags["pid_start"].rpartition("/")
    run_id = start_run(store, {**tags, "pid_start": f"{boot}/{int(start) - 1}"})
    assert [dead.run_id for dead in close_stale_runs(store)] == [run_id]


def test_a_process_that_is_dead_but_not_yet_buried_is_dead(store: Store, process: subprocess.Popen[bytes]) -> None:
    run_id = start_run(store, tags_of(process.pid))
    process.kill()
    deadline = time.monotonic() + 120
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [dead.run_id for dead in close_stale_runs(store)] == [run_id]


@pytest.mark.skipif(sys.platform != "linux", reason="boots are told apart on Linux only")
def test_a_restart_of_the_machine_ends_its_runs(store: Store) -> None:
    tags = tags_of(os.getpid())
    before = f"00000000-0000-0000-0000-000000000000/{tags['pid_start'].split('/', 1)[1]}"
    run_id = start_run(store, {**tags, "pid_start": before})
    # Two machines of one name may share a server, but not a database file.
    assert close_stale_runs(Store("http://127.0.0.1:9")) == []
    assert [dead.run_id for dead in close_stale_runs(store)] == [run_id]


def test_setting_the_clock_kills_nobody(
    store: Store, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = start_run(store, tags_of(process.pid))
    real = time.time
    for day in (-86_400, 86_400):
        monkeypatch.setattr(time, "time", lambda day=day: real() + day)
        assert close_stale_runs(store) == []
    assert status(store, run_id) == "RUNNING"
