"""Which devices there are, whether one still takes work, and what NVIDIA's driver says of it."""

import functools
import os
from typing import Any

import torch

from resnet_bench.base.describe_error import describe_error
from resnet_bench.execution.execution import Execution


def device_problem(execution: Execution) -> str | None:
    """Why nothing more can run on the device in this process, or None; frees what the last run held of it."""
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
