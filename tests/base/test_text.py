import math

import pytest

from resnet_bench.base import text


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.04, "40 ms"),
        (0.9996, "1.0 s"),
        (8.26, "8.3 s"),
        (59.96, "1 min 0 s"),
        (250, "4 min 10 s"),
        (3599.7, "1 h 0 min"),
        (3657, "1 h 1 min"),
        (7500, "2 h 5 min"),
        (86_399, "1 d 0 h"),
        (273600, "3 d 4 h"),
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "∞"),
    ],
)
def test_duration_uses_two_units_at_most(seconds: float | None, expected: str) -> None:
    assert text.duration(seconds) == expected


def test_percent_has_two_digits_and_a_dash_for_what_is_no_number() -> None:
    assert text.percent(0.82871) == "82.87%"
    assert text.percent(0.82871, 0) == "83%"
    assert text.percent(None) == text.percent(math.inf) == "–"


def test_file_size_has_a_unit_that_shows_something() -> None:
    sizes = (0, 999, 1000, 999_499, 999_500, 3_676_045, 999_949_999, 1_230_000_000)
    shown = ["0 bytes", "999 bytes", "1 KB", "999 KB", "1.0 MB", "3.7 MB", "999.9 MB", "1.2 GB"]
    assert [text.file_size(size) for size in sizes] == shown


def test_plural_follows_the_count() -> None:
    assert [text.plural(count, "seed") for count in (0, 1, 1000)] == ["0 seeds", "1 seed", "1,000 seeds"]
    assert text.plural(2, "study", "studies") == "2 studies"


def test_setting_is_short_and_written_as_in_toml() -> None:
    assert [text.setting(value) for value in (0.0123456, True, 12345, "sgd", None)] == [
        "0.01235",
        "true",
        "12345",
        "sgd",
        "–",
    ]


def test_listed_joins_and_cuts() -> None:
    assert text.listed(["a"]) == "a"
    assert text.listed(["a", "b", "c"]) == "a, b and c"
    assert text.listed(["a", "b", "c", "d"], 2) == "a, b and 2 more"
    assert text.listed([]) == ""
