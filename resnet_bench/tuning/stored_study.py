"""A study as its storage has it: what it was begun with, its trials, and which of them count."""

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

import optuna
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, ValidationError

from resnet_bench.base.errors import UserError
from resnet_bench.base.names import unknown_name
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.tuning.plan import Plan
from resnet_bench.tuning.storage import OpenStorage, retried_numbers
from resnet_bench.tuning.study import Study

Restored = TypeVar("Restored", bound=BaseModel)

Arm = Literal["source", "tuned"]

EXHAUSTED = "the search space has no further point"
"""Why a slot of the budget was closed without a trial; the value of the trial's attribute ``surplus``."""
LATEST_SCORE = "latest_score"
"""The trial's attribute with the epoch, counted over all seeds, and the accuracy of the last score that its pruner does
not see."""


@dataclass(frozen=True)
class Counts:
    """The progress of a study, in trials.

    Attributes:
        wanted: The budget, less what the search space has no points for.
        finished: Complete, pruned, or failed by themselves.
        pruned: Of these, stopped early.
        failed: Of these, failed by themselves.
        running: In progress.
        waiting: Not begun.
        interrupted: Stopped from outside; another trial took the place of each.
        exhausted: Of the budget, those that the search space has no points for.
    """

    wanted: int
    finished: int
    pruned: int
    failed: int
    running: int
    waiting: int
    interrupted: int
    exhausted: int = 0


@dataclass(frozen=True)
class StoredStudy:
    """One study in one storage, to read; several processes may have the same one."""

    study: optuna.Study
    storage: OpenStorage
    definition: Study

    @classmethod
    def read(cls, name: str, storage: OpenStorage) -> "StoredStudy":
        """Find a study by its name.

        Raises:
            UserError: The storage has no study of that name, or another program made it.
        """
        shown = storage.address.redacted_url
        try:
            study = optuna.load_study(study_name=name, storage=storage.optuna)
        except KeyError:
            names = study_names(storage)
            if not names:
                raise UserError(
                    f"{shown}: there are no studies yet; start one with: resnet-bench study run NAME"
                ) from None
            raise UserError(f"{shown}: {unknown_name('study', name, names)}") from None
        definition = study.user_attrs.get("definition")
        if definition is None:
            raise UserError(f"{shown}: the study {name} was not made by resnet-bench")
        return cls(study, storage, restored(Study, definition, name))

    @property
    def name(self) -> str:
        """The study's name in the storage."""
        return self.study.study_name

    @cached_property
    def plan(self) -> Plan:
        """The study with its profile, benchmark and recipe, as they were when it was begun."""
        attributes = self.study.user_attrs
        return Plan(
            study=self.definition,
            profile=attributes["profile"],
            benchmark=restored(Benchmark, attributes["benchmark"], self.name),
            base=restored(Recipe, attributes["base"], self.name),
        )

    def get_attr(self, key: str) -> Any:
        """Return a value that is stored with the study, or None."""
        return self.study.user_attrs.get(key)

    def set_attr(self, key: str, value: Any) -> None:
        """Store a value with the study."""
        self.study.set_user_attr(key, value)

    # --- trials ------------------------------------------------------------------------------------

    def trial(self, number: int) -> FrozenTrial:
        """Return a trial as the storage has it now."""
        # Copying all of them takes longer than reading them.
        return copy.deepcopy(self.study.get_trials(deepcopy=False)[number])

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return every trial in one of these states, by default in any; in the order of their numbers."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    def finished(self) -> list[FrozenTrial]:
        """Return the trials that count: complete, pruned, or failed by themselves."""
        return [trial for trial in self.trials() if is_counted(trial)]

    def retries(self) -> dict[int, int]:
        """Map the number of each interrupted trial to that of the trial that took its place."""
        return retried_numbers(self.trials())

    def counts(self) -> Counts:
        """Count the trials by state."""
        trials = self.trials()
        states = [trial.state.name for trial in trials]
        ends = [trial.state.name for trial in trials if is_counted(trial)]
        exhausted = sum(trial.user_attrs.get("surplus") == EXHAUSTED for trial in trials)
        slots = {trial.user_attrs["slot"] for trial in trials if "slot" in trial.user_attrs}
        still_to_lay_out = sum(slot not in slots for slot in range(self.definition.budget.trials))
        return Counts(
            wanted=self.definition.budget.trials - exhausted,
            finished=len(ends),
            pruned=ends.count("PRUNED"),
            failed=ends.count("FAIL"),
            running=states.count("RUNNING"),
            waiting=states.count("WAITING") + still_to_lay_out,
            interrupted=sum(is_interrupted(trial) for trial in trials),
            exhausted=exhausted,
        )

    def source_trial(self) -> FrozenTrial | None:
        """Return the complete trial with the source hyperparameters."""
        return next((trial for trial in self.trials(TrialState.COMPLETE) if is_source(trial)), None)

    def check_source(self) -> None:
        """Make sure that there is, or can be, a trial to compare with.

        Raises:
            UserError: The source hyperparameters could not be trained.
        """
        for trial in self.finished():
            if is_source(trial) and trial.state != TrialState.COMPLETE:
                raise UserError(
                    f"study {self.name}: the source hyperparameters cannot be trained ({trial.user_attrs['reason']}), "
                    "so there is nothing to compare others with"
                )

    def best_trial(self) -> FrozenTrial | None:
        """Return the complete trial with the highest validation accuracy; of equal ones the first."""
        complete = self.trials(TrialState.COMPLETE)
        return max(complete, key=lambda trial: (trial.values[0], -trial.number)) if complete else None


def study_names(storage: OpenStorage) -> list[str]:
    """List the studies of a storage that resnet-bench made."""
    summaries = optuna.get_all_study_summaries(storage.optuna, include_best_trial=False)
    return [summary.study_name for summary in summaries if "definition" in summary.user_attrs]


def is_source(trial: FrozenTrial) -> bool:
    """Whether a trial runs the source hyperparameters."""
    return "source" in trial.user_attrs


def is_interrupted(trial: FrozenTrial) -> bool:
    """Whether a trial ended because its process did, or was told to: one that failed by itself has a reason."""
    return trial.state == TrialState.FAIL and not trial.user_attrs.keys() & {"reason", "surplus"}


def is_counted(trial: FrozenTrial) -> bool:
    """Whether a trial is one of the budget's finished ones."""
    return trial.state.is_finished() and not is_interrupted(trial) and "surplus" not in trial.user_attrs


def scores(trial: FrozenTrial) -> dict[int, float]:
    """Map epochs, counted over all seeds of a trial, to validation accuracies: what its pruner saw, and the latest."""
    latest = trial.user_attrs.get(LATEST_SCORE)
    return trial.intermediate_values if latest is None else {**trial.intermediate_values, latest[0]: latest[1]}


def trained_epochs(trial: FrozenTrial) -> int:
    """Return the epochs that a trial has trained in all its seeds; 0 for one that repeats another's result."""
    return max(scores(trial), default=0)


def restored(schema: type[Restored], text: str, study: str) -> Restored:
    """Read what a study was begun with; a key that is newer than the study gets its default.

    Raises:
        UserError: Another version of resnet-bench made the study, with keys that this one does not know.
    """
    try:
        return schema.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"study {study} was made by another version of resnet-bench, which this one cannot read "
            f"({schema.__name__.lower()}: {where}: {first['msg']}); use that version, or start another study with "
            "--study-name"
        ) from None
