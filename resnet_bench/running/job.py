"""Work that a launcher gives a place: a protocol, and the job of training one run."""

from collections.abc import Generator
from typing import Protocol, runtime_checkable

from resnet_bench.recipe.datasets import DatasetFacts
from resnet_bench.running.context import Context
from resnet_bench.running.events import Event
from resnet_bench.running.prepare import prepare
from resnet_bench.running.request import RunRequest
from resnet_bench.running.run import run


class Task(Protocol):
    """Work for one place, in this process or in another. It must be picklable."""

    @property
    def label(self) -> str:
        """What it is, for a person."""

    def events(self, context: Context) -> Generator[Event, None, None]:
        """Do the work. The launcher adds ``JobStarted`` and ``JobFinished``, and turns errors into the latter."""


@runtime_checkable
class ImageTask(Protocol):
    """A task that says which images it needs, so that they can be brought to it."""

    @property
    def facts(self) -> DatasetFacts:
        """The dataset."""


class Job(RunRequest):
    """The task of training one run as it is asked for."""

    @property
    def facts(self) -> DatasetFacts:
        """The dataset."""
        return self.recipe.data.facts

    def events(self, context: Context) -> Generator[Event, None, None]:
        """Prepare the run and train it; see :func:`resnet_bench.running.run.run`."""
        yield from run(prepare(self, context), context)
