"""How tasks get their places: a protocol, and the launchers by name."""

import importlib
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from resnet_bench.execution.options import ExecutionOptions
from resnet_bench.running.context import Context
from resnet_bench.running.events import Event
from resnet_bench.running.job import Task

LAUNCHERS = {
    "inline": "resnet_bench.running.launchers.inline:Inline",
    "processes": "resnet_bench.running.launchers.processes:Processes",
}
"""This machine's launchers by name, as ``module:class``; those of a cluster are in ``cluster.CLUSTERS``."""


@dataclass(frozen=True)
class Place:
    """Where one task runs at a time.

    Attributes:
        gpu: The GPU that a process sees there, as CUDA_VISIBLE_DEVICES names it; None leaves all of them visible.
        threads: CPU threads of a task there; None leaves them as the options have them.
    """

    gpu: str | None = None
    threads: int | None = None

    def narrowed(self, options: ExecutionOptions) -> ExecutionOptions:
        """Options for a task at this place."""
        device = options.device if self.gpu is None else "cuda"
        return replace(options, device=device, threads=options.threads if self.threads is None else self.threads)


class Launcher(Protocol):
    """Runs tasks, each at a place."""

    def __init__(self, places: Sequence[Place]) -> None:
        """Run as many tasks at a time as there are places."""

    def run(self, tasks: Iterable[Task], context: Context) -> Generator[tuple[Task, Event], None, None]:
        """Run tasks; take one when a place is free.

        Yields:
            Per task: ``JobStarted``, its events, and one ``JobFinished``. No task's error escapes. Closing the
            generator or setting ``context.stop`` ends what runs.
        """


def find_launcher(name: str, places: Sequence[Place]) -> Launcher:
    """Return the launcher of a name, for these places."""
    module, _, attribute = LAUNCHERS[name].partition(":")
    launcher: Launcher = getattr(importlib.import_module(module), attribute)(places)
    return launcher
