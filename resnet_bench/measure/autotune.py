"""Measure which execution a recipe trains fastest with on this machine, once per machine."""

import dataclasses
import logging
from collections.abc import Callable, Sequence

from resnet_bench.execution.choices import ExecutionMode, Precision
from resnet_bench.execution.execution import Execution, has_bf16
from resnet_bench.measure.workload import Workload
from resnet_bench.models.of_recipe import recipe_macs
from resnet_bench.recipe.recipe import Recipe

_log = logging.getLogger(__name__)
# Child processes send their parent what is logged; without a handler nothing below a warning is printed.
_log.setLevel(logging.INFO)

MAX_STEP_FLOPS = 200e9
"""Upper limit of a measured step, about a second, so that measuring takes seconds; batches are cut to fit."""

SHORTEST_RUN_FLOPS = 150 * MAX_STEP_FLOPS
"""Shorter runs, such as those of smoke profiles, would end before the measurement had paid off."""

TIMINGS = 3
HOPELESS = 1.5
"""A candidate whose first timed step takes this many times the best one's time is not timed again."""

HANDICAP_WITHOUT_FAST_PATHS = 1.1
"""Returning memory to the system costs most with large batches, which are cut here: a tie at a small batch is not one
at theirs."""


def autotune(
    recipe: Recipe,
    execution: Execution,
    *,
    precision: bool = True,
    threads: bool = True,
    progress: Callable[[str], None] = _log.info,
) -> Execution:
    """Choose the fastest execution for a recipe in the mode ``auto``; any other mode is left as it is.

    On a CPU some steps are timed in fp32 and bf16, with fused layers, with the fast paths alone and with neither, with
    all threads and with half of them. The fastest is kept in the tuning cache, by machine, version of torch and shape
    of the work. On a GPU, and for runs shorter than the measurement, the execution is returned as resolved.

    Args:
        recipe: Model, image size, batch size and optimizer.
        execution: From :meth:`Execution.resolve`.
        precision: Whether the precision may be changed; False where the user gave one.
        threads: Whether the number of threads may be changed, likewise.
        progress: Called with a line of text as it measures.
    """
    images = recipe.data.num_train * recipe.training.epochs * recipe.relative_pixels
    if (
        execution.mode != ExecutionMode.AUTO
        or execution.device_type != "cpu"
        or execution.compile
        or images * _flops_per_image(recipe) < SHORTEST_RUN_FLOPS
    ):
        return execution
    memory = execution.memory()
    key = _key(recipe, execution, precision=precision, threads=threads)
    chosen = memory.get(key)
    if chosen is None:
        progress(f"measuring what {recipe.model.name} trains fastest with here; once, a minute or two")
        best = _fastest(recipe, _candidates(execution, precision=precision), progress)
        if threads and best.threads > 1:
            best = _fastest(recipe, [best, dataclasses.replace(best, threads=best.threads // 2)], progress)
        progress(f"fastest: {best.describe()}")
        found = {
            "precision": str(best.precision),
            "fast_paths": best.fast_paths,
            "fused_layers": best.fused_layers,
            "threads": best.threads,
        }
        chosen = memory.put(key, found)
    return dataclasses.replace(execution, **{**chosen, "precision": Precision(chosen["precision"])})


def work_key(recipe: Recipe) -> str:
    """Return what the time of a step of a recipe depends on, as part of a key of the tuning cache."""
    batch = f"batch {recipe.training.batch_size} at {recipe.image_size} px"
    return f"{recipe.model.model_dump_json(exclude_none=True)} {batch} {recipe.optimizer.name}"


def _key(recipe: Recipe, execution: Execution, *, precision: bool, threads: bool) -> str:
    # Not the words under which the fields of an execution had other names.
    parts = ["fastest mode of", work_key(recipe)]
    parts += [] if precision else [execution.precision]
    parts += [] if threads else [f"{execution.threads} threads"]
    parts += ["deterministic"] * execution.deterministic
    return " ".join(parts)


def _candidates(execution: Execution, *, precision: bool) -> list[Execution]:
    precisions = [execution.precision]
    if precision:
        precisions = [Precision.BF16, Precision.FP32] if has_bf16(execution.device_type) else [Precision.FP32]
    paths = [(True, True), (True, False), (False, False)] if execution.fused_layers else [(True, False), (False, False)]
    return [
        dataclasses.replace(execution, precision=chosen, fast_paths=fast_paths, fused_layers=fused_layers)
        for chosen in precisions
        for fast_paths, fused_layers in paths
    ]


def _fastest(recipe: Recipe, candidates: Sequence[Execution], progress: Callable[[str], None]) -> Execution:
    """Find the candidate whose best step is the shortest; their steps are interleaved."""
    batch_size = affordable_batch(recipe)
    workloads = [Workload(recipe, candidate, batch_size=batch_size) for candidate in candidates]
    best = [float("inf")] * len(candidates)
    for timing in range(TIMINGS):
        for i, (candidate, workload) in enumerate(zip(candidates, workloads, strict=True)):
            if timing > 0 and best[i] > HOPELESS * min(best):
                continue
            with candidate.applied():
                # The candidate before has returned its memory; a step of a run has that of the step before it.
                workload.step()
                seconds = workload.step().total
            handicap = 1.0 if candidate.fast_paths else HANDICAP_WITHOUT_FAST_PATHS
            best[i] = min(best[i], handicap * seconds)
            if timing == 0:
                progress(f"  {candidate.describe()}: {1000 * seconds:.0f} ms/step")
    return candidates[best.index(min(best))]


def affordable_batch(recipe: Recipe) -> int:
    """Return how many images a timed step may have to take about a second."""
    return max(2, min(recipe.training.batch_size, int(MAX_STEP_FLOPS / _flops_per_image(recipe))))


def _flops_per_image(recipe: Recipe) -> float:
    """Of a training step; the backward pass takes twice as many as the forward pass."""
    return 6.0 * recipe_macs(recipe)
