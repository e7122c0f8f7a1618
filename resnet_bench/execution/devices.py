"""Which devices there are, and whether one still takes work."""

import os

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
