"""What a speed record needs to hold."""

from typing import Any

import numpy as np
import pytest

from resnet_bench.base.errors import UserError
from resnet_bench.judging.record import RecordVerdict, Repeat, claim_of, judge_record, whole_training_seconds
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


STATED = (90.1, 90.3, 90.2, 90.0, 90.4) * 2


@pytest.mark.parametrize(
    ("repeat", "agrees", "sentence"),
    [
        # Mean 90.2, s 0.1491, n 10; t(.975, 9) = 2.2622: one further run falls into 90.2 ± 2.2622 * 0.1491 * 1.1**.5.
        (
            Repeat(STATED, (90.5,)),
            True,
            "accuracy agrees: mean 90.500% of 1 repeated seed; by the record's seeds 89.846",
        ),
        (Repeat(STATED, (90.6,)), False, "accuracy does not agree: mean 90.600%"),
        (Repeat(STATED, (89.8, 89.9, 89.85)), False, "accuracy does not agree: mean 89.850% of 3 repeated seeds"),
        (Repeat(STATED, (90.2, None)), False, "1 of 2 repeated runs failed"),
        (Repeat((90.2,), (90.2,)), False, "a prediction needs two finished runs"),
        (
            Repeat(STATED, (90.2,), 10.0, 8.1),
            True,
            "time agrees: 8.10× the baseline's speed here, 10.00× in the record",
        ),
        (Repeat(STATED, (90.2,), 10.0, 7.9), False, "time does not agree"),
        (Repeat(STATED, (90.2,), 10.0, 20.0), True, "time agrees"),
        (Repeat(STATED, (90.2,), 10.0), True, "no speedup was measured here"),
        (Repeat(STATED, (90.2,)), True, "seconds do not cross machines"),
    ],
)
def test_a_repeat_agrees_where_the_record_predicted_it(repeat: Repeat, agrees: bool, sentence: str) -> None:
    assert repeat.agrees is agrees
    assert any(sentence in each for each in repeat.sentences), repeat.sentences


def test_many_seeds_that_are_the_same_to_a_tenth_agree() -> None:
    """With 200 seeds a side the prediction interval is a few hundredths wide, less than another device's rounding."""
    stated = tuple(94.0 + 0.14 * (seed % 5 - 2) for seed in range(200))
    repeat = Repeat(stated, tuple(accuracy + 0.05 for accuracy in stated))
    assert repeat.prediction is not None
    assert repeat.prediction.high < 94.05
    assert repeat.agrees
    assert not Repeat(stated, tuple(accuracy + 0.15 for accuracy in stated)).agrees


def test_a_faithful_repeat_agrees_as_often_as_promised() -> None:
    random = np.random.default_rng(0)
    drawn = [Repeat(tuple(random.normal(90, 0.2, 10)), tuple(random.normal(90, 0.2, 3))).agrees for _ in range(400)]
    assert 0.92 < sum(drawn) / len(drawn) < 0.99


def test_a_whole_training_is_estimated_without_its_first_steps() -> None:
    recipe = fast().recipe
    assert recipe.steps_per_epoch * recipe.training.epochs == 4
    assert whole_training_seconds(recipe, [9.0, 9.0, 1.0, 2.0, 3.0, 2.0, 2.0, 2.0]) == 8.0
    assert whole_training_seconds(recipe, [1.5]) == 6.0
