"""Tells what happens in a study that other processes work on, by looking at its storage now and then."""

import contextlib
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

from resnet_bench.tuning.events import Retrained, RetrainingStarted, TrialEnded, TrialReported, TrialStarted
from resnet_bench.tuning.retraining import retrainings
from resnet_bench.tuning.trial_queue import TrialQueue, is_counted
from resnet_bench.tuning.worker import WorkEvent

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


class Watch:
    """What was seen of a study so far."""

    def __init__(self, ledger: TrialQueue) -> None:
        """Begin with what is there: only what happens from now on is told."""
        ended = [trial for trial in ledger.trials() if trial.state.is_finished()]
        self.earlier = tuple(TrialEnded.of(trial) for trial in ended if is_counted(trial))
        """The trials of the budget that were through already."""
        self._ledger = ledger
        self._ended = {trial.number for trial in ended}
        self._reported: dict[int, int] = {}
        self._retrained = {(run.arm, run.seed) for run in self._final_runs()}
        self._comparing = False

    def joined(self, events: Generator[WorkEvent, None, None]) -> Generator[WorkEvent, None, None]:
        """What this process does, and between its trials what others did."""
        with contextlib.closing(events):
            for event in events:
                if isinstance(event, RetrainingStarted) and self._comparing:
                    continue
                self._note(event)
                yield event
                if isinstance(event, TrialEnded | Retrained):
                    yield from self.look()
        yield from self.look()

    def look(self) -> Iterator[WorkEvent]:
        """What happened since the last look."""
        for trial in self._ledger.trials():
            if trial.number not in self._ended:
                yield from self._look_at(trial)
        yield from self._look_at_comparison()

    def _note(self, event: WorkEvent) -> None:
        """Do not tell again what this process itself tells."""
        match event:
            case TrialEnded():
                self._ended.add(event.number)
            case RetrainingStarted():
                self._comparing = True
            case Retrained():
                self._retrained.add((event.arm, event.seed))
            case _:
                pass

    def _look_at(self, trial: "FrozenTrial") -> Iterator[WorkEvent]:
        begun = trial.state.name == "RUNNING" and trial.params
        if not (begun or trial.state.is_finished()) or "surplus" in trial.user_attrs:
            return
        if trial.number not in self._reported:
            self._reported[trial.number] = 0
            yield TrialStarted(trial.number, trial.params, "source" in trial.user_attrs)
        for epoch, accuracy in sorted(trial.intermediate_values.items()):
            if epoch > self._reported[trial.number]:
                self._reported[trial.number] = epoch
                yield TrialReported(trial.number, epoch, accuracy)
        if trial.state.is_finished():
            self._ended.add(trial.number)
            yield TrialEnded.of(trial)

    def _look_at_comparison(self) -> Iterator[WorkEvent]:
        new = [run for run in self._final_runs() if (run.arm, run.seed) not in self._retrained]
        best, counts = self._ledger.best_trial(), self._ledger.counts()
        if best is not None and not self._comparing and (new or counts.finished >= counts.wanted):
            self._comparing = True
            yield RetrainingStarted(best.number, len(retrainings(self._ledger)) + len(new))
        for run in new:
            self._retrained.add((run.arm, run.seed))
            yield run

    def _final_runs(self) -> list[Retrained]:
        """Those that the study remembers."""
        return [
            Retrained(run["arm"], run["seed"], run["accuracy"], run["reason"])
            for key, run in self._ledger.study.user_attrs.items()
            if key.startswith("retrained/")
        ]
