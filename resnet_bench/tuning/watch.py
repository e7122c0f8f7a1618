"""Tells what happens in a study that other processes work on, by looking at its storage now and then."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from resnet_bench.tuning.comparison import retrainings
from resnet_bench.tuning.events import Retrained, RetrainingStarted, TrialEnded, TrialReported, TrialStarted
from resnet_bench.tuning.ledger import Ledger
from resnet_bench.tuning.work import WorkEvent

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


class Watch:
    """What was seen of a study so far."""

    def __init__(self, ledger: Ledger) -> None:
        """Begin with what is there: only what happens from now on is told."""
        self._ledger = ledger
        self._ended = {trial.number for trial in ledger.trials() if trial.state.is_finished()}
        self._reported: dict[int, int] = {}
        self._retrained = {key for key in ledger.study.user_attrs if key.startswith("retrained/")}
        self._comparing = False

    def look(self) -> Iterator[WorkEvent]:
        """What happened since the last look."""
        for trial in self._ledger.trials():
            if trial.number not in self._ended:
                yield from self._look_at(trial)
        yield from self._look_at_comparison()

    def _look_at(self, trial: "FrozenTrial") -> Iterator[WorkEvent]:
        if trial.state.name == "WAITING" or "surplus" in trial.user_attrs:
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
        counts = self._ledger.counts()
        best = self._ledger.best_trial()
        if not self._comparing and counts.finished >= counts.wanted and best is not None:
            self._comparing = True
            yield RetrainingStarted(best.number, len(retrainings(self._ledger)))
        for key, run in self._ledger.study.user_attrs.items():
            if key.startswith("retrained/") and key not in self._retrained:
                self._retrained.add(key)
                yield Retrained(run["arm"], run["seed"], run["accuracy"], run["reason"])
