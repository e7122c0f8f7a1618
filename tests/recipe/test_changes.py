"""Changes typed by a user, and recipes cut short for measurements."""

from typing import Any

import pytest

from resnet_bench.base.errors import UserError
from resnet_bench.recipe.changes import cut_short, override, parse_assignments
from resnet_bench.recipe.files import scan_benchmarks
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.recipe.schema import NOT_GIVEN
from tests.training.conftest import tiny_recipe

SHIPPED = scan_benchmarks()[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.1", 0.1),
        (".05", 0.05),
        ("-.5", -0.5),
        ("5.", 5.0),
        ("1e-3", 1e-3),
        ("1.e-3", 1e-3),
        ("10", 10),
        ("true", True),
        ("True", True),
        ("FALSE", False),
        ("None", NOT_GIVEN),
        ("null", NOT_GIVEN),
        ("none", NOT_GIVEN),
        ("adam", "adam"),
        ('"0.1"', "0.1"),
        ("[1, 2]", [1, 2]),
        ("007", "007"),
        ("1_000", 1000),
        ("1\nother = 2", "1\nother = 2"),
        ("[" * 5000, "[" * 5000),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_parse_assignments_reads_toml_and_the_spellings_of_python(text: str, value: Any) -> None:
    parsed = parse_assignments([f" a.b = {text}"])
    assert parsed == {"a.b": value}
    assert type(parsed["a.b"]) is type(value)


@pytest.mark.parametrize("text", ["optimizer.lr", "=0.1", " = 0.1", ""])
def test_parse_assignments_rejects_what_is_not_a_key_and_a_value(text: str) -> None:
    with pytest.raises(UserError, match="write a key and a value, such as --set"):
        parse_assignments([text])


def test_typed_values_reach_the_recipe() -> None:
    changes = parse_assignments(["optimizer.lr=.05", "augmentation.flip=True", "data.train_images=None"])
    changed = override(tiny_recipe(), changes)
    assert (changed.optimizer.lr, changed.augmentation.flip, changed.data.train_images) == (0.05, True, None)


@pytest.mark.parametrize("name", sorted(SHIPPED))
@pytest.mark.parametrize("epochs", [None, 1])
def test_cut_short_fits_every_shipped_recipe(name: str, epochs: int | None) -> None:
    recipe = SHIPPED[name].recipe
    short = cut_short(recipe, 3, epochs=epochs)
    assert short.steps_per_epoch == 3
    assert short.training.batch_size == recipe.training.batch_size
    assert short.training.epochs == (epochs or recipe.training.epochs)
    assert short.evaluations("validation") == ()
    assert short.evaluations("test") == (short.training.epochs,)
    assert short.data.num_test == 2
    assert short.image_sizes == recipe.image_sizes
    assert cut_short(recipe, 3, epochs=1, image_size=24).image_sizes == (24,)


def test_cut_short_never_lengthens_an_epoch() -> None:
    recipe = tiny_recipe()
    assert cut_short(recipe, 10**6).data.num_train == recipe.data.num_train


def test_cut_short_replaces_a_schedule_that_watches_an_evaluation() -> None:
    watching = override(tiny_recipe(), {"schedule.name": "plateau"})
    assert cut_short(watching, 2).schedule.name == "constant"


def evaluations(split: Any, **changes: Any) -> tuple[int, ...]:
    recipe: Recipe = tiny_recipe(training={"epochs": 5}, **changes)
    return recipe.evaluations(split)


@pytest.mark.parametrize(
    ("split", "changes", "epochs"),
    [
        ("test", {}, (1, 2, 3, 4, 5)),
        ("test", {"evaluation": {"every": 2}}, (2, 4, 5)),
        ("test", {"evaluation": {"every": 5}}, (5,)),
        ("test", {"evaluation": {"every": 2, "before_training": True}}, (0, 2, 4, 5)),
        ("test", {"evaluation": {"splits": []}}, (5,)),
        ("test", {"evaluation": {"splits": [], "before_training": True}}, (5,)),
        (
            "test",
            {
                "evaluation": {"splits": ["validation"], "test_at_end": False},
                "data": {"validation": {"images": 8}},
            },
            (),
        ),
        ("validation", {}, ()),
        ("train", {"evaluation": {"every": 3}}, (1, 2, 3, 4, 5)),
    ],
)
def test_evaluations_are_the_epochs_at_which_a_split_is_measured(
    split: str, changes: dict[str, Any], epochs: tuple[int, ...]
) -> None:
    assert evaluations(split, **changes) == epochs
