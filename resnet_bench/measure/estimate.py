"""Estimate how long a run takes."""

import functools
import time

import torch
from torch import nn

from resnet_bench.execution.execution import Execution
from resnet_bench.models.of_recipe import recipe_macs
from resnet_bench.recipe.recipe import Recipe

TRAINING_COST = 3
"""A training step costs about three forward passes: forward, and backward for data and for weights."""

SUSTAINED_SHARE = 0.5
"""Of the rate of one large convolution, what a whole network sustains; within a factor of two on the machines tried."""


def forward_passes(recipe: Recipe) -> float:
    """Images times forward passes that a run of a recipe costs, training counted threefold."""
    evaluation, training, data = recipe.evaluation, recipe.training, recipe.data
    sizes = {"validation": data.validation.images if data.validation else 0, "test": data.num_test}
    passes_a_split = 1 if evaluation.mode == "eval" else 2
    evaluations = -(-training.epochs // evaluation.every) + evaluation.before_training
    evaluated = evaluations * sum(sizes[split] for split in evaluation.splits)
    if evaluation.test_at_end and "test" not in evaluation.splits:
        evaluated += data.num_test
    separate = data.num_train * training.epochs if training.train_accuracy == "separate_pass" else 0
    return (
        TRAINING_COST * data.num_train * training.epochs * recipe.relative_pixels
        + passes_a_split * evaluated
        + separate
    )


def estimate_seconds(recipe: Recipe, flops_per_second: float) -> float:
    """About how long a run takes; a factor of two either way is to be expected."""
    return 2 * recipe_macs(recipe) * forward_passes(recipe) / (flops_per_second * SUSTAINED_SHARE)


@functools.cache
def measure_flops_per_second(execution: Execution) -> float:
    """Rate of a 3×3 convolution of 128 channels, forward and backward, in floating-point operations a second.

    Measured once a process and execution.
    """
    batch, channels, size = 64, 128, 16
    with execution.applied():
        device = torch.device(execution.device)
        layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False, device=device)
        layer.to(memory_format=execution.memory_format)
        images = torch.randn(batch, channels, size, size, device=device, requires_grad=True)
        images = images.to(memory_format=execution.memory_format)
        flops = 2 * TRAINING_COST * batch * channels * channels * 9 * size * size

        def once() -> None:
            with execution.autocast():
                outputs = layer(images)
            outputs.float().sum().backward()

        for _ in range(3):
            once()
        execution.synchronize()
        started = time.perf_counter()
        repeats = 10
        for _ in range(repeats):
            once()
        execution.synchronize()
        return flops * repeats / (time.perf_counter() - started)
