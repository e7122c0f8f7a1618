"""Planned seeds as text, and what is said about those that are missing."""

import pytest

from resnet_bench.judging.planned import MAX_PLANNED, left_out_sentence, missing_sentence, parse_seeds, seeds_text


@pytest.mark.parametrize(
    ("seeds", "text"),
    [
        ((), ""),
        ((0,), "0"),
        (range(10), "0-9"),
        ((12, 3, 1, 2, 2), "1-3,12"),
        ((0, 2**63 - 1), "0,9223372036854775807"),
    ],
)
def test_seeds_are_written_as_ranges_and_read_back(seeds: tuple[int, ...], text: str) -> None:
    assert seeds_text(seeds) == text
    assert parse_seeds(text) == frozenset(seeds)


@pytest.mark.parametrize(
    "text", ["x", "1,", "-3", "1--2", "0-999999999999999999", "9" * 30, "1, 2", "٣", "[1]", "9-0", "0-300000,300000-0"]
)
def test_text_that_is_not_a_plan_plans_nothing(text: str) -> None:
    assert parse_seeds(text) == frozenset()


def test_a_plan_has_at_most_so_many_seeds() -> None:
    assert len(parse_seeds(f"0-{MAX_PLANNED - 1}")) == MAX_PLANNED
    assert parse_seeds(f"0-{MAX_PLANNED}") == frozenset()


def test_missing_seeds_are_named_and_many_are_cut_off() -> None:
    assert missing_sentence([4]) == "1 planned seed did not finish (4)"
    assert left_out_sentence([4]) == "1 planned seed finished before and is left out (4)"
    assert left_out_sentence([4, 6]) == "2 planned seeds finished before and are left out (4, 6)"
    assert missing_sentence([9, 3, 4, 5]) == "4 planned seeds did not finish (3-5, 9)"
    assert missing_sentence(range(0, 100, 2)).endswith(", …)")
