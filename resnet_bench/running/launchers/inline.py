"""Tasks one after another in this process."""

import contextlib
import itertools
import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace

from resnet_bench.running.context import Context
from resnet_bench.running.events import Event, JobFinished, JobStarted
from resnet_bench.running.job import Task
from resnet_bench.running.launchers.child import to_its_end
from resnet_bench.running.launchers.launcher import Place
from resnet_bench.running.launchers.processes import Processes
from resnet_bench.tracking.watching import watching

_log = logging.getLogger(__name__)


class Inline:
    """Runs tasks in this process; see :class:`resnet_bench.running.launchers.launcher.Launcher`.

    When a task has made the device unusable for this process, as CUDA does after some errors, those after it run in
    new processes.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        """Use the only place; a process that sees all GPUs cannot hide some from itself."""
        (self._place,) = places
        if self._place.gpu is not None:
            raise ValueError(f"a task at GPU {self._place.gpu} needs its own process")

    def run(self, tasks: Iterable[Task], context: Context) -> Generator[tuple[Task, Event], None, None]:
        """Run tasks one at a time."""
        left = iter(tasks)
        here = replace(context, options=self._place.narrowed(context.options))
        with watching(context.store):
            problem = yield from self._in_turn(left, here)
        following = next(left, None) if problem else None
        if following is None:
            return
        _log.warning("%s: what is left runs in new processes", problem)
        yield from Processes([self._place]).run(itertools.chain([following], left), context)

    def _in_turn(self, tasks: Iterator[Task], context: Context) -> Generator[tuple[Task, Event], None, str | None]:
        """Returns why the device takes no more work from this process, where that is so."""
        for task in tasks:
            if context.stop:
                return None
            yield task, JobStarted()
            end = JobFinished()
            with contextlib.closing(to_its_end(task, context)) as events:
                for event in events:
                    if isinstance(event, JobFinished):
                        end = event
                    else:
                        yield task, event
            yield task, replace(end, device_problem=None)
            if end.interrupted or end.device_problem:
                return None if end.interrupted else end.device_problem
        return None
