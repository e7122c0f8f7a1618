"""Energy counters of GPUs and CPU packages."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Self, TypeVar

from resnet_bench.execution.devices import nvml_handle
from resnet_bench.execution.execution import Execution

Watched = TypeVar("Watched")

POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows what CPU packages have consumed."""


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
    handle = nvml_handle(device)
    if handle is None:
        return None
    import pynvml

    try:
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
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
