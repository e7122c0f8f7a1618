"""Memory that runs out, and how large a batch would have fitted."""

import contextlib
import gc
import re
import resource
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

import psutil  # type: ignore[import-untyped]
import torch

from resnet_bench.execution.execution import Execution
from resnet_bench.recipe.changes import override
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.training.errors import OutOfMemory

Part = Literal["training", "evaluation"]
"""The part of a run in which memory ran out; each has a ``batch_size`` in the recipe."""

SHORTAGE = re.compile(
    r"DefaultCPUAllocator|std::bad_alloc|(CUDA error|MPS backend|HIP error|CUDA driver error):? out of memory"
    r"|(CUBLAS|CUDNN|CUSOLVER)_STATUS_ALLOC_FAILED|Cannot allocate memory"
    r"|could not (create|execute) a (memory object|primitive)",
    re.IGNORECASE,
)
"""What errors say that libraries raise as a plain ``RuntimeError`` when an allocation fails."""

SMALLEST_BATCH = 2
"""BatchNorm over one pixel of one image has no variance."""

REFINEMENTS = 2
"""How often the gap between a batch that fits and one that does not is halved."""

SPARE = 0.1
"""The share of the free memory that attempts leave, since a whole run divides it up more than a few steps do."""

ROUND = 8
"""Batches are rounded down to a multiple of this, where they are at least twice as large."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that an allocation failed, on whatever device and in whatever library."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and SHORTAGE.search(str(error)) is not None


def out_of_memory(
    recipe: Recipe, execution: Execution, part: Part, attempt: Callable[[Recipe, Execution], None]
) -> OutOfMemory:
    """The error that says which batch size did not fit, and which does.

    Args:
        recipe: What did not fit; nothing of it may be held any longer.
        execution: How it was computed.
        part: Where memory ran out.
        attempt: Uses as much memory as a run does.
    """
    setting = f"{part}.batch_size"
    largest = _at_largest_images(recipe)
    # Neither compiled nor captured steps need less memory than eager ones, and they take long to make for each size.
    eager = replace(execution, compile=False, graphs=False)
    batch_size = recipe.training.batch_size if part == "training" else recipe.evaluation.batch_size
    free_what_is_unused()
    with within_free_memory(execution.device):
        fitting = largest_fitting(batch_size, lambda size: attempt(override(largest, {setting: size}), eager))
    return OutOfMemory(execution.device_name, recipe.model.name, batch_size, fitting, setting=setting)


def _at_largest_images(recipe: Recipe) -> Recipe:
    """The recipe, trained on images of the largest of its sizes throughout."""
    sizes = recipe.augmentation.sizes
    if sizes is None:
        return recipe
    resize = max(size.pixels for size in sizes)
    augmentation = recipe.augmentation.model_copy(update={"sizes": None, "resize": resize})
    return recipe.model_copy(update={"augmentation": augmentation})


def largest_fitting(batch_size: int, attempt: Callable[[int], None]) -> int | None:
    """A batch size below one that did not fit, which fits; within a quarter of the largest.

    The batch is halved until it fits, and then enlarged in two steps. All attempts together process about three
    times the images of the batch that did not fit.

    Args:
        batch_size: The one that did not fit.
        attempt: Trains with a batch size, for long enough that memory is used as a whole run uses it.

    Returns:
        None where not even the smallest batch fits.
    """
    too_large, fitting = batch_size, batch_size // 2
    while fitting >= SMALLEST_BATCH and not _fits(fitting, attempt):
        too_large, fitting = fitting, fitting // 2
    if fitting < SMALLEST_BATCH:
        return None
    for _ in range(REFINEMENTS):
        middle = _rounded((fitting + too_large) // 2)
        if middle <= fitting:
            break
        if _fits(middle, attempt):
            fitting = middle
        else:
            too_large = middle
    # A smaller batch than one that fits does so too.
    return _rounded(fitting)


def _rounded(batch_size: int) -> int:
    return batch_size - batch_size % ROUND if batch_size >= 2 * ROUND else batch_size


def _fits(batch_size: int, attempt: Callable[[int], None]) -> bool:
    try:
        attempt(batch_size)
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        fits = False
    else:
        fits = True
    free_what_is_unused()
    return fits


def free_what_is_unused() -> None:
    """Give back what no object holds any longer."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def within_free_memory(device: str) -> contextlib.AbstractContextManager[None]:
    """Have allocations fail beyond most of what is free, of the machine's memory or of a GPU's.

    Linux promises more memory than there is and kills who uses it, so that on a CPU it is the address space that is
    limited. On a GPU some of what attempts leave goes to steps that could not be captured.
    """
    if device.startswith("cuda"):
        return _within_free_gpu_memory(device)
    if device == "cpu" and sys.platform == "linux":
        return _within_free_address_space()
    return contextlib.nullcontext()


@contextlib.contextmanager
def _within_free_gpu_memory(device: str) -> Iterator[None]:
    before = torch.cuda.get_per_process_memory_fraction(device)
    free, total = torch.cuda.mem_get_info(device)
    taken = torch.cuda.memory_reserved(device)
    free = min(free, int(before * total) - taken)
    torch.cuda.set_per_process_memory_fraction((taken + (1 - SPARE) * free) / total, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(before, device)


@contextlib.contextmanager
def _within_free_address_space() -> Iterator[None]:
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken, free = psutil.Process().memory_info().vms, psutil.virtual_memory().available
    if before != resource.RLIM_INFINITY:
        free = min(free, before - taken)
    limit = taken + int((1 - SPARE) * free)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))
