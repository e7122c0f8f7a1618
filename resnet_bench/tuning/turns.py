"""Whose turn a retraining run or the conclusion of a study is: one process's at a time, on whatever host.

With a file as storage all processes are on one host, and a lock beside the runs serves. On a server, a trial of a study
beside the study is the turn: Optuna gives it to one process, which beats for it and loses it when it is silent.
"""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna
from filelock import FileLock, Timeout
from optuna.trial import TrialState

from resnet_bench.base.machine import exit_reason, this_process
from resnet_bench.tuning.recovery import is_alive_here
from resnet_bench.tuning.storage import OpenStorage
from resnet_bench.tuning.stored_study import StoredStudy

_KEY = "retraining"


@dataclass(frozen=True)
class Turn:
    """The right of this process to do a piece of work.

    Attributes:
        study: The study beside the study; None where a lock on this host is the turn.
        trial_id: Optuna's id of the trial that is the turn.
    """

    study: optuna.Study | None = None
    trial_id: int = 0

    def is_ours(self) -> bool:
        """Whether no other process has taken it meanwhile."""
        return self.study is None or self.study._storage.get_trial(self.trial_id).state == TrialState.RUNNING


@contextlib.contextmanager
def take_turn(key: str, stored: StoredStudy, run_dir: Path) -> Iterator[Turn | None]:
    """Hold the turn of a piece of work meanwhile; None where another process has it.

    Args:
        key: Names the work, such as the recipe's fingerprint and the seed of a retraining run.
        stored: The study.
        run_dir: Folder of the study's runs.
    """
    if stored.storage.address.file is None:
        with _turn_on_server(key, stored) as turn:
            yield turn
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir / f".{key}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield None
        return
    try:
        yield Turn()
    finally:
        lock.release()


@contextlib.contextmanager
def _turn_on_server(key: str, stored: StoredStudy) -> Iterator[Turn | None]:
    storage = stored.storage
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(storage=storage.optuna, study_name=_turns_of(stored.name), load_if_exists=True)
        _free_left(study)
        storage.fail_stale(study, is_alive_here)
        turn = _acquire(key, study)
    if turn is None:
        yield None
        return
    storage.beat(turn.trial_id)
    try:
        with storage.beating(turn.trial_id):
            yield turn
    finally:
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            storage.optuna.set_trial_state_values(turn.trial_id, state=TrialState.FAIL)


def _free_left(study: optuna.Study) -> None:
    """Free what processes of this host have left that are gone: a gRPC proxy knows no heartbeats that would end.

    A turn is named after the process that made it until the one that took it, just now, has written its name; should
    it be freed then, that one finds out, and its work is done again.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = trial.user_attrs["worker"]
        if exit_reason(worker["host"], int(worker["pid"]), worker["pid_start"], one_machine=False) is not None:
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)


def _acquire(key: str, study: optuna.Study) -> Turn | None:
    """Take the trial of a key with the lowest number, which all processes see alike."""

    def unfinished() -> list[optuna.trial.FrozenTrial]:
        trials = study.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING))
        return [trial for trial in trials if trial.user_attrs.get(_KEY) == key]

    if not (found := unfinished()):
        attributes = {_KEY: key, "worker": this_process()}
        study.add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs=attributes))
        found = unfinished()
    first = found[0] if found else None
    if first is None or any(trial.state == TrialState.RUNNING for trial in found):
        return None
    try:
        if not study._storage.set_trial_state_values(first._trial_id, state=TrialState.RUNNING):
            return None
    except optuna.exceptions.UpdateFinishedTrialError:
        return None
    study._storage.set_trial_user_attr(first._trial_id, "worker", this_process())
    return Turn(study, first._trial_id)


def delete_turns(name: str, storage: OpenStorage) -> None:
    """Remove the study beside a study, where there is one."""
    with contextlib.suppress(KeyError):
        optuna.delete_study(study_name=_turns_of(name), storage=storage.optuna)


def _turns_of(name: str) -> str:
    return f"{name}/turns"
