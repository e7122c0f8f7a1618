"""The timing of what surrounds training."""

import re

import pytest

from tools import around_training


def test_verbs_are_timed_against_a_baseline(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = {("-c", "import typer"): 0.1, ("-m", "resnet_bench", "list"): 0.25}
    monkeypatch.setattr(around_training, "cpu_seconds", seconds.__getitem__)
    around_training.time_verbs(("list",), 2)
    assert capsys.readouterr().out.split() == ["list", "0.25", "s", "of", "CPU", "time,", "2.5", "×", "import", "typer"]


def test_cpu_seconds_are_those_of_the_process() -> None:
    assert around_training.cpu_seconds(("-c", "import time; time.sleep(1)")) < 0.9


@pytest.mark.slow
def test_a_run_is_timed_by_its_parts(capsys: pytest.CaptureFixture[str]) -> None:
    around_training.time_run("he-resnet20", [])
    start, training, end = map(float, re.findall(r"([\d.]+) s ", capsys.readouterr().out))
    assert min(start, training, end) > 0
