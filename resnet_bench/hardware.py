"""What the device can do at most, and what it consumes: measured, so that a run can be put into proportion."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil  # type: ignore[import-untyped]
import torch

from resnet_bench.execution import Execution

Watched = TypeVar("Watched")
Clock = Callable[[], float]
"""Seconds, such as `time.perf_counter` or :func:`processor_seconds`."""

_SMALLEST_PRODUCT, _LARGEST_PRODUCT = 1024, 8192
_LONG_ENOUGH_SECONDS = 0.02
"""A product that takes as long is large enough for its rate to be the device's."""
_TIMINGS = 5
_COPIED_BYTES = 256 * 2**20
"""More than any cache holds."""

POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows what CPU packages have consumed."""


def processor_seconds() -> float:
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


class EnergyMeter:
    """Joules that a device consumed, by its own counter.

    Of an NVIDIA GPU it is the whole board (NVML). Of a CPU under Linux it is its packages, without the memory and with
    whatever else runs on them (RAPL, of Intel and of AMD); the system must let the user read the counter.

    Attributes:
        joules: Consumed during what was watched so far.
    """

    def __init__(self, read: Callable[[], float]) -> None:
        self._read = read
        self.joules = 0.0

    @classmethod
    def of(cls, execution: Execution, powercap: Path = POWERCAP) -> Self | None:
        """The meter of the execution's device; None where there is no counter, or none that may be read.

        Args:
            execution: Names the device.
            powercap: Folder in which Linux shows the counters of CPUs.
        """
        read = None
        if execution.device_type == "cuda":
            read = _gpu_counter(execution.device)
        elif execution.device_type == "cpu":
            read = _package_counter(powercap)
        return None if read is None else cls(read)

    def watch(self, events: Iterable[Watched], counted: type) -> Iterator[Watched]:
        """Pass events on, and count what was consumed to produce those of one type."""
        iterator = iter(events)
        while True:
            before = self._read()
            try:
                event = next(iterator)
            except StopIteration:
                return
            if isinstance(event, counted):
                self.joules += self._read() - before
            yield event


def _gpu_counter(device: str) -> Callable[[], float] | None:
    """What an NVIDIA GPU has consumed since its driver was loaded, in joules."""
    import pynvml

    try:
        pynvml.nvmlInit()
        # NVML numbers all GPUs of the machine, torch those that the process may see.
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except (pynvml.NVMLError, AttributeError):
        return None
    return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000


def _package_counter(powercap: Path) -> Callable[[], float] | None:
    """What all CPU packages have consumed since this call, in joules.

    Source: https://docs.kernel.org/power/powercap/powercap.html
    """
    try:
        # Zones below a package are parts of it, "psys" is the whole machine, and intel-rapl-mmio shows a package again.
        zones = [zone for zone in powercap.glob("intel-rapl:*") if (zone / "name").read_text().startswith("package-")]
        packages = [_Package(zone) for zone in zones]
    except (OSError, ValueError):
        return None
    return (lambda: sum(package.joules() for package in packages)) if packages else None


class _Package:
    """The counter of one CPU package, which begins again at 0 every few minutes to hours."""

    def __init__(self, zone: Path) -> None:
        self._counter = zone / "energy_uj"
        self._range = int((zone / "max_energy_range_uj").read_text())
        self._last = int(self._counter.read_text())
        self._microjoules = 0

    def joules(self) -> float:
        """Consumed since the object was made, provided that no two calls lie a whole range apart."""
        now = int(self._counter.read_text())
        self._microjoules += now - self._last if now >= self._last else now + self._range - self._last
        self._last = now
        return self._microjoules / 1e6
