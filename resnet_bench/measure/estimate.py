"""Estimate how long a run takes."""

import functools
import time

import torch
from torch import nn

from resnet_bench.execution.execution import Execution
from resnet_bench.models.of_recipe import recipe_macs
from resnet_bench.recipe.recipe import Recipe

TRAINING_COST = 3
"""Forward passes that a training step costs: forward, input gradient, weight gradient."""

SUSTAINED_SHARE = 0.5
"""Fraction of the rate of one large convolution that a whole model sustains, within a factor of two."""


def forward_passes(recipe: Recipe) -> float:
    """Count the images of all forward passes of a run; one of a training step counts as `TRAINING_COST`."""
    trained = recipe.num_images("train") * recipe.training.epochs
    # Unless the source evaluates in eval mode, the standard accuracy takes another pass.
    passes_per_evaluation = 1 if recipe.evaluation.mode == "eval" else 2
    evaluated = sum(len(recipe.evaluations(split)) * recipe.num_images(split) for split in ("validation", "test"))
    separate = trained if recipe.training.train_accuracy == "separate_pass" else 0
    return TRAINING_COST * trained * recipe.relative_pixels + passes_per_evaluation * evaluated + separate


def estimate_seconds(recipe: Recipe, flops_per_second: float) -> float:
    """Estimate the seconds of a run, within a factor of two."""
    return 2 * recipe_macs(recipe) * forward_passes(recipe) / (flops_per_second * SUSTAINED_SHARE)


@functools.cache
def measure_flops_per_second(execution: Execution) -> float:
    """Measure the FLOP/s of a 3×3 convolution of 128 channels, forward and backward, once per process and execution."""
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
