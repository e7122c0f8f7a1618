"""Out-of-memory errors: in which part of a run memory ran out, and which batch size fits."""

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

from resnet_bench.base.errors import UserError
from resnet_bench.execution.execution import Execution
from resnet_bench.recipe.changes import override
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.recipe.settings import ResizeStage
from resnet_bench.training.errors import OutOfMemory

Part = Literal["training", "evaluation"]
"""Part of a run in which memory ran out; the recipe has a ``batch_size`` for each."""

SHORTAGE = re.compile(
    r"DefaultCPUAllocator|std::bad_alloc|(CUDA error|MPS backend|HIP error|CUDA driver error):? out of memory"
    r"|(CUBLAS|CUDNN|CUSOLVER)_STATUS_ALLOC_FAILED|Cannot allocate memory"
    r"|could not (create|execute) a (memory object|primitive)",
    re.IGNORECASE,
)
"""Messages of a plain ``RuntimeError`` that libraries raise when an allocation fails."""

SMALLEST_BATCH = 2
"""BatchNorm over one pixel of one image has no variance."""

REFINEMENTS = 2
"""Halvings of the gap between a batch that fits and one that does not."""

SPARE = 0.1
"""Share of the free memory that attempts leave: a whole run fragments it more than a few steps do."""

ROUND = 8
"""Batch sizes of at least twice this are rounded down to a multiple of it."""


class MemoryShortage(MemoryError):
    """Memory ran out in a part of a run.

    Attributes:
        part: The part.
    """

    def __init__(self, part: Part) -> None:
        super().__init__(f"memory ran out in {part}")
        self.part: Part = part


@contextlib.contextmanager
def shortage_in(part: Part) -> Iterator[None]:
    """Raise a :class:`MemoryShortage` of this part where an allocation fails."""
    try:
        yield
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        raise MemoryShortage(part) from error


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error reports a failed allocation, on any device and by any library."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and SHORTAGE.search(str(error)) is not None


def out_of_memory(
    recipe: Recipe, execution: Execution, part: Part, attempt: Callable[[Recipe, Execution], None]
) -> OutOfMemory:
    """Find a batch size that fits, and name it in an error.

    Args:
        recipe: The recipe that did not fit. Its memory must be free again, apart from garbage.
        execution: How it was computed.
        part: Where memory ran out.
        attempt: Uses as much memory as a run does.

    Returns:
        The error to raise.
    """
    setting = f"{part}.batch_size"
    # Compiling or capturing steps saves no memory, and takes long for each size.
    eager = replace(execution, compile=False, cuda_graphs=False)
    batch_size = recipe.training.batch_size if part == "training" else recipe.evaluation.batch_size

    def is_allowed(size: int) -> bool:
        try:
            override(recipe, {setting: size})
        except UserError:
            return False
        return True

    def attempt_with(size: int) -> None:
        attempt(_at_largest_images(override(recipe, {setting: size})), eager)

    free_what_is_unused()
    with within_free_memory(execution.device):
        fitting = find_fitting_batch_size(batch_size, attempt_with, is_allowed)
    return OutOfMemory(execution.device_name, recipe.model.name, batch_size, fitting, setting=setting)


def _at_largest_images(recipe: Recipe) -> Recipe:
    """The recipe with all training images at the largest of its sizes; those that are evaluated keep theirs."""
    sizes = recipe.augmentation.sizes
    if sizes is None:
        return recipe
    largest = ResizeStage(pixels=max(size.pixels for size in sizes), epochs=recipe.training.epochs)
    augmentation = recipe.augmentation.model_copy(update={"sizes": (largest,)})
    return recipe.model_copy(update={"augmentation": augmentation})


def find_fitting_batch_size(
    batch_size: int, attempt: Callable[[int], None], is_allowed: Callable[[int], bool] = lambda _: True
) -> int | None:
    """Find a batch size that fits, within about a quarter of the largest that does.

    Halves the batch until it fits, then enlarges it twice. All attempts together process about three times the images
    of the batch that did not fit.

    Args:
        batch_size: The size that did not fit.
        attempt: Trains with a batch size, using as much memory as a whole run.
        is_allowed: Whether a recipe may have a batch size; others are neither tried nor found.

    Returns:
        The size, which has been tried; None where even the smallest batch does not fit.
    """

    def candidate(size: int) -> int:
        """The largest size up to this one that may be found; below the smallest batch where there is none."""
        size = _rounded(size)
        while size >= SMALLEST_BATCH and not is_allowed(size):
            size = _rounded(size - 1)
        return size

    too_large, fitting = batch_size, candidate(batch_size // 2)
    while fitting >= SMALLEST_BATCH and not _fits(fitting, attempt):
        too_large, fitting = fitting, candidate(fitting // 2)
    if fitting < SMALLEST_BATCH:
        return None
    for _ in range(REFINEMENTS):
        middle = candidate((fitting + too_large) // 2)
        if middle <= fitting:
            break
        if _fits(middle, attempt):
            fitting = middle
        else:
            too_large = middle
    return fitting


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
    """Free the memory that no object uses, and torch's cache of GPU memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def within_free_memory(device: str) -> contextlib.AbstractContextManager[None]:
    """Make allocations fail that would take nearly all of the free memory of the machine or a GPU.

    Linux overcommits memory and kills processes that use it, so on a CPU the address space is limited. On a GPU some
    of what attempts leave goes to CUDA graph steps.
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
