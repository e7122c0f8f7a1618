"""The schema refuses what makes no sense in a sentence, and the fingerprint is that of the experiment."""

import contextlib
import copy
import math
import random
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import tomli_w
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resnet_bench.base.errors import UserError
from resnet_bench.base.names import unknown_name
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.changes import merge, override, override_nested, short_names
from resnet_bench.recipe.claims import Claim, Curve
from resnet_bench.recipe.datasets import DATASETS
from resnet_bench.recipe.recipe import Recipe, recipe_keys
from resnet_bench.recipe.schema import NOT_GIVEN, InvalidTable, parse, problems
from resnet_bench.recipe.settings import MultiStep, Phases
from tests.strategies import Table, recipe_tables, recipes

MINIMAL: Table = {
    "data": {"dataset": "cifar10", "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
    "model": {"name": "resnet9"},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "schedule": {"name": "constant"},
    "training": {"epochs": 10, "batch_size": 100},
    "evaluation": {"batch_size": 100},
}


def recipe(**changes: Any) -> Recipe:
    return parse(Recipe, merge(MINIMAL, changes), where="f.toml")


def benchmark(**changes: Any) -> Benchmark:
    table = {"name": "a-b", "source": {"title": "A", "kind": "ours"}, "recipe": MINIMAL}
    return parse(Benchmark, merge(table, changes), where="f.toml")


def refusal(**changes: Any) -> str:
    with pytest.raises(UserError) as error:
        recipe(**changes)
    return str(error.value)


def complaint(attempt: Callable[[], object]) -> str | None:
    """What a UserError says, or None where there is none; any other error is one of ours."""
    try:
        attempt()
    except UserError as error:
        return str(error)
    return None


# --- what is refused, and in which words ----------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"trainig": {}}, "unknown key 'trainig'; did you mean 'training'?"),
        ({"optimizer": {"lrr": 1.0}}, "unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'?"),
        ({"lr": 0.1}, "unknown key 'lr'; did you mean 'optimizer.lr'?"),
        ({"training": {"lr": 0.1}}, "unknown key 'training.lr'; did you mean 'optimizer.lr'?"),
        (
            {"optimizer": {"betas": [0.9, 0.99]}},
            "optimizer.betas means nothing to this optimizer.name; there are: optimizer.lr, optimizer.momentum, "
            "optimizer.name, optimizer.nesterov, optimizer.weight_decay",
        ),
        (
            {"schedule": {"name": "phases", "phases": [{"epochs": 10, "factor": 1.0, "facto": 1.0}]}},
            "unknown key 'schedule.phases[0].facto'; did you mean 'schedule.phases[0].factor'?",
        ),
        (
            {"data": {"validation": {"images": 5, "sed": 1}}},
            "unknown key 'data.validation.sed'; did you mean 'data.validation.seed'?",
        ),
        ({"optimizer": {"name": "sdg"}}, "unknown optimizer.name 'sdg'; did you mean 'sgd'?"),
        ({"schedule": {"name": "one_cicle"}}, "unknown schedule.name 'one_cicle'; did you mean 'one_cycle'?"),
        ({"schedule": {"name": None}}, "unknown schedule.name 'None'"),
        ({"data": {"dataset": "cifar-10"}}, "data.dataset: unknown value 'cifar-10'; did you mean 'cifar10'?"),
        ({"evaluation": {"splits": ["tset"]}}, "evaluation.splits[0]: unknown value 'tset'; did you mean 'test'?"),
        ({"evaluation": {"splits": ["train"]}}, "evaluation.splits[0]: unknown value 'train'"),
    ],
)
def test_a_mistyped_name_gets_the_nearest_one(changes: Table, sentence: str) -> None:
    assert refusal(**changes).startswith(f"f.toml: {sentence}")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"optimizer": {"lr": True}}, "optimizer.lr: must be a number, got true"),
        ({"optimizer": {"name": "muon", "lr": 0.1}}, "optimizer.rest is missing"),
        (
            {"optimizer": {"name": "muon", "lr": 0.2, "rest": {"lr": 0.1}}, "schedule": {"name": "cosine"}},
            'schedule.name = "cosine" sets one learning rate, and optimizer.name = "muon" has several; '
            "take constant, linear, multi_step or phases",
        ),
        (
            {"augmentation": {"flip_mode": "alternating"}},
            'augmentation: flip_mode = "alternating" needs flip = true',
        ),
        ({"augmentation": {"jitter": {}}}, "augmentation.jitter: a jitter without brightness and contrast changes"),
        ({"augmentation": {"jitter": {"contrast": 1}}}, "augmentation.jitter.contrast"),
        (
            {"augmentation": {"sizes": [{"pixels": 16, "epochs": 2.5}, {"pixels": 32, "epochs": 5}]}},
            "augmentation.sizes add up to 7.5 epochs, shorter than the run, training.epochs = 10",
        ),
        (
            {"training": {"freeze": [{"parameters": "conv1.*", "after_epochs": 10}]}},
            "training.freeze: after_epochs = 10 of 'conv1.*' is not shorter than the run, training.epochs = 10",
        ),
        (
            {"evaluation": {"test_time_augmentation": {"mirror": False}}},
            "evaluation.test_time_augmentation: neither mirror nor shift is asked for; "
            "leave test_time_augmentation out",
        ),
        ({"optimizer": {"lr": "0.1"}}, "optimizer.lr: must be a number, got '0.1'"),
        ({"optimizer": {"lr": math.nan}}, "optimizer.lr: should be a finite number, got nan"),
        ({"optimizer": {"lr": math.inf}}, "optimizer.lr: should be a finite number, got inf"),
        ({"optimizer": {"lr": 0}}, "optimizer.lr: should be greater than 0, got 0"),
        ({"optimizer": 5}, "optimizer: must be a table, got 5"),
        ({"training": {"epochs": True}}, "training.epochs: must be a whole number, got true"),
        ({"training": {"epochs": 8.0}}, "training.epochs: must be a whole number, got 8.0"),
        ({"training": {"epochs": 0}}, "training.epochs: should be greater than or equal to 1, got 0"),
        ({"training": {"epochs": "ten"}}, "training.epochs: must be a whole number, got 'ten'"),
        (
            {"training": {"epochs": 10**5000}},
            "training.epochs: should be less than or equal to 1000000000, got a number",
        ),
        ({"augmentation": {"flip": 1}}, "augmentation.flip: must be true or false, got 1"),
        ({"data": {"mean": 0.5}}, "data.mean: must be a list, got 0.5"),
        ({"data": {"mean": [0.5, 0.5]}}, "data.mean: must be three numbers, for red, green and blue, got [0.5, 0.5]"),
        ({"data": {"mean": [0.5, 0.5, 0.5, 0.5]}}, "data.mean: must be three numbers"),
        ({"data": {"mean": [0.5, 0.5, "0.5"]}}, "data.mean[2]: must be a number, got '0.5'"),
        ({"data": {"mean": [0.5, 0.5, False]}}, "data.mean[2]: must be a number, got false"),
        ({"data": {"std": [0.2, 0.0, 0.2]}}, "data: std must be positive, got [0.2, 0.0, 0.2]"),
        ({"model": {"name": 9}}, 'model.name: must be a string, in "quotes", got 9'),
        (
            {"model": {"options": {"dropout": [0.2]}}},
            "model.options.dropout: must be true, false, a finite number or a string, got [0.2]",
        ),
        (
            {"model": {"options": {"dropout": math.nan}}},
            "model.options.dropout: must be true, false, a finite number or a string, got nan",
        ),
        (
            {"model": {"options": {"drop.out": 0.2}}},
            "model.options.drop.out: the name of an option is lower-case letters, digits and underscores",
        ),
        ({"data": {"validation": {"seed": 1}}}, "data.validation.images is missing"),
        ({"data": {"validation": {"images": 5, "seed": 2**32}}}, "data.validation.seed: should be less than"),
    ],
)
def test_nothing_is_converted_or_guessed(changes: Table, sentence: str) -> None:
    assert refusal(**changes).startswith(f"f.toml: {sentence}")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"data": {"train_images": 50}},
            "training.batch_size = 100 is larger than the 50 images to train on",
        ),
        (
            {"data": {"train_images": 150, "validation": {"images": 100}}},
            "training.batch_size = 100 is larger than the 50 images to train on",
        ),
        (
            {"data": {"train_images": 100, "validation": {"images": 100}}},
            "data: validation.images = 100 leaves nothing of the 100 training images to train on",
        ),
        (
            {"training": {"batch_size": 49_999}},
            "training.batch_size = 49999 leaves a last batch of one image of 50000, which BatchNorm cannot train on; "
            'take another size or training.last_batch = "drop"',
        ),
        ({"training": {"batch_size": 1}}, "training.batch_size = 1 is too small"),
        (
            {"training": {"clip_value": 0.1, "clip_norm": 1.0}},
            "training: give clip_value or clip_norm, not both",
        ),
        ({"optimizer": {"nesterov": True}}, "optimizer: nesterov = true needs a momentum above 0"),
        (
            {"schedule": {"name": "multi_step", "milestones": [5, 10]}},
            "schedule.milestones = [5, 10] run past the last epoch, training.epochs = 10",
        ),
        (
            {"schedule": {"name": "multi_step", "milestones": [5, 3]}},
            "schedule: milestones must rise, got [5, 3]",
        ),
        ({"schedule": {"name": "multi_step", "milestones": []}}, "schedule.milestones: has too few values"),
        (
            {"schedule": {"name": "phases", "phases": [{"epochs": 12, "factor": 1}]}},
            "schedule.phases add up to 12 epochs, longer than the run, training.epochs = 10",
        ),
        (
            {"schedule": {"name": "phases", "phases": [{"epochs": 4, "factor": 1}, {"epochs": 4, "factor": 1}]}},
            "schedule.phases add up to 8 epochs, shorter than the run, training.epochs = 10",
        ),
        (
            {"schedule": {"name": "one_cycle", "base_momentum": 0.9, "max_momentum": 0.8}},
            "schedule: base_momentum = 0.9 is above max_momentum = 0.8",
        ),
        (
            {"schedule": {"name": "one_cycle"}, "data": {"train_images": 100}, "training": {"epochs": 3}},
            'schedule.name = "one_cycle" has no step to rise in: schedule.rising_fraction = 0.3 of 3 steps',
        ),
        (
            {"schedule": {"name": "plateau"}, "evaluation": {"splits": []}},
            'schedule.name = "plateau" needs a split in evaluation.splits to watch',
        ),
        (
            {"evaluation": {"splits": ["validation"]}},
            'evaluation.splits has "validation", which needs data.validation',
        ),
        ({"evaluation": {"splits": ["test", "test"]}}, "evaluation.splits names a split twice"),
        ({"evaluation": {"splits": [], "test_at_end": False}}, "evaluation.splits is empty"),
        ({"evaluation": {"every": 11}}, "evaluation.every = 11 is longer than the run, training.epochs = 10"),
        (
            {"evaluation": {"mode": "batch_statistics", "batch_size": 3333}},
            "evaluation.batch_size = 3333 leaves a batch of one image of the 10000 of the test split",
        ),
        (
            {"evaluation": {"mode": "batch_statistics"}, "data": {"test_images": 1}},
            "evaluation.batch_size = 100 leaves a batch of one image of the 1 of the test split",
        ),
        (
            {"evaluation": {"mode": "batch_statistics"}, "training": {"train_accuracy": "separate_pass"}}
            | {"data": {"train_images": 201, "validation": {"images": 100}}},
            "evaluation.batch_size = 100 leaves a batch of one image of the 101 of the train split",
        ),
        (
            {"model": {"num_classes": 5}},
            "model.num_classes = 5 is fewer than the 10 classes of cifar10",
        ),
        (
            {"model": {"num_classes": 1000}},
            "model.num_classes = 1000 on the 10 classes of cifar10; if that is meant, say "
            "model.allow_unused_classes = true",
        ),
    ],
)
def test_impossible_combinations_are_refused(changes: Table, sentence: str) -> None:
    if "train_images" in changes.get("data", {}) and "separate_pass" in str(changes):
        changes = merge(changes, {"training": {"last_batch": "drop"}})
    assert refusal(**changes).startswith(f"f.toml: {sentence}")


def test_a_head_of_1000_classes_is_taken_when_it_is_said() -> None:
    assert recipe(model={"num_classes": 1000, "allow_unused_classes": True}).num_outputs == 1000


def test_an_evaluation_batch_of_one_image_is_fine_in_eval_mode() -> None:
    assert recipe(evaluation={"batch_size": 3333}).evaluation.batch_size == 3333


@pytest.mark.parametrize("rising_fraction", [0.1, 0.2, 0.25, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 8, 10, 11])
def test_one_cycle_is_refused_exactly_where_torch_cannot_start_at_the_bottom(
    steps: int, rising_fraction: float
) -> None:
    changes = {
        "schedule": {"name": "one_cycle", "rising_fraction": rising_fraction},
        "data": {"train_images": 100},
        "training": {"epochs": steps},
    }
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    try:
        torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=steps, pct_start=rising_fraction)
        starts_at_the_bottom = optimizer.param_groups[0]["lr"] == pytest.approx(1 / 25)
    except ZeroDivisionError:
        starts_at_the_bottom = False
    if starts_at_the_bottom:
        assert recipe(**changes).schedule.name == "one_cycle"
    else:
        assert "has no step to rise in" in refusal(**changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "A b"}, "name: a name is lower-case letters, digits and hyphens"),
        ({"source": {"url": "http://x"}}, "source.url: an address starts with https://"),
        ({"source": {"kind": "blogg"}}, "source.kind: unknown value 'blogg'; did you mean 'blog'?"),
        (
            {"source": {"facts": [{"fact": "", "status": "state"}]}},
            "source.facts[0].status: unknown value 'state'; did you mean 'stated'?",
        ),
        (
            {"source": {"facts": [{"fact": "", "status": "stated", "keys": ["lr"]}]}},
            "source.facts: unknown recipe key 'lr'; did you mean 'optimizer.lr'?",
        ),
        ({"claims": [{}]}, "claims[0]: a claim needs exactly one of value, at_least and range, got none"),
        (
            {"claims": [{"value": "87", "at_least": 87}]},
            "claims[0]: a claim needs exactly one of value, at_least and range, got value, at_least",
        ),
        ({"claims": [{"value": 87}]}, 'claims[0].value: must be a string, in "quotes", got 87'),
        ({"claims": [{"value": "87%"}]}, "claims[0].value: must be the number as it is printed"),
        ({"claims": [{"value": "870"}]}, "claims[0]: value is a percentage, got '870'"),
        ({"claims": [{"range": [63, 62]}]}, "claims[0]: range runs from low to high, got [63.0, 62.0]"),
        ({"claims": [{"value": "87", "epoch": 3}]}, "claims[0]: epoch = … and selection"),
        (
            {"claims": [{"value": "87", "wall_includes": ["evaluation"]}]},
            "claims[0]: wall_includes says what wall_seconds includes; give that, too",
        ),
        (
            {"claims": [{"value": "87", "selection": "epoch", "epoch": 11}]},
            "claims: epoch 11 lies beyond training.epochs = 10",
        ),
        (
            {"claims": [{"value": "87", "curve": {"epochs": [9, 11], "values": [1, 2]}}]},
            "claims: the curve runs to epoch 11, beyond training.epochs = 10",
        ),
        (
            {"claims": [{"value": "87", "curve": {"epochs": [2, 1], "values": [1, 2]}}]},
            "claims[0].curve: the epochs of a curve must rise, got [2, 1]",
        ),
        (
            {"claims": [{"value": "87", "curve": {"epochs": [1], "values": [1, 2]}}]},
            "claims[0].curve: a curve needs as many values as epochs, got 1 epochs and 2 values",
        ),
        (
            {"claims": [{"value": "87", "split": "validation"}]},
            'claims: split = "validation" needs recipe.data.validation',
        ),
        ({"recipe": {"lr": 1}}, "unknown key 'recipe.lr'; did you mean 'recipe.optimizer.lr'?"),
        ({"recipe": {"optimizer": {"betas": [0, 0]}}}, "recipe.optimizer.betas means nothing to this recipe.optimizer"),
        ({"profiles": {"smok": MINIMAL}}, "profiles.smok: unknown value 'smok'; did you mean 'smoke'?"),
    ],
)
def test_a_benchmark_is_as_strict(changes: Table, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        benchmark(**changes)
    assert str(error.value).startswith(f"f.toml: {sentence}")


def test_an_unknown_name_without_a_near_one_lists_what_there_is() -> None:
    assert unknown_name("benchmark", "zzz", ["b", "a"]) == "unknown benchmark 'zzz'; there are: a, b"
    assert unknown_name("benchmark", "zzz", []) == "unknown benchmark 'zzz'"
    assert unknown_name("key", "q", map(str, range(1000))).endswith("… (1000 in all)")


# --- claims ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claim", "low", "high", "margin", "text"),
    [
        ({"value": "87"}, 86.5, 87.5, 1.0, "87%"),
        ({"value": "82.87"}, 82.865, 82.875, 1.0, "82.87%"),
        ({"value": "95.170"}, 95.1695, 95.1705, 1.0, "95.170%"),
        ({"at_least": 90}, 90, math.inf, 0.0, "≥ 90%"),
        ({"range": [62, 63]}, 62, 63, 0.0, "62–63%"),
    ],
)
def test_a_claim_stands_for_an_interval(claim: Table, low: float, high: float, margin: float, text: str) -> None:
    parsed = parse(Claim, claim, where="f")
    assert parsed.interval == pytest.approx((low, high), abs=1e-9)
    assert parsed.margin == margin
    assert parsed.text == text


def test_a_curve_keeps_what_it_belongs_to() -> None:
    curve = parse(Curve, {"epochs": [0, 1], "values": [10, 48.39], "note": "a variant"}, where="f")
    assert curve.values == (10.0, 48.39)
    assert curve.note == "a variant"


# --- derived numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "batch_size", "last_batch", "steps"),
    [
        ({}, 400, "keep", 125),
        ({}, 128, "keep", 391),
        ({}, 128, "drop", 390),
        ({"validation": {"images": 5000}}, 64, "keep", 704),
        ({"train_images": 192}, 32, "keep", 6),
    ],
)
def test_steps_per_epoch_are_those_of_a_data_loader(data: Table, batch_size: int, last_batch: str, steps: int) -> None:
    built = recipe(data=data, training={"batch_size": batch_size, "last_batch": last_batch})
    images = torch.utils.data.TensorDataset(torch.zeros(built.data.num_train))
    loader = torch.utils.data.DataLoader(images, batch_size, drop_last=last_batch == "drop")
    assert built.steps_per_epoch == len(loader) == steps


# --- the fingerprint ------------------------------------------------------------------------------


def shuffled(value: Any, seed: int) -> Any:
    if not isinstance(value, Mapping):
        return value
    items = list(value.items())
    random.Random(seed).shuffle(items)
    return {key: shuffled(below, seed) for key, below in items}


def respelled(value: Any) -> Any:
    """The same numbers, written otherwise: 1 for 1.0 and 1.0 for 1 in an option, lists for tuples."""
    if isinstance(value, Mapping):
        return {key: respelled(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [respelled(below) for below in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


@given(recipe_tables(), st.integers())
def test_the_fingerprint_does_not_care_about_the_order_of_keys(table: Table, seed: int) -> None:
    try:
        expected = parse(Recipe, table, where="f").fingerprint
    except UserError:
        return
    assert parse(Recipe, shuffled(table, seed), where="f").fingerprint == expected


@given(recipes())
def test_the_fingerprint_does_not_care_how_numbers_are_written(built: Recipe) -> None:
    table = built.model_dump(exclude_none=True)
    assert parse(Recipe, respelled(table), where="f").fingerprint == built.fingerprint


@given(recipes())
def test_the_fingerprint_survives_toml(built: Recipe) -> None:
    text = tomli_w.dumps(built.model_dump(exclude_none=True, mode="json"))
    assert parse(Recipe, tomllib.loads(text), where="f").fingerprint == built.fingerprint


@given(recipes())
def test_defaults_may_be_written_or_left_out(built: Recipe) -> None:
    brief = parse(Recipe, built.model_dump(exclude_defaults=True), where="f")
    assert brief.fingerprint == parse(Recipe, built.model_dump(), where="f").fingerprint == built.fingerprint


@pytest.mark.parametrize("spelling", ["0.01", "1e-2", "1E-2", "+0.01", "0.0100", "1_0e-3"])
def test_a_learning_rate_has_many_spellings_and_one_fingerprint(spelling: str) -> None:
    table = tomllib.loads(f"[optimizer]\nlr = {spelling}")
    assert recipe(**table).fingerprint == recipe(optimizer={"lr": 0.01}).fingerprint


def test_an_option_is_told_apart_by_its_value_and_kind() -> None:
    values: list[Any] = [1, True, "1.0", "1", "true", 2, 2**53, 2**53 + 1, -1, 0.1]
    fingerprints = {recipe(model={"options": {"x": value}}).fingerprint for value in values}
    assert len(fingerprints) == len(values)
    one = {recipe(model={"options": {"x": value}}).fingerprint for value in (1, 1.0)}
    zero = {recipe(model={"options": {"x": value}}).fingerprint for value in (0, 0.0, -0.0)}
    assert (len(one), len(zero)) == (1, 1)


@settings(max_examples=50)
@given(recipes(), recipes())
def test_only_equal_recipes_share_a_fingerprint(one: Recipe, other: Recipe) -> None:
    assert (one.fingerprint == other.fingerprint) == (one == other)


FLOWERS: Table = {
    "classes": ["daisy", "rose", "tulip"],
    "image_size": 64,
    "fit": "crop",
    "train_images": 900,
    "test_images": 90,
}

EVERY_KIND: list[Table] = [
    {
        "data": {"validation": {"images": 1000, "seed": 1}, "train_images": 9000, "test_images": 5000},
        "augmentation": {"resize": 64, "crop_padding": 4},
        "model": {"num_classes": 20, "allow_unused_classes": True, "options": {"dropout": 0.1}},
        "optimizer": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        "schedule": {"name": "multi_step", "milestones": [3, 5]},
        "training": {"clip_value": 0.1},
        "evaluation": {"splits": ["test", "validation"]},
    },
    {"optimizer": {"name": "adam", "lr": 0.1}, "schedule": {"name": "one_cycle"}, "training": {"clip_norm": 0.1}},
    {
        "optimizer": {"name": "adamw", "lr": 0.1},
        "schedule": {"name": "phases", "phases": [{"epochs": 8, "factor": 1}, {"epochs": 2, "factor": 0.1}]},
    },
    {
        "data": {"dataset": "flowers", "description": FLOWERS, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]},
        "schedule": {"name": "plateau"},
    },
    {"schedule": {"name": "cosine"}},
    {"schedule": {"name": "constant"}},
    {
        "augmentation": {
            "flip": True,
            "flip_mode": "alternating",
            "jitter": {"brightness": 0.1, "contrast": 0.1},
            "sizes": [{"pixels": 16, "epochs": 2.5}, {"pixels": 32, "epochs": 7.5}],
        },
        "model": {"name": "speedrun", "whitening": {"padding": 1}},
        "optimizer": {
            "name": "muon",
            "lr": 0.2,
            "momentum": 0.6,
            "nesterov": True,
            "rest": {"lr": 0.1, "momentum": 0.6, "nesterov": True},
            "head": {"lr": 0.3, "momentum": 0.6, "nesterov": True},
        },
        "schedule": {"name": "linear"},
        "training": {"freeze": [{"parameters": "whitening.bias", "after_epochs": 3}]},
        "evaluation": {"test_time_augmentation": {"mirror": True, "shift": 1}},
    },
]
"""Recipes that together have every key that a recipe may have."""


def other_values(key: str, value: Any) -> Iterable[Any]:
    """Values that a key could also have; the first that the schema takes is tried."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value + 2, value - 1)
    elif isinstance(value, float):
        yield from (value * 1.0000001, value + 0.001, value / 2)
    elif key == "schedule.phases":
        yield [{"epochs": 7, "factor": 1}, {"epochs": 3, "factor": 0.1}]
        yield [{"epochs": 8, "factor": 1.1}, {"epochs": 2, "factor": 0.1}]
    elif key == "augmentation.sizes":
        yield [{"pixels": 20, "epochs": 2.5}, {"pixels": 32, "epochs": 7.5}]
    elif key == "training.freeze":
        yield [{"parameters": "whitening.*", "after_epochs": 3}]
    elif isinstance(value, list) and all(isinstance(item, int | float) for item in value):
        yield from ([*value[:-1], value[-1] + 1], [*value[:-1], value[-1] - 0.001])
    elif key == "evaluation.splits":
        yield from ([], ["validation"], ["test"])
    else:
        choices = {
            "data.dataset": ["cifar100"] if value == "cifar10" else ["trees"],
            "data.description.classes": [["daisy", "rose", "lily"]],
            "data.description.fit": ["resize"],
            "augmentation.padding_mode": ["reflect"],
            "augmentation.flip_mode": ["random"],
            "model.name": ["resnet18"],
            "training.last_batch": ["drop"],
            "training.reported_loss": ["batches", "last_batch"],
            "training.train_accuracy": ["separate_pass"],
            "evaluation.mode": ["batch_statistics"],
            "evaluation.averaging": ["batches"],
        }
        yield from choices.get(key, [])


def changed(table: Table, key: str, value: Any) -> Table:
    table = copy.deepcopy(table)
    *parents, leaf = key.split(".")
    below = table
    for parent in parents:
        below = below[parent]
    below[leaf] = value
    return table


def taken(table: Table, key: str, values: Iterable[Any]) -> Recipe | None:
    for value in values:
        with contextlib.suppress(UserError):
            return parse(Recipe, changed(table, key, value), where="f")
    return None


def test_every_single_field_changes_the_fingerprint() -> None:
    tried = set()
    for kind in EVERY_KIND:
        built = recipe(**kind)
        table = built.model_dump(exclude_none=True, mode="json")
        for key, value in built.flat().items():
            other = taken(table, key, [other for other in other_values(key, value) if other != value])
            if other is not None:
                tried.add(key)
                assert other.fingerprint != built.fingerprint, key
    tables = {key.rpartition(".")[0] for key in recipe_keys()} | {"model.options"}
    # A discriminator is not changed alone: its table goes with it.
    names = {"optimizer.name", "schedule.name"}
    # Where images lie decides nothing.
    assert set(recipe_keys()) - tables - names - tried == {"data.path"}
    assert "model.options.dropout" in tried
    assert len({recipe(**kind).fingerprint for kind in EVERY_KIND}) == len(EVERY_KIND)


def test_an_optional_key_changes_the_fingerprint_by_being_there() -> None:
    bare = recipe()
    for key, value in {
        "data.validation": {"images": 5000, "seed": 42},
        "data.train_images": 50_000,
        "data.test_images": 10_000,
        "augmentation.resize": 32,
        "model.num_classes": 10,
        "training.clip_value": 1.0,
        "training.clip_norm": 1.0,
    }.items():
        assert override(bare, {key: value}).fingerprint != bare.fingerprint, key


# --- merging and overriding -----------------------------------------------------------------------


def test_merge_goes_table_by_table_and_leaves_its_arguments_alone() -> None:
    base = {"a": {"x": 1, "y": [1, 2]}, "b": 2}
    changes = {"a": {"y": [3]}, "c": {"z": 1}}
    before = copy.deepcopy((base, changes))
    assert merge(base, changes) == {"a": {"x": 1, "y": [3]}, "b": 2, "c": {"z": 1}}
    assert (base, changes) == before


def test_merge_replaces_a_table_that_gets_another_name() -> None:
    base = {"optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}}
    assert merge(base, {"optimizer": {"name": "adam", "lr": 1e-3}}) == {"optimizer": {"name": "adam", "lr": 1e-3}}
    assert merge(base, {"optimizer": {"name": "sgd", "lr": 1}})["optimizer"] == {
        "name": "sgd",
        "lr": 1,
        "momentum": 0.9,
    }


@given(recipes())
def test_overriding_every_key_by_itself_changes_nothing(built: Recipe) -> None:
    assert override(built, built.flat()) == built
    assert override(built, {}) == built


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"optimizer.lrr": 0.1}, "--set: unknown recipe key 'optimizer.lrr'; did you mean 'optimizer.lr'?"),
        ({"lr": 0.1}, "--set: unknown recipe key 'lr'; did you mean 'optimizer.lr'?"),
        ({"optimizer.lr": "high"}, "--set: optimizer.lr: must be a number, got 'high'"),
        ({"training.batch_size": 60_000}, "--set: training.batch_size = 60000 is larger than the 50000 images"),
        ({"training": 5}, "--set: training: must be a table, got 5"),
        (
            {"optimizer": {"name": "sgd"}, "optimizer.lr": 0.1},
            "--set: optimizer and optimizer.lr, which is a part of it, are both given; give one",
        ),
        (
            {"optimizer.lr": 0.1, "optimizer": {"name": "sgd"}},
            "--set: optimizer and optimizer.lr, which is a part of it, are both given; give one",
        ),
    ],
)
def test_a_wrong_override_is_refused(changes: Table, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        override(recipe(), changes, where="--set")
    assert str(error.value).startswith(sentence)


def test_an_override_reaches_an_option_of_the_network() -> None:
    assert override(recipe(), {"model.options.dropout": 0.2}).model.options == {"dropout": 0.2}


@pytest.mark.parametrize("key", ["data.validation", "augmentation.resize", "training.clip_value", "model.options.x"])
@pytest.mark.parametrize("nothing", [NOT_GIVEN, None])
def test_an_optional_key_can_be_taken_away(key: str, nothing: str | None) -> None:
    given = {
        "data.validation": {"images": 10, "seed": 1},
        "augmentation.resize": 64,
        "training.clip_value": 0.1,
        "model.options.x": 1,
    }
    whole = override(recipe(), {key: given[key]})
    assert whole != recipe()
    assert override(whole, {key: nothing}) == recipe()


def test_a_key_that_is_needed_cannot_be_taken_away() -> None:
    with pytest.raises(UserError, match=r"optimizer\.lr: must be a number, got 'none'"):
        override(recipe(), {"optimizer.lr": NOT_GIVEN})


# --- schedules follow the number of epochs --------------------------------------------------------


def phased(*phases: tuple[int, float]) -> Recipe:
    lengths = [{"epochs": epochs, "factor": factor} for epochs, factor in phases]
    total = sum(epochs for epochs, _ in phases)
    return recipe(schedule={"name": "phases", "phases": lengths}, training={"epochs": total})


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (27, [(15, 1.0), (6, 0.1), (6, 0.01)]),
        (5, [(3, 1.0), (1, 0.1), (1, 0.01)]),
        (2, [(1, 1.0), (1, 0.1)]),
        (1, [(1, 1.0)]),
        (540, [(300, 1.0), (120, 0.1), (120, 0.01)]),
    ],
)
def test_phases_scale_with_the_epochs(epochs: int, expected: list[tuple[int, float]]) -> None:
    scaled = override(phased((150, 1.0), (60, 0.1), (60, 0.01)), {"training.epochs": epochs})
    assert isinstance(scaled.schedule, Phases)
    assert [(phase.epochs, phase.factor) for phase in scaled.schedule.phases] == expected


@pytest.mark.parametrize(("epochs", "milestones"), [(82, [41, 62]), (3, [2]), (328, [164, 246])])
def test_milestones_scale_with_the_epochs(epochs: int, milestones: list[int]) -> None:
    built = recipe(schedule={"name": "multi_step", "milestones": [82, 123]}, training={"epochs": 164})
    scaled = override(built, {"training.epochs": epochs})
    assert isinstance(scaled.schedule, MultiStep)
    assert list(scaled.schedule.milestones) == milestones


def test_a_single_epoch_has_no_milestone() -> None:
    built = recipe(schedule={"name": "multi_step", "milestones": [82, 123]}, training={"epochs": 164})
    assert override(built, {"training.epochs": 1}).schedule.name == "constant"


def test_a_schedule_that_is_named_is_not_scaled() -> None:
    built = recipe(schedule={"name": "multi_step", "milestones": [5]})
    scaled = override(built, {"training.epochs": 20, "schedule.factor": 0.2})
    assert isinstance(scaled.schedule, MultiStep)
    assert scaled.schedule.milestones == (5,)


@given(recipes(), st.integers(1, 500))
def test_every_recipe_can_be_shortened_or_lengthened(built: Recipe, epochs: int) -> None:
    changes = {"training": {"epochs": epochs}, "evaluation": {"every": 1}}
    sentence = complaint(lambda: override_nested(built, changes, where="f"))
    if sentence is not None:
        assert "has no step to rise in" in sentence
        return
    scaled = override_nested(built, changes, where="f")
    assert scaled.training.epochs == epochs
    if isinstance(built.schedule, Phases):
        assert isinstance(scaled.schedule, Phases)
        factors = [phase.factor for phase in built.schedule.phases]
        kept = [phase.factor for phase in scaled.schedule.phases]
        remaining = iter(factors)
        assert all(factor in remaining for factor in kept), "the order of the phases changed"
    assert override_nested(built, {"training": {"epochs": built.training.epochs}}, where="f") == built


# --- whatever is thrown at it ---------------------------------------------------------------------

scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.datetimes())
junk = st.recursive(
    scalars,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=12), below, max_size=3),
    max_leaves=12,
)


def places(table: Mapping[str, Any]) -> list[tuple[str, ...]]:
    below = [(key, *rest) for key, value in table.items() if isinstance(value, Mapping) for rest in places(value)]
    return [(key,) for key in table] + below


@st.composite
def damaged(draw: st.DrawFn, valid: Table) -> Table:
    """A valid table with one thing replaced, removed or added."""
    table = copy.deepcopy(valid)
    *parents, leaf = draw(st.sampled_from(places(table)))
    below = table
    for parent in parents:
        below = below[parent]
    match draw(st.sampled_from(["replace", "remove", "add"])):
        case "replace":
            below[leaf] = draw(junk)
        case "remove":
            del below[leaf]
        case _:
            below[draw(st.text(max_size=200))] = draw(junk)
    return table


def says_why(schema: type[Recipe] | type[Benchmark], table: Table) -> None:
    sentence = complaint(lambda: parse(schema, table, where="f.toml"))
    if sentence is not None:
        assert sentence.startswith("f.toml: ")
        assert 10 < len(sentence) < 3000


@given(recipe_tables().flatmap(damaged))
@example({"x" * 100_000: 1})
def test_a_damaged_recipe_is_refused_in_a_sentence(table: Table) -> None:
    says_why(Recipe, table)


WHOLE: Table = {
    "name": "a",
    "source": {"title": "A", "kind": "ours", "facts": [{"fact": "f", "status": "stated", "keys": ["optimizer.lr"]}]},
    "claims": [{"value": "87", "curve": {"epochs": [1], "values": [80]}}],
    "recipe": MINIMAL,
    "profiles": {"smoke": MINIMAL},
    "tuned": {"study": "s", "trials": 1, "validation_source": 1.0, "validation_tuned": 2.0},
}


@given(damaged(WHOLE))
def test_a_damaged_benchmark_is_refused_in_a_sentence(table: Table) -> None:
    says_why(Benchmark, table)


@given(st.dictionaries(st.text(max_size=30), junk, max_size=4))
@settings(max_examples=50)
def test_junk_is_refused_in_a_sentence(table: Table) -> None:
    says_why(Recipe, table)
    says_why(Benchmark, table)


@given(st.dictionaries(st.sampled_from([*recipe_keys(), "model.options.x", "lr", ""]), junk, max_size=3))
def test_junk_overrides_are_refused_in_a_sentence(changes: Table) -> None:
    sentence = complaint(lambda: override(recipe(), changes, where="--set"))
    assert sentence is None or sentence.startswith("--set: ")


def test_a_shorter_run_keeps_the_shares_of_its_image_sizes_and_of_freezing() -> None:
    grown = recipe(
        augmentation={"sizes": [{"pixels": 16, "epochs": 4}, {"pixels": 32, "epochs": 6}]},
        training={"freeze": [{"parameters": "conv1.*", "after_epochs": 5}]},
    )
    shorter = override(grown, {"training.epochs": 5})
    assert [(size.pixels, size.epochs) for size in shorter.augmentation.sizes or ()] == [(16, 2.0), (32, 3.0)]
    assert [freeze.after_epochs for freeze in shorter.training.freeze or ()] == [2.5]
    named = override(grown, {"training.epochs": 1, "augmentation.sizes": [{"pixels": 24, "epochs": 1}]})
    assert [(size.pixels, size.epochs) for size in named.augmentation.sizes or ()] == [(24, 1.0)]
    assert grown.relative_pixels == pytest.approx(0.4 * 0.25 + 0.6)


@pytest.mark.parametrize(
    ("claim", "sentence"),
    [
        ({"at_least": 90.0, "metric": "accuracy_tta"}, "needs evaluation.test_time_augmentation"),
        (
            {"at_least": 90.0, "metric": "accuracy_tta", "selection": "best"},
            "is measured after the last epoch only",
        ),
    ],
)
def test_an_augmented_claim_needs_its_augmentation(claim: Table, sentence: str) -> None:
    evaluation = {"batch_size": 100}
    if "selection" in claim:
        evaluation["test_time_augmentation"] = {"mirror": True}
    with pytest.raises(UserError, match=re.escape(sentence)):
        benchmark(claims=[claim], recipe=merge(MINIMAL, {"evaluation": evaluation}))


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (["optimizer.lr", "training.batch_size"], ["lr", "batch_size"]),
        (
            ["optimizer.lr", "optimizer.rest.lr", "optimizer.head.lr", "optimizer.momentum"],
            ["optimizer.lr", "rest.lr", "head.lr", "momentum"],
        ),
        (["a.b.c", "x.b.c"], ["a.b.c", "x.b.c"]),
        (["c", "b.c"], ["c", "b.c"]),
        ([], []),
    ],
)
def test_short_names_tell_keys_apart(keys: list[str], names: list[str]) -> None:
    assert short_names(keys) == dict(zip(keys, names, strict=True))


# --- everything that is wrong at once -------------------------------------------------------------


def test_all_problems_are_listed_with_their_places() -> None:
    table = merge(MINIMAL, {"optimizer": {"lrr": 1.0, "lr": 0}, "training": {"epochs": "ten"}})
    with pytest.raises(InvalidTable) as error:
        parse(Recipe, table, where="f.toml")
    assert str(error.value) == "f.toml: unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'? (and 2 more)"
    assert error.value.problems == [f"f.toml: {problem}" for problem in problems(Recipe, table)]
    assert [problem.split(":")[1].split()[0] for problem in error.value.problems] == [
        "unknown",
        "optimizer.lr",
        "training.epochs",
    ]
    assert problems(Recipe, MINIMAL) == []


def test_every_broken_rule_is_listed() -> None:
    found = problems(Recipe, merge(MINIMAL, {"training": {"batch_size": 1}, "evaluation": {"every": 11}}))
    assert [problem.split(" = ")[0] for problem in found] == ["training.batch_size", "evaluation.every"]
    claims = [{"value": "87", "selection": "epoch", "epoch": 11}, {"value": "88", "split": "validation"}]
    with pytest.raises(InvalidTable) as error:
        benchmark(claims=claims)
    assert len(error.value.problems) == 2


# --- what a dataset decides -----------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_mean_and_std_are_the_datasets_unless_they_are_given(name: str) -> None:
    data = {"dataset": name}
    own = parse(Recipe, {**MINIMAL, "data": data}, where="f.toml").data
    assert (own.mean, own.std) == (DATASETS[name].mean, DATASETS[name].std)
    given_std = parse(Recipe, {**MINIMAL, "data": {**data, "std": [1, 1, 1]}}, where="f.toml").data
    assert (given_std.mean, given_std.std) == (DATASETS[name].mean, (1, 1, 1))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": {"train_images": 50_001}}, "data: train_images = 50001 is more than the 50000 of cifar10"),
        ({"data": {"test_images": 10_001}}, "data: test_images = 10001 is more than the 10000 of cifar10"),
        (
            {"augmentation": {"crop_padding": 32}},
            "augmentation.crop_padding = 32 must be smaller than the 32 pixels of an image of cifar10",
        ),
        (
            {"augmentation": {"sizes": [{"pixels": 33, "epochs": 10}]}},
            "augmentation.sizes: pixels = 33 is larger than the 32 pixels of an image of cifar10",
        ),
        (
            {"model": {"whitening": {"images": 50_001}}},
            "model.whitening.images = 50001 is more than the 50000 training images of cifar10",
        ),
    ],
)
def test_a_recipe_asks_no_more_than_its_dataset_has(changes: Table, sentence: str) -> None:
    assert refusal(**changes) == f"f.toml: {sentence}"


def test_the_claim_to_judge_by_is_the_first_about_the_test_set() -> None:
    claims = [{"value": "90", "split": "train"}, {"value": "87"}, {"value": "88"}]
    found = benchmark(claims=claims).test_claim
    assert found is not None
    assert found.value == "87"
    assert benchmark().test_claim is None


def test_a_claim_may_call_tta_accuracy_as_version_0_1_0_did() -> None:
    assert Claim.model_validate({"at_least": 90.0, "metric": "accuracy_augmented"}).metric == "accuracy_tta"
