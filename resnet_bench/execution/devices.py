"""Whether a device still takes work."""

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
