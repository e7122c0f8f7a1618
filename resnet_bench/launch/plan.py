"""What will be run, why, and about how long it will take, decided before anything starts."""

import functools
import time
from dataclasses import dataclass

import torch
from torch import nn

from resnet_bench import models
from resnet_bench.benchmark import ProfileName, Recipe
from resnet_bench.execution import Execution

TRAINING_COST = 3
"""A training step costs about three forward passes: forward, and backward for data and for weights."""

SUSTAINED_SHARE = 0.5
"""Of the rate of one large convolution, what a whole network sustains; within a factor of two on the machines tried."""


SHORT_SECONDS = 900.0
"""A whole recipe that is estimated to take no longer is run in full without a GPU, too."""


@dataclass(frozen=True)
class ProfileChoice:
    """Which profile is run, and why."""

    profile: ProfileName
    reason: str


def choose_profile(
    asked: ProfileName | None, execution: Execution, *, real_data: bool, full_seconds: float
) -> ProfileChoice:
    """``full`` where there are real images and a GPU, or little to do; else ``smoke``, unless one was asked for.

    Args:
        asked: What the user wants.
        execution: Where it would run.
        real_data: Whether there are images that a claim can be judged on.
        full_seconds: About how long the whole recipe takes.
    """
    if asked is not None:
        return ProfileChoice(asked, "as asked")
    if not real_data:
        return ProfileChoice("smoke", "there is no real CIFAR here; resnet-bench data prepare fetches it")
    if execution.device_type != "cpu":
        return ProfileChoice("full", "there are a GPU and real images")
    if full_seconds <= SHORT_SECONDS:
        return ProfileChoice("full", "it takes minutes, even without a GPU")
    return ProfileChoice("smoke", "there is no GPU here; --profile full trains as published, in hours or days")


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
        TRAINING_COST * data.num_train * training.epochs * recipe.relative_area + passes_a_split * evaluated + separate
    )


def estimate_seconds(recipe: Recipe, flops_per_second: float) -> float:
    """About how long a run takes; a factor of two either way is to be expected."""
    return 2 * models.recipe_macs(recipe) * forward_passes(recipe) / (flops_per_second * SUSTAINED_SHARE)


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
