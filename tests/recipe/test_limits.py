"""Limits of what a change may cost: what a file may say, and one sentence for each mistake."""

from pathlib import Path

import pytest

from resnet_bench.base.errors import UserError
from resnet_bench.judging.intervals import TIMING_THRESHOLD
from resnet_bench.recipe.limits import LEAST_TIME_FACTOR, Limit, check_names, load_limits
from tests.golden import typed

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "limits.toml"


def test_the_example_is_read_and_names_benchmarks_that_exist() -> None:
    first, second, third = load_limits(EXAMPLE)
    assert (first.benchmark, first.profile, first.drop, first.time_factor) == ("he-resnet20", "smoke", 3.0, None)
    assert second.device is None
    assert third.scope == "resnet9-onecycle-adam, on H200"
    checked = typed(f"validate {EXAMPLE}")
    assert (checked.code, checked.out.strip()) == (0, f"{EXAMPLE}: valid, 3 limits")


def test_no_factor_is_allowed_that_is_never_flagged() -> None:
    assert LEAST_TIME_FACTOR == 1 + TIMING_THRESHOLD


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "limits is missing"),
        ("limits = []", "limits: there is none"),
        ("[limits]\na = 1", "limits: must be a list"),
        ("[[limits]]\ndrop = 1", "limits[0].benchmark is missing"),
        ("[[limits]]\nbenchmark = 'a b'\ndrop = 1", "limits[0].benchmark: a name is lower-case"),
        ("[[limits]]\nbenchmark = 'a'", "limits[0]: limits nothing: give drop, time_factor or both"),
        ("[[limits]]\nbenchmark = 'a'\ndropp = 1", "unknown key 'limits[0].dropp'; did you mean 'limits[0].drop'?"),
        ("[[limits]]\nbenchmark = 'a'\ndrop = '1'", "limits[0].drop: must be a number"),
        ("[[limits]]\nbenchmark = 'a'\ndrop = nan", "limits[0].drop"),
        ("[[limits]]\nbenchmark = 'a'\ndrop = -0.5", "limits[0].drop"),
        ("[[limits]]\nbenchmark = 'a'\ntime_factor = 1.02", "limits[0].time_factor"),
        ("[[limits]]\nbenchmark = 'a'\ndrop = 1\nprofile = 'smok'", "did you mean 'smoke'?"),
        ("[[limits]]\nbenchmark = 'a'\ndrop = 1\n[[limits]]\nbenchmark = 'a'\ndrop = 2", "limits: a is there twice"),
        ("[[limits]", "is not valid TOML"),
    ],
)
def test_a_mistake_is_one_sentence(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "limits.toml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_limits(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_an_unknown_benchmark_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_limits(tmp_path / "limits.toml")
    limits = [Limit(benchmark="he-resnet20", drop=1.0), Limit(benchmark="he-resnt20", drop=1.0)]
    with pytest.raises(UserError, match=r"limits\[1\].benchmark: unknown benchmark 'he-resnt20'.*'he-resnet20'\?"):
        check_names(limits, ["he-resnet20"], where=Path("limits.toml"))
