"""The Optuna study as a queue: which trials are waiting, which process runs them, and how they ended.

Each trial in the budget is one waiting slot, acquired by exactly one worker. If the worker stops or dies, the slot is
queued again with the same hyperparameters, so the number of finished trials is exact. A slot that draws
hyperparameters that were tried before repeats their result, and slots are closed once every point has been tried.
"""

import contextlib
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from resnet_bench.base.errors import UserError
from resnet_bench.base.machine import exit_reason, is_alive, this_process
from resnet_bench.data.dataset import Dataset
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.tuning import space
from resnet_bench.tuning.plan import Plan
from resnet_bench.tuning.samplers import build_pruner, build_sampler, grid_points
from resnet_bench.tuning.storage import OpenStorage, retried_numbers, retry
from resnet_bench.tuning.stored_study import EXHAUSTED, StoredStudy, is_counted, is_interrupted, restored
from resnet_bench.tuning.study import Study

TrialEnd = Literal["COMPLETE", "PRUNED", "FAIL"]

_READY_TIMEOUT_SECONDS = 60
_MAY_CHANGE = {"budget": ("trials", "wall_seconds"), "notes": (), "made_for": (), "retrain": ()}
"""Parts of a definition that may have another value when a study is resumed."""
_REMEDY = "give the new one another name with --study-name"


@dataclass(frozen=True)
class AcquiredTrial:
    """A trial that this process runs."""

    trial: optuna.Trial
    params: space.Params
    is_source: bool
    """Whether it runs the source hyperparameters; it is never pruned."""


class TrialQueue:
    """The trials of one study, to run; several processes may have the same one."""

    def __init__(self, stored: StoredStudy) -> None:
        """Take over a study that is laid out; see ``begin`` and ``join``."""
        self.stored = stored

    @classmethod
    def begin(cls, name: str, plan: Plan, storage: OpenStorage, images: Dataset) -> "TrialQueue":
        """Lay out a study, or resume the one of that name.

        Raises:
            UserError: A study of that name was begun with another definition, other images or more trials.
        """
        with storage.address.lock():
            directions = [
                "maximize" if objective == "validation_accuracy" else "minimize" for objective in plan.study.objectives
            ]
            try:
                study = optuna.create_study(storage=storage.optuna, study_name=name, directions=directions)  # type: ignore[arg-type]  # literals in a comprehension
            except optuna.exceptions.DuplicatedStudyError:
                study = optuna.load_study(study_name=name, storage=storage.optuna)
                _await_layout(study, storage)
            stored = StoredStudy(study, storage, plan.study)
            _lay_out(stored, plan, images)
        return cls(stored)

    @classmethod
    def join(cls, name: str, storage: OpenStorage) -> "TrialQueue":
        """Work on a study that is laid out. Each process draws from its own random stream.

        Raises:
            UserError: The storage has no such study.
        """
        stored = StoredStudy.read(name, storage)
        plan = stored.plan
        with storage.address.lock():
            processes = int(stored.get_attr("processes") or 0)
            stored.set_attr("processes", processes + 1)
        stored.study.sampler = build_sampler(plan.study, seed=_stream_seed(plan.study.seed, processes))
        stored.study.pruner = build_pruner(plan.study, epochs=plan.epochs)
        return cls(stored)

    # --- acquiring trials --------------------------------------------------------------------------

    def acquire(self) -> AcquiredTrial | None:
        """Take the next waiting trial; None where there is none.

        No other process of this machine draws meanwhile, so that each knows what the others are trying.
        """
        study = self.stored.study
        with self.stored.storage.address.lock(), warnings.catch_warnings():
            # Optuna says that a heartbeat belongs to Study.optimize; ours beats in the run of the trial.
            warnings.filterwarnings("ignore", message="Heartbeat of storage")
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.recover()
            while self.stored.trials(TrialState.WAITING):
                # A process that is paused here for longer than the grace period finds its trial given away.
                with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                    if (acquired := self._take(study.ask())) is not None:
                        return acquired
        return None

    def _take(self, trial: optuna.Trial) -> AcquiredTrial | None:
        """Make a trial this process's; None where there is nothing to run for it."""
        trial.set_user_attr("worker", this_process())
        surplus = self._why_surplus(trial)
        if surplus is not None:
            trial.set_user_attr("surplus", surplus)
            self.stored.study.tell(trial, state=TrialState.FAIL)
            return None
        params = space.suggest(trial, self.stored.definition.space)
        return AcquiredTrial(trial, params, is_source="source" in trial.user_attrs)

    def _why_surplus(self, trial: optuna.Trial) -> str | None:
        """Say why there is nothing to run for a trial that was just taken."""
        slot = trial.user_attrs.get("slot")
        others = [other for other in self.stored.trials() if other.number != trial.number]
        done = {other.user_attrs.get("slot") for other in others if is_counted(other)}
        # Of two that run at the same time the earlier one stays: were both to give way, nobody would have the slot.
        running = [other for other in others if other.state == TrialState.RUNNING and other.number < trial.number]
        if slot is None or slot in done | {other.user_attrs.get("slot") for other in running}:
            return "another process was quicker"
        frozen = self.stored.trial(trial.number)
        return EXHAUSTED if not _params_of(frozen) and self._is_exhausted(others) else None

    def _is_exhausted(self, trials: Sequence[FrozenTrial]) -> bool:
        if self._point_count is None:
            return False
        unfinished = (TrialState.RUNNING, TrialState.WAITING)
        taken = [_params_of(trial) for trial in trials if trial.state in unfinished or is_counted(trial)]
        return len({space.identity(params) for params in taken if params}) >= self._point_count

    @cached_property
    def _point_count(self) -> int | None:
        """How many different trials the study can have; None where there is no end to them."""
        plan = self.stored.plan
        if plan.study.sampler.name != "grid":
            points = space.list_points(plan.study)
            return None if points is None else len(points)
        return len({space.identity(params) for params in [plan.source_params, *grid_points(plan.study)]})

    def find_twin(self, acquired: AcquiredTrial) -> FrozenTrial | None:
        """Return the trial whose result stands for this one's too: the same hyperparameters, and earlier.

        It is finished, or runs in another process and has the lower number. The source hyperparameters are only
        repeated where they are complete.
        """
        number, same = acquired.trial.number, space.identity(acquired.params)
        for other in self.stored.trials():
            if other.number == number or space.identity(other.params) != same:
                continue
            if is_counted(other) and (other.state == TrialState.COMPLETE or not acquired.is_source):
                return other
            if other.state == TrialState.RUNNING and other.number < number:
                return other
        return None

    # --- ending trials -----------------------------------------------------------------------------

    def end(
        self, trial: optuna.Trial, state: TrialEnd, values: Sequence[float] | None = None, reason: str | None = None
    ) -> None:
        """Store how a trial ended.

        Nothing is stored where the trial was taken from this process because its heartbeat was missed: its slot is
        another trial's then.
        """
        try:
            if reason is not None:
                trial.set_user_attr("reason", reason)
            self.stored.study.tell(trial, values=values, state=TrialState[state])
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
            if self.stored.trial(trial.number).state == TrialState.RUNNING:
                raise

    def interrupt(self, number: int) -> None:
        """Give up a trial that this process cannot finish; it will be run again."""
        with self.stored.storage.address.lock():
            self._fail_and_retry(number)

    def interrupt_own(self) -> None:
        """Give up the trials that this process still has, because it ends."""
        with self.stored.storage.address.lock():
            for trial in self.stored.trials(TrialState.RUNNING):
                if trial.user_attrs.get("worker") == this_process():
                    self._fail_and_retry(trial.number)

    def recover(self) -> list[int]:
        """Fail the trials whose process is gone, and queue what they left undone.

        Returns:
            The numbers of the trials whose end was noticed.
        """
        gone = []
        for trial in self.stored.trials(TrialState.RUNNING):
            if self._is_gone(trial):
                self._fail_and_retry(trial.number)
                gone.append(trial.number)
            elif _is_alive_here(trial):
                # Once the clock was set, or the machine slept, its last heartbeat seems to be long ago.
                self.stored.storage.beat(trial._trial_id)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(self.stored.study)
        trials = self.stored.trials()
        retried = retried_numbers(trials)
        for trial in trials:
            # The process that was to queue it again may have died before it could.
            if is_interrupted(trial) and trial.number not in retried:
                retry(self.stored.study, self.stored.trial(trial.number))
        return gone

    def _fail_and_retry(self, number: int) -> None:
        try:
            self.stored.study.tell(number, state=TrialState.FAIL)
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
            # Its heartbeat was missed, so that another process has done it already.
            return
        retry(self.stored.study, self.stored.trial(number))

    def _is_gone(self, trial: FrozenTrial) -> bool:
        address = self.stored.storage.address
        worker: dict[str, Any] | None = trial.user_attrs.get("worker")
        if worker is None:
            # Its process died between taking it and storing its own id; under our lock that is none of ours alive.
            started = trial.datetime_start
            age = time.time() - started.timestamp() if started else 0.0
            return address.file is not None or age > address.grace_seconds
        # Of a server's clients several machines may have one name.
        one_machine = address.file is not None
        return exit_reason(worker["host"], int(worker["pid"]), worker["pid_start"], one_machine=one_machine) is not None


# --- laying a study out ------------------------------------------------------------------------------


def _await_layout(study: optuna.Study, storage: OpenStorage) -> None:
    """Give the process that made the study, perhaps on another machine, time to lay it out."""
    deadline = time.monotonic() + _READY_TIMEOUT_SECONDS
    while "definition" not in study.user_attrs:
        if time.monotonic() > deadline or storage.address.file is not None:
            # That process died on the way; laying out again adds what is missing.
            return
        time.sleep(0.2)


def _lay_out(stored: StoredStudy, plan: Plan, images: Dataset) -> None:
    attributes = stored.study.user_attrs
    known = attributes.get("definition")
    if known is not None:
        _check_same(stored, restored(Study, known, stored.name), plan, images)
    written = {
        "profile": plan.profile,
        "benchmark": plan.benchmark.model_dump_json(),
        "base": plan.base.model_dump_json(),
        "data_fingerprint": images.fingerprint,
        "generated_images": images.generated,
        "definition": plan.study.model_dump_json(exclude={"profiles"}),
    }
    slots = {trial.user_attrs["slot"] for trial in stored.trials() if "slot" in trial.user_attrs}
    fixed = _fixed_params(plan)
    for slot in range(plan.study.budget.trials):
        if slot not in slots:
            _add_slot(stored.study, slot, fixed[slot] if slot < len(fixed) else None)
    for key, value in written.items():
        if attributes.get(key) != value:
            stored.set_attr(key, value)


def _fixed_params(plan: Plan) -> list[space.Params]:
    """List the hyperparameters that no sampler draws, by slot: the source's, and the other points of a grid."""
    source = plan.source_params
    if plan.study.sampler.name != "grid":
        return [source]
    points = grid_points(plan.study)
    return [source, *(point for point in points if space.identity(point) != space.identity(source))]


def _add_slot(study: optuna.Study, slot: int, params: space.Params | None) -> None:
    attributes: dict[str, Any] = {"slot": slot, "source": True} if slot == 0 else {"slot": slot}
    if params is None:
        study.add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs=attributes))
    else:
        study.enqueue_trial(params, user_attrs=attributes)


def _check_same(stored: StoredStudy, known: Study, plan: Plan, images: Dataset) -> None:
    name = stored.name
    if known.budget.trials > plan.study.budget.trials:
        raise UserError(
            f"study {name} was begun with {known.budget.trials} trials, which may become more, not fewer; {_REMEDY}"
        )
    before, now = (_comparable(study) for study in (known, plan.study))
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    base = stored.get_attr("base")
    if base is None or restored(Recipe, base, name) != plan.base:
        changed.append("the benchmark's recipe")
    if changed:
        raise UserError(
            f"study {name} was begun with another definition (changed since: {', '.join(changed)}); "
            f"put that back, or {_REMEDY}"
        )
    if stored.get_attr("data_fingerprint") != images.fingerprint:
        raise UserError(f"study {name} was begun on other images than those found now; name them, or {_REMEDY}")


def _comparable(study: Study) -> Mapping[str, Any]:
    table: dict[str, Any] = json.loads(study.model_dump_json(exclude={"profiles"}))
    for key, parts in _MAY_CHANGE.items():
        if not parts:
            table.pop(key, None)
        elif key in table:
            table[key] = {part: value for part, value in table[key].items() if part not in parts}
    return table


def _params_of(trial: FrozenTrial) -> space.Params:
    """Return the hyperparameters that a trial has or will have; none where its sampler has still to draw them."""
    fixed: space.Params = trial.system_attrs.get("fixed_params", {})
    return trial.params or fixed


def _stream_seed(seed: int, process: int) -> int:
    """Return each process of a study its own seed; the first has the study's."""
    return (seed + process * 0x9E3779B1) % 2**32


def _is_alive_here(trial: FrozenTrial) -> bool:
    worker: dict[str, Any] | None = trial.user_attrs.get("worker")
    return worker is not None and is_alive(int(worker["pid"]), worker["pid_start"], host=worker["host"])
