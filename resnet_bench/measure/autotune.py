"""The execution that a recipe runs fastest with on this machine: measured once, then remembered."""

import dataclasses
from collections.abc import Sequence

from resnet_bench.execution.choices import Precision
from resnet_bench.execution.execution import Execution, has_bf16
from resnet_bench.measure.workload import Workload
from resnet_bench.models.of_recipe import recipe_macs
from resnet_bench.recipe.recipe import Recipe

MAX_STEP_FLOPS = 200e9
"""A measured step computes at most this much, so that measuring takes seconds; batches are cut to fit."""

SHORTEST_RUN_STEPS = 200
"""A shorter run would be over before the measurement had paid for itself."""

TIMINGS = 3
HOPELESS = 1.5
"""A candidate whose first timed step takes this many times the best one's is not timed again."""

HANDICAP_OF_SLOW_PATHS = 1.1
"""Giving memory back costs most with the large batches that are cut here: a tie at a small one is none at those."""


def autotune(recipe: Recipe, execution: Execution, *, precision: bool = True, threads: bool = True) -> Execution:
    """The fastest execution for a recipe at the level ``auto``; any other level is left as it is.

    On a CPU some steps are timed in fp32 and bf16, with fused layers, with the fast paths alone and with neither, with
    all threads and with half of them; what was fastest is remembered for the machine, the version of torch and the
    shape of the work. On a GPU, and for runs that are over sooner than the measurement, the execution is returned as it
    was resolved.

    Args:
        recipe: Network, image size, batch size and optimizer.
        execution: As :meth:`Execution.resolve` gives it.
        precision: Whether the precision may be changed; False where the user gave one.
        threads: Whether the number of threads may be changed, likewise.
    """
    steps = recipe.steps_per_epoch * recipe.training.epochs
    if execution.level != "auto" or execution.device_type != "cpu" or execution.compile or steps < SHORTEST_RUN_STEPS:
        return execution
    memory = execution.memory()
    key = _key(recipe, execution, precision=precision, threads=threads)
    chosen = memory.get(key)
    if chosen is None:
        best = _fastest(recipe, _ways(execution, precision=precision))
        if threads and best.threads > 1:
            best = _fastest(recipe, [best, dataclasses.replace(best, threads=best.threads // 2)])
        found = {
            "precision": best.precision,
            "fast_paths": best.fast_paths,
            "fused": best.fused,
            "threads": best.threads,
        }
        chosen = memory.put(key, found)
    return dataclasses.replace(execution, **chosen)


def _key(recipe: Recipe, execution: Execution, *, precision: bool, threads: bool) -> str:
    parts = [
        # Not the words of choices that were remembered when there were fewer ways.
        "fastest execution of",
        recipe.model.model_dump_json(exclude_none=True),
        f"batch {recipe.training.batch_size} at {recipe.image_size} px",
        recipe.optimizer.name,
    ]
    parts += [] if precision else [execution.precision]
    parts += [] if threads else [f"{execution.threads} threads"]
    parts += ["deterministic"] * execution.deterministic
    return " ".join(parts)


def _ways(execution: Execution, *, precision: bool) -> list[Execution]:
    precisions: list[Precision] = [execution.precision]
    if precision:
        precisions = ["bf16", "fp32"] if has_bf16() else ["fp32"]
    paths = [(True, True), (True, False), (False, False)] if execution.fused else [(True, False), (False, False)]
    return [
        dataclasses.replace(execution, precision=chosen, fast_paths=fast_paths, fused=fused)
        for chosen in precisions
        for fast_paths, fused in paths
    ]


def _fastest(recipe: Recipe, candidates: Sequence[Execution]) -> Execution:
    """The candidate whose best step is the shortest, all of them taking turns."""
    batch_size = _affordable_batch(recipe)
    workloads = [Workload(recipe, candidate, batch_size=batch_size) for candidate in candidates]
    best = [float("inf")] * len(candidates)
    for timing in range(TIMINGS):
        for i, (candidate, workload) in enumerate(zip(candidates, workloads, strict=True)):
            if timing > 0 and best[i] > HOPELESS * min(best):
                continue
            with candidate.applied():
                # The previous turn has given its memory back; a step of a run has that of the step before it.
                workload.step()
                seconds = workload.step().total
            handicap = 1.0 if candidate.fast_paths else HANDICAP_OF_SLOW_PATHS
            best[i] = min(best[i], handicap * seconds)
    return candidates[best.index(min(best))]


def _affordable_batch(recipe: Recipe) -> int:
    flops_an_image = 6 * recipe_macs(recipe)
    return max(2, min(recipe.training.batch_size, int(MAX_STEP_FLOPS / flops_an_image)))
