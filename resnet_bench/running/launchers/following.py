"""What is known of a launch's tasks that have not ended, from what they have written to its folder."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence

from resnet_bench.base.errors import UserError
from resnet_bench.base.text import plural
from resnet_bench.running.events import Event, JobFinished
from resnet_bench.running.launchers.event_log import EventReader, Suspended, newest_attempts
from resnet_bench.running.launchers.launch import Handle, Launch
from resnet_bench.running.stopping import Stop

_log = logging.getLogger(__name__)


class Follower:
    """The tasks of a launch that have not ended.

    Attributes:
        open: A reader per task that has not ended, by number.
        suspended: Those of them that have made room.
    """

    def __init__(self, launch: Launch) -> None:
        """Follow all tasks of a launch from their beginning."""
        self._launch = launch
        self.open = {number: EventReader(launch.events, number) for handle in launch.handles for number in handle.tasks}
        self.suspended: set[int] = set()

    def follow(
        self, stop: Stop, cancel: Callable[[Sequence[Handle]], None], *, every: float, patience: float
    ) -> Iterator[tuple[int, Event]]:
        """Yield what the tasks tell until each has ended; setting ``stop`` cancels them.

        Args:
            stop: Asks to end early.
            cancel: Cancels jobs.
            every: Seconds between two looks.
            patience: Seconds that cancelled tasks get for their last word.
        """
        give_up_at, is_cancelled, problem = None, False, ""
        while self.open:
            if stop and not is_cancelled:
                give_up_at = give_up_at or time.monotonic() + patience
                handles = [handle for handle in self._launch.handles if self.open.keys() & {*handle.tasks}]
                try:
                    cancel(handles)
                    is_cancelled = True
                except UserError as error:
                    problem = f"{plural(len(handles), 'job')} could not be cancelled ({error})"
            yield from self.look(cancelled=give_up_at is not None)
            if give_up_at is not None and time.monotonic() > give_up_at:
                if not is_cancelled:
                    _log.warning("%s; try it again: resnet-bench cancel %s", problem, self._launch.name)
                yield from self.give_up(JobFinished(interrupted=True))
            if self.open:
                sleep(every, stop if give_up_at is None else Stop())

    def look(self, *, cancelled: bool) -> Iterator[tuple[int, Event]]:
        """Yield what is known since the last call; a scheduler may have more to say than the tasks."""
        return self.read(cancelled=cancelled)

    def read(self, *, cancelled: bool) -> Iterator[tuple[int, Event]]:
        """Yield what was written since the last call.

        Args:
            cancelled: Whether a task that makes room is not started again.
        """
        newest = newest_attempts(self._launch.events)
        for number, reader in [*self.open.items()]:
            for event in reader.new(newest.get(number, -1)):
                if isinstance(event, Suspended) and cancelled:
                    event = JobFinished(interrupted=True)
                (self.suspended.add if isinstance(event, Suspended) else self.suspended.discard)(number)
                if isinstance(event, JobFinished):
                    self.open.pop(number, None)
                yield number, event

    def end(self, number: int, end: JobFinished) -> tuple[int, JobFinished]:
        """Close a task that has not said how it ended."""
        self.open.pop(number)
        return number, end

    def give_up(self, end: JobFinished) -> Iterator[tuple[int, Event]]:
        """Yield the end of all tasks that are open."""
        for number in [*self.open]:
            yield self.end(number, end)


def sleep(seconds: float, stop: Stop) -> None:
    """Sleep, less where asked to stop."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not stop:
        time.sleep(0.1)
