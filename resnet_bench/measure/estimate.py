"""Estimate how long a run takes, and how long it has left: its images, times what one of them costs."""

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from resnet_bench.recipe.recipe import Recipe
from resnet_bench.recipe.settings import SplitName
from resnet_bench.training.events import EpochEnded, Evaluated, Started, Steps

TRAINING_COST = 3
"""Forward passes that a training step costs: forward, input gradient, weight gradient."""

OVERHEAD_SECONDS = 3.0
"""To open a run, and to log its outcome."""

WINDOW = 32
"""Steps that the pace of training is taken from."""
OUTLIERS = 4
"""Of these as many are left out, the slowest, or a quarter of fewer: the first step of a shape is slow."""


@dataclass(frozen=True)
class Costs:
    """What one image costs.

    Attributes:
        training: Seconds of an optimizer step per image, by the side of the images in pixels.
        evaluation: Seconds of a forward pass per image.
    """

    training: Mapping[int, float]
    evaluation: float

    @classmethod
    def by_pixels(cls, recipe: Recipe) -> "Costs":
        """Costs in proportion to pixels, in no unit of time, where nothing was measured."""
        training = {size: float(TRAINING_COST * size**2) for size in recipe.image_sizes}
        return cls(training, float(recipe.image_size**2))


def step_stages(recipe: Recipe) -> list[tuple[int, int]]:
    """Return the side of the training images in pixels and the number of steps at it, stage by stage."""
    total = recipe.steps_per_epoch * recipe.training.epochs
    if not (stages := recipe.augmentation.sizes):
        return [(recipe.image_size, total)]
    # The loader takes the stage that a step begins in.
    ends = [math.ceil(end * recipe.steps_per_epoch) for end in itertools.accumulate(stage.epochs for stage in stages)]
    ends[-1] = total
    return [(stage.pixels, end - begin) for stage, begin, end in zip(stages, [0, *ends], ends, strict=False)]


def training_seconds(recipe: Recipe, costs: Costs, first: int = 0, last: int | None = None) -> float:
    """Sum up the costs of optimizer steps.

    Args:
        recipe: What is trained.
        costs: What an image costs.
        first: Steps done before.
        last: The last step; that of the run by default.
    """
    images_per_step = recipe.data.num_train / recipe.steps_per_epoch
    seconds, begin = 0.0, 0
    for size, steps in step_stages(recipe):
        end = begin + steps
        counted = min(end, end if last is None else last) - max(begin, first)
        seconds += max(0, counted) * images_per_step * costs.training[size]
        begin = end
    return seconds


def evaluated_images(recipe: Recipe, epoch: int) -> dict[SplitName, int]:
    """Count the images of the forward passes that evaluate each split after an epoch, 0 being before training."""
    evaluation, is_last = recipe.evaluation, epoch == recipe.training.epochs
    # Unless the source evaluates in eval mode, the standard accuracy takes another pass.
    passes = 1 if evaluation.mode == "eval" else 2
    if is_last and (augmentation := evaluation.test_time_augmentation) is not None:
        passes += (2 if augmentation.mirror else 1) * (3 if augmentation.shift else 1)
    splits: tuple[SplitName, ...] = ("validation", "test")
    images = {split: passes * recipe.num_images(split) for split in splits if epoch in recipe.evaluations(split)}
    if recipe.training.train_accuracy == "separate_pass" and epoch > 0:
        images["train"] = recipe.num_images("train")
    return images


def estimate_seconds(recipe: Recipe, costs: Costs) -> float:
    """Estimate the seconds of a whole run."""
    images = sum(sum(evaluated_images(recipe, epoch).values()) for epoch in range(recipe.training.epochs + 1))
    return OVERHEAD_SECONDS + training_seconds(recipe, costs) + images * costs.evaluation


class TimeLeft:
    """Estimates the time that a run has left, from its events.

    What steps and evaluations took, divided by what they were expected to take, scales what is expected of the rest.

    Args:
        recipe: What is trained.
        costs: What an image costs, in proportion to one another.
        clock: Seconds; read at each event.
    """

    def __init__(self, recipe: Recipe, costs: Costs, clock: Callable[[], float] = time.monotonic) -> None:
        self._recipe, self._costs, self._clock = recipe, costs, clock
        self._step = 0
        self._steps: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self._epoch, self._evaluated_here = 0, 0
        self._evaluation = (0.0, 0.0)
        self._last_event = clock()

    def take(self, event: object) -> None:
        """Take over what an event of the run tells; events that tell nothing of its time are passed over."""
        now = self._clock()
        elapsed, self._last_event = now - self._last_event, now
        match event:
            case Started() if event.step:
                self._step, self._epoch = event.step, event.step // event.steps_per_epoch + 1
            case Steps():
                expected = training_seconds(self._recipe, self._costs, event.first_step - 1, event.last_step)
                self._steps.append((elapsed, expected))
                self._step = event.last_step
                self._to_epoch(event.epoch)
            case Evaluated():
                self._evaluated(event.split, elapsed)
            case EpochEnded():
                self._evaluated("train", elapsed)
                self._to_epoch(event.epoch + 1)
            case _:
                pass

    def seconds(self) -> float | None:
        """The seconds left; None before the second steps, because the first ones of a run measure what is fastest."""
        if len(self._steps) < 2:
            return None
        outliers = min(OUTLIERS, math.ceil(len(self._steps) / 4), len(self._steps) - 1)
        kept = sorted(self._steps, key=lambda step: step[0] / step[1])[: len(self._steps) - outliers]
        pace = sum(elapsed for elapsed, _ in kept) / sum(expected for _, expected in kept)
        elapsed, expected = self._evaluation
        evaluation_pace = elapsed / expected if expected else pace
        return OVERHEAD_SECONDS + pace * self._training_left() + evaluation_pace * self._evaluation_left()

    def share_done(self) -> float:
        """How much of the run is done, a fraction of what it is expected to cost."""
        left = self._training_left() + self._evaluation_left()
        return 1 - left / (estimate_seconds(self._recipe, self._costs) - OVERHEAD_SECONDS)

    def _training_left(self) -> float:
        return training_seconds(self._recipe, self._costs, self._step)

    def _evaluation_left(self) -> float:
        epochs = range(self._epoch, self._recipe.training.epochs + 1)
        images = sum(sum(evaluated_images(self._recipe, epoch).values()) for epoch in epochs) - self._evaluated_here
        return self._costs.evaluation * images

    def _to_epoch(self, epoch: int) -> None:
        if epoch != self._epoch:
            self._epoch, self._evaluated_here = epoch, 0

    def _evaluated(self, split: SplitName, elapsed: float) -> None:
        if images := evaluated_images(self._recipe, self._epoch).get(split, 0):
            self._evaluated_here += images
            # The first evaluation of a run is slow, and soon counts for little.
            before, expected = self._evaluation
            self._evaluation = before / 2 + elapsed, expected / 2 + images * self._costs.evaluation
