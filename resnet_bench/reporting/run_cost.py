"""What one run of an experiment takes: measured, or extrapolated where every seed shared its machine."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from resnet_bench.base.text import DASH, duration, plural
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.reporting.executions import execution_name
from resnet_bench.reporting.runs import LENGTH, Run, RunGroup

SHORTENED = (*LENGTH, "schedule.", "optimizer.lr", "evaluation.")
"""Recipe keys, or what they begin with, that may differ in a shorter run: none changes what a training step takes."""


@dataclass(frozen=True)
class RunCost:
    """Training time and throughput of one run: medians over the runs of one device.

    Attributes:
        device: The device that most seeds with a time ran on.
        seconds: Training time of a whole run, without evaluation, set-up and compilation; None where it is unknown.
        images_per_second: Training throughput; None likewise.
        extrapolated_from: What was timed in place of whole runs, such as ``2 epochs of 50,000 images on AMD EPYC``;
            empty where whole runs were.
        timed: Those runs, then.
    """

    device: str
    seconds: float | None
    images_per_second: float | None
    extrapolated_from: str = ""
    timed: RunGroup | None = None

    @property
    def time(self) -> str:
        """The training time as a table shows it; ``about`` marks an extrapolation."""
        if self.seconds is None:
            return DASH
        return f"about {duration(self.seconds)}" if self.extrapolated_from else duration(self.seconds)


def run_cost(members: RunGroup, others: Iterable[RunGroup]) -> RunCost:
    """Return what one run of a group takes.

    Where each seed shared its machine with others, its times say nothing. Then the throughput of runs of the same
    recipe with fewer epochs or images is taken, if they were trained by the same execution: a step costs as much in
    them. Their longest runs count.

    Args:
        members: The group.
        others: Every group that shorter runs may be among.
    """
    own = RunCost(*_measured(members))
    if own.seconds is not None or members.apart or members.changed or members.definition is None:
        return own
    recipe = members.definition.recipe
    if recipe.augmentation.sizes is not None:
        return own
    found = [(_images(other.latest, recipe), other) for other in others if _is_shorter(other, members)]
    for _, other in sorted(found, key=lambda pair: pair[0], reverse=True):
        device, _, rate = _measured(other)
        if rate:
            seconds = recipe.training.epochs * recipe.num_images("train") / rate
            part = f"{plural(other.latest.epochs or 0, 'epoch')} of {_images_per_epoch(other.latest, recipe):,} images"
            return RunCost(device, seconds, rate, f"{part} on {device}", other)
    return own


def median(values: Iterable[float | None]) -> float | None:
    """Return the median of the values that are there; None where there are none."""
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None


def _measured(members: RunGroup) -> tuple[str, float | None, float | None]:
    """Return the device that most seeds with a time ran on, and time and throughput there."""
    device, runs = next(iter(members.devices.items()))
    return device, median(run.train_seconds for run in runs), median(run.images_per_second for run in runs)


def _is_shorter(other: RunGroup, members: RunGroup) -> bool:
    """Whether runs are those of a group but for their length."""
    return (
        other.name == members.name
        and not other.apart
        and other.latest.dataset == members.latest.dataset
        and execution_name(other.latest.execution) == execution_name(members.latest.execution)
        and bool(other.changed)
        and all(key.startswith(SHORTENED) for key in other.changed)
    )


def _images(run: Run, recipe: Recipe) -> int:
    """Return the images that a shorter run of a recipe trained on, over all epochs."""
    return (run.epochs or 0) * _images_per_epoch(run, recipe)


def _images_per_epoch(run: Run, recipe: Recipe) -> int:
    given = str(run.recipe.get("data.train_images", ""))
    return int(given) if given.isdecimal() else recipe.num_images("train")
