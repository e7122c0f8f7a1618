"""The search space: conditions, the source's settings in it, and what trials and final runs train."""

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
        settings = space.suggest(study.ask(), conditional.study.space)
        seen.add(settings["optimizer.name"])
        assert ("optimizer.momentum" in settings) == (settings["optimizer.name"] == "sgd")
        assert ("optimizer.eps" in settings) == (settings["optimizer.name"] == "adam")
        recipe = space.trial_recipe(conditional.study, conditional.base, settings)
        assert recipe.optimizer.name == settings["optimizer.name"]
        assert recipe.optimizer.lr == settings["optimizer.lr"]
        clip = settings["training.clip_norm"]
        assert recipe.training.clip_norm == (None if clip == "none" else clip)
    assert seen == {"sgd", "adam"}


def test_the_sources_settings_leave_out_what_does_not_apply(conditional: Plan) -> None:
    assert conditional.source_settings == {
        "optimizer.lr": 0.1,
        "optimizer.name": "sgd",
        "optimizer.momentum": 0.9,
        "training.clip_norm": "none",
    }
    assert space.differences(conditional.base, conditional.source_settings) == {}
    assert space.differences(conditional.base, {"optimizer.lr": 0.1, "training.clip_norm": 1.0}) == {
        "training.clip_norm": 1.0
    }


def test_a_trial_with_the_sources_settings_differs_in_its_budget_alone(tiny_plan: Callable[..., Plan]) -> None:
    plan = tiny_plan(budget="budget = { trials = 3, epochs = 2 }")
    recipe = space.trial_recipe(plan.study, plan.base, plan.source_settings)
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
    trial = space.trial_recipe(plan.study, plan.base, plan.source_settings)
    final = space.retraining_recipe(plan.study, plan.base, plan.source_settings)
    assert trial.data == final.data == plan.base.data
    assert trial.data.validation is not None
    assert trial.data.validation.seed == 42
    assert trial.evaluation.mode == final.evaluation.mode == "batch_statistics"
