"""A job of a cluster on its node: it does its tasks, and writes what they tell to the launch's folder."""

import contextlib
import logging
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from resnet_bench.base.errors import UserError
from resnet_bench.running.context import Context
from resnet_bench.running.events import Event, JobFinished, JobStarted, Opened
from resnet_bench.running.job import Job, Task
from resnet_bench.running.launchers.event_log import Suspended, attempts_before, write_to
from resnet_bench.running.launchers.launch import Launch, path_of
from resnet_bench.running.launchers.launcher import find_launcher
from resnet_bench.running.launchers.places import find_places
from resnet_bench.running.run_folder import STATE_FILE, RunInUse, read_state
from resnet_bench.running.stopping import Stop, Stopped

SECONDS_BETWEEN_TRIES = 2.0

_log = logging.getLogger(__name__)


def do_tasks(folder: Path, numbers: Sequence[int], attempt: int, stop: Stop) -> bool:
    """Do tasks of a launch, one per GPU of this job at a time; those that an earlier attempt has done stay done.

    Args:
        folder: The launch's folder.
        numbers: The tasks.
        attempt: How often the job was started before.
        stop: Asks to make room.

    Returns:
        Whether all of them are done; else the job is to be started again.

    Raises:
        UserError: The launch's folder is damaged.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    launch = Launch.load(folder)
    if launch is None:
        raise UserError(f"{folder}: what was submitted cannot be read")
    tasks, context = launch.work()
    context = replace(context, stop=stop)
    before = {number: attempts_before(launch.events, number, attempt) for number in numbers}
    left = {number: found for number in numbers if (found := left_of(tasks[number], before[number])) is not None}
    if not left:
        return True
    writers = {task.label: write_to(path_of(launch.events, number, attempt)) for number, task in left.items()}
    undone = set(writers)
    with contextlib.closing(events_here([*left.values()], context)) as events:
        for task, event in events:
            writers[task.label].take(event)
            if isinstance(event, JobFinished):
                undone.discard(task.label)
    return not undone


def events_here(tasks: Sequence[Task], context: Context) -> Generator[tuple[Task, Event], None, None]:
    """Do tasks, one per GPU of this job at a time; one that is asked to make room ends with ``Suspended``."""
    places = find_places(context.options, per_device=1, jobs=len(tasks))
    # Of several tasks, one whose process dies must not cost the others.
    alone = len(tasks) == 1 and len(places) == 1
    launcher = find_launcher("inline" if alone else "processes", places)
    with contextlib.closing(launcher.run(tasks, context)) as events:
        for task, event in events:
            made_room = isinstance(event, JobFinished) and event.interrupted
            yield task, Suspended(context.stop.reason or "stopped") if made_room else event


def left_of(task: Task, before: Sequence[Sequence[Event]]) -> Task | None:
    """Return what is left to do of a task; None where it is done.

    Args:
        task: The task.
        before: What each earlier attempt at it has told.
    """
    if any(isinstance(event, JobFinished) for told in before for event in told):
        return None
    if not any(isinstance(event, JobStarted) for told in before for event in told):
        return task
    if isinstance(task, Job):
        folders = [event.folder for told in before for event in told if isinstance(event, Opened) and event.folder]
        states = [read_state(folder / STATE_FILE) for folder in folders]
        finished = any(state is not None and state["status"] == "finished" for state in states)
        # A run that --force asked for was trained to its end; the attempt only had no time to say so.
        task = replace(task, resume=True, force=task.force and not finished)
    return _AgainTask(task)


@dataclass(frozen=True)
class _AgainTask:
    """A task that was begun before, perhaps by a process that still runs where the scheduler lost sight of it."""

    task: Task

    @property
    def label(self) -> str:
        return self.task.label

    def events(self, context: Context) -> Generator[Event, None, None]:
        """Do the task as soon as no other process does it: that one finishes the run, or is killed."""
        waiting = False
        while True:
            try:
                yield from self.task.events(context)
            except RunInUse as error:
                if not waiting:
                    _log.warning("%s", error)
                waiting = True
            else:
                return
            if context.stop:
                raise Stopped("killed", context.stop.reason or "stopped")
            time.sleep(SECONDS_BETWEEN_TRIES)
