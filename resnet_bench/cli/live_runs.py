"""Live display of runs. Whatever becomes of the screen, the runs go their way."""

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskID
from rich.table import Table
from rich.text import Text

from resnet_bench.base.text import duration, plural
from resnet_bench.cli.screen import SECONDS_BETWEEN_LINES
from resnet_bench.measure.estimate import Costs, TimeLeft
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.running.events import Event, JobFinished, JobStarted, Opened
from resnet_bench.running.job import Job, Task
from resnet_bench.running.launchers.event_log import Suspended
from resnet_bench.training.events import EpochEnded, Evaluated, Finished, Started, Steps

_SHORTEST_BAR = 10


class LastingStream:
    """A stream whose reader may go away: what cannot be shown is dropped."""

    def __init__(self, stream: IO[str]) -> None:
        """Write to a stream as long as it takes anything."""
        self._stream = stream
        self.is_gone = False
        """Whether the stream takes nothing any more."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write what the stream's encoding has, with ``?`` for the rest."""
        if not self.is_gone:
            try:
                self._write(text)
            except (OSError, ValueError):
                # A pipe that was closed, or a terminal.
                self.is_gone = True
        return len(text)

    def flush(self) -> None:
        """Have everything written by now."""
        if not self.is_gone:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self.is_gone = True

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = getattr(self._stream, "encoding", None) or "ascii"
            self._stream.write(text.encode(encoding, "replace").decode(encoding))


@contextmanager
def lasting(console: Console) -> Iterator[None]:
    """While the context is open, nothing that becomes of the console's stream raises an error."""
    # The console finds the standard output again where it was given no file; only its private field knows that.
    before, stream = console._file, LastingStream(console.file)
    console.file = stream  # type: ignore[assignment]  # it has all that the console uses
    try:
        yield
    finally:
        console.file = before  # type: ignore[assignment]  # None is what it was made with
        if stream.is_gone:
            # Python writes what is left when it exits, and would fail.
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)


class RunsDisplay:
    """Live progress of several runs, a bar for each that is under way; plain lines where there is no terminal.

    Attributes:
        progress: The bars; None where there is no terminal.
    """

    def __init__(self, console: Console, total_runs: int) -> None:
        """Show progress of this many runs on this console."""
        self._console = console
        self._total_runs = total_runs
        self._runs_begun = 0
        self.progress: Progress | None = None
        self._watched: RunDisplay | None = None

    @contextmanager
    def shown(self) -> Iterator["RunsDisplay"]:
        """While the context is open, the bars are on the screen."""
        if not self._console.is_terminal:
            yield self
            return
        with _Bars(console=self._console) as self.progress:
            yield self

    def watch(self, task: Task, event: Event) -> None:
        """Show runs that come one after another; of other tasks only that they begin, and why they fail."""
        if isinstance(event, JobStarted):
            self._watched = self.begin(task.label, task.recipe if isinstance(task, Job) else None)
        elif self._watched is not None:
            self._watched.take(event)

    def begin(self, label: str, recipe: Recipe | None = None, costs: Costs | None = None) -> "RunDisplay":
        """Return what shows the progress of a run that is about to start.

        Args:
            label: The run, for a person.
            recipe: What it trains; None for what is not training.
            costs: What an image costs, where that was measured.
        """
        self._runs_begun += 1
        title = f"[{self._runs_begun}/{self._total_runs}] {label}"
        time_left = None if recipe is None else TimeLeft(recipe, costs or Costs.by_pixels(recipe))
        return RunDisplay(title, time_left, self._console, self.progress)


class _Bars(Progress):
    """Two lines per run, its name with a bar and its facts; nothing is cut off, and words stay whole."""

    def get_renderables(self) -> Iterator[RenderableType]:
        """Draw each run."""
        for task in self.tasks:
            title = Text(task.description, style="bold")
            if title.cell_len + _SHORTEST_BAR < self.console.width:
                head = Table.grid(padding=(0, 1, 0, 0))
                head.add_column(no_wrap=True)
                head.add_row(title, BarColumn(bar_width=None)(task))
                yield head
            else:
                yield title
            share = f"{task.percentage:.0f}%, " if task.total else ""
            yield Padding(Text(f"{share}{task.fields['facts']}"), (0, 0, 0, 2))


class RunDisplay:
    """Live progress of one run."""

    def __init__(self, title: str, time_left: TimeLeft | None, console: Console, progress: Progress | None) -> None:
        """Show a bar among others, or lines that begin with a title."""
        self._title = title
        self._time_left = time_left
        self._console = console
        self._progress = progress
        self._epochs = self._step = 0
        self._images_per_second = 0.0
        self._loss = self._accuracy = float("nan")
        self._last_line = time.monotonic()
        self._bar: TaskID | None = None
        if progress is not None:
            self._bar = progress.add_task(title, total=None, facts="setting up")
        else:
            self._line("starts")

    def take(self, event: Event) -> None:
        """Show what an event says."""
        if self._time_left is not None:
            self._time_left.take(event)
        match event:
            case Opened():
                self._tell_resumption(event.step)
            case Started():
                self._epochs = event.epochs
            case Steps():
                self._loss, self._step = event.losses[-1], event.last_step
                rate = event.images / event.seconds if event.seconds else 0.0
                self._images_per_second = (
                    0.8 * self._images_per_second + 0.2 * rate if self._images_per_second else rate
                )
                self._show(f"epoch {event.epoch}/{self._epochs}, step {event.last_step}")
            case Evaluated():
                self._accuracy = event.accuracy
            case EpochEnded():
                accuracy = f", accuracy {self._accuracy:.2%}" if self._accuracy == self._accuracy else ""
                self._line(
                    f"epoch {event.epoch}/{self._epochs}: loss {event.loss:.4f}{accuracy}, "
                    f"{event.images_per_second:,.0f} images/s, {duration(event.seconds)}"
                )
                self._accuracy = float("nan")
            case Suspended():
                self._line(f"{event.state} ({event.reason}); resumes when it gets a place again")
            case Finished():
                self._show("logging the outcome", force=True)
            case JobFinished():
                if event.failure is not None:
                    self._line(f"failed: {event.failure}")
                self._remove()

    def _tell_resumption(self, step: int) -> None:
        """Say where a run resumes, and what was lost where it was further."""
        again = max(0, self._step - step)
        if step:
            self._line(f"resumed after step {step}" + (f"; trains {plural(again, 'step')} again" if again else ""))
        elif again:
            self._line("starts again from its first step")

    def _remove(self) -> None:
        """Take the bar off the screen."""
        if self._progress is not None and self._bar is not None:
            self._progress.remove_task(self._bar)
            self._bar = None

    def _show(self, position: str, *, force: bool = False) -> None:
        facts = f"{position}, {self._images_per_second:,.0f} images/s, loss {self._loss:.3f}"
        share = 0.0
        if self._time_left is not None:
            share = self._time_left.share_done()
            if (seconds := self._time_left.seconds()) is not None:
                facts += f", {duration(seconds)} left"
        if self._progress is not None and self._bar is not None:
            self._progress.update(self._bar, total=1.0, completed=share, facts=facts)
        elif not force and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._line(facts)

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        # A terminal would break the line within a word; a log has lines as long as they are.
        line = Text(f"{self._title}  {text}")
        self._console.print(line, highlight=False, soft_wrap=not self._console.is_terminal)
