"""How many CPU threads a run computes with."""

import functools
import logging
import os
import time

import psutil  # type: ignore[import-untyped]

from resnet_bench.base.errors import UserError
from resnet_bench.base.machine import default_threads, usable_cores

BUSY_SECONDS = 0.2
"""How long the processor is watched where the load average is high, which it may be from a run that has just ended."""
REMEMBERED_SECONDS = 10.0
"""How long what was seen is remembered: the plan of a suite asks for each of its benchmarks."""
MOST_PER_CORE = 16
"""More threads per core than this are refused: a step would take minutes, in silence."""

_log = logging.getLogger(__name__)


def choose_threads(typed: int | None, *, fixed: bool = False) -> int:
    """Choose the threads of a run, and warn of a choice that makes it slow.

    Args:
        typed: What the user wants; None leaves it open.
        fixed: Never choose by how busy the machine is: as many threads give the same bits.

    Raises:
        UserError: So many were typed that nothing would get done.
    """
    if typed is not None:
        if typed > usable_cores():
            slower = (
                f"--threads {typed}: this process may use {usable_cores()} cores, and more threads are many times "
                f"slower; try --threads {usable_cores()}"
            )
            if typed > MOST_PER_CORE * usable_cores():
                raise UserError(slower)
            warn_once(slower)
        return typed
    threads = default_threads()
    if threads > 1 and not fixed and is_busy(threads):
        warn_once("this machine is busy: using 1 thread; --threads sets another number")
        return 1
    return threads


def is_busy(threads: int) -> bool:
    """Check whether other work leaves less than half of these threads a core."""
    if not hasattr(os, "getloadavg") or os.getloadavg()[0] < threads / 2:
        return False
    return idle_cores(int(time.monotonic() // REMEMBERED_SECONDS)) < threads / 2


@functools.lru_cache(maxsize=1)
def idle_cores(_period: int) -> float:
    """Watch the processor, once in a period, and return how many cores had nothing to do."""
    # Not psutil's percentages: those of less than a second of processor time, as of two cores here, are too small.
    idle, started = psutil.cpu_times().idle, time.monotonic()
    time.sleep(BUSY_SECONDS)
    return float(psutil.cpu_times().idle - idle) / (time.monotonic() - started)


@functools.cache
def warn_once(sentence: str) -> None:
    """Log a warning, the first time only."""
    _log.warning(sentence)
