"""The Optuna study as a queue: which trials are waiting, which process runs them, and how they ended.

Each trial in the budget is one slot, acquired by exactly one worker. If the worker stops or dies, the slot is queued
again with the same hyperparameters, so the number of finished trials is exact. A slot that draws hyperparameters that
were tried before repeats their result, and slots are closed once every point has been tried.
"""

import contextlib
import json
import secrets
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from resnet_bench.base.errors import UserError
from resnet_bench.base.machine import this_process
from resnet_bench.data.dataset import Dataset
from resnet_bench.recipe.recipe import Recipe, unequal_keys
from resnet_bench.tracking.sharing_rule import require_server
from resnet_bench.tuning import space
from resnet_bench.tuning.plan import Plan
from resnet_bench.tuning.recovery import Recovery
from resnet_bench.tuning.samplers import build_pruner, build_sampler
from resnet_bench.tuning.slots import AHEAD_PER_WORKER, MIN_AHEAD, Slots
from resnet_bench.tuning.storage import OpenStorage
from resnet_bench.tuning.stored_study import StoredStudy, is_counted, restored
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

    def __init__(self, stored: StoredStudy, *, is_maker: bool = False) -> None:
        """Take over a study that is laid out; see ``begin`` and ``join``."""
        self.stored = stored
        self.is_maker = is_maker
        """Whether this process made the study; of several that begin it, one did."""
        self._slots = Slots(stored)
        self._recovery = Recovery(stored)

    @classmethod
    def begin(cls, name: str, plan: Plan, storage: OpenStorage, images: Dataset, *, workers: int = 1) -> "TrialQueue":
        """Lay out a study, or resume the one of that name.

        Args:
            name: Its name in the storage.
            plan: The study in its profile.
            storage: Where its trials are.
            images: What it trains on.
            workers: How many of this command's processes will acquire trials; twice as many are kept waiting.

        Raises:
            UserError: A study of that name was begun with another definition, other images or more trials.
        """
        with storage.address.lock():
            directions = [
                "maximize" if objective == "validation_accuracy" else "minimize" for objective in plan.study.objectives
            ]
            is_maker = True
            try:
                study = optuna.create_study(storage=storage.optuna, study_name=name, directions=directions)  # type: ignore[arg-type]  # literals in a comprehension
            except optuna.exceptions.DuplicatedStudyError:
                is_maker = False
                study = optuna.load_study(study_name=name, storage=storage.optuna)
                _await_layout(study, storage)
            stored = StoredStudy(study, storage, plan.study)
            _lay_out(stored, plan, images, max(MIN_AHEAD, AHEAD_PER_WORKER * workers))
        return cls(stored, is_maker=is_maker)

    @classmethod
    def join(cls, name: str, storage: OpenStorage, *, worker: int = 0) -> "TrialQueue":
        """Work on a study that is laid out. Each process draws from its own random stream.

        Args:
            name: The study's name.
            storage: Where its trials are.
            worker: From 0; tells the workers of one command apart.

        Raises:
            UserError: The storage has no such study.
        """
        stored = StoredStudy.read(name, storage)
        plan = stored.plan
        with storage.address.lock():
            processes = int(stored.get_attr("processes") or 0)
            stored.set_attr("processes", processes + 1)
        if storage.address.file is None and (processes or worker):
            # No lock keeps two hosts from counting alike, and two processes must not draw alike.
            processes = secrets.randbits(32)
        stored.study.sampler = build_sampler(plan.study, seed=_stream_seed(plan.study.seed, processes))
        stored.study.pruner = build_pruner(plan.study, epochs=plan.epochs)
        return cls(stored)

    # --- acquiring trials --------------------------------------------------------------------------

    def acquire(self) -> AcquiredTrial | None:
        """Take the next waiting trial; None where there is none.

        In a file, no other process draws meanwhile, so that each knows what the others are trying. On a server nobody
        waits: Optuna gives a waiting trial to one process only.

        Raises:
            UserError: The storage is a file, and a process of another host is working on the study.
        """
        study = self.stored.study
        with self.stored.storage.claim_lock(), warnings.catch_warnings():
            # Optuna says that a heartbeat belongs to Study.optimize; ours beats in the run of the trial.
            warnings.filterwarnings("ignore", message="Heartbeat of storage")
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            while True:
                trials = self._recovery.recovered()
                self._refuse_other_hosts(trials)
                if not any(trial.state == TrialState.WAITING for trial in trials):
                    if not self._slots.lay_out_another(trials):
                        return None
                    continue
                # A process that is paused here for longer than the grace period finds its trial given away.
                with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                    if (acquired := self._take(study.ask(), trials)) is not None:
                        return acquired

    def _take(self, trial: optuna.Trial, trials: Sequence[FrozenTrial]) -> AcquiredTrial | None:
        """Make a trial this process's; None where there is nothing to run for it.

        Args:
            trial: As Optuna gave it.
            trials: What was there before. A trial that was added since has a higher number, and gives way itself.
        """
        if all(trial.number != other.number for other in trials):
            trials = self.stored.trials()
        # Before its process has a name: should this one die in between, its silence is noticed.
        self.stored.storage.beat(trial._trial_id)
        trial.set_user_attr("worker", this_process())
        slot = trial.user_attrs.get("slot")
        self._slots.lay_ahead(slot, trials)
        surplus = self._slots.why_surplus(slot, trial.number, trials)
        if surplus is not None:
            trial.set_user_attr("surplus", surplus)
            self.stored.study.tell(trial, state=TrialState.FAIL)
            return None
        params = space.suggest(trial, self.stored.definition.space)
        return AcquiredTrial(trial, params, is_source="source" in trial.user_attrs)

    def _refuse_other_hosts(self, trials: Sequence[FrozenTrial]) -> None:
        address = self.stored.storage.address
        if address.file is None:
            return
        ours = this_process()["host"]
        for trial in trials:
            host = trial.user_attrs.get("worker", {}).get("host", ours)
            if trial.state == TrialState.RUNNING and host != ours:
                require_server(f"study {self.stored.name}: {host} is working on it", address.redacted_url, "--storage")

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
        with self.stored.storage.claim_lock():
            self._recovery.fail_and_retry(number)

    def interrupt_own(self) -> None:
        """Give up the trials that this process still has, because it ends."""
        with self.stored.storage.claim_lock():
            for trial in self.stored.trials(TrialState.RUNNING):
                if trial.user_attrs.get("worker") == this_process():
                    self._recovery.fail_and_retry(trial.number)

    def recover(self) -> list[int]:
        """Fail the trials whose process is gone, and queue what they left undone.

        Returns:
            The numbers of the trials whose end was noticed.
        """
        with self.stored.storage.claim_lock():
            return self._recovery.recover(self.stored.trials())

    def notice_silence(self) -> None:
        """Fail and queue again the trials of other hosts that have missed their heartbeats; costs one query."""
        self._recovery.notice_silence()


# --- laying a study out ------------------------------------------------------------------------------


def _await_layout(study: optuna.Study, storage: OpenStorage) -> None:
    """Give the process that made the study, perhaps on another machine, time to lay it out."""
    deadline = time.monotonic() + _READY_TIMEOUT_SECONDS
    while "definition" not in study.user_attrs:
        if time.monotonic() > deadline or storage.address.file is not None:
            # That process died on the way; laying out again adds what is missing.
            return
        time.sleep(0.2)


def _lay_out(stored: StoredStudy, plan: Plan, images: Dataset, ahead: int) -> None:
    attributes = stored.study.user_attrs
    known = attributes.get("definition")
    if known is not None:
        _check_same(stored, restored(Study, known, stored.name), plan, images)
    ahead = max(ahead, int(attributes.get("ahead") or 0))
    written = {
        "profile": plan.profile,
        "benchmark": plan.benchmark.model_dump_json(),
        "base": plan.base.model_dump_json(),
        "data_fingerprint": images.fingerprint,
        "generated_images": images.generated,
        "ahead": ahead,
        "definition": plan.study.model_dump_json(exclude={"profiles"}),
    }
    trials = stored.trials()
    waiting = sum(trial.state == TrialState.WAITING for trial in trials)
    slots = Slots(StoredStudy(stored.study, stored.storage, plan.study), plan)
    for slot in slots.missing(trials)[: max(0, ahead - waiting)]:
        slots.add(slot)
    for key, value in written.items():
        if attributes.get(key) != value:
            stored.set_attr(key, value)


def _check_same(stored: StoredStudy, known: Study, plan: Plan, images: Dataset) -> None:
    name = stored.name
    if known.budget.trials > plan.study.budget.trials:
        raise UserError(
            f"study {name} was begun with {known.budget.trials} trials, which may become more, not fewer; {_REMEDY}"
        )
    before, now = (_comparable(study) for study in (known, plan.study))
    changed = unequal_keys(before, now)
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


def _stream_seed(seed: int, process: int) -> int:
    """Return each process of a study its own seed; the first has the study's."""
    return (seed + process * 0x9E3779B1) % 2**32
