"""The events of a task as lines of JSON on the shared disk, from the job that does it to the command that watches it.

Each attempt at a task has a separate file, so that a process that was only cut off cannot write into what the next
attempt says. A reader ends an older attempt when it finds a newer one.
"""

import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_origin

from resnet_bench.running.events import Closed, Event, JobFinished, JobStarted, Opened, TaskEvent
from resnet_bench.running.launchers.child import portable
from resnet_bench.running.launchers.launch import attempts_in, path_of
from resnet_bench.running.outcome import Outcome
from resnet_bench.tracking.delivery import UploadReport
from resnet_bench.training.events import EpochEnded, Evaluated, Finished, Started, Steps

STEPS_SECONDS = 1.0
"""Steps of so many seconds are written together."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Suspended(TaskEvent):
    """The job has lost its place: its run is resumed where it is started again.

    Attributes:
        reason: Why, in a few words.
        is_lost: Whether its process or node was lost; else it was asked to make room, and has written a checkpoint.
    """

    reason: str
    is_lost: bool = False

    @property
    def state(self) -> str:
        """What has become of the job, for a person."""
        return "lost" if self.is_lost else "made room"


_EVENTS: dict[str, type[Any]] = {
    each.__name__: each
    for each in (
        JobStarted,
        Opened,
        Started,
        Steps,
        Evaluated,
        EpochEnded,
        Finished,
        Closed,
        Suspended,
        JobFinished,
    )
}
_LEFT_OUT = ("snapshot", "predictions")
_INSIDE: Mapping[str, type[Any]] = {"outcome": Outcome, "earlier": Outcome, "upload": UploadReport}


def register(*kinds: type[TaskEvent]) -> None:
    """Have further events written and read; their fields are plain values, lists, tables and tuples of these."""
    _EVENTS.update({kind.__name__: kind for kind in kinds})


def encode(event: Event) -> str | None:
    """Write an event as JSON; None for one that is of no use elsewhere."""
    kind = _EVENTS.get(type(event).__name__)
    if kind is None:
        return None
    fields = {field.name for field in dataclasses.fields(kind)} - {*_LEFT_OUT}
    values = {key: getattr(event, key) for key in sorted(fields)}
    return json.dumps({"event": kind.__name__, **values}, default=_plain)


def decode(line: str | bytes) -> Event | None:
    """Read what :func:`encode` wrote; None where it is something else, as of a newer version."""
    try:
        values = json.loads(line)
        kind = _EVENTS[values.pop("event")]
        for key, inner in _INSIDE.items():
            if isinstance(values.get(key), dict):
                values[key] = _inside(inner, values[key])
        if values.get("folder") is not None:
            values["folder"] = Path(values["folder"])
        for field in dataclasses.fields(kind):
            if get_origin(field.type) is tuple and field.name in values:
                values[field.name] = tuple(values[field.name])
        left_out = {field.name: None for field in dataclasses.fields(kind) if field.name in _LEFT_OUT}
        event: Event = kind(**left_out, **values)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return portable(event)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return vars(value)
    if isinstance(value, frozenset):
        return sorted(value)
    return str(value) if isinstance(value, Path) else dict(value)


def _inside(kind: type[Any], values: dict[str, Any]) -> Any:
    # JSON has no other keys than strings.
    tables = {
        key: {int(epoch): each for epoch, each in table.items()}
        for key, table in values.items()
        if isinstance(table, dict)
    }
    sets = {
        field.name: frozenset(values[field.name])
        for field in dataclasses.fields(kind)
        if isinstance(field.default, frozenset) and field.name in values
    }
    return kind(**{**values, **tables, **sets})


class EventWriter:
    """Writes what one attempt at a task tells, as lines."""

    def __init__(self, put: Callable[[str, Event], None]) -> None:
        """Write with a function of a line and the event that it holds."""
        self._put = put
        self._steps: Steps | None = None
        self._written_at = time.monotonic()

    def take(self, event: Event) -> None:
        """Write an event; steps wait for those after them."""
        if isinstance(event, Steps):
            self._steps = event if self._steps is None else _joined(self._steps, event)
            if time.monotonic() - self._written_at < STEPS_SECONDS:
                return
            event, self._steps = self._steps, None
        elif self._steps is not None:
            steps, self._steps = self._steps, None
            self._write(steps)
        self._write(event)

    def _write(self, event: Event) -> None:
        self._written_at = time.monotonic()
        line = encode(event)
        if line is not None:
            self._put(line, event)


def write_to(path: Path) -> EventWriter:
    """Return a writer to a file, which is made; a disk that is full is warned of."""

    def put(line: str, event: Event) -> None:
        try:
            with path.open("a", encoding="ascii") as file:
                file.write(line + "\n")
                file.flush()
                if isinstance(event, JobFinished | Suspended | Opened):
                    os.fsync(file.fileno())
        except OSError as error:
            _log.warning("%s cannot be written (%s)", path, error.strerror or error)

    return EventWriter(put)


def _joined(first: Steps, second: Steps) -> Steps:
    """The same steps as one event."""
    if second.epoch != first.epoch or second.first_step != first.last_step + 1:
        return second
    return dataclasses.replace(
        second,
        first_step=first.first_step,
        losses=[*first.losses, *second.losses],
        learning_rates=[*first.learning_rates, *second.learning_rates],
        images=first.images + second.images,
        correct=first.correct + second.correct,
        seconds=first.seconds + second.seconds,
    )


class EventReader:
    """Reads what the attempts at a task tell, as it is written.

    Attributes:
        attempt: The newest attempt that was found; -1 before the first.
    """

    def __init__(self, folder: Path, task: int) -> None:
        """Read about a task in a folder of event files."""
        self._folder, self._task = folder, task
        self.attempt = -1
        self._position = 0

    def new(self, newest: int) -> list[Event]:
        """Return what was written since the last call; what is left of an older attempt is passed over.

        Args:
            newest: The newest attempt there is; see :func:`newest_attempts`.
        """
        if newest > self.attempt:
            self.attempt, self._position = newest, 0
        if self.attempt < 0:
            return []
        try:
            with path_of(self._folder, self._task, self.attempt).open("rb") as file:
                file.seek(self._position)
                # A line that is not whole is still being written.
                lines = [line for line in file if line.endswith(b"\n")]
        except OSError:
            return []
        self._position += sum(len(line) for line in lines)
        return [event for line in lines if (event := decode(line)) is not None]


def newest_attempts(folder: Path) -> dict[int, int]:
    """Return the newest attempt at each task that was begun."""
    found: dict[int, int] = {}
    for _, task, attempt in attempts_in(folder):
        found[task] = max(attempt, found.get(task, -1))
    return found


def attempts_before(folder: Path, task: int, attempt: int) -> list[list[Event]]:
    """Return what each earlier attempt at a task told, the oldest first; one that never began is not among them."""
    told = []
    for number in range(attempt):
        reader = EventReader(folder, task)
        if path_of(folder, task, number).is_file():
            told.append(reader.new(number))
    return told
