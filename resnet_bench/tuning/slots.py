"""The slots of a study's budget: which are laid out as waiting trials, and which trial has each.

Few are waiting at a time, because Optuna reads each unfinished trial again at every look: who acquires slot s lays out
slot s + ahead. Each slot has one such predecessor, so that workers who acquire at once lay out different ones without
a lock. Of two trials of one slot, the one with the lower number stays.
"""

import random
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from resnet_bench.tuning import space
from resnet_bench.tuning.plan import Plan
from resnet_bench.tuning.samplers import grid_points
from resnet_bench.tuning.stored_study import EXHAUSTED, StoredStudy, is_counted

MIN_AHEAD = 8
"""How many slots are waiting at least."""
AHEAD_PER_WORKER = 2

_UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)


class Slots:
    """The slots of one study; several processes may have the same ones."""

    def __init__(self, stored: StoredStudy, plan: Plan | None = None) -> None:
        """Take the slots of a study.

        Args:
            stored: The study.
            plan: What it was begun with, where the storage does not have that yet.
        """
        self._stored = stored
        self._given = plan

    def missing(self, trials: Sequence[FrozenTrial]) -> list[int]:
        """List the slots of the budget that are not laid out yet."""
        there = {trial.user_attrs.get("slot") for trial in trials}
        return [slot for slot in range(self._stored.definition.budget.trials) if slot not in there]

    def add(self, slot: int) -> None:
        """Lay out a slot."""
        study, fixed = self._stored.study, self._fixed_params
        attributes: dict[str, Any] = {"slot": slot, "source": True} if slot == 0 else {"slot": slot}
        if slot < len(fixed):
            study.enqueue_trial(fixed[slot], user_attrs=attributes)
        else:
            study.add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs=attributes))

    def lay_ahead(self, slot: int | None, trials: Sequence[FrozenTrial]) -> None:
        """Lay out the slot that follows from one that was acquired."""
        if slot is not None and slot + self._ahead in self.missing(trials):
            self.add(slot + self._ahead)

    def lay_out_another(self, trials: Sequence[FrozenTrial]) -> bool:
        """Lay out a slot where more processes came than slots were laid out for; False where all are."""
        missing = self.missing(trials)
        if not missing:
            return False
        running = sum(trial.state == TrialState.RUNNING for trial in trials)
        # Others may do the same at the moment.
        several = 1 if self._stored.storage.address.file is not None else 2 * running + 1
        self.add(random.choice(missing[:several]))  # an order, not a secret  # nosec B311
        return True

    def why_surplus(self, slot: int | None, number: int, trials: Sequence[FrozenTrial]) -> str | None:
        """Say why there is nothing to run for a trial that was just taken.

        Args:
            slot: Its slot.
            number: Its number.
            trials: What was there before. A trial that was added since has a higher number, and gives way itself.
        """
        others = [other for other in trials if other.number != number]
        taken = {
            other.user_attrs.get("slot")
            for other in others
            # Were both to give way, nobody would have the slot.
            if is_counted(other) or (other.state in _UNFINISHED and other.number < number)
        }
        if slot is None or slot in taken:
            return "another process was quicker"
        drawn = any(params_of(trial) for trial in trials if trial.number == number)
        return EXHAUSTED if not drawn and self._is_exhausted(others) else None

    def _is_exhausted(self, trials: Sequence[FrozenTrial]) -> bool:
        if self._point_count is None:
            return False
        taken = [params_of(trial) for trial in trials if trial.state in _UNFINISHED or is_counted(trial)]
        return len({space.identity(params) for params in taken if params}) >= self._point_count

    @property
    def _plan(self) -> Plan:
        return self._given or self._stored.plan

    @cached_property
    def _ahead(self) -> int:
        return int(self._stored.get_attr("ahead") or MIN_AHEAD)

    @cached_property
    def _point_count(self) -> int | None:
        return count_points(self._plan)

    @cached_property
    def _fixed_params(self) -> list[space.Params]:
        """The hyperparameters that no sampler draws, by slot: the source's, and the other points of a grid."""
        plan = self._plan
        source = plan.source_params
        if plan.study.sampler.name != "grid":
            return [source]
        points = grid_points(plan.study)
        return [source, *(point for point in points if space.identity(point) != space.identity(source))]


def count_points(plan: Plan) -> int | None:
    """Count the different trials that a study can have; None where there is no end to them."""
    if plan.study.sampler.name != "grid":
        points = space.list_points(plan.study)
        return None if points is None else len(points)
    return len({space.identity(params) for params in [plan.source_params, *grid_points(plan.study)]})


def params_of(trial: FrozenTrial) -> space.Params:
    """Return the hyperparameters that a trial has or will have; none where its sampler has still to draw them."""
    fixed: space.Params = trial.system_attrs.get("fixed_params", {})
    return trial.params or fixed
