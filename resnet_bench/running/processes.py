"""Child processes: started cheaply, ended with their parent, and never waited for in vain."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import wait as wait_for
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess

SECONDS_TO_STOP = 30.0
"""What a child gets to end its step and write its run down before it is killed."""
SECONDS_WITHOUT_PARENT = 3.0

_PRELOADED = "resnet_bench.running.preloaded"


def context() -> ForkServerContext | SpawnContext:
    """How child processes are started: by a server that has imported what they need, where that is safe.

    The server computes nothing and never touches a GPU, so that its forks are as good as new processes. Apple's
    frameworks do not outlive a fork.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    chosen = multiprocessing.get_context("forkserver")
    chosen.set_forkserver_preload([_PRELOADED])
    return chosen


def prepare() -> None:
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
    assert parent is not None

    def watch() -> None:
        wait_for([parent.sentinel])
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
