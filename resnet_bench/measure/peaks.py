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
"""Seconds, such as `time.perf_counter` or :func:`processor_seconds`."""

_SMALLEST_PRODUCT, _LARGEST_PRODUCT = 1024, 8192
_LONG_ENOUGH_SECONDS = 0.02
"""A product that takes as long is large enough for its rate to be the device's."""
_TIMINGS = 5
_COPIED_BYTES = 256 * 2**20
"""More than any cache holds."""


def cpu_seconds() -> float:
    """Seconds that processors have worked for this process and its children; others on the machine do not count."""
    # Of other processes the system tells hundredths of a second only.
    total = time.process_time()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            total += sum(child.cpu_times()[:2])
    return total


@functools.cache
def peak_flops(execution: Execution, clock: Clock = time.perf_counter) -> float:
    """Floating-point operations a second of a large square matrix product in the execution's precision.

    Takes under a second, once a process and execution.
    """
    device = torch.device(execution.device)
    dtype = torch.bfloat16 if execution.precision == "bf16" else torch.float32
    with execution.applied():
        size = _SMALLEST_PRODUCT
        while True:
            left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
            product = torch.empty_like(left)
            multiply = functools.partial(torch.mm, left, right, out=product)
            if size == _LARGEST_PRODUCT or best_seconds(multiply, execution, 2, clock) >= _LONG_ENOUGH_SECONDS:
                return 2 * size**3 / best_seconds(multiply, execution, _TIMINGS, clock)
            size *= 2


@functools.cache
def peak_bandwidth(execution: Execution, clock: Clock = time.perf_counter) -> float:
    """Bytes a second, read and written, of a copy that no cache holds."""
    with execution.applied():
        source = torch.ones(_COPIED_BYTES // 4, device=execution.device)
        target = torch.empty_like(source).fill_(0)
        return 2 * _COPIED_BYTES / best_seconds(functools.partial(target.copy_, source), execution, _TIMINGS, clock)


def best_seconds(work: Callable[[], Any], execution: Execution, timings: int, clock: Clock) -> float:
    """Least time that some work takes on the device, after one time that does not count."""
    work()
    return min(seconds_of(work, execution, clock) for _ in range(timings))


def seconds_of(work: Callable[[], Any], execution: Execution, clock: Clock = time.perf_counter) -> float:
    """Time that some work takes, until the device is done with it."""
    execution.synchronize()
    started = clock()
    work()
    execution.synchronize()
    return clock() - started
