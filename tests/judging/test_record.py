"""What a speed record needs to hold."""

from typing import Any

import pytest

from resnet_bench.base.errors import UserError
from resnet_bench.judging.record import RecordVerdict, claim_of, judge_record
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.changes import merge
from resnet_bench.recipe.claims import Claim
from resnet_bench.recipe.schema import parse


def fast(**changes: Any) -> Benchmark:
    table = {
        "name": "fast",
        "source": {"title": "Fast", "kind": "ours"},
        "claims": [{"at_least": 5.0, "metric": "accuracy_tta"}],
        "recipe": {
            "data": {"dataset": "cifar10", "mean": [0.5] * 3, "std": [0.25] * 3, "train_images": 40},
            "model": {
                "name": "speedrun",
                "whitening": {"images": 20},
                "options": {"width1": 4, "width2": 8, "width3": 8},
            },
            "augmentation": {"sizes": [{"pixels": 16, "epochs": 1}, {"pixels": 32, "epochs": 1}]},
            "optimizer": {"name": "sgd", "lr": 0.1},
            "schedule": {"name": "linear"},
            "training": {"epochs": 2, "batch_size": 20},
            "evaluation": {"batch_size": 500, "every": 2, "test_time_augmentation": {"mirror": True}},
        },
    }
    return parse(Benchmark, merge(table, changes), where="test")


def test_a_claim_that_is_not_a_bound_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"82\.87% is not a lower bound"):
        judge_record(Claim(value="82.87"), [90.0] * 10, "cpu")


def judged(*accuracies: float | None) -> RecordVerdict:
    return judge_record(Claim(at_least=90.0), accuracies, "cpu")


def test_the_lower_end_of_the_one_sided_interval_decides() -> None:
    # Mean 90.3, s 0.2108; t(.95, 9) = 1.8331: the lower end is 90.3 - 1.8331 * 0.2108 / 10**.5 = 90.178.
    held = judged(*[90.1, 90.5] * 5)
    assert held.interval is not None
    assert held.interval.low == pytest.approx(90.178, abs=1e-3)
    assert held.holds
    assert "the record holds: mean 90.300% over 10 seeds" in held.sentence
    missed = judged(*[89.9, 90.3] * 5)
    assert missed.finished
    assert not missed.holds
    assert "no record" in missed.sentence


def test_a_failed_run_spoils_the_record() -> None:
    spoilt = judged(*[91.0, 91.1] * 5, None)
    assert not spoilt.holds
    assert spoilt.sentence == "no record: 1 of 11 runs failed"


def test_too_few_seeds_are_not_judged() -> None:
    few = judged(91.0, 91.1, 91.2)
    assert not few.holds
    assert few.sentence.startswith("not judged, 10 seeds are the least")
    assert judged(91.0).sentence == "no record: one seed has no interval"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"claims": []}, "has no record to check"),
        ({"claims": [{"value": "90"}]}, "has no record to check"),
        ({"claims": [{"at_least": 90.0, "selection": "best"}]}, "takes the last epoch"),
        ({"claims": [{"at_least": 90.0}], "recipe": {"evaluation": {"mode": "batch_statistics"}}}, "statistics of the"),
        ({"recipe": {"data": {"test_images": 100}}}, "leaves test images out"),
        (
            {
                "claims": [{"at_least": 90.0}],
                "recipe": {
                    "data": {"validation": {"images": 10}},
                    "evaluation": {"splits": ["validation"], "test_at_end": False},
                },
            },
            "never evaluated",
        ),
        (
            {
                "claims": [{"at_least": 90.0}],
                "recipe": {"model": {"name": "torchvision:resnet18", "options": {"pretrained": True}}},
            },
            "trained elsewhere",
        ),
    ],
)
def test_what_the_protocol_forbids_is_refused(changes: dict[str, Any], sentence: str) -> None:
    recipe = changes.get("recipe", {})
    if "model" in recipe:
        recipe["model"] = {**recipe["model"], "whitening": "none"}
    with pytest.raises(UserError, match=sentence):
        claim_of(fast(**changes))
