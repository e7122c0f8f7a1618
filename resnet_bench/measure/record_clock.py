"""The clock of a speed record: steps that it does not cover, and the time of a baseline that it is compared with."""

import contextlib
from collections.abc import Callable

from resnet_bench.data.dataset import Dataset, generate_dataset
from resnet_bench.execution.execution import Execution
from resnet_bench.recipe.changes import cut_short
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
    seconds = 0.0
    for size in recipe.image_sizes:
        short = cut_short(recipe, WARM_UP_STEPS, epochs=1, image_size=size)
        generated = generate_dataset(
            recipe.data.facts, train_size=short.data.available_images, test_size=short.data.num_test
        )
        for event in train(short, execution, 0, generated):
            if isinstance(event, Started):
                seconds += event.setup_seconds
            elif isinstance(event, Finished):
                seconds += event.train_seconds
    return seconds


def time_steps(
    recipe: Recipe, execution: Execution, dataset: Dataset, stop: Callable[[], None] = lambda: None
) -> list[float]:
    """Time the first steps of a recipe's training, in seconds each.

    Args:
        recipe: What to time.
        execution: How.
        dataset: Its images.
        stop: Called after each event; may raise an error to end the timing.
    """
    seconds: list[float] = []
    with contextlib.closing(train(recipe, execution, 0, dataset)) as events:
        for event in events:
            stop()
            if isinstance(event, Steps):
                seconds.append(event.seconds / len(event.losses))
            if isinstance(event, EpochEnded) or len(seconds) >= BASELINE_STEPS:
                break
    return seconds
