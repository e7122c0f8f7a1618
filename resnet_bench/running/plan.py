"""What a command runs: benchmarks × seeds as jobs, their profiles, and the places that they share."""

import contextlib
import heapq
import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from resnet_bench.base.errors import UserError
from resnet_bench.base.text import duration, plural
from resnet_bench.data.dataset import Dataset, dataset_status
from resnet_bench.execution.execution import Execution
from resnet_bench.execution.options import ExecutionOptions
from resnet_bench.measure.costs import measure_costs
from resnet_bench.measure.estimate import Costs, estimate_seconds
from resnet_bench.models.of_recipe import check_benchmark
from resnet_bench.recipe.benchmark import Benchmark, ProfileName
from resnet_bench.recipe.changes import override
from resnet_bench.recipe.datasets import DatasetFacts
from resnet_bench.recipe.files import expand_suites, load_benchmark
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.running.context import Context
from resnet_bench.running.events import Event, JobFinished, TaskEvent
from resnet_bench.running.first_run import (
    AROUND_SECONDS,
    FIRST_RUN_SECONDS,
    LEAST_TRAINING_SECONDS,
    choose_profiles,
    shorten,
)
from resnet_bench.running.job import Job, Task
from resnet_bench.running.launchers.child import preload
from resnet_bench.running.launchers.cluster import OnCluster
from resnet_bench.running.launchers.launcher import Launcher, Place, find_launcher
from resnet_bench.running.launchers.options import LauncherOptions
from resnet_bench.running.launchers.places import find_places, side_by_side
from resnet_bench.running.outcome import Outcome
from resnet_bench.running.prepare import prepare

_MINUTES = f"{FIRST_RUN_SECONDS / 60:.0f} minutes"
HOPELESS = 3.0
"""A recipe that takes this many times what is left, going by the batches of its smoke profile, is not timed itself."""
SEED_LIMIT = 2**63
"""Seeds are smaller: every store and table keeps them as 64-bit integers with a sign."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


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
        seeds_per_device: How many seeds of a benchmark share a device at a time; None takes what trains fastest.
        benchmark_dir: A folder of benchmark files; it comes before the shipped ones.
        launcher: ``inline``, ``processes``, or the options of a launcher that has jobs run elsewhere; None takes what
            fits this machine.
        shard: Run the i-th of n shares of the plan, as (i, n) with i from 1.
    """

    names: Sequence[str]
    seeds: Sequence[int] = (0,)
    profile: ProfileName | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    resume: bool = False
    force: bool = False
    seeds_per_device: int | None = 1
    benchmark_dir: Path | None = None
    launcher: str | LauncherOptions | None = None
    shard: tuple[int, int] | None = None


@dataclass(frozen=True)
class ProfileChoice:
    """Which profile is run, and why.

    Attributes:
        profile: ``full`` or ``smoke``.
        reason: Part of a sentence.
        shortened: Recipe keys that were given less than the profile has, so that it fits, and their values.
    """

    profile: ProfileName
    reason: str
    shortened: Mapping[str, int] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class RunPlan:
    """What a command runs.

    Attributes:
        jobs: Benchmark by benchmark, seed by seed.
        choices: The profile of each benchmark, by name.
        places: Where jobs run at a time; none on a cluster, whose jobs find their own.
        launched_by: The launcher that was asked for.
    """

    jobs: tuple[Job, ...]
    choices: Mapping[str, ProfileChoice]
    places: tuple[Place, ...]
    launched_by: str | LauncherOptions | None = None

    @property
    def cluster(self) -> LauncherOptions | None:
        """The options of the launcher that has the jobs run elsewhere; None where they run on this machine."""
        return None if isinstance(self.launched_by, str) else self.launched_by

    @property
    def launcher(self) -> Launcher:
        """As asked for; else in this process where there is one place, and in child processes where there are more."""
        if self.cluster is not None:
            return OnCluster(self.cluster)
        name = self.launched_by if isinstance(self.launched_by, str) else None
        return find_launcher(name or ("inline" if len(self.places) == 1 else "processes"), self.places)

    def shortened(self) -> dict[str, str]:
        """Return by benchmark, in words, of how many images of its profile those that were shortened train on how many.

        The profiles are taken as they are in the files.
        """
        told = {}
        for job in self.jobs:
            if keys := self.choices[job.benchmark.name].shortened:
                ours, whole = job.recipe.data, job.benchmark.recipe_for(job.profile).data
                parts = [f"{ours.num_train:,} of {whole.num_train:,} images"]
                if "data.test_images" in keys:
                    parts.append(f"tested on {ours.num_test:,} of {whole.num_test:,}")
                told[job.benchmark.name] = ", ".join(parts)
        return told

    @property
    def devices(self) -> int:
        """GPUs that the places are on; a CPU is divided and counts once."""
        return len({place.gpu for place in self.places})

    @property
    def sharing(self) -> int:
        """How many jobs share a device at a time."""
        return self.jobs[0].sharing if self.jobs else 1

    def shared(self, seeds: int, execution: ExecutionOptions) -> "RunPlan":
        """The same jobs, so many seeds of a benchmark at a time."""
        places = find_places(execution, per_device=seeds, jobs=len(self.jobs))
        sharing = _most_in_one(places)
        return replace(self, jobs=tuple(replace(job, sharing=sharing) for job in self.jobs), places=places)

    def seconds(self, survey: Mapping[str, "Surveyed"]) -> float:
        """Estimate how long the jobs take, each started where an earlier one has ended, in seconds.

        Args:
            survey: What each job means where it would run, by its label.
        """
        device_types = {surveyed.execution.device_type for surveyed in survey.values()}
        lanes = max([1, *(side_by_side(self.places, device_type) for device_type in device_types)])
        return sum(_in_lanes([survey[job.label].seconds for job in jobs], lanes) for jobs in self._groups())

    def events(self, context: Context) -> Generator[tuple[Task, Event], None, None]:
        """Run the jobs; seeds that share a device are of one benchmark."""
        for jobs in self._groups():
            stopped = False
            with contextlib.closing(self.launcher.run(jobs, context)) as events:
                for task, event in events:
                    yield task, event
                    if isinstance(event, JobFinished):
                        stopped |= event.interrupted or event.device_problem is not None
            if stopped:
                return

    def _groups(self) -> list[list[Job]]:
        """The jobs that may share a device; a group begins when the one before it has ended."""
        if self.sharing == 1:
            return [list(self.jobs)]
        return [list(jobs) for _, jobs in itertools.groupby(self.jobs, key=lambda job: job.benchmark.name)]

    def ask(self, task: Task, context: Context) -> list[Event]:
        """Return the events of a task that trains nothing, run where the jobs would be.

        Raises:
            UserError: It failed.
            KeyboardInterrupt: It was interrupted, or no time was left for it.
        """
        found: list[Event] = []
        with contextlib.closing(self.launcher.run([task], context)) as events:
            for _, event in events:
                if not isinstance(event, JobFinished):
                    found.append(event)
                elif event.failure is not None:
                    raise UserError(event.failure)
                elif not event.interrupted:
                    return found
        raise KeyboardInterrupt


def _in_lanes(seconds: Sequence[float], lanes: int) -> float:
    """When the last of some jobs ends, where each in turn takes the lane that is free first."""
    ends = [0.0] * lanes
    for each in seconds:
        heapq.heapreplace(ends, ends[0] + each)
    return max(ends)


def load_benchmarks(options: RunOptions) -> list[Benchmark]:
    """Load the benchmarks of a command.

    Raises:
        UserError: A benchmark or suite does not exist or is invalid, a seed is out of range or given twice, or two
            benchmarks have one name.
    """
    if not options.seeds:
        raise UserError("there is no seed to train; take one or more")
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
    began = time.monotonic()
    benchmarks = load_benchmarks(options)
    if options.launcher is not None and not isinstance(options.launcher, str):
        return plan_elsewhere(options, benchmarks), {}
    names = sorted({benchmark.recipe.data.dataset for benchmark in benchmarks})
    images = context.images
    is_here = all(status.sources for status in dataset_status(images.folder) if status.name in names)
    real_data = is_here or images.download
    # Planned before anything is downloaded or decoded, so that a mistyped key costs nothing; without a GPU only for the
    # smoke profiles, because what else fits is measured when it is known how much time is left.
    has_gpu = context.options.device_type != "cpu"
    plan = plan_runs(options, benchmarks, context.options, real_data=real_data and has_gpu)
    if len(plan.places) > 1:
        preload()
    context.options.compile_ahead()
    real_data = not any(context.open_images(job.recipe.data.facts, progress).generated for job in plan.jobs)
    plan = plan_runs(
        options, benchmarks, context.options, real_data=real_data, progress=progress or _log.info, began=began
    )
    wanted = sorted({job.recipe.data.facts for job in plan.jobs}, key=lambda facts: facts.name)
    return plan, {facts: context.open_images(facts, progress) for facts in wanted}


def plan_runs(
    options: RunOptions,
    benchmarks: Sequence[Benchmark],
    execution: ExecutionOptions,
    *,
    real_data: bool,
    progress: Callable[[str], None] = _log.info,
    began: float | None = None,
) -> RunPlan:
    """Plan one job per benchmark and seed.

    Args:
        options: What to run.
        benchmarks: As :func:`load_benchmarks` gives them.
        execution: How to run it.
        real_data: Whether there are images, or will be, that a claim can be judged on.
        progress: Called with a line of text before something is measured.
        began: When the command began, by ``time.monotonic``: what has passed is not left for runs. Now by default.

    Raises:
        UserError: The device does not exist here, a profile does not exist, or a change does not fit the recipe.
    """
    per_device = min(options.seeds_per_device or 1, len(options.seeds))
    count = len(shard(range(len(options.seeds) * len(benchmarks)), options.shard))
    places = find_places(execution, per_device=per_device, jobs=count)
    if options.launcher == "inline":
        places = places if len(places) == 1 else (Place(),)
    sharing = _most_in_one(places)
    began = time.monotonic() if began is None else began
    choices = _choices(options, benchmarks, execution, places, progress, real_data=real_data, began=began)
    return RunPlan(_jobs(options, benchmarks, choices, sharing), choices, places, options.launcher)


def plan_elsewhere(options: RunOptions, benchmarks: Sequence[Benchmark]) -> RunPlan:
    """Plan jobs that run on other machines: this one needs neither their devices nor their images.

    Args:
        options: What to run.
        benchmarks: As :func:`load_benchmarks` gives them.

    Raises:
        UserError: A profile does not exist, or a change does not fit the recipe.
    """
    reason = "as asked" if options.profile else "--profile smoke tries the software"
    choice = ProfileChoice(options.profile or "full", reason)
    choices = {benchmark.name: choice for benchmark in benchmarks}
    return RunPlan(_jobs(options, benchmarks, choices, sharing=1), choices, (), options.launcher)


def shard(items: Sequence[T], share: tuple[int, int] | None) -> Sequence[T]:
    """Return the i-th of n shares, as (i, n) with i from 1: disjoint, and together everything; None: all of it."""
    return items if share is None else items[share[0] - 1 :: share[1]]


def _jobs(
    options: RunOptions, benchmarks: Sequence[Benchmark], choices: Mapping[str, ProfileChoice], sharing: int
) -> tuple[Job, ...]:
    jobs = [
        Job(
            benchmark=benchmark,
            recipe=override(
                override(benchmark.recipe_for(choices[benchmark.name].profile), options.changes, where="--set"),
                choices[benchmark.name].shortened,
            ),
            profile=choices[benchmark.name].profile,
            seed=seed,
            resume=options.resume,
            force=options.force,
            sharing=sharing,
            planned=tuple(options.seeds),
        )
        for benchmark in benchmarks
        for seed in options.seeds
    ]
    return tuple(shard(jobs, options.shard))


def _choices(
    options: RunOptions,
    benchmarks: Sequence[Benchmark],
    execution: ExecutionOptions,
    places: Sequence[Place],
    progress: Callable[[str], None],
    *,
    real_data: bool,
    began: float,
) -> dict[str, ProfileChoice]:
    """The profile of each benchmark, and why."""

    def all_are(profile: ProfileName, reason: str) -> dict[str, ProfileChoice]:
        return {benchmark.name: ProfileChoice(profile, reason) for benchmark in benchmarks}

    if options.profile is not None:
        return all_are(options.profile, "as asked")
    if not real_data:
        return all_are("smoke", "there is no real CIFAR here; resnet-bench data prepare fetches it")
    if execution.device_type != "cpu":
        return all_are("full", "there are a GPU and real images")
    resolved = places[0].narrowed(execution).resolve()
    smoke = {each.name: override(each.recipe_for("smoke"), options.changes, where="--set") for each in benchmarks}
    whole = {each.name: _full_recipe(each, options.changes) for each in benchmarks}
    prints = [f"{name} {smoke[name].fingerprint} {recipe and recipe.fingerprint}" for name, recipe in whole.items()]
    # Also where the machine is busy and runs have fewer threads: finished runs of any number count.
    usual = replace(resolved, threads=execution.total_threads)
    key = " ".join(
        [
            f"first run of {FIRST_RUN_SECONDS:g} s, {len(places)} × {usual.describe()}:",
            *prints,
            *sorted(options.changes),
        ]
    )
    memory = usual.memory()
    # Chosen once, so that what was finished or interrupted is what the next command plans, however long it measures.
    found = memory.get(key)
    if found is None:
        progress(f"timing some steps of {plural(len(benchmarks), 'benchmark')}, to see what fits into {_MINUTES}")
        found = _first_run(smoke, whole, resolved, options.changes, len(places), began)
        # What fits beside other work is for this command alone.
        if resolved.threads == usual.threads:
            found = memory.put(key, found)
    why_smoke = "there is no GPU here; --profile full trains as published" + (
        f", which takes about {duration(found['rest'])} per seed" if found["rest"] else ""
    )
    return {
        name: ProfileChoice("full", f"it fits into {_MINUTES}, even without a GPU")
        if name in found["full"]
        else ProfileChoice("smoke", why_smoke, found["shortened"].get(name, {}))
        for name in smoke
    }


def _first_run(
    smoke: Mapping[str, Recipe],
    whole: Mapping[str, Recipe | None],
    execution: Execution,
    fixed: Collection[str],
    lanes: int,
    began: float,
) -> dict[str, Any]:
    """What is trained in full, what is shortened to what, and what the rest would take in full, in seconds."""
    costs = {name: measure_costs(recipe, execution) for name, recipe in smoke.items()}
    needed: dict[str, float] = {}

    def full_seconds(name: str, left: float) -> float:
        if (recipe := whole[name]) is None:
            return math.inf
        seconds = 0.0
        if set(recipe.image_sizes) <= set(costs[name].training):
            seconds = estimate_seconds(recipe, costs[name])
        if seconds < HOPELESS * left:
            seconds = estimate_seconds(recipe, measure_costs(recipe, execution))
        if seconds:
            needed[name] = seconds
        return seconds

    left = FIRST_RUN_SECONDS - AROUND_SECONDS - (time.monotonic() - began)
    allowed = max(left, LEAST_TRAINING_SECONDS) * lanes
    smoke_seconds = {name: estimate_seconds(recipe, costs[name]) for name, recipe in smoke.items()}
    chosen = choose_profiles(smoke_seconds, full_seconds, seconds=allowed)
    shortened = {} if chosen else shorten(smoke, costs, seconds=allowed, fixed=fixed)
    if not needed:
        # Nothing fits: by what was measured for the smoke profiles.
        for name in smoke:
            full_seconds(name, 0.0)
    rest = sum(seconds for name, seconds in needed.items() if name not in chosen)
    return {"full": sorted(chosen), "shortened": shortened, "rest": rest}


def _full_recipe(benchmark: Benchmark, changes: Mapping[str, Any]) -> Recipe | None:
    """The full recipe with the changes; None where they do not fit."""
    try:
        return override(benchmark.recipe_for("full"), changes, where="--set")
    except UserError:
        return None


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
        costs: What an image costs; None where it was finished before.
        outcome: Its result, where it was finished before.
        why_not: Why the nearest finished run does not count, where there is one.
    """

    job: Job
    execution: Execution
    device_name: str
    costs: Costs | None
    outcome: Outcome | None
    why_not: str | None

    @property
    def seconds(self) -> float:
        """About how long it trains; 0 where it was finished before."""
        return estimate_seconds(self.job.recipe, self.costs) if self.costs else 0.0


@dataclass(frozen=True)
class Survey:
    """A task that looks which jobs are left to do and how long they take, at a place like theirs."""

    jobs: tuple[Job, ...]
    label: str = "the plan"

    def events(self, context: Context) -> Generator[Surveyed, None, None]:
        """Prepare each job, and train none."""
        for job in self.jobs:
            prepared = prepare(job, context)
            costs = None if prepared.outcome else measure_costs(job.recipe, prepared.execution)
            yield Surveyed(
                job, prepared.execution, prepared.facts.device_name, costs, prepared.outcome, prepared.why_not
            )
