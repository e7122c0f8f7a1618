"""Learning-rate schedules: torch's, behind one interface, and training phases, which torch lacks."""

from functools import partial
from typing import Any, Protocol

from torch.optim import Optimizer, lr_scheduler

from resnet_bench.recipe.recipe import Recipe
from resnet_bench.recipe.settings import Constant, Cosine, Linear, MultiStep, OneCycle, Phases, Plateau
from resnet_bench.training.optimizers import forget_momentum


class Schedule(Protocol):
    """Sets the learning rates of an optimizer during training."""

    def start_epoch(self, epoch: int) -> None:
        """Prepare the first step of an epoch; epochs count from 1."""

    def after_step(self) -> None:
        """Follow an optimizer step."""

    def after_epoch(self, watched_loss: float | None) -> None:
        """Follow an epoch and its evaluation; the loss is that of the first split evaluated, if any."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state needed to resume."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""


def build_schedule(recipe: Recipe, optimizer: Optimizer) -> Schedule:
    """Build the schedule of a recipe, attached to its optimizer."""
    schedule, optimizer_recipe = recipe.schedule, recipe.optimizer
    total_steps = recipe.training.epochs * recipe.steps_per_epoch
    match schedule:
        case Constant():
            return _Fixed()
        case OneCycle():
            return _EveryStep(
                lr_scheduler.OneCycleLR(
                    optimizer,
                    max_lr=optimizer_recipe.lr,
                    total_steps=total_steps,
                    pct_start=schedule.rising_fraction,
                    div_factor=schedule.initial_divisor,
                    final_div_factor=schedule.final_divisor,
                    cycle_momentum=schedule.cycle_momentum,
                    base_momentum=schedule.base_momentum,
                    max_momentum=schedule.max_momentum,
                )
            )
        case Cosine():
            return _EveryStep(
                lr_scheduler.CosineAnnealingLR(
                    optimizer, T_max=total_steps, eta_min=optimizer_recipe.lr * schedule.final_factor
                )
            )
        case Linear():
            return _EveryStep(lr_scheduler.LambdaLR(optimizer, partial(_linear_factor, schedule, total_steps)))
        case MultiStep():
            return _EveryEpoch(
                lr_scheduler.MultiStepLR(optimizer, milestones=list(schedule.milestones), gamma=schedule.factor)
            )
        case Plateau():
            return _OnPlateau(
                lr_scheduler.ReduceLROnPlateau(
                    optimizer,
                    factor=schedule.factor,
                    patience=schedule.patience,
                    threshold=schedule.threshold,
                    min_lr=schedule.min_lr,
                )
            )
        case Phases():
            return _Phases(schedule, optimizer)


def moves_momentum(recipe: Recipe) -> bool:
    """Return whether the recipe's schedule also changes the optimizer's momentum or first beta."""
    return isinstance(recipe.schedule, OneCycle) and recipe.schedule.cycle_momentum


def _linear_factor(schedule: Linear, total_steps: int, step: int) -> float:
    """The factor of the learning rate after ``step`` steps."""
    rising = schedule.rising_fraction * total_steps
    if step < rising:
        return step / rising
    return 1 - (1 - schedule.final_factor) * (step - rising) / (total_steps - rising)


class _Fixed:
    """A constant learning rate."""

    def start_epoch(self, epoch: int) -> None:
        pass

    def after_step(self) -> None:
        pass

    def after_epoch(self, watched_loss: float | None) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class _EveryStep(_Fixed):
    def __init__(self, scheduler: lr_scheduler.LRScheduler) -> None:
        self._scheduler = scheduler

    def after_step(self) -> None:
        self._scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        return {key: value for key, value in self._scheduler.state_dict().items() if _is_plain(value)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._scheduler.load_state_dict(state)


class _EveryEpoch(_EveryStep):
    def after_step(self) -> None:
        pass

    def after_epoch(self, watched_loss: float | None) -> None:  # noqa: ARG002 - the protocol's signature
        self._scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        # MultiStepLR keeps its milestones in a Counter, which a weights-only checkpoint cannot contain. They are in
        # the recipe anyway.
        return {"last_epoch": self._scheduler.last_epoch, "_step_count": self._scheduler._step_count}


class _OnPlateau(_Fixed):
    def __init__(self, scheduler: lr_scheduler.ReduceLROnPlateau) -> None:
        self._scheduler = scheduler

    def after_epoch(self, watched_loss: float | None) -> None:
        if watched_loss is not None:
            self._scheduler.step(watched_loss)

    def state_dict(self) -> dict[str, Any]:
        return {key: value for key, value in self._scheduler.state_dict().items() if _is_plain(value)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._scheduler.load_state_dict(state)


class _Phases(_Fixed):
    """Phases as if started by hand: each sets its learning rate and resets the momentum."""

    def __init__(self, recipe: Phases, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._restart_momentum = recipe.restart_momentum
        self._base_rates = [float(group["lr"]) for group in optimizer.param_groups]
        self._starts: dict[int, float] = {}
        first_epoch = 1
        for phase in recipe.phases:
            self._starts[first_epoch] = phase.factor
            first_epoch += phase.epochs

    def start_epoch(self, epoch: int) -> None:
        if epoch not in self._starts:
            return
        for group, rate in zip(self._optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * self._starts[epoch]
        if self._restart_momentum and epoch > 1:
            forget_momentum(self._optimizer)


def _is_plain(value: Any) -> bool:
    return isinstance(value, int | float | bool | str | list | tuple | dict | type(None))
