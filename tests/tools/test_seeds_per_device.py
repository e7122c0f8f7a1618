"""The measurement of several seeds at once, on work small enough for a test."""

import pytest

from tests.training.conftest import PLAIN, tiny_recipe
from tools.seeds_per_device import Turn, measure


@pytest.mark.parametrize(("epochs", "warm_up", "behind", "end"), [(3, 1, 1, 3), (3, None, 2, 4), (1, None, 2, 4)])
def test_a_turn_has_as_many_steps_behind_its_warm_up(epochs: int, warm_up: int | None, behind: int, end: int) -> None:
    turn = Turn.of(tiny_recipe(training={"batch_size": 4, "epochs": epochs}), warm_up=warm_up, steps=2)
    assert (turn.warm_up, turn.end) == (behind, end)
    assert turn.end <= turn.recipe.training.epochs * turn.recipe.steps_per_epoch


@pytest.mark.slow
@pytest.mark.parametrize("warm_up", [1, None])
def test_every_number_of_processes_has_its_turn(warm_up: int | None) -> None:
    recipe = tiny_recipe(training={"batch_size": 4})
    rows = measure(recipe, PLAIN, [1, 2], warm_up=warm_up, steps=2, repeats=2)
    assert [row["processes"] for row in rows] == [1, 2]
    assert all(len(row["images_per_second"]) == 2 for row in rows)
    assert rows[0]["ratio"] == 1.0
    in_turn = [
        together / alone
        for alone, together in zip(rows[0]["images_per_second"], rows[1]["images_per_second"], strict=True)
    ]
    assert rows[1]["ratio_low"] == min(in_turn)
    assert rows[1]["ratio_high"] == max(in_turn)
    # Others use the cores too: only that images of all processes are counted, and once, is certain.
    assert 0.1 < rows[1]["ratio"] < 10
