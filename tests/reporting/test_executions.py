"""Seeds by several executions: whether they end alike, and what the report and ``results`` say of it."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from resnet_bench.cli.app import app
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.reporting import report
from resnet_bench.reporting.executions import execution_name, read_executions
from tests.reporting import synthetic
from tests.reporting.synthetic import FakeRun
from tools.executions import publish

AROUND = (-0.2, -0.1, 0.0, 0.1, 0.2)
"""How far the seeds of one side lie from its mean, in percentage points."""


def execution(precision: str, *, ours: bool) -> dict[str, str]:
    """The tag that a run carries of how it was executed."""
    switches = {"precision": precision, "fast_paths": ours, "fused_layers": ours}
    return {"resnet_bench.execution": json.dumps(switches), "resnet_bench.precision": precision}


@pytest.fixture
def tables(
    benchmarks: dict[str, Benchmark], empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Writes a folder of reference results with the tables of two executions, given the accuracies of each.

    Further recipe keys that were changed are given by name.
    """

    def write(stock: Sequence[float], fast: Sequence[float], **changes: str) -> Path:
        monkeypatch.chdir(tmp_path)
        short = FakeRun(benchmarks["nine-onecycle"], overrides={"training.epochs": "3", **changes})
        sides = {
            "plain-fp32": (stock, execution("fp32", ours=False)),
            "fast-bf16": (fast, execution("bf16", ours=True)),
        }
        for name, (finals, tags) in sides.items():
            uri = synthetic.database(empty_database, tmp_path / "store" / name)
            synthetic.log_all(uri, *(replace(short, seed=s, final=f, tags=tags) for s, f in enumerate(finals)))
            publish(tmp_path / "store", name, tmp_path / "reference" / "executions")
        return tmp_path / "reference"

    return write


def around(mean: float) -> list[float]:
    return [mean + offset for offset in AROUND]


@pytest.mark.parametrize(
    ("fast", "word"),
    [
        (around(80.1), "alike"),
        (around(81.5), "not alike"),
        (around(80.4), "open"),
        ([80.0], "open"),
    ],
)
def test_the_word_follows_the_interval_of_the_difference(
    fast: list[float], word: str, tables: Callable[..., Path]
) -> None:
    [check] = read_executions(tables(around(80.0), fast))
    assert (check.benchmark, check.execution, check.word) == ("nine-onecycle", "fast, bf16", word)
    assert check.schedule == "training.epochs = 3"
    assert check.difference.value == pytest.approx(sum(fast) / len(fast) - 80)
    said = check.asdict()
    assert (said["seeds"], said["stock_seeds"], said["word"]) == (len(fast), 5, word)


def test_results_print_what_the_executions_show(tables: Callable[..., Path]) -> None:
    folder = tables(around(80.0), around(80.1))
    # The reference itself: the same runs, which no claim is judged by.
    arguments = ["results", "--from", str(folder)]
    shutil.copytree(folder / "executions" / "fast-bf16", folder / "device")
    said = CliRunner().invoke(app, arguments)
    assert "fast, bf16 ends within 0.5 pp of stock PyTorch in fp32" in said.stdout
    document = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert [each["word"] for each in document["executions"]] == ["alike"]


def test_a_report_says_it_beside_runs_of_that_execution(
    tables: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tables(around(80.0), around(80.1))
    monkeypatch.setattr("resnet_bench.reporting.executions.reference_folder", lambda: folder)
    written = report.write(str(folder / "executions" / "fast-bf16"), folder / "report")
    for made in (written.page, written.markdown):
        assert made.read_text("utf-8").count("ends within 0.5 pp of stock PyTorch in fp32") == 1


def test_another_kind_of_schedule_is_named_and_a_scaled_one_is_not(tables: Callable[..., Path]) -> None:
    sides = around(80.0), around(80.1)
    [check] = read_executions(tables(*sides, **{"schedule.name": "linear", "schedule.final_factor": "0.0"}))
    assert check.schedule == "schedule.name = linear, training.epochs = 3"


def test_a_mark_of_sharing_in_published_tables_stays(tables: Callable[..., Path], tmp_path: Path) -> None:
    folder = tables(around(80.0), around(80.1)) / "executions"
    file = folder / "fast-bf16" / "runs.parquet"
    runs = pd.read_parquet(file)
    runs["tags"] = [json.dumps({**json.loads(tags), "resnet_bench.seeds_per_device": "2"}) for tags in runs["tags"]]
    runs.to_parquet(file)
    publish(tmp_path / "store", "fast-bf16", folder)
    [check] = read_executions(folder.parent)
    assert all(run.shared_device for run in check.other.runs)


def test_without_tables_nothing_is_said(tmp_path: Path) -> None:
    assert read_executions(tmp_path) == []


def test_an_execution_is_named_by_what_decides_its_rounding() -> None:
    assert execution_name({"precision": "fp32", "fast_paths": False}) == "plain, fp32"
    assert execution_name({"precision": "bf16", "fast_paths": False, "fused_layers": True}) == "fast, bf16"
    assert execution_name({}) == "plain, unknown"
