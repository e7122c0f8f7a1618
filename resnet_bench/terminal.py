"""What a person sees while runs go on, and the table at the end."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from resnet_bench.launch import Ended, RunClosed, RunOpened, RunRequest, SeriesEvent
from resnet_bench.launch.run_cache import FinishedRun
from resnet_bench.training.events import EpochEnded, Evaluated, Finished, Started, Steps

SECONDS_BETWEEN_LINES = 10.0


@dataclass
class RunResult:
    """What came of one run, for the closing table."""

    request: RunRequest
    url: str = ""
    folder: str = ""
    epochs: int = 0
    accuracy: float | None = None
    """Test accuracy the source's way, a fraction."""
    accuracy_plain: float | None = None
    images_per_second: float | None = None
    train_seconds: float | None = None
    failure: str | None = None
    """Why the run could not be trained to its end, a sentence."""
    interrupted: bool = False
    undelivered: str | None = None
    cached: bool = False
    """Finished before, and not trained again."""
    accuracy_by_epoch: dict[int, float] = field(default_factory=dict)
    accuracy_augmented: float | None = None
    """Test accuracy with test-time augmentation, where the recipe has it."""
    seeds_per_device: int = field(init=False)
    """How many runs shared the device, and the times of this one with it."""

    def __post_init__(self) -> None:
        self.seeds_per_device = self.request.seeds_per_device

    def accuracies(self, metric: str) -> dict[int, float]:
        """What a claim of this metric is held against: fractions by epoch."""
        if metric == "accuracy":
            return self.accuracy_by_epoch
        return {} if self.accuracy_augmented is None else {self.epochs: self.accuracy_augmented}

    def remember(self, finished: FinishedRun) -> None:
        """Take the numbers of a run that was finished before."""
        self.cached, self.url, self.epochs = True, finished.url, finished.epochs
        self.accuracy, self.accuracy_plain = finished.accuracy, finished.accuracy_plain
        self.images_per_second, self.train_seconds = finished.images_per_second, finished.train_seconds
        self.accuracy_by_epoch = dict(finished.accuracy_by_epoch)
        self.accuracy_augmented = finished.accuracy_augmented
        self.seeds_per_device = finished.seeds_per_device

    def take(self, event: SeriesEvent) -> None:
        """Remember what the table will show."""
        match event:
            case RunOpened():
                self.url, self.folder = event.url, str(event.folder)
            case Evaluated(split="test"):
                self.accuracy, self.accuracy_plain = event.accuracy, event.accuracy_standard
                self.accuracy_by_epoch[event.epoch] = event.accuracy
                self.accuracy_augmented = event.accuracy_tta
            case EpochEnded():
                self.epochs, self.images_per_second = event.epoch, event.images_per_second
                self.train_seconds = event.train_seconds
            case RunClosed():
                self.undelivered = None if event.shipping.complete else event.shipping.sentence
            case Ended():
                self.failure = event.failure
                self.interrupted = event.interrupted and event.failure is None


class SuiteDisplay:
    """Live progress of a suite of runs, a bar for each that is under way; plain lines where there is no terminal."""

    def __init__(self, console: Console, total_runs: int) -> None:
        """Show progress of this many runs on this console."""
        self._console = console
        self._total_runs = total_runs
        self._runs_begun = 0
        self._progress: Progress | None = None

    @contextmanager
    def shown(self) -> Iterator["SuiteDisplay"]:
        """While the context is open, the bars are on the screen."""
        if not self._console.is_terminal:
            yield self
            return
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[facts]}"),
        )
        with Progress(*columns, console=self._console, expand=True) as self._progress:
            yield self

    def begin(self, request: RunRequest) -> "RunDisplay":
        """What shows the progress of a run that is about to start."""
        self._runs_begun += 1
        title = f"[{self._runs_begun}/{self._total_runs}] {request.benchmark.name} seed {request.seed}"
        return RunDisplay(title, self._console, self._progress)


class RunDisplay:
    """Live progress of one run."""

    def __init__(self, title: str, console: Console, progress: Progress | None) -> None:
        """Show a bar among others, or lines that begin with a title."""
        self._title = title
        self._console = console
        self._progress = progress
        self._epochs = 0
        self._images_left = self._images_total = 0
        self._images_per_second = 0.0
        self._loss = self._accuracy = float("nan")
        self._last_line = time.monotonic()
        self._bar: TaskID | None = None
        if progress is not None:
            # A bracket would be read as markup.
            self._bar = progress.add_task(title.replace("[", r"\["), total=None, facts="setting up")
        else:
            self._line("starts")

    def take(self, event: SeriesEvent) -> None:
        """Show what an event says."""
        match event:
            case RunOpened() if event.resumed_at_step:
                self._line(f"goes on behind step {event.resumed_at_step}")
            case Started():
                self._epochs = event.epochs
                self._images_total = event.train_images * event.epochs
                self._images_left = self._images_total - event.train_images * event.step // event.steps_per_epoch
            case Steps():
                self._images_left -= event.images
                self._loss = event.losses[-1]
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
            case Finished():
                self._show("logging the outcome", force=True)
            case Ended():
                if event.failure is not None:
                    self._line(f"failed: {event.failure}")
                self._remove()

    def _remove(self) -> None:
        """Take the bar off the screen."""
        if self._progress is not None and self._bar is not None:
            self._progress.remove_task(self._bar)
            self._bar = None

    def _show(self, position: str, *, force: bool = False) -> None:
        left = duration(self._images_left / self._images_per_second) if self._images_per_second else "?"
        facts = f"{position}, {self._images_per_second:,.0f} images/s, loss {self._loss:.3f}"
        if self._accuracy == self._accuracy:
            facts += f", accuracy {self._accuracy:.1%}"
        facts += f", {left} left"
        if self._progress is not None and self._bar is not None:
            done = self._images_total - self._images_left
            self._progress.update(self._bar, total=self._images_total, completed=done, facts=facts)
        elif not force and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._line(facts)

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        self._console.print(f"{self._title}  {text}", markup=False, highlight=False, soft_wrap=True)


def closing_table(results: Sequence[RunResult], verdicts: Sequence[str]) -> Table:
    """One row a run, with columns for what some runs have only.

    These are test-time augmentation, how many seeds shared the device, and whether a run was finished before.

    Args:
        results: What came of each run.
        verdicts: For each result, the verdict's word.
    """
    cached = any(result.cached for result in results)
    augmented = any(result.accuracy_augmented is not None for result in results)
    shared = any(result.seeds_per_device > 1 for result in results)
    table = Table(title="Results", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, justify in (
        ("benchmark", "left"),
        ("seed", "right"),
        ("epochs", "right"),
        ("accuracy", "right"),
        ("plain", "right"),
        *([("TTA", "right")] if augmented else []),
        ("claim", "right"),
        ("verdict", "left"),
        ("images/s", "right"),
        ("time", "right"),
        *([("seeds at once", "right")] if shared else []),
        *([("run", "left")] if cached else []),
    ):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]  # literals in a loop
    for result, verdict in zip(results, verdicts, strict=True):
        claim = next((claim.text for claim in result.request.benchmark.claims if claim.split == "test"), "–")
        table.add_row(
            result.request.benchmark.name,
            str(result.request.seed),
            str(result.epochs or "–"),
            percent(result.accuracy),
            percent(result.accuracy_plain),
            *([percent(result.accuracy_augmented)] if augmented else []),
            claim,
            "failed" if result.failure else "interrupted" if result.interrupted else verdict,
            f"{result.images_per_second:,.0f}" if result.images_per_second else "–",
            duration(result.train_seconds) if result.train_seconds is not None else "–",
            *([str(result.seeds_per_device)] if shared else []),
            *(["cached" if result.cached else "new"] if cached else []),
        )
    return table


def percent(fraction: float | None) -> str:
    """A fraction as percent with two digits, or a dash."""
    return f"{100 * fraction:.2f}%" if fraction is not None else "–"


def duration(seconds: float) -> str:
    """A time as a person says it: ``8.3 s``, ``4 min 10 s``, ``2 h 5 min``, ``3 d 4 h``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
