"""The plan that is said before anything starts."""

import pytest

from resnet_bench.execution.execution import Execution
from resnet_bench.measure.estimate import estimate_seconds, forward_passes
from resnet_bench.recipe.files import load_benchmark
from resnet_bench.running.plan import choose_profile
from tests.training.conftest import PLAIN, tiny_recipe

GPU = Execution("cuda:0", "bf16", channels_last=True, compile=False, deterministic=False, threads=8)


@pytest.mark.parametrize(
    ("asked", "execution", "real_data", "seconds", "profile", "reason"),
    [
        ("full", PLAIN, False, 1e6, "full", "as asked"),
        ("smoke", GPU, True, 1.0, "smoke", "as asked"),
        (None, PLAIN, True, 3000.0, "smoke", "no GPU"),
        (None, PLAIN, True, 200.0, "full", "it takes minutes"),
        (None, PLAIN, False, 200.0, "smoke", "no real CIFAR"),
        (None, GPU, False, 200.0, "smoke", "no real CIFAR"),
        (None, GPU, True, 1e6, "full", "a GPU and real images"),
    ],
)
def test_the_profile_follows_from_device_images_and_work(asked, execution, real_data, seconds, profile, reason) -> None:
    choice = choose_profile(asked, execution, real_data=real_data, full_seconds=seconds)
    assert choice.profile == profile
    assert reason in choice.reason


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        # Two epochs of 40 images, threefold, and the 30 test images after each.
        ({}, 2 * 3 * 40 + 2 * 30),
        ({"evaluation": {"before_training": True}}, 2 * 3 * 40 + 3 * 30),
        ({"evaluation": {"mode": "batch_statistics"}}, 2 * 3 * 40 + 2 * 2 * 30),
        ({"training": {"train_accuracy": "separate_pass"}}, 2 * 4 * 40 + 2 * 30),
        ({"evaluation": {"every": 2}}, 2 * 3 * 40 + 30),
        ({"evaluation": {"splits": []}}, 2 * 3 * 40 + 30),
    ],
)
def test_every_pass_over_the_images_is_counted(changes, passes) -> None:
    assert forward_passes(tiny_recipe(**changes)) == passes


def test_the_estimate_follows_from_operations_and_rate() -> None:
    """ResNet-18 at 32 pixels: 37,278,720 multiply-accumulates; half of the rate is sustained."""
    recipe = tiny_recipe(model={"name": "resnet18"})
    expected = 2 * 37_278_720 * forward_passes(recipe) / 0.5e9
    assert estimate_seconds(recipe, 1e9) == pytest.approx(expected)
    assert estimate_seconds(load_benchmark("resnet34-sgd-224").recipe, 1e9) > 1e3 * estimate_seconds(recipe, 1e9)
