"""Show a study while it runs: one table with a row per trial, or one line per event where there is no terminal."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from resnet_bench.base.text import duration, percent, setting
from resnet_bench.cli.screen import fit, new_table
from resnet_bench.recipe.changes import short_names
from resnet_bench.tuning.events import (
    Retrained,
    RetrainingProgressed,
    RetrainingStarted,
    SpaceExhausted,
    StudyEvent,
    StudyFinished,
    StudyOpened,
    TrialEnded,
    TrialProgressed,
    TrialReported,
    TrialStarted,
)
from resnet_bench.tuning.study import Value

ROWS = 15
"""Trials in the live table, the latest ones."""
QUIET_SECONDS = 60.0
"""Without a terminal, a line about the trial in progress follows after so much silence."""
_STYLES = {"COMPLETE": "green", "PRUNED": "yellow", "FAIL": "red", "INTERRUPTED": "red", "RUNNING": "cyan"}


@dataclass
class TrialRow:
    """One trial so far."""

    number: int
    params: Mapping[str, Value]
    is_source: bool
    state: str = "RUNNING"
    epochs: float = 0.0
    accuracy: float | None = None
    seconds: float = 0.0
    reason: str | None = None

    @property
    def ended(self) -> str:
        """Its state, and why it failed."""
        why = f": {self.reason}" if self.reason and self.state == "FAIL" else ""
        return f"{self.state.lower()}{why}{' (source)' if self.is_source else ''}"


@dataclass
class StudyProgress:
    """A study so far, as its events tell it."""

    trial_epochs: int
    """Epochs of a trial over all its seeds."""
    retraining_runs: int
    """Runs with new seeds at the end."""
    retraining_epochs: int
    trials_per_retraining: float
    """How many times as long as a whole trial a retraining run is expected to take."""
    seconds_per_trial: float | None = None
    """What a whole trial is expected to take."""
    workers: int = 1
    wanted: int = 0
    rows: dict[int, TrialRow] = field(default_factory=dict)
    retrained: list[Retrained] = field(default_factory=list)
    retraining: dict[str, float] = field(default_factory=dict)
    """Epochs trained by each retraining run in progress."""
    retraining_left: int | None = None

    def take(self, event: StudyEvent) -> None:
        """Take over what an event tells."""
        match event:
            case StudyOpened():
                self.wanted = event.wanted
                for earlier in event.earlier:
                    self.take(earlier)
            case SpaceExhausted():
                self.wanted = event.wanted
            case TrialStarted():
                self.rows[event.number] = TrialRow(event.number, event.params, event.is_source)
            case TrialProgressed():
                self.rows[event.number].epochs = event.epochs
            case TrialReported():
                row = self.rows[event.number]
                row.epochs, row.accuracy = event.epoch, event.accuracy
            case TrialEnded():
                self._end(event)
            case RetrainingStarted():
                self.retraining_left = event.runs
            case RetrainingProgressed():
                self.retraining[f"{event.arm} seed {event.seed}"] = event.epochs
            case Retrained():
                self.retraining.pop(f"{event.arm} seed {event.seed}", None)
                self.retrained.append(event)
            case StudyFinished():
                pass

    def _end(self, event: TrialEnded) -> None:
        row = self.rows.setdefault(event.number, TrialRow(event.number, event.params, event.is_source))
        row.params, row.state, row.reason, row.seconds = event.params, event.state, event.reason, event.seconds
        row.epochs = event.epoch or row.epochs
        if event.values:
            row.accuracy = event.values[0]

    @property
    def finished(self) -> int:
        """Trials of the budget that are finished."""
        return sum(row.state in ("COMPLETE", "PRUNED", "FAIL") for row in self.rows.values())

    @property
    def best(self) -> TrialRow | None:
        """The best complete trial."""
        complete = [row for row in self.rows.values() if row.state == "COMPLETE" and row.accuracy is not None]
        return max(complete, key=lambda row: (row.accuracy or 0.0, -row.number), default=None)

    @property
    def seconds_left(self) -> float | None:
        """An estimate of the time left, at the pace of what was done; None before anything is known.

        What a trial was expected to take scales with what the trials so far took.
        """
        ended = [row for row in self.rows.values() if row.state in ("COMPLETE", "PRUNED") and row.epochs]
        trials = sum(row.epochs for row in ended) / self.trial_epochs
        expected = self.seconds_per_trial
        if expected is None and not trials:
            return None
        per_trial = sum(row.seconds for row in ended) / trials if trials else expected or 0.0
        # Pruned trials are shorter.
        length = trials / len(ended) if ended else 1.0
        running = sum(row.epochs for row in self.rows.values() if row.state == "RUNNING") / self.trial_epochs
        left = max(0.0, (self.wanted - self.finished) * length - running)
        runs = self.retraining_runs if self.retraining_left is None else self.retraining_left - len(self.retrained)
        begun = sum(self.retraining.values()) / self.retraining_epochs
        return per_trial * (left + self.trials_per_retraining * max(0.0, runs - begun)) / self.workers


class LiveStudy:
    """The table on a terminal; elsewhere one line per ended trial, and now and then one about those in progress."""

    def __init__(
        self,
        console: Console,
        progress: StudyProgress,
        keys: list[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Show a study that searches these keys."""
        self._console = console
        self._progress = progress
        self._keys = keys
        self._names = short_names(keys)
        self._live: Live | None = None
        self._clock = clock
        self._last_line = clock()

    @contextmanager
    def shown(self) -> Iterator["LiveStudy"]:
        """Keep the table on the screen meanwhile."""
        if not self._console.is_terminal:
            yield self
            return
        with Live(console=self._console, get_renderable=self._renderable, refresh_per_second=2) as self._live:
            yield self

    def take(self, event: StudyEvent) -> None:
        """Show what an event tells."""
        self._progress.take(event)
        if self._live is None and (line := self._line(event)) is not None:
            self._last_line = self._clock()
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _line(self, event: StudyEvent) -> str | None:
        match event:
            case StudyOpened():
                return f"{event.name}: {len(event.earlier)} of {event.wanted} trials are finished; {event.url}"
            case TrialEnded():
                return self._sentence(self._progress.rows[event.number])
            case SpaceExhausted():
                return f"every point of the search space was tried: the study ends after {event.wanted} trials"
            case RetrainingStarted():
                return f"trial {event.best} was the best; retraining runs with new seeds: {event.runs}"
            case Retrained():
                return f"{event.arm} seed {event.seed}: {_result(event)}"
            case TrialProgressed() | TrialReported() | RetrainingProgressed():
                silent = self._clock() - self._last_line
                return f"in progress: {self._in_progress()}" if silent >= QUIET_SECONDS else None
            case _:
                return None

    def _in_progress(self) -> str:
        progress = self._progress
        running = [row for row in progress.rows.values() if row.state == "RUNNING"]
        parts = [
            f"trial {row.number} at epoch {row.epochs:.1f} of {progress.trial_epochs}"
            + (f", {percent(row.accuracy)}" if row.accuracy is not None else "")
            for row in running
        ]
        parts += [
            f"{label} at epoch {epochs:.1f} of {progress.retraining_epochs}"
            for label, epochs in progress.retraining.items()
        ]
        return f"{'; '.join(parts)}; {self._time_left()}"

    def _sentence(self, row: TrialRow) -> str:
        source = " (the source's)" if row.is_source else ""
        why = f": {row.reason}" if row.reason else ""
        best = self._progress.best
        so_far = f"; best {percent(best.accuracy)} in trial {best.number}" if best is not None else ""
        return (
            f"[{self._progress.finished}/{self._progress.wanted}] trial {row.number}{source} {self._params(row)}: "
            f"{percent(row.accuracy)} {row.state.lower()}{why}{so_far}; {self._time_left()}"
        )

    def _time_left(self) -> str:
        left = self._progress.seconds_left
        return f"about {duration(left)} left" if left is not None else "time left not known yet"

    def _renderable(self) -> Group:
        progress = self._progress
        lines = [Text(self._headline())]
        if progress.retraining_left is not None:
            done = len(progress.retrained)
            lines.append(Text(f"retraining runs with new seeds: {done} of {progress.retraining_left}"))
            lines += [Text(f"  {run.arm} seed {run.seed}: {_result(run)}") for run in progress.retrained]
            lines += [
                Text(f"  {label}: epoch {epochs:.1f} of {progress.retraining_epochs}", style="cyan")
                for label, epochs in progress.retraining.items()
            ]
        table = self._table()
        if fit(table, self._console):
            return Group(table, *lines)
        # Too many hyperparameters for this screen: what a column would cut off stands in a sentence.
        return Group(
            *(Text(self._short(row), style=_STYLES.get(row.state, "")) for row in self._shown(ROWS // 3)), *lines
        )

    def _shown(self, count: int) -> list[TrialRow]:
        """The latest trials, and the best."""
        best = self._progress.best
        shown = sorted(self._progress.rows.values(), key=lambda row: row.number)[-count:]
        return [best, *shown] if best is not None and best not in shown else shown

    def _table(self) -> Table:
        names = ("epoch", "score", "state", "time")
        keys = [self._names[key] for key in self._keys]
        table = new_table("trial", *keys, *names, right=("trial", *keys, "epoch", "score", "time"))
        for row in self._shown(ROWS):
            table.add_row(
                self._number(row),
                *(setting(row.params[key], 3) if key in row.params else "–" for key in self._keys),
                self._epochs(row),
                percent(row.accuracy),
                Text(row.ended, style=_STYLES.get(row.state, "")),
                duration(row.seconds) if row.seconds else "",
            )
        return table

    def _number(self, row: TrialRow) -> str:
        return f"{'★ ' if row is self._progress.best else ''}{row.number}"

    def _epochs(self, row: TrialRow) -> str:
        return f"{row.epochs:.1f}/{self._progress.trial_epochs}" if row.state == "RUNNING" else f"{row.epochs:.0f}"

    def _params(self, row: TrialRow) -> str:
        return ", ".join(f"{self._names.get(key, key)} {setting(value, 3)}" for key, value in row.params.items())

    def _short(self, row: TrialRow) -> str:
        time_taken = f", {duration(row.seconds)}" if row.seconds else ""
        return (
            f"{self._number(row)}: {self._params(row)}: {percent(row.accuracy)} at epoch {self._epochs(row)}, "
            f"{row.ended}{time_taken}"
        )

    def _headline(self) -> str:
        progress, best = self._progress, self._progress.best
        if not progress.wanted:
            return "opening the study"
        so_far = f"best so far {percent(best.accuracy)} (trial {best.number})" if best is not None else "no score yet"
        return f"{progress.finished} of {progress.wanted} trials · {so_far} · {self._time_left()}"


def _result(run: Retrained) -> str:
    return f"{percent(run.accuracy)} test accuracy" if run.accuracy is not None else f"failed: {run.reason}"
