"""Tasks on a cluster: submitted, followed while they run, and cancelled. A scheduler is a :class:`Cluster`."""

import contextlib
import importlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from resnet_bench.base.errors import UserError
from resnet_bench.running.context import Context
from resnet_bench.running.events import Event, JobFinished, JobStarted
from resnet_bench.running.job import Job, Task
from resnet_bench.running.launchers.launch import Handle, Launch
from resnet_bench.running.launchers.options import LauncherOptions, check_installed
from resnet_bench.running.stopping import Stop
from resnet_bench.tracking.watching import watching

CLUSTERS = {
    "slurm": "resnet_bench.running.launchers.slurm:Slurm",
    "ray": "resnet_bench.running.launchers.ray_cluster:RayCluster",
}
"""Schedulers by name, as ``module:class``, each imported only if it is used; ``options.ENGINES`` has their options."""


@dataclass(frozen=True)
class JobState:
    """What a scheduler says of a job.

    Attributes:
        name: In its own words, such as ``PENDING``.
        node: Where it runs; empty before.
        is_over: Whether the job has ended, and is not started again.
    """

    name: str
    node: str = ""
    is_over: bool = False


class Cluster(Protocol):
    """A scheduler. It holds nothing: what is known of a launch is on disk, for later commands."""

    def __init__(self, options: LauncherOptions) -> None:
        """Use a scheduler with these options."""

    def submit(self, launch: Launch, packs: Sequence[tuple[int, ...]]) -> list[Handle]:
        """Submit a job per pack of tasks.

        Raises:
            UserError: The scheduler refuses them.
        """

    def fetch(self, launch: Launch) -> None:
        """Bring what the tasks have told to the launch's folder, where the jobs do not write there themselves.

        Raises:
            UserError: The scheduler does not answer.
        """

    def events(self, launch: Launch, stop: Stop) -> Iterator[tuple[int, Event]]:
        """Yield what tasks tell, by number, until each has said ``JobFinished``; setting ``stop`` cancels the jobs.

        ``JobStarted`` comes again where a job was started again.
        """

    def states(self, handles: Sequence[Handle]) -> Mapping[str, JobState]:
        """Return the state of each job that the scheduler still knows, by id."""

    def cancel(self, handles: Sequence[Handle]) -> None:
        """End jobs, with a checkpoint each; those that are over stay as they are."""


def find_cluster(options: LauncherOptions) -> Cluster:
    """Return the scheduler of a launcher.

    Raises:
        UserError: What it needs is not installed.
    """
    check_installed(options.launcher)
    module, _, attribute = CLUSTERS[options.launcher].partition(":")
    cluster: Cluster = getattr(importlib.import_module(module), attribute)(options)
    return cluster


class OnCluster:
    """Runs tasks on a cluster; see :class:`resnet_bench.running.launchers.launcher.Launcher`."""

    def __init__(self, options: LauncherOptions) -> None:
        """Use the launcher of these options.

        Raises:
            UserError: What it needs is not installed.
        """
        self._options = options
        self._cluster = find_cluster(options)

    def submit(self, tasks: Iterable[Task], context: Context) -> Launch:
        """Submit tasks, and return what is needed to follow them."""
        each = list(tasks)
        launch = Launch.create(context.run_dir.resolve(), self._options, each, _for_nodes(context))
        handles = self._cluster.submit(launch, packs(each, self._options))
        return launch.submitted(handles)

    def run(self, tasks: Iterable[Task], context: Context) -> Generator[tuple[Task, Event], None, None]:
        """Submit tasks and follow them to their end; ending early cancels the jobs."""
        each = list(tasks)
        if not each or context.stop:
            return
        launch = self.submit(each, context)
        open_tasks = dict(enumerate(each))
        begun: set[int] = set()
        try:
            with watching(context.store), contextlib.closing(self._follow(launch, context.stop)) as events:
                for number, event in events:
                    if number not in begun and not isinstance(event, JobStarted):
                        yield each[number], JobStarted()
                    begun.add(number)
                    if isinstance(event, JobFinished):
                        open_tasks.pop(number, None)
                    yield each[number], event
        except KeyboardInterrupt:
            self._cancel(launch, open_tasks)
            for number in [*open_tasks]:
                if number in begun:
                    yield open_tasks.pop(number), JobFinished(interrupted=True)
        finally:
            self._cancel(launch, open_tasks)

    def _follow(self, launch: Launch, stop: Stop) -> Generator[tuple[int, Event], None, None]:
        yield from self._cluster.events(launch, stop)

    def _cancel(self, launch: Launch, open_tasks: Mapping[int, Task]) -> None:
        left = [handle for handle in launch.handles if any(number in open_tasks for number in handle.tasks)]
        if left:
            with contextlib.suppress(UserError):
                self._cluster.cancel(left)


def packs(tasks: Sequence[Task], options: LauncherOptions) -> list[tuple[int, ...]]:
    """Share tasks out among jobs: neighbors go together, as many as the options say.

    Runs may share a job one after another; workers of a study are all needed at a time.
    """
    size = options.tasks_at_a_time
    if runs := [task for task in tasks if isinstance(task, Job)]:
        size *= options.runs_in_turn(short=all(run.profile == "smoke" for run in runs))
    return [tuple(range(first, min(first + size, len(tasks)))) for first in range(0, len(tasks), size)]


def _for_nodes(context: Context) -> Context:
    """The context as other machines understand it: no relative paths, and no clock of this one."""
    images = replace(context.images, folder=Path(context.images.folder).resolve())
    return replace(context, run_dir=context.run_dir.resolve(), images=images, stop=Stop())
