"""Tasks in child processes, one each at a time: several seeds per device, or a run per GPU."""

import contextlib
import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess

from resnet_bench.base.describe_error import describe_error
from resnet_bench.running.context import Context
from resnet_bench.running.events import Event, JobFinished, JobStarted
from resnet_bench.running.job import Task
from resnet_bench.running.launchers import child as children
from resnet_bench.running.launchers.launcher import Place
from resnet_bench.tracking.stale_runs import close_stale_runs
from resnet_bench.tracking.watching import watching

POLL_SECONDS = 0.2


class Processes:
    """Runs tasks in child processes; see :class:`resnet_bench.running.launchers.launcher.Launcher`.

    This process uses no GPU itself. Events arrive without the training state.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        """Run as many tasks at a time as there are places."""
        self._places = list(places)

    def run(self, tasks: Iterable[Task], context: Context) -> Generator[tuple[Task, Event], None, None]:
        """Run tasks; one that fails, or whose process dies, costs itself alone."""
        with watching(context.store), _Children(self._places, context) as started:
            yield from started.run(iter(tasks))


@dataclass
class _Child:
    process: BaseProcess
    connection: Connection
    place: Place
    task: Task | None = None
    """What it does at the moment."""


class _Children:
    """The child processes of one call, one at each place at most."""

    def __init__(self, places: Sequence[Place], context: Context) -> None:
        self._free = list(places)
        self._context, self._stop = context, context.stop
        self._stop_passed_on = False
        self._unusable = False
        self._children: list[_Child] = []

    def __enter__(self) -> "_Children":
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            if child.task is None:
                _dismiss(child)
        children.end([child.process for child in self._busy])
        for child in self._children:
            child.process.join(children.SECONDS_TO_STOP)
        children.end([child.process for child in self._children])

    def run(self, tasks: Iterator[Task]) -> Iterator[tuple[Task, Event]]:
        """Do these tasks, several at a time."""
        try:
            while True:
                while (self._free or self._idle) and (task := self._next(tasks)) is not None:
                    yield task, JobStarted()
                    try:
                        self._hand_over(task)
                    except (OSError, EOFError) as error:
                        yield task, JobFinished(f"no process could be started for it ({describe_error(error)})")
                if not self._busy:
                    return
                for child in self._heard():
                    yield from self._take(child)
        except KeyboardInterrupt:
            stopped = [child.task for child in self._busy if child.task is not None]
            children.end([child.process for child in self._busy])
            self._unusable = True
            for task in stopped:
                yield task, JobFinished(interrupted=True)

    @property
    def _busy(self) -> list[_Child]:
        return [child for child in self._children if child.task is not None]

    @property
    def _idle(self) -> list[_Child]:
        return [child for child in self._children if child.task is None]

    def _next(self, tasks: Iterator[Task]) -> Task | None:
        return None if self._stop or self._unusable else next(tasks, None)

    def _hand_over(self, task: Task) -> None:
        """Have a child do a task.

        Raises:
            OSError: The system starts no more processes.
            EOFError: Likewise, where a server starts them.
        """
        child = self._idle[0] if self._idle else self._start()
        child.task = task
        # One that has died meanwhile is noticed when it is listened to.
        with contextlib.suppress(OSError):
            child.connection.send(task)

    def _start(self) -> _Child:
        context = children.context()
        ours, theirs = context.Pipe()
        place = self._free[0]
        process = context.Process(
            target=children.serve,
            args=(theirs, self._context, place),
            name=f"resnet-bench {len(self._children)}",
            daemon=True,
        )
        children.start(process)
        theirs.close()
        child = _Child(process, ours, place)
        self._free.remove(place)
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

    def _take(self, child: _Child) -> Iterator[tuple[Task, Event]]:
        task = child.task
        if task is None:
            return
        try:
            message = child.connection.recv()
        except (EOFError, OSError):
            yield task, self._death(child)
            return
        match message:
            case logging.LogRecord():
                logging.getLogger(message.name).handle(message)
            case children.Unusable():
                self._unusable = True
                yield task, JobFinished(message.problem, device_problem=message.problem)
                self._retire(child)
            case JobFinished():
                yield task, replace(message, device_problem=None)
                if message.device_problem:
                    self._retire(child)
                child.task = None
            case _:
                yield task, message

    def _death(self, child: _Child) -> JobFinished:
        """How a task ended whose process is gone; the tracking store is told as well."""
        sentence = children.exit_reason(child.process)
        self._retire(child)
        close_stale_runs(self._context.store)
        # Asked to stop before it could listen.
        if self._stop:
            return JobFinished(interrupted=True)
        return JobFinished(sentence)

    def _retire(self, child: _Child) -> None:
        _dismiss(child)
        child.process.join(children.SECONDS_TO_STOP)
        children.end([child.process])
        self._children.remove(child)
        self._free.append(child.place)


def _dismiss(child: _Child) -> None:
    with contextlib.suppress(OSError):
        child.connection.send(None)
    child.connection.close()
