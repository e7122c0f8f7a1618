"""How long a run takes and has left, by a scripted clock."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from resnet_bench.execution.execution import Execution
from resnet_bench.measure import costs as measuring
from resnet_bench.measure.costs import measure_costs
from resnet_bench.measure.estimate import (
    OVERHEAD_SECONDS,
    Costs,
    TimeLeft,
    estimate_seconds,
    evaluated_images,
    step_stages,
    training_seconds,
)
from resnet_bench.recipe.files import load_benchmark
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.training.errors import TrainingError
from resnet_bench.training.events import EpochEnded, Evaluated, Started, Steps
from tests.training.conftest import PLAIN, tiny_recipe

SIZES = [{"pixels": 16, "epochs": 3.4}, {"pixels": 24, "epochs": 1.6}, {"pixels": 32, "epochs": 5}]


def growing_recipe(**changes: Any) -> Recipe:
    """Ten epochs of ten steps, on images that grow twice."""
    return tiny_recipe(
        data={"train_images": 160},
        augmentation={"sizes": SIZES},
        training={"epochs": 10, "batch_size": 16},
        evaluation={"every": 5},
        **changes,
    )


class Script:
    """A run whose steps and evaluations take what it is told, on a clock that nothing else moves."""

    def __init__(self, recipe: Recipe, seconds: dict[int, float], evaluation: float) -> None:
        self.recipe, self.seconds, self.evaluation = recipe, seconds, evaluation
        self.now = 100.0

    def events(self, first_epoch: int = 1) -> Iterator[object]:
        """The events of the run from an epoch on, each at its time."""
        recipe, per_epoch = self.recipe, self.recipe.steps_per_epoch
        done = (first_epoch - 1) * per_epoch
        sizes = [size for size, steps in step_stages(recipe) for _ in range(steps)]
        yield Started(1, 1, per_epoch, recipe.training.epochs, 160, step=done, snapshot=dict)
        for epoch in range(first_epoch, recipe.training.epochs + 1):
            for step in range((epoch - 1) * per_epoch + 1, epoch * per_epoch + 1):
                is_first = step == done + 1 or sizes[step - 1] != sizes[step - 2]
                # The first step of a shape times its algorithms.
                self.now += self.seconds[sizes[step - 1]] * (10 if is_first else 1)
                yield Steps(epoch, step, [1.0], [0.1], images=16, correct=1, seconds=0.0, snapshot=dict)
            if epoch in recipe.evaluations("test"):
                self.now += self.evaluation
                yield Evaluated(epoch, step, "test", 0.2, 2.0, 0.2, 2.0, 30, 0.0, snapshot=dict)
            yield EpochEnded(epoch, step, 1.0, 1.0, 0.1, 1.0, 1.0, 1.0, None, snapshot=dict)
        self.now += OVERHEAD_SECONDS

    def estimates(self, costs: Costs, first_epoch: int = 1) -> list[tuple[float, float, float]]:
        """What part of the run was done, the time said to be left, and the time that was, after every step."""
        began, said = self.now, []
        left = TimeLeft(self.recipe, costs, clock=lambda: self.now)
        for event in self.events(first_epoch):
            left.take(event)
            if (seconds := left.seconds()) is not None:
                said.append((self.now, seconds))
        return [((at - began) / (self.now - began), seconds, self.now - at) for at, seconds in said]


@pytest.mark.parametrize("first_epoch", [1, 4])
@pytest.mark.parametrize("evaluation", [0.5, 20.0])
@pytest.mark.parametrize("unit", [0.2, 1.0, 5.0])
def test_the_time_left_is_right_within_a_third_from_the_first_tenth_on(unit, evaluation, first_epoch) -> None:
    """The machine may be faster or slower than when the costs were measured."""
    recipe = growing_recipe()
    script = Script(recipe, {16: 1.0, 24: 2.1, 32: 4.2}, evaluation)
    costs = Costs({16: unit / 16, 24: 2 * unit / 16, 32: 4 * unit / 16}, evaluation * unit / 30)
    estimates = [estimate for estimate in script.estimates(costs, first_epoch) if estimate[0] >= 0.1]
    assert len(estimates) > 60
    for _, said, real in estimates:
        assert said == pytest.approx(real, rel=1 / 3, abs=1)


def test_costs_by_pixels_are_right_within_a_third_where_steps_follow_the_pixels() -> None:
    recipe = growing_recipe()
    script = Script(recipe, {16: 1.0, 24: 2.5, 32: 4.5}, 3.0)
    for share, said, real in script.estimates(Costs.by_pixels(recipe)):
        if share >= 0.1:
            assert said == pytest.approx(real, rel=1 / 3, abs=1)


def test_the_share_done_grows_with_the_work_and_ends_at_all_of_it() -> None:
    recipe = growing_recipe()
    script = Script(recipe, {16: 1.0, 24: 2.0, 32: 4.0}, 3.0)
    left, shares = TimeLeft(recipe, Costs.by_pixels(recipe), clock=lambda: script.now), []
    for event in script.events():
        left.take(event)
        shares.append(left.share_done())
    assert all(before <= after for before, after in pairwise(shares))
    assert (shares[0], shares[-1]) == pytest.approx((0, 1))
    # Half of the steps are half as large as the others at most, and no half of the work.
    assert shares[len(shares) // 2] < 0.35


def test_nothing_is_said_before_the_first_step() -> None:
    recipe = growing_recipe()
    left = TimeLeft(recipe, Costs.by_pixels(recipe), clock=lambda: 0.0)
    left.take(next(Script(recipe, {}, 0.0).events()))
    assert left.seconds() is None
    assert left.share_done() == 0


def test_the_first_step_alone_says_nothing_of_the_time_left() -> None:
    """It measures what is fastest, and may take a hundred times as long as others."""
    script = Script(growing_recipe(), {16: 1.0, 24: 2.0, 32: 4.0}, 3.0)
    left, said = TimeLeft(script.recipe, Costs.by_pixels(script.recipe), clock=lambda: script.now), []
    for event in script.events():
        left.take(event)
        if isinstance(event, Steps) and event.last_step <= 2:
            said.append(left.seconds())
    assert said[0] is None
    assert said[1] is not None


def test_steps_are_counted_at_the_size_that_the_loader_gives_them() -> None:
    assert step_stages(growing_recipe()) == [(16, 34), (24, 16), (32, 50)]
    assert step_stages(tiny_recipe()) == [(32, 6)]
    recipe = load_benchmark("speedrun-90").recipe
    assert sum(steps for _, steps in step_stages(recipe)) == 400


def test_a_part_of_the_steps_costs_its_part() -> None:
    recipe, costs = growing_recipe(), Costs({16: 1.0, 24: 10.0, 32: 100.0}, 1.0)
    assert training_seconds(recipe, costs) == 16 * (34 + 160 + 5000)
    assert training_seconds(recipe, costs, 33, 35) == 16 * (1 + 10)
    assert training_seconds(recipe, costs, 60) == 16 * 4000
    assert training_seconds(recipe, costs, 100) == 0


@pytest.mark.parametrize(
    ("changes", "images"),
    [
        # Two epochs and the 30 test images after each.
        ({}, [0, 30, 30]),
        ({"evaluation": {"before_training": True}}, [30, 30, 30]),
        ({"evaluation": {"mode": "batch_statistics"}}, [0, 60, 60]),
        ({"training": {"train_accuracy": "separate_pass"}}, [0, 70, 70]),
        ({"evaluation": {"every": 2}}, [0, 0, 30]),
        ({"evaluation": {"splits": []}}, [0, 0, 30]),
        ({"evaluation": {"test_time_augmentation": {"mirror": True, "shift": 1}}}, [0, 30, 30 + 6 * 30]),
    ],
)
def test_every_pass_over_the_images_is_counted(changes, images) -> None:
    recipe = tiny_recipe(**changes)
    assert [sum(evaluated_images(recipe, epoch).values()) for epoch in range(3)] == images
    assert estimate_seconds(recipe, Costs({32: 2.0}, 0.5)) == OVERHEAD_SECONDS + 160 + sum(images) / 2


def test_costs_are_measured_warm_at_each_size_once(monkeypatch) -> None:
    trained = []

    def train(recipe: Recipe, execution: Execution, seed: int, images: object) -> Iterator[object]:
        trained.append(recipe)
        pixels = recipe.image_size**2
        for epoch in (1, 2):
            slow = 3 - epoch
            rate = 1e6 / pixels / slow
            yield Evaluated(epoch, 0, "test", 0.1, 1.0, 0.1, 1.0, 10, slow * pixels / 1e6, snapshot=dict)
            yield EpochEnded(epoch, 0, 1.0, 1.0, 0.1, 1.0, 1.0, rate, None, snapshot=dict)

    monkeypatch.setattr(measuring, "train", train)
    monkeypatch.setattr(measuring, "MEASURED", {})
    recipe = growing_recipe()
    found = measure_costs(recipe, PLAIN)
    assert found.training == pytest.approx({16: 256e-6, 24: 576e-6, 32: 1024e-6})
    assert found.evaluation == pytest.approx(102.4e-6)
    assert [short.image_size for short in trained] == [16, 24, 32]
    assert measure_costs(recipe, PLAIN) == found
    assert len(trained) == 3


def test_a_measured_step_is_cut_to_what_can_be_afforded(monkeypatch) -> None:
    """ResNet-34 at 224 pixels multiplies 3.7e9 times per image; on a GPU the whole batch is timed."""
    trained = []
    monkeypatch.setattr(measuring, "train", lambda recipe, *_: trained.append(recipe) or (event for event in ()))
    monkeypatch.setattr(measuring, "MEASURED", {})
    recipe = load_benchmark("resnet34-sgd-224").recipe
    measure_costs(recipe, PLAIN)
    monkeypatch.setattr(measuring, "generate_dataset", lambda *_, **__: None)
    measure_costs(recipe, Execution("cuda:0", "fp32", True, False, False, 1))
    assert [short.training.batch_size for short in trained] == [4, 64]
    # A long step is timed once, after one that is not; and no layer has other numbers of images.
    assert [short.data.train_images for short in trained] == [4, 128]
    assert trained[0].evaluation.batch_size == 4


def test_costs_are_measured_by_real_steps() -> None:
    found = measure_costs(tiny_recipe(), PLAIN)
    assert min(found.training[32], found.evaluation) > 0


def test_a_recipe_that_cannot_be_trained_is_estimated_all_the_same(monkeypatch) -> None:
    """It fails when it is trained, as one run of several; a plan must not fail for it."""

    def train(*_: object) -> Iterator[object]:
        raise TrainingError("out of memory")
        yield

    monkeypatch.setattr(measuring, "train", train)
    monkeypatch.setattr(measuring, "MEASURED", {})
    found = measure_costs(growing_recipe(), PLAIN)
    assert 0 < found.training[16] < found.training[32]
    assert found.evaluation > 0


def test_a_recipe_that_diverges_is_measured_like_one_that_does_not(monkeypatch) -> None:
    monkeypatch.setattr(measuring, "MEASURED", {})
    monkeypatch.setattr(measuring, "GUESSED_MACS_PER_SECOND", math.inf)
    found = measure_costs(tiny_recipe(optimizer={"lr": 1e30}), PLAIN)
    assert min(found.training.values()) > 0
