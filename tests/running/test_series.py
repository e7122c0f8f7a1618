"""Runs one after another and several at once: what one of them costs the others, however it ends."""

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
import torch

from resnet_bench.data.dataset import Dataset
from resnet_bench.execution.devices import device_problem
from resnet_bench.execution.execution import Execution
from resnet_bench.running import processes as child_processes
from resnet_bench.running.run import RunOpened, RunRequest, run
from resnet_bench.running.series import JobFinished, JobStarted, SeriesEvent, train_series
from resnet_bench.running.shared_images import SharedImages
from resnet_bench.running.stopping import Stop, Stopped
from resnet_bench.tracking.store import Store
from resnet_bench.training.events import Steps
from tests.stub_cuda import needs_computing_gpu

Told = list[tuple[RunRequest, SeriesEvent]]
Train = Callable[..., Told]


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children are forks of the test, so that they start at once and hold what the test has replaced."""
    monkeypatch.setattr(child_processes, "context", lambda: multiprocessing.get_context("fork"))


class Trainer:
    """Stands in for training: what a run does follows from its seed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.does: dict[int, Callable[[Stop], None]] = {}
        self.lost_in: list[int] = []
        """Processes that the device is lost to."""

    def run(self, request: RunRequest, *_: Any, stop: Stop, **__: Any) -> Iterator[Any]:
        yield RunOpened(str(os.getpid()), "", self.folder)
        self.does.get(request.seed, lambda stop: None)(stop)

    def lose_device(self, stop: Stop) -> None:
        self.lost_in.append(os.getpid())
        raise RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later")

    def lose_device_for_good(self, stop: Stop) -> None:
        (self.folder / "gone").touch()
        self.lose_device(stop)

    def wait_for_stop(self, stop: Stop) -> None:
        deadline = time.monotonic() + 60
        while not stop:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        raise Stopped("killed", str(stop.reason))

    def wait_for_another(self, stop: Stop) -> None:
        """Go on when two runs have come here."""
        (self.folder / f"here-{os.getpid()}").touch()
        deadline = time.monotonic() + 60
        while len(list(self.folder.glob("here-*"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def device_problem(self, execution: Execution) -> str | None:
        lost = os.getpid() in self.lost_in or (self.folder / "gone").exists()
        return "the GPU takes no more work" if lost else None


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked: None) -> Trainer:
    trainer = Trainer(tmp_path)
    monkeypatch.setattr("resnet_bench.running.series.run", trainer.run)
    monkeypatch.setattr("resnet_bench.running.series.device_problem", trainer.device_problem)
    # There is no store: looking for dead runs in one takes seconds.
    monkeypatch.setattr("resnet_bench.running.series.close_stale_runs", lambda store: [])
    return trainer


@pytest.fixture
def train(images: Dataset, request_for: Callable[..., RunRequest], tmp_path: Path, trainer: Trainer) -> Train:
    """Train some seeds; gives what was told."""

    def train_them(seeds: int, *, stop: Stop | None = None, names: str = "", **options: Any) -> Told:
        benchmark = request_for().benchmark
        named = [benchmark.model_copy(update={"name": names[seed] if names else "tiny"}) for seed in range(seeds)]
        requests = [request_for(seed=seed, benchmark=named[seed]) for seed in range(seeds)]
        store = Store.resolve(None, tmp_path)
        stop = Stop() if stop is None else stop
        return list(train_series(requests, {"cifar10": images}, store, runs_folder=tmp_path, stop=stop, **options))

    return train_them


def ends(told: Told) -> dict[int, JobFinished]:
    return {request.seed: event for request, event in told if isinstance(event, JobFinished)}


def pids(told: Told) -> dict[int, int]:
    return {request.seed: int(event.run_id or 0) for request, event in told if isinstance(event, RunOpened)}


def test_a_run_that_loses_the_device_costs_itself_alone(
    train: Train, trainer: Trainer, caplog: pytest.LogCaptureFixture
) -> None:
    """The runs behind it go on in fresh processes, also where one of those loses it again."""
    trainer.does = {1: trainer.lose_device, 3: trainer.lose_device}
    told = train(5)
    failures = {seed: end.failure for seed, end in ends(told).items()}
    lost = "CUDA error: device-side assert triggered"
    assert failures == {0: None, 1: lost, 2: None, 3: lost, 4: None}
    assert not any(end.device_problem or end.interrupted for end in ends(told).values())
    pid = pids(told)
    assert pid[0] == pid[1] == os.getpid()
    assert pid[2] == pid[3]
    assert len({pid[1], pid[2], pid[4]}) == 3
    assert "what is left to train runs in processes of its own" in caplog.text


def test_a_device_that_no_process_can_use_ends_the_series_with_a_sentence(train: Train, trainer: Trainer) -> None:
    trainer.does = {0: trainer.lose_device_for_good}
    told = train(4)
    assert list(ends(told)) == [0, 1]
    assert ends(told)[1].device_problem == "the GPU takes no more work, not even from a new process"
    assert {request.seed for request, event in told if isinstance(event, JobStarted)} == {0, 1}


def test_losing_the_device_in_the_last_run_says_nothing_of_others(
    train: Train, trainer: Trainer, caplog: pytest.LogCaptureFixture
) -> None:
    trainer.does = {1: trainer.lose_device}
    assert list(ends(train(2))) == [0, 1]
    assert caplog.text == ""


def test_as_many_run_at_once_as_were_asked_for(train: Train, trainer: Trainer) -> None:
    trainer.does = {0: trainer.wait_for_another, 1: trainer.wait_for_another}
    told = train(4, max_parallel=2)
    assert all(end == JobFinished() for end in ends(told).values())
    assert len(ends(told)) == 4
    # A process trains one run behind another.
    assert len(set(pids(told).values())) == 2
    assert os.getpid() not in pids(told).values()


def test_runs_of_two_benchmarks_never_share_the_device(train: Train) -> None:
    told = train(5, max_parallel=3, names="aaabb")
    last_of_the_first = max(i for i, (request, _) in enumerate(told) if request.benchmark.name == "a")
    first_of_the_second = min(i for i, (request, _) in enumerate(told) if request.benchmark.name == "b")
    assert last_of_the_first < first_of_the_second


def test_a_killed_process_is_a_failed_run_and_the_others_go_on(train: Train, trainer: Trainer) -> None:
    trainer.does = {1: lambda stop: os.kill(os.getpid(), signal.SIGKILL), 2: lambda stop: os._exit(3)}
    begun = time.monotonic()
    end = ends(train(4, max_parallel=2))
    assert time.monotonic() - begun < 20
    assert end[0] == end[3] == JobFinished()
    assert end[1].failure == "its process was killed by SIGKILL, which the system sends where memory runs out"
    assert end[2].failure == "its process ended without a word (exit code 3)"


def test_a_process_that_cannot_be_started_is_a_failed_run(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    start, refused = child_processes.start, iter([True])

    def refuse_the_first(process: Any) -> None:
        if next(refused, False):
            raise BlockingIOError(11, "Resource temporarily unavailable")
        start(process)

    monkeypatch.setattr(child_processes, "start", refuse_the_first)
    end = ends(train(3, max_parallel=2))
    assert end[0].failure == "no process could be started for it (Resource temporarily unavailable)"
    assert end[1] == end[2] == JobFinished()


def test_asked_to_stop_all_that_run_stop_and_no_other_begins(train: Train, trainer: Trainer) -> None:
    stop = Stop()

    def ask(stop_of_the_child: Stop) -> None:
        os.kill(os.getppid(), signal.SIGUSR1)
        trainer.wait_for_stop(stop_of_the_child)

    def asked(*_: Any) -> None:
        stop.reason = "interrupted by SIGINT"

    before = signal.signal(signal.SIGUSR1, asked)
    try:
        trainer.does = {0: trainer.wait_for_stop, 1: ask}
        told = train(4, max_parallel=2, stop=stop)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert ends(told) == {0: JobFinished(interrupted=True), 1: JobFinished(interrupted=True)}


def test_no_process_is_left_when_nobody_listens_any_more(
    images: Dataset, request_for: Callable[..., RunRequest], tmp_path: Path, trainer: Trainer
) -> None:
    trainer.does = {0: trainer.wait_for_stop, 1: trainer.wait_for_stop}
    series = train_series(
        [request_for(seed=seed) for seed in range(2)],
        {"cifar10": images},
        Store.resolve(None, tmp_path),
        runs_folder=tmp_path,
        stop=Stop(),
        max_parallel=2,
    )
    opened = pids([told for told in (next(series) for _ in range(4)) if isinstance(told[1], RunOpened)])
    assert len(opened) == 2
    series.close()
    assert not any(psutil.pid_exists(pid) for pid in opened.values())


def test_what_a_child_logs_is_logged_by_its_parent(
    train: Train, trainer: Trainer, caplog: pytest.LogCaptureFixture
) -> None:
    trainer.does = {0: lambda stop: logging.getLogger("tracker").warning("%s is away", "the store")}
    train(2, max_parallel=2)
    assert [record.getMessage() for record in caplog.records] == ["the store is away"]


def test_events_arrive_without_the_training_state(
    train: Train, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(1, 1, [2.5, 2.0], [0.1, 0.1], images=8, correct=4, seconds=0.5, snapshot=lambda: {})

    def run(*_: Any, **__: Any) -> Iterator[Any]:
        yield steps

    monkeypatch.setattr("resnet_bench.running.series.run", run)
    arrived = [event for _, event in train(2, max_parallel=2) if isinstance(event, Steps)]
    assert arrived == [steps, steps]
    with pytest.raises(RuntimeError, match="in another process"):
        arrived[0].snapshot()


def test_shared_images_are_the_same_and_written_into_by_nobody(images: Dataset) -> None:
    shared = SharedImages({"cifar10": images})
    first, second = shared.datasets()["cifar10"], shared.datasets()["cifar10"]
    assert replace(first, train=images.train, test=images.test) == images
    first.train.images.zero_()
    for split in ("train", "test"):
        for part in ("images", "labels"):
            assert torch.equal(getattr(getattr(second, split), part), getattr(getattr(images, split), part))


@pytest.mark.gpu
@needs_computing_gpu
def test_a_failed_assertion_in_a_kernel_costs_its_run_alone(
    images: Dataset, request_for: Callable[..., RunRequest], tmp_path: Path
) -> None:
    """Whoever does it cannot use the GPU any more, so that is not the process of the tests."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        failures, problem = pool.submit(_lose_the_gpu, images, request_for(), tmp_path).result()
    assert "device-side assert" in failures[0]
    assert failures[1:] == [None, None]
    assert problem is not None


def _lose_the_gpu(images: Dataset, request: RunRequest, folder: Path) -> tuple[list[str | None], str | None]:
    """How three runs ended, the first of which meets a label that there is no output for, and what the GPU says."""
    execution = Execution.resolve("cuda:0", "fp32", level="plain")
    store = Store.resolve(None, folder)
    store.prepare()
    requests = [replace(request, seed=seed, execution=execution) for seed in range(3)]

    def damaged_run(request: RunRequest, dataset: Dataset, *rest: Any, **options: Any) -> Iterator[Any]:
        if request.seed == 0:
            labels = torch.full_like(dataset.train.labels, 10_000)
            dataset = replace(dataset, train=replace(dataset.train, labels=labels))
        return run(request, dataset, *rest, **options)

    pytest.MonkeyPatch().setattr("resnet_bench.running.series.run", damaged_run)
    told = train_series(requests, {"cifar10": images}, store, runs_folder=folder, stop=Stop())
    failures = [event.failure for _, event in told if isinstance(event, JobFinished)]
    return failures, device_problem(execution)
