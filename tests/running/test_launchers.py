"""Tasks one after another and several at a time: what one of them costs the others, however it ends."""

import contextlib
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from resnet_bench.data.dataset import ImageLocation
from resnet_bench.execution.devices import device_problem
from resnet_bench.execution.execution import Execution
from resnet_bench.execution.options import ExecutionOptions
from resnet_bench.running.context import Context
from resnet_bench.running.events import Event, JobFinished, JobStarted, Opened
from resnet_bench.running.job import Job
from resnet_bench.running.launchers import child as children
from resnet_bench.running.launchers.launcher import Place, find_launcher
from resnet_bench.running.prepare import prepare
from resnet_bench.running.run import run
from resnet_bench.running.stopping import Stop, Stopped
from resnet_bench.tracking.store import Store
from resnet_bench.training.events import Steps
from tests.forking import fork_context
from tests.running.conftest import PLAIN
from tests.stub_cuda import needs_computing_gpu

Told = list[tuple[Any, Event]]
Launch = Callable[..., Told]

LOST = "CUDA error: device-side assert triggered"


# --- tasks that do one thing ----------------------------------------------------------------------


@dataclass(frozen=True)
class Act:
    seed: int
    does: str
    folder: Path

    @property
    def label(self) -> str:
        return f"seed {self.seed}"

    def events(self, context: Context) -> Iterator[Event]:
        yield Opened(str(os.getpid()), "", self.folder)
        yield from ACTS[self.does](context, self.folder) or ()


def lose_device(context: Context, folder: Path) -> None:
    (folder / f"lost-{os.getpid()}").touch()
    raise RuntimeError(f"{LOST}\nCUDA kernel errors might be reported later")


def lose_device_for_good(context: Context, folder: Path) -> None:
    (folder / "gone").touch()
    lose_device(context, folder)


def wait_for_stop(context: Context, folder: Path) -> None:
    deadline = time.monotonic() + 300
    while not context.stop:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    raise Stopped("killed", str(context.stop.reason))


def ask_the_parent_to_stop(context: Context, folder: Path) -> None:
    os.kill(os.getppid(), signal.SIGUSR1)
    wait_for_stop(context, folder)


def wait_for_another(context: Context, folder: Path) -> None:
    """Return when two processes have come here."""
    (folder / f"here-{os.getpid()}").touch()
    deadline = time.monotonic() + 300
    while len(list(folder.glob("here-*"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def log(context: Context, folder: Path) -> None:
    logging.getLogger("tracker").warning("%s is away", "the store")


def step(context: Context, folder: Path) -> Iterator[Event]:
    yield STEPS


def show_place(context: Context, folder: Path) -> Iterator[Event]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    yield Opened(f"{visible} {context.options.device} {context.options.threads}", "", folder)
    wait_for_another(context, folder)


STEPS = Steps(1, 1, [2.5, 2.0], [0.1, 0.1], images=8, correct=4, seconds=0.5, snapshot=dict)

ACTS: dict[str, Callable[[Context, Path], Iterator[Event] | None]] = {
    "nothing": lambda context, folder: None,
    "lose_device": lose_device,
    "lose_device_for_good": lose_device_for_good,
    "wait_for_stop": wait_for_stop,
    "ask_the_parent_to_stop": ask_the_parent_to_stop,
    "wait_for_another": wait_for_another,
    "log": log,
    "step": step,
    "show_place": show_place,
    "killed": lambda context, folder: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda context, folder: os._exit(3),
}


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    """Launch tasks that do what is said; gives what was told."""

    def find_problem(execution: Execution) -> str | None:
        lost = (tmp_path / f"lost-{os.getpid()}").exists() or (tmp_path / "gone").exists()
        return "the GPU takes no more work" if lost else None

    # Children are forks of the test, so that they start at once and hold what it has replaced.
    fork = fork_context()
    monkeypatch.setattr(children, "context", lambda: fork)
    monkeypatch.setattr(children, "device_problem", find_problem)
    # There is no store: looking for stale runs in one takes seconds.
    monkeypatch.setattr("resnet_bench.running.launchers.processes.close_stale_runs", lambda store: [])

    def launch_them(*acts: str, places: list[Place] | int = 1, stop: Stop | None = None) -> Told:
        at = [Place()] * places if isinstance(places, int) else places
        return list(launched(acts, tmp_path, at, Stop() if stop is None else stop))

    return launch_them


def launched(acts: tuple[str, ...], folder: Path, places: list[Place], stop: Stop) -> Iterator[tuple[Any, Event]]:
    context = Context(Store.resolve(None, folder), folder, ImageLocation(folder), PLAIN, stop)
    launcher = find_launcher("inline" if len(places) == 1 else "processes", places)
    return launcher.run((Act(seed, does, folder) for seed, does in enumerate(acts)), context)


def ends(told: Told) -> dict[int, JobFinished]:
    return {task.seed: event for task, event in told if isinstance(event, JobFinished)}


def pids(told: Told) -> dict[int, int]:
    return {task.seed: int(event.run_id or 0) for task, event in told if isinstance(event, Opened)}


# --- what a launcher owes -------------------------------------------------------------------------


@pytest.mark.parametrize("places", [1, 2])
def test_each_task_has_one_start_and_one_end(launch: Launch, places: int) -> None:
    told = launch("nothing", "lose_device", "step", places=places)
    for seed in range(3):
        events = [event for task, event in told if task.seed == seed]
        assert isinstance(events[0], JobStarted)
        assert [type(event) for event in events].count(JobFinished) == 1
        assert isinstance(events[-1], JobFinished)


def test_tasks_are_taken_when_a_place_is_free(tmp_path: Path, launch: Launch) -> None:
    taken = []

    def tasks() -> Iterator[Act]:
        for seed in range(4):
            taken.append(seed)
            yield Act(seed, "nothing", tmp_path)

    context = Context(Store.resolve(None, tmp_path), tmp_path, ImageLocation(tmp_path), PLAIN)
    for name, places in (("inline", 1), ("processes", 2)):
        taken.clear()
        finished = 0
        for _, event in find_launcher(name, [Place()] * places).run(tasks(), context):
            finished += isinstance(event, JobFinished)
            assert len(taken) <= finished + places
        assert finished == 4


def test_a_task_that_loses_the_device_costs_itself_alone(launch: Launch, caplog: pytest.LogCaptureFixture) -> None:
    """Those after it run in new processes, also where one of those loses it again."""
    told = launch("nothing", "lose_device", "nothing", "lose_device", "nothing")
    assert {seed: end.failure for seed, end in ends(told).items()} == {0: None, 1: LOST, 2: None, 3: LOST, 4: None}
    assert not any(end.device_problem or end.interrupted for end in ends(told).values())
    pid = pids(told)
    assert pid[0] == pid[1] == os.getpid()
    assert pid[2] == pid[3]
    assert len({pid[1], pid[2], pid[4]}) == 3
    assert "what is left runs in new processes" in caplog.text


def test_a_device_that_no_process_can_use_ends_the_series_with_a_sentence(launch: Launch) -> None:
    told = launch("lose_device_for_good", "nothing", "nothing")
    assert list(ends(told)) == [0, 1]
    assert ends(told)[1].device_problem == "the GPU takes no more work, not even from a new process"
    assert {task.seed for task, event in told if isinstance(event, JobStarted)} == {0, 1}


def test_losing_the_device_in_the_last_task_says_nothing_of_others(
    launch: Launch, caplog: pytest.LogCaptureFixture
) -> None:
    assert list(ends(launch("nothing", "lose_device"))) == [0, 1]
    assert caplog.text == ""


def test_as_many_run_in_parallel_as_there_are_places(launch: Launch) -> None:
    told = launch("wait_for_another", "wait_for_another", "nothing", "nothing", places=2)
    assert ends(told) == dict.fromkeys(range(4), JobFinished())
    # A process does one task after another.
    assert len(set(pids(told).values())) == 2
    assert os.getpid() not in pids(told).values()


def test_a_place_has_its_gpu_and_its_threads(launch: Launch) -> None:
    """Whatever a process sees of the GPUs, it calls the first one cuda:0."""
    told = launch("show_place", "show_place", places=[Place("GPU-a", 3), Place("7", 2)])
    assert {"GPU-a cuda 3", "7 cuda 2"} <= {event.run_id for _, event in told if isinstance(event, Opened)}
    assert os.environ.get("CUDA_VISIBLE_DEVICES") not in ("GPU-a", "7")


def test_a_killed_process_is_a_failed_task_and_the_others_continue(launch: Launch) -> None:
    begun = time.monotonic()
    end = ends(launch("nothing", "killed", "exit", "nothing", places=2))
    assert time.monotonic() - begun < 120
    assert end[0] == end[3] == JobFinished()
    assert end[1].failure == "its process was killed by SIGKILL, which the system sends where memory runs out"
    assert end[2].failure == "its process ended without a word (exit code 3)"


def test_a_process_that_cannot_be_started_is_a_failed_task(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    start, refused = children.start, iter([True])

    def refuse_the_first(process: Any) -> None:
        if next(refused, False):
            raise BlockingIOError(11, "Resource temporarily unavailable")
        start(process)

    monkeypatch.setattr(children, "start", refuse_the_first)
    end = ends(launch("nothing", "nothing", "nothing", places=2))
    assert end[0].failure == "no process could be started for it (Resource temporarily unavailable)"
    assert end[1] == end[2] == JobFinished()


def test_asked_to_stop_all_that_run_stop_and_no_other_starts(launch: Launch) -> None:
    stop = Stop()

    def asked(*_: Any) -> None:
        stop.reason = "interrupted by SIGINT"

    before = signal.signal(signal.SIGUSR1, asked)
    try:
        told = launch("wait_for_stop", "ask_the_parent_to_stop", "nothing", places=2, stop=stop)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert ends(told) == {0: JobFinished(interrupted=True), 1: JobFinished(interrupted=True)}


def test_no_process_is_left_when_nobody_listens_any_more(launch: Launch, tmp_path: Path) -> None:
    series = launched(("wait_for_stop", "wait_for_stop"), tmp_path, [Place(), Place()], Stop())
    with contextlib.closing(series):  # type: ignore[type-var]  # it is a generator
        opened = pids([told for told in (next(series) for _ in range(4)) if isinstance(told[1], Opened)])
        assert len(opened) == 2
    assert not any(psutil.pid_exists(pid) for pid in opened.values())


def test_what_a_child_logs_is_logged_by_its_parent(launch: Launch, caplog: pytest.LogCaptureFixture) -> None:
    launch("log", "nothing", places=2)
    assert [record.getMessage() for record in caplog.records] == ["the store is away"]


def test_events_arrive_without_the_training_state(launch: Launch) -> None:
    arrived = [event for _, event in launch("step", "step", places=2) if isinstance(event, Steps)]
    assert arrived == [STEPS, STEPS]
    with pytest.raises(RuntimeError, match="in another process"):
        arrived[0].snapshot()


# --- for real -------------------------------------------------------------------------------------


@pytest.mark.gpu
@needs_computing_gpu
def test_a_failed_assertion_in_a_kernel_costs_its_run_alone(job_for: Callable[..., Job], tmp_path: Path) -> None:
    """A process that does it cannot use the GPU any more, so that is not the process of the tests."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        failures, problem = pool.submit(_lose_the_gpu, job_for(), tmp_path).result()
    assert "device-side assert" in failures[0]
    assert failures[1:] == [None, None]
    assert problem is not None


@dataclass(frozen=True)
class DamagedRun:
    """A run of a label that the network has no output for."""

    job: Job

    @property
    def label(self) -> str:
        return self.job.label

    def events(self, context: Context) -> Iterator[Event]:
        prepared = prepare(self.job, context)
        dataset = prepared.dataset
        labels = torch.full_like(dataset.train.labels, 10_000)
        yield from run(
            replace(prepared, dataset=replace(dataset, train=replace(dataset.train, labels=labels))), context
        )


def _lose_the_gpu(job: Job, folder: Path) -> tuple[list[str | None], str | None]:
    """How three runs ended, the first of which is damaged, and what the GPU says."""
    options = ExecutionOptions("cuda:0", "plain", "fp32", autotune=False)
    store = Store.resolve(None, folder)
    store.prepare()
    context = Context(store, folder, ImageLocation(folder, generated=(64, 32)), options)
    jobs = [replace(job, seed=seed) for seed in range(3)]
    told = find_launcher("inline", [Place()]).run([DamagedRun(jobs[0]), *jobs[1:]], context)
    failures = [event.failure for _, event in told if isinstance(event, JobFinished)]
    return failures, device_problem(options.resolve())
