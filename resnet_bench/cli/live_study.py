"""What a person sees while a study goes on: one table, a row a trial."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from resnet_bench.base.text import duration, percent, setting
from resnet_bench.recipe.changes import short_names
from resnet_bench.tuning.events import (
    Retrained,
    RetrainingStarted,
    StudyEvent,
    StudyFinished,
    StudyOpened,
    TrialEnded,
    TrialReported,
    TrialStarted,
)
from resnet_bench.tuning.study import Value

ROWS = 15
"""Trials that the live table shows, the latest ones."""
_STYLES = {"COMPLETE": "green", "PRUNED": "yellow", "FAIL": "red", "INTERRUPTED": "red", "RUNNING": "cyan"}


@dataclass
class TrialRow:
    """One trial as far as it is."""

    number: int
    settings: Mapping[str, Value]
    is_source: bool
    state: str = "RUNNING"
    epoch: int = 0
    accuracy: float | None = None
    seconds: float = 0.0
    reason: str | None = None


@dataclass
class Progress:
    """What is known of a study from its events."""

    trial_epochs: int
    """Epochs of a trial over all its seeds."""
    final_runs: int
    """Runs with fresh seeds at the end."""
    final_epochs: int
    workers: int = 1
    wanted: int = 0
    rows: dict[int, TrialRow] = field(default_factory=dict)
    retrained: list[Retrained] = field(default_factory=list)
    final_runs_left: int | None = None

    def take(self, event: StudyEvent) -> None:
        """Remember what an event says."""
        match event:
            case StudyOpened():
                self.wanted = event.wanted
                for earlier in event.earlier:
                    self.take(earlier)
            case TrialStarted():
                self.rows[event.number] = TrialRow(event.number, event.settings, event.is_source)
            case TrialReported():
                row = self.rows[event.number]
                row.epoch, row.accuracy = event.epoch, event.accuracy
            case TrialEnded():
                row = self.rows.setdefault(event.number, TrialRow(event.number, event.settings, event.is_source))
                row.settings, row.state, row.reason, row.seconds = (
                    event.settings,
                    event.state,
                    event.reason,
                    event.seconds,
                )
                row.epoch = event.epoch or row.epoch
                if event.values:
                    row.accuracy = event.values[0]
            case RetrainingStarted():
                self.final_runs_left = event.runs
            case Retrained():
                self.retrained.append(event)
            case StudyFinished():
                pass

    @property
    def finished(self) -> int:
        """Trials of the budget that are through."""
        return sum(row.state in ("COMPLETE", "PRUNED", "FAIL") for row in self.rows.values())

    @property
    def best(self) -> TrialRow | None:
        """The best complete trial."""
        complete = [row for row in self.rows.values() if row.state == "COMPLETE" and row.accuracy is not None]
        return max(complete, key=lambda row: (row.accuracy or 0.0, -row.number), default=None)

    @property
    def seconds_left(self) -> float | None:
        """About how long it will take still; None before a trial is through."""
        ended = [row for row in self.rows.values() if row.state in ("COMPLETE", "PRUNED") and row.epoch]
        epochs = sum(row.epoch for row in ended)
        if not epochs:
            return None
        seconds_an_epoch = sum(row.seconds for row in ended) / epochs
        epochs_a_trial = epochs / len(ended)
        left = max(0, self.wanted - self.finished) * epochs_a_trial
        runs = self.final_runs if self.final_runs_left is None else self.final_runs_left - len(self.retrained)
        return seconds_an_epoch * (left + max(0, runs) * self.final_epochs) / self.workers


class LiveTable:
    """The table on a terminal; one line an ended trial elsewhere."""

    def __init__(self, console: Console, progress: Progress, keys: list[str]) -> None:
        """Show a study whose parameters these are."""
        self._console = console
        self._progress = progress
        self._keys = keys
        self._names = short_names(keys)
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator["LiveTable"]:
        """While the context is open, the table is on the screen."""
        if not self._console.is_terminal:
            yield self
            return
        with Live(console=self._console, get_renderable=self._renderable, refresh_per_second=2) as self._live:
            yield self

    def take(self, event: StudyEvent) -> None:
        """Show what an event says."""
        self._progress.take(event)
        if self._live is not None:
            return
        match event:
            case StudyOpened():
                self._line(f"{event.name}: {len(event.earlier)} of {event.wanted} trials are through; {event.url}")
            case TrialEnded():
                self._line(self._sentence(self._progress.rows[event.number]))
            case RetrainingStarted():
                self._line(f"trial {event.best} was the best; final runs with fresh seeds: {event.runs}")
            case Retrained():
                result = (
                    f"{event.accuracy:.2%} test accuracy" if event.accuracy is not None else f"failed: {event.reason}"
                )
                self._line(f"{event.arm} seed {event.seed}: {result}")
            case _:
                pass

    def _sentence(self, row: TrialRow) -> str:
        settings = ", ".join(f"{self._names.get(key, key)} {setting(value, 3)}" for key, value in row.settings.items())
        source = " (the source's own)" if row.is_source else ""
        why = f": {row.reason}" if row.reason else ""
        best = self._progress.best
        so_far = f"; best {percent(best.accuracy)} in trial {best.number}" if best is not None else ""
        return (
            f"[{self._progress.finished}/{self._progress.wanted}] trial {row.number}{source} {settings}: "
            f"{percent(row.accuracy)} {row.state.lower()}{why}{so_far}; {self._time_left()}"
        )

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _time_left(self) -> str:
        left = self._progress.seconds_left
        return f"about {duration(left)} left" if left is not None else "time left not known yet"

    def _renderable(self) -> Group:
        progress = self._progress
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("trial", justify="right")
        for key in self._keys:
            table.add_column(self._names[key], justify="right", overflow="fold")
        for name in ("epoch", "score", "state", "time"):
            table.add_column(name, justify="left" if name == "state" else "right", overflow="fold")
        best = progress.best
        shown = sorted(progress.rows.values(), key=lambda row: row.number)[-ROWS:]
        if best is not None and best not in shown:
            shown.insert(0, best)
        for row in shown:
            mark = "★ " if row is best else ""
            state = row.state.lower() + (f": {row.reason}" if row.reason and row.state == "FAIL" else "")
            table.add_row(
                f"{mark}{row.number}",
                *(setting(row.settings[key], 3) if key in row.settings else "–" for key in self._keys),
                f"{row.epoch}/{progress.trial_epochs}",
                percent(row.accuracy),
                Text(state + (" (source)" if row.is_source else ""), style=_STYLES.get(row.state, "")),
                duration(row.seconds) if row.seconds else "",
            )
        lines = [Text(self._headline())]
        if progress.final_runs_left is not None:
            done = len(progress.retrained)
            lines.append(Text(f"final runs with fresh seeds: {done} of {progress.final_runs_left}"))
            lines += [
                Text(f"  {run.arm} seed {run.seed}: {percent(run.accuracy)} {run.reason or ''}")
                for run in progress.retrained
            ]
        return Group(table, *lines)

    def _headline(self) -> str:
        progress, best = self._progress, self._progress.best
        if not progress.wanted:
            return "opening the study"
        so_far = f"best so far {percent(best.accuracy)} (trial {best.number})" if best is not None else "no score yet"
        return f"{progress.finished} of {progress.wanted} trials · {so_far} · {self._time_left()}"
