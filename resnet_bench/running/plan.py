"""What a command runs: benchmarks × seeds as jobs, their profiles, and the places that they share."""

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnet_bench.base.errors import UserError
from resnet_bench.data.dataset import Dataset, dataset_status
from resnet_bench.execution.devices import visible_gpus
from resnet_bench.execution.execution import Execution
from resnet_bench.execution.options import ExecutionOptions
from resnet_bench.measure.estimate import estimate_seconds, measure_flops_per_second
from resnet_bench.models.of_recipe import check_benchmark
from resnet_bench.recipe.benchmark import Benchmark, ProfileName
from resnet_bench.recipe.changes import override
from resnet_bench.recipe.datasets import DatasetFacts
from resnet_bench.recipe.files import expand_suites, load_benchmark
from resnet_bench.running.context import Context
from resnet_bench.running.events import Event, JobFinished, TaskEvent
from resnet_bench.running.job import Job, Task
from resnet_bench.running.launchers.child import preload
from resnet_bench.running.launchers.launcher import Launcher, Place, find_launcher
from resnet_bench.running.outcome import Outcome
from resnet_bench.running.prepare import prepare

SHORT_SECONDS = 900.0
"""A whole recipe that is estimated to take no longer is run in full without a GPU, too."""
SEED_LIMIT = 2**63
"""Seeds are smaller: every store and table keeps them as 64-bit integers with a sign."""


@dataclass(frozen=True)
class RunOptions:
    """What to run, as typed.

    Attributes:
        names: Benchmarks, by name or file.
        seeds: Each benchmark is trained once per seed.
        profile: ``full`` or ``smoke``; None takes what this machine can do.
        changes: Recipe keys and their values, for every benchmark.
        resume: Continue what was interrupted.
        force: Train what was finished before.
        seeds_per_device: How many seeds of a benchmark share a device at a time.
        benchmark_dir: A folder of benchmark files; it comes before the shipped ones.
    """

    names: Sequence[str]
    seeds: Sequence[int] = (0,)
    profile: ProfileName | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    resume: bool = False
    force: bool = False
    seeds_per_device: int = 1
    benchmark_dir: Path | None = None


@dataclass(frozen=True)
class ProfileChoice:
    """Which profile is run, and why."""

    profile: ProfileName
    reason: str


@dataclass(frozen=True)
class RunPlan:
    """What a command runs.

    Attributes:
        jobs: Benchmark by benchmark, seed by seed.
        choices: The profile of each benchmark, by name.
        places: Where jobs run at a time.
    """

    jobs: tuple[Job, ...]
    choices: Mapping[str, ProfileChoice]
    places: tuple[Place, ...]

    @property
    def launcher(self) -> Launcher:
        """In this process where there is one place; else in child processes."""
        return find_launcher("inline" if len(self.places) == 1 else "processes", self.places)

    @property
    def devices(self) -> int:
        """GPUs that the places are on; a CPU is divided and counts once."""
        return len({place.gpu for place in self.places})

    @property
    def sharing(self) -> int:
        """How many jobs share a device at a time."""
        return self.jobs[0].sharing

    def events(self, context: Context) -> Generator[tuple[Task, Event], None, None]:
        """Run the jobs; seeds that share a device are of one benchmark."""
        groups = [list(self.jobs)]
        if self.sharing > 1:
            groups = [list(jobs) for _, jobs in itertools.groupby(self.jobs, key=lambda job: job.benchmark.name)]
        for jobs in groups:
            stopped = False
            with contextlib.closing(self.launcher.run(jobs, context)) as events:
                for task, event in events:
                    yield task, event
                    if isinstance(event, JobFinished):
                        stopped |= event.interrupted or event.device_problem is not None
            if stopped:
                return


def load_benchmarks(options: RunOptions) -> list[Benchmark]:
    """Load the benchmarks of a command.

    Raises:
        UserError: A benchmark or suite does not exist or is invalid, a seed is out of range or given twice, or two
            benchmarks have one name.
    """
    for seed in options.seeds:
        if not 0 <= seed < SEED_LIMIT:
            raise UserError(f"seed {seed} is out of range; take one from 0 to 2**63 - 1")
    if len(set(options.seeds)) != len(options.seeds):
        raise UserError(f"a seed is given twice in {list(options.seeds)}")
    named = expand_suites(options.names, options.benchmark_dir)
    benchmarks = [load_benchmark(name, options.benchmark_dir) for name in named]
    by_name: dict[str, str] = {}
    for name, benchmark in zip(named, benchmarks, strict=True):
        if benchmark.name in by_name:
            raise UserError(
                f"{by_name[benchmark.name]} and {name} are both called {benchmark.name}, so that their runs could not "
                "be told apart; rename one of the files"
            )
        by_name[benchmark.name] = name
        check_benchmark(benchmark)
    return benchmarks


def open_plan(
    options: RunOptions, context: Context, progress: Callable[[str], None] | None = None
) -> tuple[RunPlan, dict[DatasetFacts, Dataset]]:
    """Plan runs and open their images; where these are generated, the plan is that for no real ones.

    Args:
        options: What to run.
        context: Where images are, and how runs are executed.
        progress: Called with a line of text now and then while images are loaded.

    Raises:
        UserError: Something asked for does not exist or does not fit.
    """
    benchmarks = load_benchmarks(options)
    names = sorted({benchmark.recipe.data.dataset for benchmark in benchmarks})
    images = context.images
    is_here = all(status.sources for status in dataset_status(images.folder) if status.name in names)
    # Planned before anything is downloaded or decoded, so that a mistyped key costs nothing.
    plan = plan_runs(options, benchmarks, context.options, real_data=is_here or images.download)
    if len(plan.places) > 1:
        preload()
    if any(context.open_images(job.recipe.data.facts, progress).generated for job in plan.jobs):
        plan = plan_runs(options, benchmarks, context.options, real_data=False)
    wanted = sorted({job.recipe.data.facts for job in plan.jobs}, key=lambda facts: facts.name)
    return plan, {facts: context.open_images(facts, progress) for facts in wanted}


def plan_runs(
    options: RunOptions, benchmarks: Sequence[Benchmark], execution: ExecutionOptions, *, real_data: bool
) -> RunPlan:
    """Plan one job per benchmark and seed.

    Args:
        options: What to run.
        benchmarks: As :func:`load_benchmarks` gives them.
        execution: How to run it.
        real_data: Whether there are images, or will be, that a claim can be judged on.

    Raises:
        UserError: The device does not exist here, a profile does not exist, or a change does not fit the recipe.
    """
    per_device = min(options.seeds_per_device, len(options.seeds))
    places = find_places(execution, per_device=per_device, jobs=len(options.seeds) * len(benchmarks))
    sharing = _most_in_one(places)
    choices = _choices(options, benchmarks, execution, places[0], real_data=real_data)
    jobs = [
        Job(
            benchmark=benchmark,
            recipe=override(benchmark.recipe_for(choices[benchmark.name].profile), options.changes, where="--set"),
            profile=choices[benchmark.name].profile,
            seed=seed,
            resume=options.resume,
            force=options.force,
            sharing=sharing,
        )
        for benchmark in benchmarks
        for seed in options.seeds
    ]
    return RunPlan(tuple(jobs), choices, places)


def find_places(execution: ExecutionOptions, *, per_device: int, jobs: int) -> tuple[Place, ...]:
    """Return where jobs run at a time: every GPU that may be used, or shares of the CPU's threads.

    Args:
        execution: The device ``auto`` or ``cuda`` means all visible GPUs, ``cuda:1`` that one.
        per_device: Jobs that share a device at a time.
        jobs: There are no more places than jobs; these are spread over the GPUs first.

    Raises:
        UserError: The device does not exist here.
    """
    gpus = visible_gpus() if execution.device_type == "cuda" else []
    if not gpus:
        count = max(1, min(per_device, jobs))
        return (Place(threads=max(1, execution.total_threads // count) if count > 1 else None),) * count
    if execution.device.startswith("cuda:"):
        gpus = [gpus[int(execution.device.partition(":")[2])]]
    # Round the GPUs, so that fewer jobs than places share as little as can be.
    shared = [gpu for _ in range(per_device) for gpu in gpus][: max(1, jobs)]
    if len(shared) == 1:
        return (Place(),)
    return tuple(Place(gpu, max(1, execution.total_threads // len(shared))) for gpu in shared)


def choose_profile(
    asked: ProfileName | None, device_type: str, *, real_data: bool, full_seconds: float
) -> ProfileChoice:
    """``full`` where there are real images and a GPU, or little to do; else ``smoke``, unless one was asked for.

    Args:
        asked: What the user wants.
        device_type: Where it would run: ``cpu``, ``cuda`` or ``mps``.
        real_data: Whether there are images that a claim can be judged on.
        full_seconds: About how long the whole recipe takes.
    """
    if asked is not None:
        return ProfileChoice(asked, "as asked")
    if not real_data:
        return ProfileChoice("smoke", "there is no real CIFAR here; resnet-bench data prepare fetches it")
    if device_type != "cpu":
        return ProfileChoice("full", "there are a GPU and real images")
    if full_seconds <= SHORT_SECONDS:
        return ProfileChoice("full", "it takes minutes, even without a GPU")
    return ProfileChoice("smoke", "there is no GPU here; --profile full trains as published, in hours or days")


def _choices(
    options: RunOptions,
    benchmarks: Sequence[Benchmark],
    execution: ExecutionOptions,
    place: Place,
    *,
    real_data: bool,
) -> dict[str, ProfileChoice]:
    """The profile of each benchmark."""
    is_open = options.profile is None and real_data and execution.device_type == "cpu"
    rate = measure_flops_per_second(place.narrowed(execution).resolve()) if is_open else None
    return {
        benchmark.name: choose_profile(
            options.profile,
            execution.device_type,
            real_data=real_data,
            full_seconds=math.inf if rate is None else estimate_seconds(benchmark.recipe, rate),
        )
        for benchmark in benchmarks
    }


def _most_in_one(places: Sequence[Place]) -> int:
    return max(Counter(place.gpu for place in places).values())


# --- what is left to do ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Surveyed(TaskEvent):
    """What one job means where it would run.

    Attributes:
        job: The job.
        execution: How it runs.
        device_name: The device, for a person.
        seconds: About how long it trains; 0 where it was finished before.
        outcome: Its result, where it was finished before.
        why_not: Why the nearest finished run does not count, where there is one.
    """

    job: Job
    execution: Execution
    device_name: str
    seconds: float
    outcome: Outcome | None
    why_not: str | None


@dataclass(frozen=True)
class Survey:
    """A task that looks which jobs are left to do and how long they take, at a place like theirs."""

    jobs: tuple[Job, ...]
    label: str = "the plan"

    def events(self, context: Context) -> Generator[Surveyed, None, None]:
        """Prepare each job, and train none."""
        for job in self.jobs:
            prepared = prepare(job, context)
            seconds = 0.0
            if prepared.outcome is None:
                seconds = estimate_seconds(job.recipe, measure_flops_per_second(prepared.execution))
            yield Surveyed(
                job, prepared.execution, prepared.facts.device_name, seconds, prepared.outcome, prepared.why_not
            )
