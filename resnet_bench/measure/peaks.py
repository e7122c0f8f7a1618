"""Peak rates of the device, and timing helpers."""

import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch

from resnet_bench.execution.execution import Execution

Clock = Callable[[], float]
"""Returns seconds, such as `time.perf_counter` or :func:`cpu_seconds`."""

_SMALLEST_GEMM, _LARGEST_GEMM = 1024, 8192
_LONG_ENOUGH_SECONDS = 0.02
"""A matrix multiplication that takes as long is large enough for its rate to be the device's."""
_TIMINGS = 5
_COPIED_BYTES = 256 * 2**20
"""More than fits into any cache."""


def cpu_seconds() -> float:
    """Read the CPU time of this process and its children, in seconds; other processes do not count."""
    # Of other processes the system only reports hundredths of a second.
    total = time.process_time()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            total += sum(child.cpu_times()[:2])
    return total


@functools.cache
def peak_flops(execution: Execution, clock: Clock = time.perf_counter) -> float:
    """Measure the FLOP/s of a large square matrix multiplication in the execution's precision.

    Takes under a second, once per process and execution.
    """
    device = torch.device(execution.device)
    dtype = torch.bfloat16 if execution.precision == "bf16" else torch.float32
    with execution.applied():
        size = _SMALLEST_GEMM
        while True:
            left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
            product = torch.empty_like(left)
            multiply = functools.partial(torch.mm, left, right, out=product)
            if size == _LARGEST_GEMM or best_seconds(multiply, execution, 2, clock) >= _LONG_ENOUGH_SECONDS:
                return 2 * size**3 / best_seconds(multiply, execution, _TIMINGS, clock)
            size *= 2


@functools.cache
def peak_bandwidth(execution: Execution, clock: Clock = time.perf_counter) -> float:
    """Measure the bytes per second, read and written, of a copy that fits into no cache."""
    with execution.applied():
        source = torch.ones(_COPIED_BYTES // 4, device=execution.device)
        target = torch.empty_like(source).fill_(0)
        return 2 * _COPIED_BYTES / best_seconds(functools.partial(target.copy_, source), execution, _TIMINGS, clock)


def best_seconds(work: Callable[[], Any], execution: Execution, timings: int, clock: Clock) -> float:
    """Time `work` in seconds, synchronizing the device: the shortest of some timings after a warm-up."""
    work()
    return min(seconds_of(work, execution, clock) for _ in range(timings))


def seconds_of(work: Callable[[], Any], execution: Execution, clock: Clock = time.perf_counter) -> float:
    """Time `work` in seconds, synchronizing the device."""
    execution.synchronize()
    started = clock()
    work()
    execution.synchronize()
    return clock() - started
