"""What stopped a run, in a sentence, and whether its device still takes work."""

import re

import torch

from resnet_bench.execution import Execution


def sentence_of(error: BaseException) -> str:
    """What went wrong with a run, in one line."""
    text = str(error).strip()
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, NotImplementedError) and "MPS" in text:
        operator = re.search(r"'(aten::\S+)'", text)
        return (
            f"the Apple GPU lacks {operator.group(1) if operator else 'an operator'}; set "
            "PYTORCH_ENABLE_MPS_FALLBACK=1 to run it on the CPU, or write --device cpu"
        )
    return text.splitlines()[0] if text else type(error).__name__


def device_problem(execution: Execution) -> str | None:
    """Why nothing more can run on the device in this process, or None; frees what the last run held of it."""
    if execution.device_type != "cuda":
        return None
    try:
        torch.cuda.synchronize(execution.device)
        torch.cuda.empty_cache()
    except RuntimeError as error:
        # CUDA never forgives some errors, such as a failed assertion in a kernel: only a new process helps.
        return f"{execution.device} takes no more work ({sentence_of(error)})"
    return None
