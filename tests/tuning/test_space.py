"""The search space: conditions, the source's values in it, its points, and what trials and retraining runs train."""

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from resnet_bench.tuning import space
from resnet_bench.tuning.plan import Plan, load_study_file, plan_study

Write = Callable[..., Path]

CONDITIONAL = """
optimizer.name = { type = "categorical", choices = ["sgd", "adam"] }
optimizer.momentum = { type = "float", low = 0.5, high = 0.99, when = { key = "optimizer.name", equals = "sgd" } }
optimizer.eps = { type = "log-float", low = 1e-9, high = 1e-6, when = { key = "optimizer.name", equals = ["adam"] } }
training.clip_norm = { type = "categorical", choices = ["none", 1.0, 5.0] }
"""


@pytest.fixture
def conditional(tiny_plan: Callable[..., Plan]) -> Plan:
    return tiny_plan(**{"optimizer.momentum": CONDITIONAL, "optimizer.nesterov": ""})


def test_conditional_parameters_are_drawn_when_their_condition_holds(conditional: Plan) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(20):
        params = space.suggest(study.ask(), conditional.study.space)
        seen.add(params["optimizer.name"])
        assert ("optimizer.momentum" in params) == (params["optimizer.name"] == "sgd")
        assert ("optimizer.eps" in params) == (params["optimizer.name"] == "adam")
        recipe = space.trial_recipe(conditional.study, conditional.base, params)
        assert recipe.optimizer.name == params["optimizer.name"]
        assert recipe.optimizer.lr == params["optimizer.lr"]
        clip = params["training.clip_norm"]
        assert recipe.training.clip_norm == (None if clip == "none" else clip)
    assert seen == {"sgd", "adam"}


def test_the_source_params_leave_out_what_does_not_apply(conditional: Plan) -> None:
    assert conditional.source_params == {
        "optimizer.lr": 0.1,
        "optimizer.name": "sgd",
        "optimizer.momentum": 0.9,
        "training.clip_norm": "none",
    }
    assert space.differences(conditional.base, conditional.source_params) == {}
    assert space.differences(conditional.base, {"optimizer.lr": 0.1, "training.clip_norm": 1.0}) == {
        "training.clip_norm": 1.0
    }


def test_a_trial_with_the_source_params_differs_in_its_budget_alone(tiny_plan: Callable[..., Plan]) -> None:
    plan = tiny_plan(budget="budget = { trials = 3, epochs = 2 }")
    recipe = space.trial_recipe(plan.study, plan.base, plan.source_params)
    assert recipe.optimizer == plan.base.optimizer
    assert recipe.model == plan.base.model
    assert recipe.augmentation == plan.base.augmentation
    assert recipe.evaluation.mode == plan.base.evaluation.mode
    assert recipe.training.epochs == 2
    assert sum(phase.epochs for phase in recipe.schedule.phases) == 2


def test_a_split_that_the_recipe_holds_itself_stays(write_study: Write) -> None:
    path = write_study(
        benchmark='benchmark = "resnet34-sgd-224"',
        validation="",
        data="data = { train_images = 72, test_images = 20, validation = { images = 32 } }",
        training="training = { epochs = 3, batch_size = 8 }",
    )
    plan = plan_study(load_study_file(path), "smoke")
    trial = space.trial_recipe(plan.study, plan.base, plan.source_params)
    final = space.retraining_recipe(plan.study, plan.base, plan.source_params)
    assert trial.data == final.data == plan.base.data
    assert trial.data.validation is not None
    assert trial.data.validation.seed == 42
    assert trial.evaluation.mode == final.evaluation.mode == "batch_statistics"


def test_points_of_a_finite_space_are_listed_once_each(tiny_plan: Callable[..., Plan]) -> None:
    lr = 'optimizer.lr = { type = "categorical", choices = [0.1, 0.01] }'
    name = 'optimizer.name = { type = "categorical", choices = ["sgd", "adam"] }'
    momentum = (
        'optimizer.momentum = { type = "float", low = 0.5, high = 0.9, step = 0.4, '
        'when = { key = "optimizer.name", equals = "sgd" } }'
    )
    plan = tiny_plan(**{"optimizer.lr": f"{lr}\n{name}", "optimizer.momentum": momentum, "optimizer.nesterov": ""})
    points = space.list_points(plan.study)
    assert points is not None
    assert len(points) == 2 * (2 + 1)
    assert len({space.identity(point) for point in points}) == len(points)
    assert space.identity(plan.source_params) in {space.identity(point) for point in points}


def test_points_of_a_continuous_or_huge_space_are_not_listed(tiny_plan: Callable[..., Plan]) -> None:
    assert space.list_points(tiny_plan().study) is None
    plan = tiny_plan(**{"optimizer.lr": 'optimizer.lr = { type = "float", low = 0.1, high = 1.1, step = 1e-8 }'})
    assert space.list_points(plan.study) is None


def test_identity_ignores_rounding_and_tells_booleans_from_numbers() -> None:
    assert space.identity({"lr": 0.1 + 2 * 0.1}) == space.identity({"lr": 0.3})
    assert space.identity({"lr": 1}) == space.identity({"lr": 1.0})
    assert space.identity({"lr": True}) != space.identity({"lr": 1})
    assert space.identity({"lr": "1"}) != space.identity({"lr": 1})
