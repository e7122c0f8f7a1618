"""How many seeds share a CPU: one that computes with all threads, or several with a share each, whichever is faster."""

import contextlib
import statistics
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace

import psutil  # type: ignore[import-untyped]
import torch

from resnet_bench.base.text import file_size, plural
from resnet_bench.execution.choices import ExecutionMode
from resnet_bench.execution.devices import peak_memory
from resnet_bench.execution.execution import Execution
from resnet_bench.execution.options import ExecutionOptions
from resnet_bench.measure.autotune import work_key
from resnet_bench.measure.workload import Workload
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.running.context import Context
from resnet_bench.running.events import JobFinished, TaskEvent
from resnet_bench.running.launchers.launcher import Place, find_launcher
from resnet_bench.running.launchers.places import find_places
from resnet_bench.running.plan import Surveyed
from resnet_bench.training.memory import SPARE

WORTH_SECONDS = 120.0
"""Less training than this ends before the measurement has paid off."""

GAIN = 1.1
"""Seeds train in parallel if that is as many times as fast: each then takes longer, and uses more memory."""

WARM_UP_STEPS = 2
STEPS = 3

AROUND_BYTES = 500 * 2**20
"""What a run keeps besides its steps: images, MLflow, a position to write."""


@dataclass(frozen=True)
class Sharing:
    """How many seeds share the device, and why, in one line."""

    seeds: int
    reason: str


@dataclass(frozen=True)
class Timed(TaskEvent):
    """What a step of a recipe takes.

    Attributes:
        seconds: Of a warm step.
        memory_bytes: Peak of the process; 0 where the system does not tell.
    """

    seconds: float
    memory_bytes: int


@dataclass(frozen=True)
class Timing:
    """A task that times whole steps of a recipe, at its place and beside others."""

    recipe: Recipe
    execution: Execution
    number: int = 0

    @property
    def label(self) -> str:
        """Its number."""
        return f"timing {self.number}"

    def events(self, context: Context) -> Generator[Timed, None, None]:  # noqa: ARG002 - every task is given one
        """Time the steps."""
        with self.execution.applied():
            workload = Workload(self.recipe, self.execution)
            seconds = [workload.step().total for _ in range(WARM_UP_STEPS + STEPS)]
        memory = 0
        with contextlib.suppress(OSError):
            memory = peak_memory(torch.device(self.execution.device))
        yield Timed(statistics.median(seconds[WARM_UP_STEPS:]), memory)


def choose_sharing(survey: Mapping[str, Surveyed], context: Context, progress: Callable[[str], None]) -> Sharing | None:
    """Choose how many seeds share the CPU, by timing steps of the longest benchmark in one and in several processes.

    What was measured is kept in the tuning cache, by machine, recipe and number of seeds.

    Args:
        survey: What each job means where it has the device alone, by its label.
        context: Where the jobs run.
        progress: Called with a line of text before something is measured.

    Returns:
        None where nothing is to be chosen: on a GPU, where the user chose threads or another mode than ``auto``, and
        where there is too little to train.
    """
    pending = [surveyed for surveyed in survey.values() if surveyed.costs is not None]
    if not pending or not _is_open(context.options):
        return None
    longest = max(pending, key=lambda surveyed: surveyed.seconds)
    seeds = Counter(surveyed.job.benchmark.name for surveyed in pending)[longest.job.benchmark.name]
    count = min(seeds, context.options.total_threads)
    if count < 2 or count * longest.seconds < WORTH_SECONDS:
        return None
    recipe, execution = longest.job.recipe, longest.execution
    kept, key = execution.memory(), f"seeds in parallel of {work_key(recipe)}, {execution.describe()}"
    untimed = Sharing(1, "one seed after another: seeds in parallel could not be timed")
    alone: list[Timed] = []
    if (needed := kept.get(f"{key}, memory")) is None:
        progress(f"timing whether seeds of {longest.job.benchmark.name} train faster in parallel; once")
        if not (alone := _timed([Timing(recipe, execution)], (Place(),), context)):
            return untimed
        needed = kept.put(f"{key}, memory", alone[0].memory_bytes)
    free = int((1 - SPARE) * psutil.virtual_memory().available)
    count = min(count, free // (needed + AROUND_BYTES))
    if count < 2:
        return Sharing(1, f"one seed after another: each takes {file_size(needed)}, and {file_size(free)} are free")
    places = find_places(context.options, per_device=count, jobs=count)
    threads = places[0].threads or 1
    if (ratio := kept.get(f"{key}, {count} seeds")) is None:
        alone = alone or _timed([Timing(recipe, execution)], (Place(),), context)
        shared = replace(execution, threads=threads)
        beside = _timed([Timing(recipe, shared, number) for number in range(count)], places, context)
        if not alone or len(beside) < count:
            return untimed
        ratio = kept.put(f"{key}, {count} seeds", sum(alone[0].seconds / each.seconds for each in beside))
    what = f"{count} seeds in parallel, {plural(threads, 'thread')} each"
    if ratio >= GAIN:
        return Sharing(count, f"{what}: {ratio:.2f}× as fast as one after another (--seeds-per-device 1 trains so)")
    return Sharing(1, f"one seed after another: {what}, would be {ratio:.2f}× as fast")


def _timed(tasks: Sequence[Timing], places: Sequence[Place], context: Context) -> list[Timed]:
    """Run the tasks in parallel; those that fail are missing."""
    found = []
    with contextlib.closing(find_launcher("processes", places).run(tasks, context)) as events:
        for _, event in events:
            if isinstance(event, Timed):
                found.append(event)
            elif isinstance(event, JobFinished) and event.interrupted:
                raise KeyboardInterrupt
    return found


def _is_open(options: ExecutionOptions) -> bool:
    chosen = options.threads is not None or options.deterministic or options.compile or not options.autotune
    # A busy machine has no cores to give to further processes.
    return (
        not chosen
        and options.mode == ExecutionMode.AUTO
        and options.device_type == "cpu"
        and options.resolve().threads == options.total_threads > 1
    )
