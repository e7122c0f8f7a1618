"""Optuna's samplers and pruners by name."""

import importlib.util
from collections.abc import Callable

import optuna
import pytest

from resnet_bench.base.errors import UserError
from resnet_bench.tuning import samplers, space
from resnet_bench.tuning.plan import Plan

MakePlan = Callable[..., Plan]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tpe", optuna.samplers.TPESampler),
        ("gp", optuna.samplers.GPSampler),
        ("random", optuna.samplers.RandomSampler),
    ],
)
def test_samplers_by_name(name: str, kind: type, tiny_plan: MakePlan) -> None:
    plan = tiny_plan(sampler=f'sampler = {{ name = "{name}" }}')
    assert isinstance(samplers.build_sampler(plan.study, seed=0), kind)


@pytest.mark.parametrize(
    ("name", "options", "kind"),
    [
        ("none", "", optuna.pruners.NopPruner),
        ("median", "n_warmup_steps = 2", optuna.pruners.MedianPruner),
        ("successive_halving", "reduction_factor = 2", optuna.pruners.SuccessiveHalvingPruner),
        ("hyperband", "", optuna.pruners.HyperbandPruner),
    ],
)
def test_pruners_by_name(name: str, options: str, kind: type, tiny_plan: MakePlan) -> None:
    plan = tiny_plan(pruner=f'pruner = {{ name = "{name}", options = {{ {options} }} }}')
    assert isinstance(samplers.build_pruner(plan.study, epochs=3), kind)


def test_a_missing_package_is_named(tiny_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="cma_es needs the package cmaes; install it with: pip install cmaes"):
        tiny_plan(sampler='sampler = { name = "cma_es" }')


@pytest.mark.skipif(importlib.util.find_spec("cmaes") is None, reason="cmaes is not installed")
def test_cma_es_draws(tiny_plan: MakePlan) -> None:
    plan = tiny_plan(sampler='sampler = { name = "cma_es" }')
    study = optuna.create_study(sampler=samplers.build_sampler(plan.study, seed=0), direction="maximize")
    for _ in range(3):
        trial = study.ask()
        space.suggest(trial, plan.study.space)
        study.tell(trial, 0.5)
    assert len({trial.params["optimizer.lr"] for trial in study.trials}) == 3


def test_a_grid_has_every_combination_once(tiny_plan: MakePlan) -> None:
    lr = 'optimizer.lr = { type = "log-float", low = 1e-3, high = 1.0 }'
    momentum = 'optimizer.momentum = { type = "float", low = 0.1, high = 0.9, step = 0.4 }'
    sampler = 'sampler = { name = "grid", options = { points = 4 } }'
    study = tiny_plan(sampler=sampler, **{"optimizer.lr": lr, "optimizer.momentum": momentum}).study
    values = samplers.grid_values(study)
    assert values["optimizer.lr"] == pytest.approx([1e-3, 1e-2, 1e-1, 1.0])
    assert values["optimizer.momentum"] == pytest.approx([0.1, 0.5, 0.9])
    assert values["optimizer.nesterov"] == [False, True]
    points = samplers.grid_points(study)
    assert len(points) == len({space.identity(point) for point in points}) == 4 * 3 * 2
    assert points == samplers.grid_points(study), "every process must lay out the same order"
    assert points != samplers.grid_points(study.model_copy(update={"seed": 1}))
