"""``resnet-bench plan``: seeds for an effect, and the effect that seeds can show."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from resnet_bench.base.errors import UserError
from resnet_bench.cli.app import app


def planned(*words: str) -> str:
    result = CliRunner().invoke(app, ["plan", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def rows(text: str) -> dict[str, tuple[int, float]]:
    found = re.findall(r"(80%|95%)\s+([\d,]+)\s+([\d.]+) pp", text)
    return {power: (int(seeds.replace(",", "")), float(effect)) for power, seeds, effect in found}


def test_seeds_and_effect_answer_each_other(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = planned("speedrun-90", "--effect", "0.3")
    assert "10 seeds on AMD EPYC" in asked
    for power, (seeds, _) in rows(asked).items():
        shown = rows(planned("speedrun-90", "--seeds", str(seeds)))[power][1]
        fewer = rows(planned("speedrun-90", "--seeds", str(seeds - 1)))[power][1]
        assert shown <= 0.3 <= fewer


def test_a_benchmarks_file_is_as_good_as_its_name(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "speedrun-90.toml"
    file.write_text((Path(__file__).parents[2] / "benchmarks" / "speedrun-90.toml").read_text())
    assert rows(planned(str(file), "--seeds", "5")) == rows(planned("speedrun-90", "--seeds", "5"))


def test_hours_are_both_sides_one_run_after_another(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    seeds, _ = rows(planned("speedrun-90", "--hours", "1"))["80%"]
    # The published runs take 46.9 s each.
    assert 2 * seeds * 46.9 == pytest.approx(3600, rel=0.06)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "write one of --effect"),
        (["--effect", "0.3", "--seeds", "3"], "write one of --effect"),
        (["--effect", "0"], "between 0 and 100"),
        (["--hours", "0.001"], "two seeds per side"),
    ],
)
def test_plan_refuses_what_it_cannot_answer(tmp_path, monkeypatch, words: list[str], sentence: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=sentence):
        planned("speedrun-90", *words)


@pytest.mark.parametrize("order", [["typo.db"], ["typo.db", "mlflow.db"]])
def test_a_source_that_was_named_and_cannot_be_read_is_said(tmp_path, monkeypatch, order: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word for name in order for word in ("--from", name)]
    with pytest.raises(UserError, match=r"typo\.db does not exist"):
        planned("speedrun-90", "--effect", "0.3", *words)


def test_a_default_store_that_cannot_be_read_hides_no_reference_and_is_said_without_one(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_text("not a database, but long enough to be mistaken for one " * 50)
    assert "10 seeds on AMD EPYC" in planned("speedrun-90", "--effect", "0.3")
    with pytest.raises(UserError, match=r"--seeds 3; .*mlflow\.db is not a SQLite database"):
        planned("resnet152-step-decay", "--effect", "1")


def test_a_benchmark_without_three_seeds_names_the_command(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="resnet-bench run resnet152-step-decay --profile full --seeds 3"):
        planned("resnet152-step-decay", "--effect", "1")
