"""The Optuna study as a ledger: which trials are due, who runs them, and how they ended.

A study's budget is laid out beforehand as slots, one waiting trial each; whoever takes a trial takes a slot, and
the storage gives each to one taker. A trial that is interrupted (by a signal, or because its process died) fails,
and its slot waits again with the same values. So the number of finished trials ends exact, whatever happens
in between and however many processes share the work.
"""

import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from resnet_bench.base import machine
from resnet_bench.base.errors import UserError
from resnet_bench.data.dataset import Dataset
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.tuning import space
from resnet_bench.tuning.plan import Plan
from resnet_bench.tuning.samplers import build_pruner, build_sampler
from resnet_bench.tuning.storage import OpenStorage, retried_numbers, retry
from resnet_bench.tuning.study import Study

if TYPE_CHECKING:
    import optuna

Restored = TypeVar("Restored", bound=BaseModel)

Arm = Literal["source", "tuned"]
TrialEnd = Literal["COMPLETE", "PRUNED", "FAIL"]

_READY_TIMEOUT_SECONDS = 60
_MAY_CHANGE = {"budget": ("trials", "wall_seconds"), "notes": (), "made_for": (), "retrain": ()}
"""Parts of a definition that a study may be taken up again with another value of."""


@dataclass(frozen=True)
class AcquiredTrial:
    """A trial that this process is to run."""

    trial: "optuna.Trial"
    settings: space.Params
    is_source: bool
    """Whether it runs the source's own settings; it is never pruned."""


@dataclass(frozen=True)
class Counts:
    """How far a study is."""

    wanted: int
    finished: int
    pruned: int
    failed: int
    running: int
    waiting: int
    interrupted: int


class TrialQueue:
    """One study in one storage. Several processes may hold the same one."""

    def __init__(self, study: "optuna.Study", storage: OpenStorage, definition: Study) -> None:
        """Take over a study that is laid out; see ``begin`` and ``read``."""
        self.study = study
        self.storage = storage
        self.definition = definition

    # --- opening -----------------------------------------------------------------------------------

    @classmethod
    def begin(cls, name: str, plan: Plan, storage: OpenStorage, dataset: Dataset) -> "TrialQueue":
        """Lay out a study, or take up the one of that name.

        Raises:
            UserError: A study of that name was begun with another definition, other images or more trials.
        """
        import optuna

        with storage.address.alone():
            directions = [
                "maximize" if objective == "validation_accuracy" else "minimize" for objective in plan.study.objectives
            ]
            try:
                study = optuna.create_study(storage=storage.optuna, study_name=name, directions=directions)  # type: ignore[arg-type]  # literals in a comprehension
                created = True
            except optuna.exceptions.DuplicatedStudyError:
                study = optuna.load_study(study_name=name, storage=storage.optuna)
                created = False
            ledger = cls(study, storage, plan.study)
            if not created:
                ledger._await_layout()
            ledger._lay_out(plan, dataset)
            ledger._equip(plan)
        return ledger

    @classmethod
    def join(cls, name: str, plan: Plan, storage: OpenStorage) -> "TrialQueue":
        """Work on a study that another process has laid out."""
        import optuna

        ledger = cls(optuna.load_study(study_name=name, storage=storage.optuna), storage, plan.study)
        with storage.address.alone():
            ledger._equip(plan)
        return ledger

    @classmethod
    def read(cls, name: str, storage: OpenStorage) -> "TrialQueue":
        """Look at a study, to show or export it.

        Raises:
            UserError: The storage has no study of that name, or none of ours.
        """
        import optuna

        from resnet_bench.base.names import unknown_name

        try:
            study = optuna.load_study(study_name=name, storage=storage.optuna)
        except KeyError:
            names = study_names(storage)
            if not names:
                raise UserError(
                    f"{storage.address.shown}: there are no studies yet; start one with: resnet-bench study run NAME"
                ) from None
            raise UserError(f"{storage.address.shown}: {unknown_name('study', name, names)}") from None
        definition = study.user_attrs.get("definition")
        if definition is None:
            raise UserError(f"{storage.address.shown}: the study {name} was not made by resnet-bench")
        return cls(study, storage, _restored(Study, definition, name))

    def _await_layout(self) -> None:
        """Give the process that made the study, perhaps on another machine, time to lay it out."""
        deadline = time.monotonic() + _READY_TIMEOUT_SECONDS
        while "definition" not in self.study.user_attrs:
            if time.monotonic() > deadline or self._file_based:
                # Whoever made it died on the way; laying out again adds what is missing.
                return
            time.sleep(0.2)

    @property
    def _file_based(self) -> bool:
        return self.storage.address.url.startswith(("sqlite:", "journal:"))

    def _lay_out(self, plan: Plan, dataset: Dataset) -> None:
        attributes = self.study.user_attrs
        known = attributes.get("definition")
        if known is not None:
            self._check_same(_restored(Study, known, self.study.study_name), plan, dataset)
        written = {
            "profile": plan.profile,
            "benchmark": plan.benchmark.model_dump_json(),
            "base": plan.base.model_dump_json(),
            "data_fingerprint": dataset.fingerprint,
            "generated_images": dataset.generated,
            "definition": plan.study.model_dump_json(exclude={"profiles"}),
        }
        slots = {trial.user_attrs["slot"] for trial in self.trials() if "slot" in trial.user_attrs}
        for slot in range(plan.study.budget.trials):
            if slot not in slots:
                self._add_slot(slot, plan.source_settings)
        for key, value in written.items():
            if attributes.get(key) != value:
                self.study.set_user_attr(key, value)

    def _add_slot(self, slot: int, source: space.Params) -> None:
        import optuna

        if slot == 0:
            self.study.enqueue_trial(source, user_attrs={"slot": 0, "source": True}, skip_if_exists=True)
        else:
            self.study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.WAITING, user_attrs={"slot": slot}))

    def _check_same(self, known: Study, plan: Plan, dataset: Dataset) -> None:
        name = self.study.study_name
        remedy = "give the new one another name with --study-name"
        if known.budget.trials > plan.study.budget.trials:
            raise UserError(
                f"study {name} was begun with {known.budget.trials} trials and may grow, not shrink; {remedy}"
            )
        before, now = (_comparable(study) for study in (known, plan.study))
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        base = self.study.user_attrs.get("base")
        if base is None or _restored(Recipe, base, name) != plan.base:
            changed.append("the benchmark's recipe")
        if changed:
            raise UserError(
                f"study {name} was begun with another definition (changed since: {', '.join(changed)}); "
                f"put that back, or {remedy}"
            )
        if self.study.user_attrs.get("data_fingerprint") != dataset.fingerprint:
            raise UserError(f"study {name} was begun on other images than those found now; name them, or {remedy}")

    def _equip(self, plan: Plan) -> None:
        """Give the study its sampler and pruner. Each process draws from a random stream of its own."""
        processes = int(self.study.user_attrs.get("processes", 0))
        self.study.set_user_attr("processes", processes + 1)
        self.study.sampler = build_sampler(plan.study, seed=_stream_seed(plan.study.seed, processes))
        self.study.pruner = build_pruner(plan.study, epochs=plan.epochs)

    # --- what the study remembers ------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The study's name in the storage."""
        return self.study.study_name

    @property
    def benchmark(self) -> Benchmark:
        """The benchmark, as it was when the study was begun."""
        return _restored(Benchmark, self.study.user_attrs["benchmark"], self.name)

    @property
    def base(self) -> Recipe:
        """The recipe that the study searches, as it was when the study was begun."""
        return _restored(Recipe, self.study.user_attrs["base"], self.name)

    @property
    def profile(self) -> str:
        """``full`` or ``smoke``."""
        return str(self.study.user_attrs["profile"])

    def remember(self, key: str, value: Any) -> None:
        """Keep a value with the study."""
        self.study.set_user_attr(key, value)

    def recall(self, key: str) -> Any:
        """A value that was kept with the study, or None."""
        return self.study.user_attrs.get(key)

    # --- taking trials -----------------------------------------------------------------------------

    def claim(self) -> AcquiredTrial | None:
        """Take the next trial that is due; None where all are taken.

        The values are drawn while no other process of this machine draws, so that each knows what the
        others are trying.
        """
        import optuna

        with self.storage.address.alone(), warnings.catch_warnings():
            # Optuna says that a heartbeat belongs to Study.optimize; ours beats in the run of the trial.
            warnings.filterwarnings("ignore", message="Heartbeat of storage")
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.recover()
            while self.trials((optuna.trial.TrialState.WAITING,)):
                trial = self.study.ask()
                trial.set_user_attr("worker", machine.this_process())
                if self._is_surplus(trial):
                    # Another machine was quicker: there is nothing to run for this one.
                    trial.set_user_attr("surplus", True)
                    self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
                    continue
                settings = space.suggest(trial, self.definition.space)
                return AcquiredTrial(trial, settings, is_source="source" in trial.user_attrs)
        return None

    def _is_surplus(self, trial: "optuna.Trial") -> bool:
        import optuna

        slot = trial.user_attrs.get("slot")
        done = {other.user_attrs.get("slot") for other in self.finished()}
        # Of two that run at once the earlier one stays: were each to give way, nobody would have the slot.
        taken = {
            other.user_attrs.get("slot")
            for other in self.trials((optuna.trial.TrialState.RUNNING,))
            if other.number < trial.number
        }
        return slot is None or slot in done | taken

    def recover(self) -> list[int]:
        """Fail the trials whose process is gone, and queue what they left undone.

        Returns:
            The numbers of the trials whose end was noticed.
        """
        import optuna

        gone = []
        for trial in self.trials((optuna.trial.TrialState.RUNNING,)):
            if self._is_gone(trial):
                self._fail_and_retry(trial.number)
                gone.append(trial)
            elif _is_alive_here(trial):
                # Once the clock was set, or the machine slept, its last heartbeat seems to be long ago.
                self.storage.beat(trial._trial_id)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(self.study)
        trials = self.trials()
        retried = retried_numbers(trials)
        for trial in trials:
            # Whoever was to queue it again may have died before it could.
            if is_interrupted(trial) and trial.number not in retried:
                retry(self.study, self.trial(trial.number))
        return [trial.number for trial in gone]

    def interrupt(self, trial: "optuna.Trial") -> None:
        """Give up a trial that this process cannot finish; it will be run again."""
        with self.storage.address.alone():
            self._fail_and_retry(trial.number)

    def interrupt_own(self) -> None:
        """Give up whatever this process still has of the study, because it ends."""
        import optuna

        with self.storage.address.alone():
            for trial in self.trials((optuna.trial.TrialState.RUNNING,)):
                if trial.user_attrs.get("worker") == machine.this_process():
                    self._fail_and_retry(trial.number)

    def _fail_and_retry(self, number: int) -> None:
        import optuna

        try:
            failed = self.study.tell(number, state=optuna.trial.TrialState.FAIL)
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
            # Its heartbeat was missed, so that another process has done it already.
            return
        retry(self.study, self.trial(failed.number))

    def _is_gone(self, trial: "optuna.trial.FrozenTrial") -> bool:
        worker: dict[str, Any] | None = trial.user_attrs.get("worker")
        if worker is None:
            # Its process died between taking it and saying so; under our lock that is no living one of ours.
            started = trial.datetime_start
            age = time.time() - started.timestamp() if started else 0.0
            return self._file_based or age > self.storage.address.grace_seconds
        # Of a server's clients several may bear one name.
        host, pid, start = worker["host"], int(worker["pid"]), worker["pid_start"]
        return machine.exit_reason(host, pid, start, one_machine=self._file_based) is not None

    # --- ending trials -----------------------------------------------------------------------------

    def end(
        self, trial: "optuna.Trial", state: TrialEnd, values: Sequence[float] | None = None, reason: str | None = None
    ) -> None:
        """Write down how a trial ended.

        Nothing is written where the trial was taken from this process, because its heartbeat was missed: its
        slot is another trial's then.
        """
        import optuna

        try:
            if reason is not None:
                trial.set_user_attr("reason", reason)
            self.study.tell(trial, values=values, state=optuna.trial.TrialState[state])
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
            if self.trial(trial.number).state.name == "RUNNING":
                raise

    # --- reading -----------------------------------------------------------------------------------

    def trial(self, number: int) -> "optuna.trial.FrozenTrial":
        """A trial as the storage has it now."""
        return self.study.get_trials(deepcopy=True)[number]

    def trials(self, states: Any = None) -> "list[optuna.trial.FrozenTrial]":
        """Every trial in one of these states, those that wait and those that were interrupted included."""
        return self.study.get_trials(deepcopy=False, states=states)

    def finished(self) -> "list[optuna.trial.FrozenTrial]":
        """The trials that count: complete, pruned, or failed by themselves; in the order of their numbers."""
        return [trial for trial in self.trials() if is_counted(trial)]

    def retries(self) -> dict[int, int]:
        """The numbers of interrupted trials, each with that of the trial that took its place."""
        return retried_numbers(self.trials())

    def counts(self) -> Counts:
        """How far the study is."""
        trials = self.trials()
        finished = self.finished()
        states = [trial.state.name for trial in finished]
        return Counts(
            wanted=self.definition.budget.trials,
            finished=len(finished),
            pruned=states.count("PRUNED"),
            failed=states.count("FAIL"),
            running=sum(trial.state.name == "RUNNING" for trial in trials),
            waiting=sum(trial.state.name == "WAITING" for trial in trials),
            interrupted=sum(is_interrupted(trial) for trial in trials),
        )

    def source_trial(self) -> "optuna.trial.FrozenTrial | None":
        """The complete trial with the source's own settings."""
        return next((trial for trial in self._complete() if "source" in trial.user_attrs), None)

    def check_source(self) -> None:
        """Make sure that there is, or can be, something to hold tuned settings against.

        Raises:
            UserError: The source's own settings could not be trained.
        """
        for trial in self.finished():
            if "source" in trial.user_attrs and trial.state.name != "COMPLETE":
                raise UserError(
                    f"study {self.name}: the source's own settings cannot be trained ({trial.user_attrs['reason']}), "
                    "so there is nothing to hold tuned ones against"
                )

    def best_trial(self) -> "optuna.trial.FrozenTrial | None":
        """The complete trial with the highest validation accuracy; of equal ones the first."""
        complete = self._complete()
        return max(complete, key=lambda trial: (trial.values[0], -trial.number)) if complete else None

    def _complete(self) -> "list[optuna.trial.FrozenTrial]":
        return [trial for trial in self.trials() if trial.state.name == "COMPLETE"]


def study_names(storage: OpenStorage) -> list[str]:
    """The studies of a storage that resnet-bench made."""
    import optuna

    summaries = optuna.get_all_study_summaries(storage.optuna, include_best_trial=False)
    return [summary.study_name for summary in summaries if "definition" in summary.user_attrs]


def is_interrupted(trial: "optuna.trial.FrozenTrial") -> bool:
    """Whether a trial ended because its process did, or was told to: one that failed by itself says why."""
    return trial.state.name == "FAIL" and not trial.user_attrs.keys() & {"reason", "surplus"}


def is_counted(trial: "optuna.trial.FrozenTrial") -> bool:
    """Whether a trial is one of the budget's finished ones."""
    return trial.state.is_finished() and not is_interrupted(trial) and "surplus" not in trial.user_attrs


def trained_epochs(trial: "optuna.trial.FrozenTrial") -> int:
    """Epochs that a pruned trial had been trained for when it was stopped."""
    return trial.last_step or 0


def _restored(schema: type[Restored], text: str, study: str) -> Restored:
    """What a study remembers; a key that is newer than the study has its default."""
    try:
        return schema.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"study {study} was made by another version of resnet-bench, which this one cannot read "
            f"({schema.__name__.lower()}: {where}: {first['msg']}); use that version, or start from "
            "scratch with --study-name"
        ) from None


def _comparable(study: Study) -> Mapping[str, Any]:
    table: dict[str, Any] = json.loads(study.model_dump_json(exclude={"profiles"}))
    for key, parts in _MAY_CHANGE.items():
        if not parts:
            table.pop(key, None)
        elif key in table:
            table[key] = {part: value for part, value in table[key].items() if part not in parts}
    return table


def _stream_seed(seed: int, process: int) -> int:
    """A seed of its own for each process of a study; the first has the study's."""
    return (seed + process * 0x9E3779B1) % 2**32


def _is_alive_here(trial: "optuna.trial.FrozenTrial") -> bool:
    worker: dict[str, Any] = trial.user_attrs.get("worker", {})
    return bool(worker) and machine.is_alive(int(worker["pid"]), worker["pid_start"], host=worker["host"])
