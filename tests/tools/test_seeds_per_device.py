"""The measurement of several seeds at once, on work small enough for a test."""

import pytest

from tests.training.conftest import PLAIN, tiny_recipe
from tools.seeds_per_device import measure


@pytest.mark.slow
def test_every_number_of_processes_has_its_turn() -> None:
    recipe = tiny_recipe(training={"batch_size": 4})
    rows = measure(recipe, PLAIN, [1, 2], warm_up=1, steps=2, repeats=2)
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
