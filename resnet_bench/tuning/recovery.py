"""Trials whose process is gone: failed and queued again by the first that notices."""

import time
import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from resnet_bench.base.machine import exit_reason, is_alive
from resnet_bench.tuning.storage import retried_numbers, retry
from resnet_bench.tuning.stored_study import StoredStudy, is_interrupted


class Recovery:
    """Looks after the trials of one study.

    Of a process on this host, the operating system knows whether it runs. One on another host is missed by its
    heartbeat, which the database's clock alone judges, or by what this process's own clock says has not changed.
    """

    def __init__(self, stored: StoredStudy) -> None:
        """Look after a study."""
        self._stored = stored
        self._first_seen: dict[tuple[str, int], float] = {}
        """When, on this process's clock, it first saw a trial in between two steps of another process."""

    def recovered(self) -> list[FrozenTrial]:
        """Recover, and return the trials as they are then."""
        trials = self._stored.trials()
        return self._stored.trials() if self.recover(trials) else trials

    def recover(self, trials: Sequence[FrozenTrial]) -> list[int]:
        """Fail the trials whose process is gone, and queue what they left undone.

        Returns:
            The numbers of the trials whose end was noticed.
        """
        running = {trial.number for trial in trials if trial.state == TrialState.RUNNING}
        gone = {trial.number for trial in trials if trial.number in running and self._is_gone(trial)}
        for number in gone:
            self.fail_and_retry(number)
        retried = retried_numbers(list(trials))
        for trial in trials:
            # The process that was to queue it again may have died before it could.
            if is_interrupted(trial) and trial.number not in retried and self._is_left("not queued", trial):
                retry(self._stored.study, self._stored.trial(trial.number))
                gone.add(trial.number)
        if self.notice_silence():
            gone |= running - {trial.number for trial in self._stored.trials(TrialState.RUNNING)}
        return sorted(gone)

    def notice_silence(self) -> bool:
        """Fail and queue again the trials of other hosts that have missed their heartbeats; costs one query.

        Returns:
            Whether there were any.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Once the clock was set, or the machine slept, the last heartbeat of a living process seems long ago.
            return self._stored.storage.fail_stale(self._stored.study, is_alive_here)

    def fail_and_retry(self, number: int) -> None:
        """Fail a trial and queue it again, unless another process has done it."""
        try:
            self._stored.study.tell(number, state=TrialState.FAIL)
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
            return
        retry(self._stored.study, self._stored.trial(number))

    def _is_gone(self, trial: FrozenTrial) -> bool:
        worker: dict[str, Any] | None = trial.user_attrs.get("worker")
        if worker is None:
            # Its process died between taking it and storing its own name; under a file's lock that is none alive.
            return self._is_left("without a name", trial)
        # Of a server's clients several machines may have one name.
        one_machine = self._stored.storage.address.file is not None
        return exit_reason(worker["host"], int(worker["pid"]), worker["pid_start"], one_machine=one_machine) is not None

    def _is_left(self, how: str, trial: FrozenTrial) -> bool:
        """Whether a trial has been left in between for so long that its process will not continue."""
        address = self._stored.storage.address
        if address.file is not None:
            return True
        # Only durations on this process's own clock count: those of two hosts may differ.
        first_seen = self._first_seen.setdefault((how, trial.number), time.monotonic())
        return time.monotonic() - first_seen > address.grace_seconds


def is_alive_here(trial: FrozenTrial) -> bool:
    """Whether a trial's process is known to run on this host."""
    worker: dict[str, Any] | None = trial.user_attrs.get("worker")
    return worker is not None and is_alive(int(worker["pid"]), worker["pid_start"], host=worker["host"])
