"""Many runs as one stream of events: one after another in this process, or several at once in child processes."""

import contextlib
import itertools
import logging
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from resnet_bench.base.describe_error import describe_error
from resnet_bench.data.dataset import Dataset
from resnet_bench.execution.devices import device_problem
from resnet_bench.running import processes
from resnet_bench.running.run import RunClosed, RunOpened, RunRequest, run
from resnet_bench.running.shared_images import SharedImages
from resnet_bench.running.stopping import Stop, Stopped, stop_on_signals
from resnet_bench.tracking.stale_runs import close_stale_runs
from resnet_bench.tracking.store import Store
from resnet_bench.training.events import EpochEnded, Evaluated, Event, Finished, Started, State, Steps

POLL_SECONDS = 0.2

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobStarted:
    """The first thing that is told of a run: its turn has come."""


@dataclass(frozen=True)
class JobFinished:
    """The last thing that is told of a run, however it ended.

    Attributes:
        failure: Why it could not be trained to its end, a sentence.
        interrupted: Whether it was asked to stop.
        device_problem: Why its device takes no more work, so that no run of the series will follow.
    """

    failure: str | None = None
    interrupted: bool = False
    device_problem: str | None = None


SeriesEvent = JobStarted | Event | RunOpened | RunClosed | JobFinished


def train_series(
    requests: Iterable[RunRequest],
    datasets: Mapping[str, Dataset],
    store: Store,
    *,
    runs_folder: Path,
    stop: Stop,
    max_parallel: int = 1,
) -> Generator[tuple[RunRequest, SeriesEvent], None, None]:
    """Train many runs; one that fails, however it fails, costs itself alone.

    One at a time they run in this process. Several at once run in processes of their own, those of one benchmark
    together. When a run has made the device unusable for this process, as CUDA does after some errors, those behind
    it run in fresh processes.

    Args:
        requests: The runs; the next one is asked for when its turn has come.
        datasets: Their images by name.
        store: Where they are tracked.
        runs_folder: Where their files are kept.
        stop: Ends the runs that are under way, with a checkpoint each; no more are begun.
        max_parallel: How many may run at the same time.

    Yields:
        A run and what happened to it: ``Begun``, the events of :func:`resnet_bench.running.run.run`, ``Ended``. Events
        from another process come without the training state and the predictions.
    """
    left = iter(requests)
    if max_parallel == 1:
        lost = yield from _in_this_process(left, datasets, store, runs_folder, stop)
        if lost is None:
            return
        following = next(left, None)
        if following is None:
            return
        _log.warning("%s: what is left to train runs in processes of its own", lost)
        left = itertools.chain([following], left)
    with _Children(max_parallel, SharedImages(datasets), store, runs_folder, stop) as children:
        for _, of_one_benchmark in itertools.groupby(left, key=lambda request: request.benchmark.name):
            yield from children.train(of_one_benchmark)
            if children.are_through:
                return


def _in_this_process(
    requests: Iterator[RunRequest],
    datasets: Mapping[str, Dataset],
    store: Store,
    runs_folder: Path,
    stop: Stop,
) -> Generator[tuple[RunRequest, SeriesEvent], None, str | None]:
    """Returns why the device takes no more work from this process, where that is so."""
    for request in requests:
        yield request, JobStarted()
        end = JobFinished()
        with contextlib.closing(_to_its_end(request, datasets, store, runs_folder, stop)) as events:
            for event in events:
                if isinstance(event, JobFinished):
                    end = event
                else:
                    yield request, event
        yield request, replace(end, device_problem=None)
        if end.interrupted or end.device_problem:
            return None if end.interrupted else end.device_problem
    return None


def _to_its_end(
    request: RunRequest, datasets: Mapping[str, Dataset], store: Store, runs_folder: Path, stop: Stop
) -> Generator[Event | RunOpened | RunClosed | JobFinished, None, None]:
    """The events of a run and how it ended; no error of the run gets out."""
    failure, interrupted = None, False
    try:
        yield from run(request, datasets[request.recipe.data.dataset], store, runs_folder=runs_folder, stop=stop)
    except (Stopped, KeyboardInterrupt):
        interrupted = True
    except Exception as error:  # whatever it is, it must not cost the runs behind it
        # A run that was asked to stop may fail to write its checkpoint.
        failure, interrupted = describe_error(error), bool(stop)
    yield JobFinished(failure, interrupted, device_problem(request.execution))


# --- several at once -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Unusable:
    """A fresh process cannot use the device either."""

    problem: str


@dataclass
class _Child:
    process: BaseProcess
    connection: Connection
    request: RunRequest | None = None
    """What it trains at the moment."""


class _Children:
    """Processes that train runs, one each at a time."""

    def __init__(self, max_parallel: int, images: SharedImages, store: Store, runs_folder: Path, stop: Stop) -> None:
        self._at_once = max_parallel
        self._images, self._store, self._runs_folder = images, store, runs_folder
        self._stop = stop
        self._stop_passed_on = False
        self._unusable = False
        self._children: list[_Child] = []

    def __enter__(self) -> "_Children":
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            if child.request is None:
                _dismiss(child)
        processes.end([child.process for child in self._children if child.request is not None])
        for child in self._children:
            child.process.join(processes.SECONDS_TO_STOP)
        processes.end([child.process for child in self._children])

    def train(self, requests: Iterator[RunRequest]) -> Iterator[tuple[RunRequest, SeriesEvent]]:
        """Train these runs, several at once."""
        try:
            while True:
                while len(self._busy) < self._at_once and (request := self._next(requests)) is not None:
                    yield request, JobStarted()
                    try:
                        self._hand_over(request)
                    except (OSError, EOFError) as error:
                        yield request, JobFinished(f"no process could be started for it ({describe_error(error)})")
                if not self._busy:
                    return
                for child in self._heard():
                    yield from self._take(child)
        except KeyboardInterrupt:
            stopped = [child.request for child in self._busy if child.request is not None]
            processes.end([child.process for child in self._busy])
            self._unusable = True
            for request in stopped:
                yield request, JobFinished(interrupted=True)

    @property
    def are_through(self) -> bool:
        """Whether no run is to be begun any more."""
        return bool(self._stop) or self._unusable

    @property
    def _busy(self) -> list[_Child]:
        return [child for child in self._children if child.request is not None]

    def _next(self, requests: Iterator[RunRequest]) -> RunRequest | None:
        return None if self.are_through else next(requests, None)

    def _hand_over(self, request: RunRequest) -> None:
        """Have a child train a run.

        Raises:
            OSError: The system starts no more processes.
            EOFError: Likewise, where a server starts them.
        """
        idle = next((child for child in self._children if child.request is None), None)
        child = idle or self._start()
        child.request = request
        # One that has died meanwhile is noticed when it is listened to.
        with contextlib.suppress(OSError):
            child.connection.send(request)

    def _start(self) -> _Child:
        context = processes.context()
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_serve,
            args=(theirs, self._images, self._store, self._runs_folder),
            name=f"resnet-bench run {len(self._children)}",
            daemon=True,
        )
        processes.start(process)
        theirs.close()
        child = _Child(process, ours)
        self._children.append(child)
        return child

    def _heard(self) -> list[_Child]:
        """The children that have something to say."""
        if self._stop and not self._stop_passed_on:
            self._stop_passed_on = True
            for child in self._busy:
                child.process.terminate()
        ready = wait_for([child.connection for child in self._busy], POLL_SECONDS)
        return [child for child in self._busy if child.connection in ready]

    def _take(self, child: _Child) -> Iterator[tuple[RunRequest, SeriesEvent]]:
        assert child.request is not None
        try:
            message = child.connection.recv()
        except (EOFError, OSError):
            yield child.request, self._death(child)
            return
        match message:
            case logging.LogRecord():
                logging.getLogger(message.name).handle(message)
            case _Unusable():
                self._unusable = True
                yield child.request, JobFinished(message.problem, device_problem=message.problem)
                self._retire(child)
            case JobFinished():
                yield child.request, replace(message, device_problem=None)
                if message.device_problem:
                    self._retire(child)
                child.request = None
            case _:
                yield child.request, message

    def _death(self, child: _Child) -> JobFinished:
        """How a run ended whose process is gone; the tracking store is told as well."""
        sentence = processes.exit_reason(child.process)
        self._retire(child)
        close_stale_runs(self._store)
        # Asked to stop before it could listen.
        if self._stop:
            return JobFinished(interrupted=True)
        return JobFinished(sentence)

    def _retire(self, child: _Child) -> None:
        _dismiss(child)
        child.process.join(processes.SECONDS_TO_STOP)
        processes.end([child.process])
        self._children.remove(child)


def _dismiss(child: _Child) -> None:
    with contextlib.suppress(OSError):
        child.connection.send(None)
    child.connection.close()


# --- in the child --------------------------------------------------------------------------------


def _serve(connection: Connection, images: SharedImages, store: Store, runs_folder: Path) -> None:
    """Train what the parent asks for, until it asks for no more."""
    with stop_on_signals() as stop, contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        processes.stop_without_parent()
        parent = _Parent(connection)
        logging.getLogger().addHandler(parent)
        datasets = images.datasets()
        fresh = True
        while not stop and (request := connection.recv()) is not None:
            problem = device_problem(request.execution) if fresh else None
            if problem:
                parent.tell(_Unusable(f"{problem}, not even from a new process"))
                return
            fresh = False
            with contextlib.closing(_to_its_end(request, datasets, store, runs_folder, stop)) as events:
                for event in events:
                    parent.tell(_portable(event))


class _Parent(QueueHandler):
    """The pipe to the parent, for what the run says and for what is logged meanwhile."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(queue=None)  # type: ignore[arg-type]  # there is a pipe in its place
        self._connection = connection
        # The tracker logs from a thread of its own.
        self._one_at_a_time = threading.Lock()

    def enqueue(self, record: logging.LogRecord) -> None:
        """Send a log record; without a parent there is nobody to read it."""
        with contextlib.suppress(OSError):
            self.tell(record)

    def tell(self, message: Any) -> None:
        """Send a message.

        Raises:
            OSError: The parent is gone.
        """
        with self._one_at_a_time:
            self._connection.send(message)


def _portable(event: Event | RunOpened | RunClosed | JobFinished) -> Event | RunOpened | RunClosed | JobFinished:
    """The event without what is of use in its own process alone."""
    if isinstance(event, Finished):
        return replace(event, snapshot=_elsewhere, predictions=None)
    if isinstance(event, Started | Steps | Evaluated | EpochEnded):
        return replace(event, snapshot=_elsewhere)
    return event


def _elsewhere() -> State:
    raise RuntimeError("the training state of this run is in another process")
