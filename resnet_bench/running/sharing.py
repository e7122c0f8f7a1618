"""How many seeds share a CPU: one that computes with all threads, or several with a share each, whichever is faster."""

import contextlib
from collections import Counter
from collections.abc import Generator, Mapping
from dataclasses import dataclass

from resnet_bench.base.text import plural
from resnet_bench.execution.choices import ExecutionMode
from resnet_bench.execution.options import ExecutionOptions
from resnet_bench.measure.costs import measure_costs
from resnet_bench.measure.estimate import training_seconds
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.running.context import Context
from resnet_bench.running.events import JobFinished, TaskEvent
from resnet_bench.running.launchers.launcher import find_launcher
from resnet_bench.running.launchers.places import find_places
from resnet_bench.running.plan import Surveyed

WORTH_SECONDS = 120.0
"""Less training than this ends before the measurement has paid off."""

GAIN = 1.1
"""Seeds train in parallel if that is as many times as fast: each then takes longer, and uses more memory."""


@dataclass(frozen=True)
class Sharing:
    """How many seeds share the device, and why, in one line."""

    seeds: int
    reason: str


@dataclass(frozen=True)
class Timed(TaskEvent):
    """How long the training of a recipe takes, in seconds."""

    seconds: float


@dataclass(frozen=True)
class Timing:
    """A task that times some steps of a recipe, at its place and beside others."""

    recipe: Recipe
    number: int

    @property
    def label(self) -> str:
        """Its number."""
        return f"timing {self.number}"

    def events(self, context: Context) -> Generator[Timed, None, None]:
        """Time the steps."""
        yield Timed(training_seconds(self.recipe, measure_costs(self.recipe, context.options.resolve())))


def choose_sharing(survey: Mapping[str, Surveyed], context: Context) -> Sharing | None:
    """Choose how many seeds share the CPU, by timing steps of the longest benchmark in as many processes.

    Args:
        survey: What each job means where it has the device alone, by its label.
        context: Where the jobs run.

    Returns:
        None where nothing is to be chosen: on a GPU, where the user chose threads or another mode than ``auto``, and
        where there is too little to train.
    """
    pending = [(surveyed, surveyed.costs) for surveyed in survey.values() if surveyed.costs is not None]
    if not pending or not _is_open(context.options):
        return None
    longest, costs = max(pending, key=lambda each: each[0].seconds)
    seeds = Counter(surveyed.job.benchmark.name for surveyed, _ in pending)[longest.job.benchmark.name]
    count = min(seeds, context.options.total_threads)
    if count < 2 or count * longest.seconds < WORTH_SECONDS:
        return None
    recipe = longest.job.recipe
    alone = training_seconds(recipe, costs)
    places = find_places(context.options, per_device=count, jobs=count)
    threads = places[0].threads or 1
    rates = []
    tasks = [Timing(recipe, number) for number in range(count)]
    with contextlib.closing(find_launcher("processes", places).run(tasks, context)) as events:
        for _, event in events:
            if isinstance(event, Timed):
                rates.append(1 / event.seconds)
            elif isinstance(event, JobFinished) and event.interrupted:
                raise KeyboardInterrupt
    what = f"{count} seeds in parallel, {plural(threads, 'thread')} each"
    if len(rates) < count:
        return Sharing(1, f"{what}, could not be timed; one seed after another")
    ratio = alone * sum(rates)
    if ratio >= GAIN:
        return Sharing(count, f"{what}: {ratio:.2f}× as fast as one after another (--seeds-per-device 1 trains so)")
    return Sharing(1, f"one seed after another: {what}, would be {ratio:.2f}× as fast")


def _is_open(options: ExecutionOptions) -> bool:
    chosen = options.threads is not None or options.deterministic or options.compile or not options.autotune
    # A busy machine has no cores to give to further processes.
    return (
        not chosen
        and options.mode == ExecutionMode.AUTO
        and options.device_type == "cpu"
        and options.resolve().threads == options.total_threads > 1
    )
