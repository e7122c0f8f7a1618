"""The clock of a speed record: steps that it does not cover, and the time of a baseline that it is compared with."""

import contextlib
import statistics

from resnet_bench.data.dataset import Dataset, generate_dataset
from resnet_bench.execution.execution import Execution
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.training.events import EpochEnded, Finished, Started, Steps
from resnet_bench.training.loop import train

BASELINE_STEPS = 12
"""Steps that a baseline is timed over at a time; the first quarter of them is warm-up."""

WARM_UP_STEPS = 2

_warm: dict[tuple[str, Execution], float] = {}


def warm_up(recipe: Recipe, execution: Execution) -> float:
    """Train some steps on generated images at each size, so that no clock sees compilation.

    A process warms up once per recipe and execution.

    Returns:
        Seconds that it took, or had taken before in this process.
    """
    key = (recipe.fingerprint, execution)
    if key not in _warm:
        _warm[key] = _train_some_steps(recipe, execution)
    return _warm[key]


def _train_some_steps(recipe: Recipe, execution: Execution) -> float:
    batch = recipe.training.batch_size
    sizes = [size.pixels for size in recipe.augmentation.sizes or ()] or [recipe.image_size]
    seconds = 0.0
    for size in dict.fromkeys(sizes):
        images = WARM_UP_STEPS * batch
        small = recipe.model_copy(
            update={
                "data": recipe.data.model_copy(update={"train_images": images, "test_images": 10, "validation": None}),
                "augmentation": recipe.augmentation.model_copy(update={"resize": size, "sizes": None}),
                "training": recipe.training.model_copy(update={"epochs": 1, "freeze": None}),
                "evaluation": recipe.evaluation.model_copy(update={"splits": (), "test_at_end": False}),
            }
        )
        generated = generate_dataset(recipe.data.dataset, train_size=images, test_size=10)
        for event in train(small, execution, 0, generated):
            if isinstance(event, Started):
                seconds += event.setup_seconds
            elif isinstance(event, Finished):
                seconds += event.train_seconds
    return seconds


def whole_training_seconds(recipe: Recipe, execution: Execution, dataset: Dataset) -> float:
    """Estimate how long the whole training of a recipe takes, from the median of some of its steps."""
    seconds: list[float] = []
    with contextlib.closing(train(recipe, execution, 0, dataset)) as events:
        for event in events:
            if isinstance(event, Steps):
                seconds.append(event.seconds / len(event.losses))
            if isinstance(event, EpochEnded) or len(seconds) >= BASELINE_STEPS:
                break
    warm = seconds[len(seconds) // 4 :]
    return statistics.median(warm) * recipe.steps_per_epoch * recipe.training.epochs
