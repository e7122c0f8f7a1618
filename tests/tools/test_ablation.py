"""The ablation: every variant is a recipe, and its table shows what a part contributes."""

import pytest

from tools.ablation import RECIPE, VARIANTS, Result, known, recipe_of, table


def test_every_variant_is_another_recipe_on_held_out_images() -> None:
    recipes = [recipe_of(variant) for variant in VARIANTS]
    assert len({recipe.fingerprint for recipe in recipes}) == len(VARIANTS)
    for recipe in recipes:
        assert recipe.data.validation.images == 10_000
        assert not recipe.evaluation.test_at_end


def test_the_table_has_differences_with_the_pooled_deviation() -> None:
    results = [Result(RECIPE, seed, 89.0 + seed, 80.0) for seed in range(3)]
    results += [Result("ReLU", seed, 86.0 + seed, 80.0) for seed in range(3)]
    # s = 1 in both; t(.975, 4) = 2.776 and 2.776 * sqrt(1/3 + 1/3) = 2.27.
    assert table(results).splitlines()[2:] == [
        f"| {RECIPE} | 3 | 90.00 | – |",
        "| ReLU | 3 | 87.00 | -3.00 ± 2.27 |",
    ]


@pytest.mark.parametrize("results", [[], [Result("ReLU", 0, 86.0, 80.0)]])
def test_a_table_of_little_is_a_table(results) -> None:
    assert len(table(results).splitlines()) == 2 + len(results)


def test_what_was_measured_is_read_again(tmp_path) -> None:
    path = tmp_path / "ablation.jsonl"
    assert known(path) == []
    path.write_text('{"variant": "ReLU", "seed": 1, "accuracy": 88.5, "seconds": 70.0}\n')
    assert known(path) == [Result("ReLU", 1, 88.5, 70.0)]
