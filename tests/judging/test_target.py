"""When a run holds a target: of a finished run, and while one trains."""

import math
import subprocess
import sys
from typing import Any

from resnet_bench.judging import target
from resnet_bench.judging.target import TargetMonitor, TimesToAccuracy
from resnet_bench.recipe.claims import Claim
from resnet_bench.recipe.recipe import Recipe

# --- time to an accuracy -------------------------------------------------------------------------


def test_reached_when_the_mean_of_three_evaluations_holds_the_target() -> None:
    evaluations = [(1.0, 90.0), (2.0, 70.0), (3.0, 89.0), (4.0, 92.0), (5.0, 93.0)]
    assert target.time_to_accuracy(evaluations, 90.0) == 5.0
    assert target.time_to_accuracy(evaluations, 83.0) == 3.0
    assert target.time_to_accuracy(evaluations, 95.0) == math.inf
    assert target.time_to_accuracy([], 10.0) == math.inf


def test_with_fewer_than_three_evaluations_the_last_counts() -> None:
    assert target.time_to_accuracy([(1.0, 95.0), (2.0, 80.0)], 90.0) == math.inf
    assert target.time_to_accuracy([(1.0, 50.0), (2.0, 91.0)], 90.0) == 2.0


def test_missed_targets_count_as_infinity_in_the_median() -> None:
    times = TimesToAccuracy(90.0, (10.0, 12.0, math.inf), total_seconds=60.0)
    assert (times.reached, times.median, times.range) == (2, 12.0, (10.0, math.inf))
    assert times.seconds_per_success == 30.0
    assert TimesToAccuracy(90.0, (10.0, math.inf), 40.0).median == math.inf
    assert TimesToAccuracy(90.0, (math.inf,), 40.0).seconds_per_success == math.inf


# --- time to the claim ---------------------------------------------------------------------------


def watch(claim: dict[str, Any], *, epochs: int = 8, evaluation: dict[str, Any] | None = None) -> TargetMonitor:
    recipe = {
        "data": {"dataset": "cifar10", "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)},
        "model": {"name": "resnet20"},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "schedule": {"name": "constant"},
        "training": {"epochs": epochs, "batch_size": 10},
        "evaluation": {"batch_size": 50, **(evaluation or {})},
    }
    return TargetMonitor(Claim.model_validate(claim), Recipe.model_validate(recipe))


def first_held(watch: TargetMonitor, accuracies: list[float]) -> int | None:
    for i, accuracy in enumerate(accuracies, start=1):
        watch.evaluated("test", accuracy)
        if watch.held:
            return i
    return None


def test_a_claim_is_held_when_the_mean_of_three_evaluations_reaches_it() -> None:
    # 0.9 alone crosses the level; three together do only at the last.
    assert first_held(watch({"at_least": 60.0}), [0.3, 0.9, 0.2, 0.6, 0.91, 0.7]) == 6
    assert first_held(watch({"at_least": 60.0}), [0.6, 0.6, 0.6]) == 3
    assert first_held(watch({"at_least": 60.0}), [0.9, 0.9]) is None


def test_the_level_of_a_printed_number_is_the_lowest_that_it_stands_for() -> None:
    assert first_held(watch({"value": "87"}), [0.865, 0.865, 0.865]) == 3
    assert first_held(watch({"value": "87.0"}), [0.865, 0.865, 0.865]) is None


def test_a_run_with_fewer_evaluations_is_judged_by_its_last() -> None:
    assert first_held(watch({"at_least": 60.0}, epochs=2), [0.9, 0.7]) == 2
    assert first_held(watch({"at_least": 60.0}, epochs=2), [0.9, 0.5]) is None
    assert first_held(watch({"at_least": 60.0}, epochs=4, evaluation={"every": 3}), [0.9, 0.7]) == 2
    # The split is only looked at once, at the end.
    assert first_held(watch({"at_least": 60.0}, evaluation={"splits": []}), [0.61]) == 1


def test_other_splits_do_not_count() -> None:
    watched = watch({"at_least": 60.0})
    for _ in range(5):
        watched.evaluated("validation", 0.99)
    assert not watched.held


def test_a_claim_with_tta_waits_for_the_evaluation_with_tta() -> None:
    evaluation = {"batch_size": 50, "test_time_augmentation": {"mirror": True}}
    followed = watch({"at_least": 60.0, "metric": "accuracy_tta"}, evaluation=evaluation)
    for _ in range(8):
        followed.evaluated("test", 0.9)
    assert not followed.held
    followed.evaluated("test", 0.61, "accuracy_tta")
    assert followed.held


def test_importing_the_rules_imports_nothing_heavy() -> None:
    code = (
        "import sys, resnet_bench.judging.target, resnet_bench.judging.verdict\n"
        "print([name for name in ('scipy', 'pandas', 'numpy', 'torch', 'mlflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
