"""The tool that trains seeds by several executions, and publishes their tables."""

from pathlib import Path

import pytest

from resnet_bench.recipe.changes import override, parse_assignments
from resnet_bench.recipe.files import load_benchmark
from resnet_bench.reporting.executions import read_executions
from tests.reliability import tiny
from tools import executions

MIN_STEPS = 200
"""Steps after which a recipe is well above chance; executions agree near chance whatever they compute."""


@pytest.mark.parametrize("name", executions.SCHEDULES)
def test_every_schedule_fits_its_benchmark_and_has_steps_to_learn_in(name: str) -> None:
    recipe = override(load_benchmark(name).recipe, parse_assignments(executions.SCHEDULES[name]))
    steps = recipe.training.epochs * (recipe.num_images("train") // recipe.training.batch_size)
    assert steps >= MIN_STEPS


@pytest.mark.slow
def test_a_second_call_trains_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    tiny.write_images(data)
    changes = ("training.epochs=1", "training.batch_size=8", "data.train_images=32", "data.test_images=20")
    monkeypatch.setattr(executions, "SCHEDULES", {"he-resnet20": changes})
    given = ["--data", str(data), "--store", str(tmp_path / "store"), "--out", str(tmp_path / "executions")]
    given += ["--benchmarks", "he-resnet20", "--executions", "plain-fp32", "fast-fp32"]
    monkeypatch.chdir(tmp_path)
    executions.main([*given, "--seeds", "1"])
    executions.main([*given, "--seeds", "2"])
    [check] = read_executions(tmp_path)
    assert check.execution == "fast, fp32"
    assert [sorted(run.seed for run in side.all_runs) for side in (check.stock, check.other)] == [[0, 1], [0, 1]]
