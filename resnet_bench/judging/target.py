"""Decide when a run reaches a target accuracy: a level held over three evaluations."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from resnet_bench.judging.intervals import Interval
from resnet_bench.recipe.claims import Claim
from resnet_bench.recipe.recipe import Recipe

WINDOW = 3
"""Evaluations in a row whose mean must reach the target: a single one crosses it early, on noise."""


def held(accuracies: Sequence[float], *, planned: int, seen: int | None = None) -> float:
    """Return the level that a run holds: the mean of its last three evaluations.

    Where the whole run has fewer than three evaluations, its last one counts.

    Args:
        accuracies: Every evaluation so far, in order.
        planned: Evaluations of the whole run.
        seen: Look only at the first evaluations, this many; at all of them where not given.

    Returns:
        The level, in the same unit; minus infinity where none is held yet.
    """
    seen = len(accuracies) if seen is None else seen
    if planned < WINDOW:
        return accuracies[seen - 1] if 0 < seen == planned else -math.inf
    return statistics.fmean(accuracies[seen - WINDOW : seen]) if seen >= WINDOW else -math.inf


def time_to_accuracy(evaluations: Sequence[tuple[float, float]], target: float) -> float:
    """Return when a finished run first held a target.

    Args:
        evaluations: Training seconds (or joules) so far and accuracy of each evaluation, in order.
        target: Accuracy to reach, in the same unit.

    Returns:
        Training seconds (or joules), infinite where the run never held the target.
    """
    return next((seconds for seconds, level in held_levels(evaluations) if level >= target), math.inf)


def held_levels(evaluations: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the level that a finished run held as of each evaluation, with its training seconds."""
    accuracies = [accuracy for _, accuracy in evaluations]
    planned = len(accuracies)
    return [
        (seconds, held(accuracies, planned=planned, seen=seen))
        for seen, (seconds, _) in enumerate(evaluations, start=1)
    ]


@dataclass(frozen=True)
class TimesToAccuracy:
    """Training times at which runs reached a target; a run that missed it counts as infinity."""

    target: float
    times: tuple[float, ...]
    total_seconds: float
    """Training time of all runs, including those that missed."""

    @property
    def reached(self) -> int:
        """Number of runs that reached the target."""
        return sum(math.isfinite(time) for time in self.times)

    @property
    def median(self) -> float:
        """Median over all runs; infinite when half of them or more missed."""
        return statistics.median(self.times)

    @property
    def range(self) -> Interval:
        """The fastest and the slowest run."""
        return Interval(min(self.times), max(self.times))

    @property
    def seconds_per_success(self) -> float:
        """Training time of all runs per run that reached the target."""
        return self.total_seconds / self.reached if self.reached else math.inf


class TargetMonitor:
    """Follows the evaluations of a claim's split until a training run holds the claimed level.

    The level is the lowest value that the claim, as printed, stands for.
    """

    def __init__(self, claim: Claim, recipe: Recipe) -> None:
        self._split = claim.split
        self._metric = claim.metric
        # Rounding in a mean must not decide; one image of ten thousand is a hundred thousand times as much.
        self._level = claim.interval[0] / 100 - 1e-9
        self._planned = len(recipe.evaluations(claim.split)) if claim.metric == "accuracy" else 1
        self._accuracies: list[float] = []

    def evaluated(self, split: str, accuracy: float, metric: str = "accuracy") -> None:
        """Record an evaluation.

        Args:
            split: The split that was evaluated.
            accuracy: A fraction.
            metric: What was measured: ``accuracy``, or another metric of the claim's kind.
        """
        if split == self._split and metric == self._metric:
            self._accuracies.append(accuracy)

    @property
    def held(self) -> bool:
        """Whether the level is held as of the last evaluation."""
        return held(self._accuracies, planned=self._planned) >= self._level
