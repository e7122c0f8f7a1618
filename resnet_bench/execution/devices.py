"""Which devices there are, whether one still takes work, and what NVIDIA's driver says of it."""

import functools
import os
import re
from pathlib import Path
from typing import Any

import torch

from resnet_bench.base.describe_error import describe_error
from resnet_bench.execution.execution import Execution

CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_RESET_PEAK = "5"
"""What resets a process's peak memory (https://docs.kernel.org/filesystems/proc.html, VmHWM)."""


def reset_peak_memory(device: torch.device) -> bool:
    """Start the peak memory of this process on a device from its current memory.

    Returns:
        Whether the system can do that; if not, a peak may be that of an earlier run.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    if device.type != "cpu":
        return False
    try:
        CLEAR_REFS.write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def peak_memory(device: torch.device) -> int:
    """Read the peak since :func:`reset_peak_memory`, in bytes: of a GPU's allocator, or of the process on a CPU.

    Raises:
        OSError: The system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    found = re.search(r"^VmHWM:\s+(\d+) kB$", _STATUS.read_text("ascii", "replace"), re.MULTILINE)
    if found is None:
        raise OSError(f"{_STATUS} has no VmHWM")
    return 1024 * int(found.group(1))


def device_problem(execution: Execution) -> str | None:
    """Explain why nothing more can run on the device in this process, or return None; free what the last run used."""
    if execution.device_type != "cuda":
        return None
    try:
        torch.cuda.synchronize(execution.device)
        torch.cuda.empty_cache()
    except RuntimeError as error:
        # CUDA never forgives some errors, such as a failed assertion in a kernel: only a new process helps.
        return f"{execution.device} takes no more work ({describe_error(error)})"
    return None


def visible_gpus() -> list[str]:
    """Return the NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; opens none."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    if named is None:
        return [str(number) for number in range(count)]
    return [gpu.strip() for gpu in named.split(",") if gpu.strip()][:count]


def nvml_handle(device: str) -> Any | None:
    """Return NVML's handle of a CUDA device that torch has opened; None where the driver does not tell.

    Args:
        device: Such as ``cuda:0``.
    """
    # Asking torch for a GPU's properties opens it, which is for the training loop to do.
    opened = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if not device.startswith("cuda") or not opened or not _start_nvml(os.getpid()):
        return None
    import pynvml

    try:
        # NVML numbers all GPUs of the machine, torch those that the process may see; the identifier is the same.
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except (pynvml.NVMLError, AttributeError):
        return None


def nvidia_gpus() -> tuple[list[str], str | None]:
    """Return the names of the machine's NVIDIA GPUs and the driver's version, without opening a GPU."""
    if not _start_nvml(os.getpid()):
        return [], None
    import pynvml

    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
        return [str(pynvml.nvmlDeviceGetName(handle)) for handle in handles], str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return [], None


@functools.cache
def _start_nvml(process: int) -> bool:  # noqa: ARG001 - a forked child must start it for itself
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    return True
