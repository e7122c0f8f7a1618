"""What the machine does during a run: processor, memory and GPU, sampled now and then by a thread."""

import sys
import threading
from collections.abc import Callable
from typing import Any

_MEGABYTE = 1e6


class SystemSampler:
    """Samples the machine from a background thread.

    MLflow has a sampler too, but it writes to the store itself and gives up when the store is away.
    """

    def __init__(self, take: Callable[[dict[str, float]], None], device: str, *, interval: float) -> None:
        """Prepare to sample.

        Args:
            take: Called with each sample; the keys are those of MLflow's own sampler.
            device: The device that the run is on, such as ``cuda:0``.
            interval: Seconds between two samples.
        """
        self._take = take
        self._device = device
        self._interval = interval
        self._gpu: Any = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tracking-system", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread; no sample is taken after this returns."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        import psutil  # type: ignore[import-untyped]

        process = psutil.Process()
        # The first reading only marks where the next one counts from.
        psutil.cpu_percent()
        process.cpu_percent()
        while not self._stop.wait(self._interval):
            memory = psutil.virtual_memory()
            sample = {
                "system/cpu_utilization_percentage": psutil.cpu_percent(),
                "system/process_cpu_utilization_percentage": process.cpu_percent(),
                "system/system_memory_usage_megabytes": memory.used / _MEGABYTE,
                "system/process_memory_usage_megabytes": process.memory_info().rss / _MEGABYTE,
            }
            self._take(sample | self._gpu_sample())

    def _gpu_sample(self) -> dict[str, float]:
        # Looked for again until the loop has opened the GPU, so as not to get in its way. A run on a CPU need not
        # import torch for this, and one on a GPU has.
        if not self._device.startswith("cuda") or "torch" not in sys.modules:
            return {}
        from resnet_bench.execution.devices import nvml_handle

        gpu = self._gpu = self._gpu or nvml_handle(self._device)
        if gpu is None:
            return {}
        import pynvml

        try:
            rates, memory = pynvml.nvmlDeviceGetUtilizationRates(gpu), pynvml.nvmlDeviceGetMemoryInfo(gpu)
            return {
                "system/gpu_0_utilization_percentage": float(rates.gpu),
                "system/gpu_0_memory_usage_megabytes": memory.used / _MEGABYTE,
                "system/gpu_0_power_usage_watts": pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
            }
        except pynvml.NVMLError:
            # Some GPUs, and slices of one, do not tell.
            return {}
