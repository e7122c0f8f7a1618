"""Measure what an image costs on this machine, by a few real steps and evaluations."""

import contextlib
from typing import Any

from resnet_bench.data.dataset import generate_dataset
from resnet_bench.execution.execution import Execution
from resnet_bench.measure.estimate import TRAINING_COST, Costs
from resnet_bench.models.of_recipe import recipe_macs
from resnet_bench.recipe.changes import cut_short, override_nested
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.recipe.schema import NOT_GIVEN
from resnet_bench.training.errors import TrainingError
from resnet_bench.training.events import EpochEnded, Evaluated
from resnet_bench.training.loop import train

STEPS = 2
"""Steps that are timed, after as many that are not."""

LONG_STEP_FLOPS = 10e9
"""Of longer steps on a CPU one is timed, so that measuring takes seconds."""
MAX_STEP_FLOPS = 100e9
"""Upper limit of a step on a CPU; batches are cut to fit. Whole ones share with the run what is measured of layers."""
GUESSED_MACS_PER_SECOND = 20e9
"""Speed of what cannot be measured."""

MEASURED: dict[tuple[str, Execution], tuple[float, float]] = {}
"""What this process has measured: seconds per image of a step and of a forward pass, by recipe and execution."""


def measure_costs(recipe: Recipe, execution: Execution) -> Costs:
    """Train some steps on generated images of each size, and evaluate; once per process and shape.

    Args:
        recipe: Model, sizes of images and batches, and optimizer.
        execution: How it is executed.
    """
    training, evaluation = {}, 0.0
    for size in recipe.image_sizes:
        training[size], evaluated = _measured_at(recipe, execution, size)
        # A forward pass costs what the pixels cost.
        evaluation = evaluated * (recipe.image_size / size) ** 2
    return Costs(training, evaluation)


def _measured_at(recipe: Recipe, execution: Execution, size: int) -> tuple[float, float]:
    """Seconds per image of a step and of a forward pass, at a size of images."""
    short = _short(recipe, execution, size)
    key = short.fingerprint, execution
    if key not in MEASURED:
        images = generate_dataset(
            recipe.data.facts, train_size=short.data.available_images, test_size=short.data.num_test
        )
        evaluation = recipe_macs(recipe) * (size / recipe.image_size) ** 2 / GUESSED_MACS_PER_SECOND
        step = TRAINING_COST * evaluation
        # What cannot be trained fails when its turn comes, as one run of several.
        with (
            contextlib.suppress(TrainingError, RuntimeError),
            contextlib.closing(train(short, execution, 0, images)) as events,
        ):
            # The second epoch and the second evaluation are warm.
            for event in events:
                if isinstance(event, EpochEnded):
                    step = 1 / event.images_per_second
                elif isinstance(event, Evaluated):
                    evaluation = event.seconds / event.images
        MEASURED[key] = step, evaluation
    return MEASURED[key]


def _short(recipe: Recipe, execution: Execution, size: int) -> Recipe:
    """The recipe for two short epochs at one size of images."""
    batch_size, test_images, steps = recipe.training.batch_size, recipe.evaluation.batch_size, STEPS
    if execution.device_type == "cpu":
        flops = 6 * recipe_macs(recipe) * (size / recipe.image_size) ** 2
        batch_size = min(batch_size, max(2, int(MAX_STEP_FLOPS / flops)))
        # Layers of as many images as in training have been measured.
        test_images = min(test_images, batch_size)
        steps = 1 if batch_size * flops > LONG_STEP_FLOPS else STEPS
    short = cut_short(recipe, steps, epochs=2, image_size=size)
    changes: dict[str, Any] = {
        "data": {"train_images": steps * batch_size, "test_images": min(test_images, recipe.data.num_test)},
        # A step takes as long at any rate, and at this one nothing diverges.
        "optimizer": {"lr": 1e-9},
        "training": {"batch_size": batch_size, "freeze": NOT_GIVEN},
        "evaluation": {
            "mode": "eval",
            "splits": ["test"],
            "batch_size": test_images,
            "test_time_augmentation": NOT_GIVEN,
        },
    }
    return override_nested(short, changes, where="cut short")
