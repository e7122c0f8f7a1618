import json
from collections.abc import Callable

import pytest
import torch

from resnet_bench.recipe.benchmark import Benchmark
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


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize(
    ("before", "now", "differences"),
    [
        ("canonical", "published", ["order differs (canonical then, published now)"]),
        ("published", "published", []),
        (None, "canonical", ["order differs (unknown then, canonical now)"]),
    ],
)
def test_runs_that_take_images_in_another_order_are_no_repeats(
    describe: Describe, split: str, before: str | None, now: str, differences: list[str]
) -> None:
    then, today = (describe(more_tags={} if order is None else {f"{split}_order": order}) for order in (before, now))
    assert today.differences(then.tags()) == [f"{split} {difference}" for difference in differences]
    assert (today.identity == then.identity) == (not differences)


def test_another_recipe_is_one_difference_whatever_its_orders(describe: Describe) -> None:
    other = describe(more_tags={"validation_order": "canonical", "test_order": "canonical"})
    changed = other.recipe.model_copy(update={"training": other.recipe.training.model_copy(update={"batch_size": 7})})
    (difference,) = describe(recipe=changed).differences(other.tags(), other.params())
    assert difference == "recipe differs (training.batch_size)"


def test_repeats_share_a_colour_and_benchmarks_do_not(describe: Describe) -> None:
    other = Benchmark.model_validate({**BENCHMARK, "name": "other"})
    one, repeat, another = (
        describe(**changes).tags()["mlflow.runColor"] for changes in ({}, {"seed": 9}, {"benchmark": other})
    )
    assert one == repeat != another


def test_the_note_says_when_numbers_mean_nothing(describe: Describe) -> None:
    assert "generated images" in describe(generated=True).tags()["mlflow.note.content"]
    assert "judges no claim" in describe(profile="smoke").tags()["mlflow.note.content"]
