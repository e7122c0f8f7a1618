"""Forks of a process that computes: one that has threads must not be forked, because a child waits for their locks."""

import gc
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.context import ForkContext
from pathlib import Path

from tqdm import tqdm

HARMLESS = "asyncio-waitpid-"
"""Threads that do nothing but wait for a process to end: that of a browser, which lives as long as the tests do."""


def settle() -> None:
    """End what the warm-up and earlier tests left, and see that no thread is left that may hold a lock."""
    if tqdm.monitor is not None:
        # It watches progress bars that other tests have drawn, for as long as the process lives.
        tqdm.monitor.exit()
        tqdm.monitor = None
    deadline = time.monotonic() + 120
    while len(left := [each for each in threading.enumerate() if not each.name.startswith(HARMLESS)]) > 1:
        assert time.monotonic() < deadline, left
        # Some end with the object that they serve.
        gc.collect()
        time.sleep(0.05)


def fork_context() -> ForkContext:
    """Return a context whose processes are forks of this one, which hold what a test has replaced."""
    settle()
    return multiprocessing.get_context("fork")


def start(work: Callable[[], None], output: Path) -> int:
    """Fork a process that does the work and exits with 0, or leaves a traceback in its output and exits with 1."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with output.open("a") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        # Not through the parent's exit handlers.
        os._exit(status)
