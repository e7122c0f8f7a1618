import json
from collections.abc import Callable
from typing import Any

import torch

from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.claims import Claim
from resnet_bench.tracking.claim import ClaimWatch
from resnet_bench.tracking.environment import environment
from resnet_bench.tracking.facts import RunFacts

from .training_events import BENCHMARK

Describe = Callable[..., RunFacts]


def test_the_environment_is_complete_and_plain() -> None:
    found = environment()
    assert set(found) >= {
        "python", "torch", "torchvision", "cuda", "cudnn", "driver", "gpu", "cpu", "cores", "threads", "os",
    }  # fmt: skip
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["cores"] >= 1
    assert json.loads(json.dumps(found)) == found


def test_the_params_are_the_recipe_and_nothing_else(describe: Describe) -> None:
    description = describe()
    params = description.params()
    assert set(params) == set(description.recipe.flat())
    assert params["schedule.name"] == "constant"
    assert params["evaluation.splits"] == '["test"]'
    assert params["augmentation.flip"] == "false"


def test_every_tag_is_a_string_that_mlflow_takes(describe: Describe) -> None:
    tags = describe(role="trial", more_tags={"trial_number": "7"}).tags()
    assert all(isinstance(value, str) for value in tags.values())
    assert tags["resnet_bench.trial_number"] == "7"
    assert "mlflow.runColor" not in tags


def test_repeats_share_a_colour_and_benchmarks_do_not(describe: Describe) -> None:
    other = Benchmark.model_validate({**BENCHMARK, "name": "other"})
    one, repeat, another = (
        describe(**changes).tags()["mlflow.runColor"] for changes in ({}, {"seed": 9}, {"benchmark": other})
    )
    assert one == repeat != another


def test_the_note_says_when_numbers_mean_nothing(describe: Describe) -> None:
    assert "generated images" in describe(generated=True).tags()["mlflow.note.content"]
    assert "judges no claim" in describe(profile="smoke").tags()["mlflow.note.content"]


# --- time to the claim ---------------------------------------------------------------------------


def watch(claim: dict[str, Any], *, epochs: int = 8, evaluation: dict[str, Any] | None = None) -> ClaimWatch:
    recipe = {
        **BENCHMARK["recipe"],
        "training": {"epochs": epochs, "batch_size": 10},
        "evaluation": {"batch_size": 50, **(evaluation or {})},
    }
    return ClaimWatch(Claim.model_validate(claim), Benchmark.model_validate({**BENCHMARK, "recipe": recipe}).recipe)


def first_held(watch: ClaimWatch, accuracies: list[float]) -> int | None:
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


def test_an_augmented_claim_waits_for_the_augmented_evaluation() -> None:
    evaluation = {"batch_size": 50, "test_time_augmentation": {"mirror": True}}
    followed = watch({"at_least": 60.0, "metric": "accuracy_tta"}, evaluation=evaluation)
    for _ in range(8):
        followed.evaluated("test", 0.9)
    assert not followed.held
    followed.evaluated("test", 0.61, "accuracy_tta")
    assert followed.held
