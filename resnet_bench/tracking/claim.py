"""When a run first held the level that its source claims."""

from resnet_bench.recipe.claims import Claim
from resnet_bench.recipe.recipe import Recipe

WINDOW = 3
"""Evaluations whose mean must reach the level: a single one crosses it early, on noise."""


class ClaimWatch:
    """Follows the evaluations of a claim's split until the claimed level is held.

    Held means that the mean of the last three evaluations is at or above the level, or the last evaluation
    where a run has fewer. The level is the lowest value that the claim, as printed, stands for.
    """

    def __init__(self, claim: Claim, recipe: Recipe) -> None:
        self._split = claim.split
        self._metric = claim.metric
        # Rounding in a mean must not decide; one image of ten thousand is a hundred thousand times as much.
        self._level = claim.interval[0] / 100 - 1e-9
        self._planned = 1 if claim.is_tta else _planned_evaluations(recipe, claim.split)
        self._accuracies: list[float] = []

    def evaluated(self, split: str, accuracy: float, metric: str = "accuracy") -> None:
        """Take note of an evaluation; accuracy is a fraction, by the metric of that name."""
        if split == self._split and metric == self._metric:
            self._accuracies.append(accuracy)

    @property
    def held(self) -> bool:
        """Whether the level is held as of the last evaluation."""
        seen = len(self._accuracies)
        if self._planned < WINDOW:
            return seen > 0 and seen == self._planned and self._accuracies[-1] >= self._level
        return seen >= WINDOW and sum(self._accuracies[-WINDOW:]) / WINDOW >= self._level


def _planned_evaluations(recipe: Recipe, split: str) -> int:
    evaluation, epochs = recipe.evaluation, recipe.training.epochs
    if split == "train":
        return epochs
    if split not in evaluation.splits:
        return 1
    return -(-epochs // evaluation.every) + int(evaluation.before_training)
