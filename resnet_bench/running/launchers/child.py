"""Child processes that do tasks: started cheaply, ended with their parent, and never waited for in vain."""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from logging.handlers import QueueHandler
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any

from resnet_bench.base.describe_error import describe_error
from resnet_bench.base.errors import UserError
from resnet_bench.base.machine import ensure_sockets
from resnet_bench.execution.devices import device_problem
from resnet_bench.running.context import Context
from resnet_bench.running.events import Event, JobFinished
from resnet_bench.running.job import Task
from resnet_bench.running.launchers.launcher import Place
from resnet_bench.running.stopping import Stopped, stop_on_signals
from resnet_bench.training.events import EpochEnded, Evaluated, Finished, Started, State, Steps

SECONDS_TO_STOP = 30.0
"""What a child gets to end its step and write its run down before it is killed."""
SECONDS_WITHOUT_PARENT = 3.0

_PRELOADED = "resnet_bench.running.launchers.preloaded"


def context() -> ForkServerContext | SpawnContext:
    """How child processes are started: by a server that has imported what they need, where that is safe.

    The server computes nothing and never touches a GPU, so that its forks are as good as new processes. Apple's
    frameworks do not outlive a fork. The server listens on a socket; new processes need none.
    """
    if sys.platform != "linux" or not ensure_sockets():
        return multiprocessing.get_context("spawn")
    chosen = multiprocessing.get_context("forkserver")
    chosen.set_forkserver_preload([_PRELOADED])
    return chosen


def preload() -> None:
    """Begin to import what children will need, in the background."""
    if isinstance(context(), ForkServerContext):
        with _deaf_to_ctrl_c():
            forkserver.ensure_running()


def start(process: BaseProcess) -> None:
    """Start a child; Ctrl-C does not reach it before it listens for it."""
    with _deaf_to_ctrl_c():
        process.start()


def stop_without_parent() -> None:
    """In a child: when the parent dies, however it dies, stop like on SIGTERM, and for certain some seconds later."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        wait_for([sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(SECONDS_WITHOUT_PARENT)
        os._exit(1)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


def end(processes: Sequence[BaseProcess]) -> None:
    """Ask children to stop, and kill those that do not."""
    for process in processes:
        if process.is_alive():
            process.terminate()
    deadline = time.monotonic() + SECONDS_TO_STOP
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def exit_reason(process: BaseProcess) -> str:
    """How a child ended that said nothing, in a sentence."""
    process.join(SECONDS_TO_STOP)
    code = process.exitcode
    if code is None or code >= 0:
        return f"its process ended without a word (exit code {code})"
    name = signal.Signals(-code).name
    return f"its process was killed by {name}" + (
        ", which the system sends where memory runs out" if name == "SIGKILL" else ""
    )


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """What is started meanwhile ignores SIGINT, which a terminal sends to all processes of a command."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# --- a task to its end, in whatever process ---------------------------------------------------------


def to_its_end(task: Task, context: Context) -> Generator[Event, None, None]:
    """Yield the events of a task and then how it ended; no error of the task escapes."""
    failure, interrupted = None, False
    try:
        yield from task.events(context)
    except (Stopped, KeyboardInterrupt):
        interrupted = True
    except Exception as error:  # whatever it is, it must not cost the tasks after it
        # A run that was asked to stop may fail to write its checkpoint.
        failure, interrupted = describe_error(error), bool(context.stop)
    yield JobFinished(failure, interrupted, _device_problem(context))


def _device_problem(context: Context) -> str | None:
    try:
        return device_problem(context.options.resolve())
    except UserError:
        # The task has failed with the same sentence.
        return None


# --- in the child -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unusable:
    """A new process cannot use the device either."""

    problem: str


def serve(connection: Connection, context: Context, place: Place) -> None:
    """Do the tasks that the parent sends, until it sends no more."""
    if place.gpu is not None:
        # Torch reads it when it first uses a GPU, which the server that this process is forked from never does.
        os.environ["CUDA_VISIBLE_DEVICES"] = place.gpu
    with (
        stop_on_signals(deadline=context.stop.deadline) as stop,
        contextlib.suppress(EOFError, OSError, KeyboardInterrupt),
    ):
        stop_without_parent()
        parent = _Parent(connection)
        logging.getLogger().addHandler(parent)
        here = replace(context, options=place.narrowed(context.options), stop=stop)
        problem = _device_problem(here)
        while not stop and (task := connection.recv()) is not None:
            if problem:
                parent.tell(Unusable(f"{problem}, not even from a new process"))
                return
            with contextlib.closing(to_its_end(task, here)) as events:
                for event in events:
                    parent.tell(portable(event))


class _Parent(QueueHandler):
    """The pipe to the parent, for a task's events and for what is logged meanwhile."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(queue=None)  # type: ignore[arg-type]  # there is a pipe in its place
        self._connection = connection
        # The tracker logs from its own thread.
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


def portable(event: Event) -> Event:
    """Return the event without what is of use in its own process alone."""
    if isinstance(event, Started | Steps | Evaluated | EpochEnded | Finished):
        return replace(event, snapshot=_elsewhere)
    return event


def _elsewhere() -> State:
    raise RuntimeError("the training state of this run is in another process")
