"""How far the tasks of a launch are, from what they have written and from what their scheduler says."""

from dataclasses import dataclass

from resnet_bench.base.errors import UserError
from resnet_bench.running.events import JobFinished, Opened
from resnet_bench.running.launchers.cluster import find_cluster
from resnet_bench.running.launchers.event_log import EventReader, Suspended, newest_attempts
from resnet_bench.running.launchers.launch import Launch
from resnet_bench.training.events import EpochEnded, Evaluated, Started, Steps

GONE = "gone"
"""The state of a task whose job the scheduler no longer knows, and that has not said how it ended."""


@dataclass
class TaskProgress:
    """How far one task is.

    Attributes:
        task: What it is, for a person.
        job: The scheduler's id.
        state: ``waiting``, ``running``, ``made room``, ``lost``, ``finished``, ``failed``, ``interrupted``, or what the
            scheduler says, in lower case.
        node: Where it runs.
        epoch: The last epoch that was begun, or, where it was resumed just now, finished.
        epochs: Epochs in all; 0 before they are known.
        accuracy: The last one, a fraction.
        attempt: How often the job was started before.
        reason: Why it failed, made room or was lost.
        open: Whether it may still do something.
    """

    task: str
    job: str
    state: str = "waiting"
    node: str = ""
    epoch: int = 0
    epochs: int = 0
    accuracy: float | None = None
    attempt: int = 0
    reason: str | None = None
    open: bool = True


def look(launch: Launch) -> tuple[list[TaskProgress], str | None]:
    """Return how far each task of a launch is, and why its scheduler could not be asked, where that is so."""
    rows = _told(launch)
    if not any(row.open for row in rows):
        return rows, None
    try:
        cluster = find_cluster(launch.options)
        cluster.fetch(launch)
        rows = _told(launch)
        states = cluster.states(launch.handles)
    except UserError as error:
        return rows, f"{launch.name}: {error}"
    for row in rows:
        if not row.open:
            continue
        state = states.get(row.job)
        if state is None:
            row.state, row.open = GONE, False
            continue
        row.node = state.node
        if state.is_over:
            row.state, row.open = state.name.lower(), False
        elif row.state == "waiting" and state.name != "PENDING":
            row.state = state.name.lower()
    return rows, None


def _told(launch: Launch) -> list[TaskProgress]:
    """How far each task is by what it has told."""
    newest = newest_attempts(launch.events)
    rows = []
    for handle in launch.handles:
        for number in handle.tasks:
            row = TaskProgress(launch.labels[number], handle.id)
            _read(row, EventReader(launch.events, number), newest.get(number, -1))
            rows.append(row)
    return rows


def _read(row: TaskProgress, reader: EventReader, newest: int) -> None:
    row.attempt = max(0, newest)
    for event in reader.new(newest):
        match event:
            case Opened():
                row.state = "running"
                if event.outcome is not None:
                    row.epoch = row.epochs = event.outcome.epochs
                    row.accuracy = event.outcome.accuracy
            case Started():
                row.epoch, row.epochs = event.step // event.steps_per_epoch, event.epochs
            case Steps():
                row.epoch = event.epoch
            case Evaluated(split="test"):
                row.accuracy = event.accuracy
            case EpochEnded():
                row.epoch = event.epoch
            case Suspended():
                row.state, row.reason = event.state, event.reason
            case JobFinished():
                row.state = "failed" if event.failure else "interrupted" if event.interrupted else "finished"
                row.reason, row.open = event.failure, False
            case _:
                pass
