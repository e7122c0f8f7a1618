"""Every study of studies/, whatever is there."""

import pytest

from resnet_bench.recipe.benchmark import PROFILES, ProfileName
from resnet_bench.tuning.plan import plan_study, scan_studies
from resnet_bench.tuning.space import retraining_recipe, trial_recipe

FOUND, PROBLEMS = scan_studies()
MAIN_BENCHMARKS = {"resnet9-onecycle-adam", "resnet34-sgd-224", "resnet18-step-decay", "cifar100-resnet"}


def test_every_file_loads() -> None:
    assert PROBLEMS == {}


def test_each_main_benchmark_has_a_study_of_its_name() -> None:
    searched = {"optimizer.lr", "optimizer.weight_decay", "training.batch_size"}
    for name in MAIN_BENCHMARKS:
        assert FOUND[name].benchmark == name
        assert set(FOUND[name].space) == searched


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", FOUND)
def test_a_shipped_study_fits_its_benchmark(name: str, profile: ProfileName) -> None:
    plan = plan_study(FOUND[name], profile)
    params = plan.source_params
    trial = trial_recipe(plan.study, plan.base, params)
    final = retraining_recipe(plan.study, plan.base, params)
    assert trial.evaluation.splits == ("validation",)
    assert not trial.evaluation.test_at_end
    assert "test" not in final.evaluation.splits
    assert final.evaluation.test_at_end
    if profile == "smoke":
        assert plan.study.retrain.seeds == 1
    else:
        assert plan.study.retrain.seeds >= 3
        assert plan.study.pruner.name != "none"
