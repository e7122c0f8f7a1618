"""Forks of a process that computes: one that has threads must not be forked, because a child waits for their locks."""

import gc
import multiprocessing
import threading
import time
from multiprocessing.context import ForkContext

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
