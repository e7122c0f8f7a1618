"""Runs from options to results: planned, announced, run, and summed up."""

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from resnet_bench.base.text import duration, listed, plural
from resnet_bench.cli.closing import print_closing
from resnet_bench.cli.dry_run import print_dry_run
from resnet_bench.cli.live_runs import RunDisplay, RunsDisplay
from resnet_bench.cli.screen import announce_generated, ask_to_continue, measuring_aloud, print_table
from resnet_bench.data.dataset import Dataset
from resnet_bench.recipe.datasets import DatasetFacts
from resnet_bench.running.context import Context
from resnet_bench.running.events import JobFinished, JobStarted, Opened, update
from resnet_bench.running.job import Job
from resnet_bench.running.launchers.cluster import OnCluster
from resnet_bench.running.launchers.options import LauncherOptions
from resnet_bench.running.outcome import Outcome
from resnet_bench.running.plan import RunOptions, RunPlan, Survey, Surveyed, open_plan
from resnet_bench.running.run_cache import run_cache
from resnet_bench.running.sharing import choose_sharing
from resnet_bench.running.stopping import stop_on_signals
from resnet_bench.tracking.stale_runs import close_stale_runs
from resnet_bench.tracking.store import Store, where_to_see

if TYPE_CHECKING:
    from resnet_bench.reporting.reference import ReferenceResult


@dataclass
class RunsSummary:
    """What came of a command's runs."""

    results: list[tuple[Job, Outcome]] = field(default_factory=list)
    interrupted: bool = False
    out_of_time: bool = False
    """Whether it was interrupted because its time was used up."""
    abandoned: str | None = None
    """Why jobs of the plan were not started, a sentence."""

    @property
    def cached(self) -> int:
        """Runs that were finished before and not trained again."""
        return sum(outcome.cached for _, outcome in self.results)

    @property
    def failures(self) -> int:
        """Runs that could not be trained to their end."""
        return sum(outcome.failure is not None for _, outcome in self.results)

    def document(self) -> dict[str, Any]:
        """What came of each run, for a program."""
        return {
            "interrupted": self.interrupted,
            "resumable": self.is_resumable,
            "not_started": self.abandoned,
            "runs": [_run_document(job, outcome) for job, outcome in self.results],
        }

    @property
    def is_resumable(self) -> bool:
        """Whether an interrupted run has left a checkpoint."""
        folders = [Path(outcome.folder) for _, outcome in self.results if outcome.interrupted and outcome.folder]
        # A folder that is not here is on the node that trained, and the position in the artifact store.
        return any((folder / "checkpoints" / "last.pt").is_file() or not folder.is_dir() for folder in folders)


def _run_document(job: Job, outcome: Outcome) -> dict[str, Any]:
    return {
        "benchmark": job.benchmark.name,
        "profile": job.profile,
        "seed": job.seed,
        "fingerprint": job.recipe.fingerprint,
        "run_id": outcome.run_id,
        "url": outcome.url,
        "cached": outcome.cached,
        "finished": outcome.is_finished,
        "failure": outcome.failure,
        "interrupted": outcome.interrupted,
        "not_uploaded": outcome.not_uploaded,
        "test_accuracy": outcome.accuracy,
        "test_accuracy_standard": outcome.accuracy_standard,
        "test_accuracy_tta": outcome.accuracy_tta,
        "train_seconds": outcome.train_seconds,
        "images_per_second": outcome.images_per_second,
        "joules": outcome.joules,
    }


def run_all(
    options: RunOptions,
    context: Context,
    console: Console,
    *,
    ask: bool = False,
    dry_run: bool = False,
    detach: bool = False,
) -> RunsSummary:
    """Plan, announce what will run, run it, and print the closing table.

    A run that was finished before is not trained again, unless ``force`` is set. A run that fails does not stop
    those after it. A dry run ends after the announcement, with what a few steps of each benchmark need; detached, it
    ends when the jobs are submitted.

    Raises:
        UserError: Something asked for does not exist or does not fit; nothing was started.
    """
    # Pandas is imported here, when torch has been already.
    from resnet_bench.reporting.reference import beside_the_reference, known_reference

    echo = _printer(console)
    plan, datasets = open_plan(options, context, echo)
    if not plan.jobs:
        echo("this share of the plan is empty; there are fewer runs than shares")
        return RunsSummary()
    names = [job.benchmark.name for job in plan.jobs]
    if plan.cluster is not None:
        _announce_elsewhere(plan, plan.cluster, context.store, echo)
        context.store.prepare()
        if detach:
            _detach(plan, plan.cluster, context, echo)
            return RunsSummary()
        references = known_reference(names).results
        return _run_to_the_end(plan, {}, references, context, console)
    try:
        with measuring_aloud(console):
            survey = _survey(plan, context)
            if options.seeds_per_device is None and (sharing := choose_sharing(survey, context, echo)):
                echo(sharing.reason)
                if sharing.seeds > 1:
                    plan = plan.shared(sharing.seeds, context.options)
                    survey = _survey(plan, context)
    except KeyboardInterrupt:
        if not context.stop.is_out_of_time:
            raise
        return RunsSummary(interrupted=True, out_of_time=True)
    seconds = _announce(plan, survey, datasets, context.store, console)
    references = known_reference(names).results
    for found in references.values():
        echo(f"{found.benchmark}: {beside_the_reference(found, [], found.fingerprint)}")
    if dry_run:
        print_dry_run(plan, context, echo)
        return RunsSummary()
    if ask:
        ask_to_continue(seconds, console)

    context.store.prepare()
    close_stale_runs(context.store)
    return _run_to_the_end(plan, survey, references, context, console)


def _printer(console: Console) -> Callable[[str | Table], None]:
    """Return what prints on a console; text as it is."""

    def echo(text: str | Table) -> None:
        if isinstance(text, Table):
            print_table(text, console)
        else:
            console.print(text, highlight=False, markup=False, soft_wrap=True)

    return echo


def _run_to_the_end(
    plan: RunPlan,
    survey: Mapping[str, Surveyed],
    references: Mapping[str, "ReferenceResult"],
    context: Context,
    console: Console,
) -> RunsSummary:
    """Run the jobs and sum up."""
    echo = _printer(console)
    pending = sum(surveyed.outcome is None for surveyed in survey.values()) if survey else len(plan.jobs)
    announce = "stopping, writing a checkpoint; again to stop without it"
    with stop_on_signals(announce=announce, deadline=context.stop.deadline) as stop:
        summary = run_plan(plan, pending, survey, replace(context, stop=stop), console)
    echo("")
    finished_before = run_cache(context.store).finished_seeds
    print_closing(summary.results, references, echo, finished_before)
    if summary.abandoned:
        echo(summary.abandoned)
    echo("")
    for job, outcome in summary.results:
        if outcome.url:
            echo(f"{job.label}: {outcome.url}")
        if outcome.not_uploaded:
            echo(f"  {outcome.not_uploaded}")
    echo(f"\nruns are in {context.store.redacted_uri}; {where_to_see(context.store)}")
    return summary


def _survey(plan: RunPlan, context: Context) -> dict[str, Surveyed]:
    """What each job means where it would run, by its label."""
    asked = plan.ask(Survey(plan.jobs), context)
    return {event.job.label: event for event in asked if isinstance(event, Surveyed)}


def _announce(
    plan: RunPlan,
    survey: Mapping[str, Surveyed],
    datasets: Mapping[DatasetFacts, Dataset],
    store: Store,
    console: Console,
) -> float:
    """Print what will run, why, on what, and for how long; return the seconds."""

    def echo(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    left = [surveyed for surveyed in survey.values() if surveyed.outcome is None]
    by_name = {surveyed.job.benchmark.name: surveyed for surveyed in survey.values()}
    usual = next(iter(by_name.values()))
    for name, surveyed in by_name.items():
        if surveyed.execution.describe() != usual.execution.describe():
            echo(f"{name} runs fastest with: {surveyed.execution.describe()}")
    for surveyed in survey.values():
        if surveyed.why_not:
            echo(f"{surveyed.job.label} is trained again: {surveyed.why_not}")
    seconds = plan.seconds(survey)
    jobs_of = Counter(plan.choices[job.benchmark.name] for job in plan.jobs)
    for choice, count in jobs_of.items():
        echo(f"{plural(count, 'run')} in the {choice.profile} profile: {choice.reason}.")
    if shortened := plan.shortened():
        what = listed([f"{name} ({images})" for name, images in shortened.items()])
        echo(f"shortened to fit into the time: {what}; --profile smoke trains the whole smoke profile.")
    if cached := len(plan.jobs) - len(left):
        what = "All of them were" if not left else f"{cached} of them {'were' if cached > 1 else 'was'}"
        echo(
            f"{what} finished before with the same recipe, images, execution and code (--force trains them from "
            f"scratch); {len(left)} left to train."
        )
    together = f", {plan.sharing} seeds in parallel" if plan.sharing > 1 else ""
    together += f", on {plan.devices} GPUs" if plan.devices > 1 else ""
    echo(f"on {usual.device_name} ({usual.execution.describe()}){together}")
    for images in datasets.values():
        if images.generated:
            announce_generated(images.name, console)
        else:
            echo(f"{images.name} from {images.source} at {images.location}")
    echo(f"tracked in {store.redacted_uri}")
    # Where a run stopped is known only once it is opened.
    done = ", less what is done already" if any(surveyed.job.resume for surveyed in left) else ""
    echo(f"about {duration(seconds)} in all{done}\n" if left else "")
    return seconds


def _announce_elsewhere(
    plan: RunPlan, launcher: LauncherOptions, store: Store, echo: Callable[[str | Table], None]
) -> None:
    """Print what will run where; how it is executed is found there."""
    jobs_of = Counter(plan.choices[job.benchmark.name] for job in plan.jobs)
    for choice, count in jobs_of.items():
        echo(f"{plural(count, 'run')} in the {choice.profile} profile: {choice.reason}.")
    echo(f"on {launcher.describe()}")
    echo(f"tracked in {store.redacted_uri}\n")


def _detach(plan: RunPlan, launcher: LauncherOptions, context: Context, echo: Callable[[str | Table], None]) -> None:
    """Submit the jobs and print their ids."""
    launch = OnCluster(launcher).submit(plan.jobs, context)
    for handle in launch.handles:
        echo(f"{handle.id}: {listed([launch.labels[number] for number in handle.tasks])}")
    echo(f"submitted {plural(len(launch.handles), 'job')} as {launch.name}")
    echo("see: resnet-bench status; resnet-bench cancel")


def run_plan(
    plan: RunPlan, pending: int, survey: Mapping[str, Surveyed], context: Context, console: Console
) -> RunsSummary:
    """Run the jobs and show how they go."""
    summary = RunsSummary()
    outcomes: dict[str, Outcome] = {}
    shown: dict[str, RunDisplay] = {}

    def begin(label: str) -> RunDisplay:
        return display.begin(label, jobs[label].recipe, survey[label].costs if label in survey else None)

    jobs = {job.label: job for job in plan.jobs}

    with RunsDisplay(console, pending).shown() as display, contextlib.closing(plan.events(context)) as events:
        try:
            for task, event in events:
                label = task.label
                if isinstance(event, JobStarted):
                    outcomes[label] = Outcome(sharing=plan.sharing)
                update(outcomes[label], event)
                # A job that its scheduler has started again keeps its place on the screen.
                if isinstance(event, Opened) and event.outcome is None and label not in shown:
                    shown[label] = begin(label)
                if isinstance(event, JobFinished):
                    summary.interrupted |= event.interrupted
                    if event.device_problem:
                        summary.abandoned = f"the runs after it were not started: {event.device_problem}"
                    if event.failure and label not in shown:
                        shown[label] = begin(label)
                if label in shown:
                    shown[label].take(event)
                if isinstance(event, JobFinished):
                    shown.pop(label, None)
        except KeyboardInterrupt:
            summary.interrupted = True
            for label in shown:
                outcomes[label].interrupted = outcomes[label].failure is None
    summary.results = [(job, outcomes[label]) for label, job in jobs.items() if label in outcomes]
    # The time may also be up between two runs.
    summary.interrupted |= bool(context.stop) and summary.abandoned is None and len(summary.results) < len(jobs)
    summary.out_of_time = summary.interrupted and context.stop.is_out_of_time
    return summary
