"""Seeds by several executions: whether they end alike, and what the report and ``results`` say of it."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

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
) -> Callable[[Sequence[float], Sequence[float]], Path]:
    """Writes a folder of reference results with the tables of two executions, given the accuracies of each."""

    def write(stock: Sequence[float], fast: Sequence[float]) -> Path:
        monkeypatch.chdir(tmp_path)
        short = FakeRun(benchmarks["nine-onecycle"], overrides={"training.epochs": "3"})
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
    fast: list[float], word: str, tables: Callable[[Sequence[float], Sequence[float]], Path]
) -> None:
    [check] = read_executions(tables(around(80.0), fast))
    assert (check.benchmark, check.execution, check.word) == ("nine-onecycle", "fast, bf16", word)
    assert check.schedule == "training.epochs = 3"
    assert check.difference.value == pytest.approx(sum(fast) / len(fast) - 80)
    said = check.asdict()
    assert (said["seeds"], said["stock_seeds"], said["word"]) == (len(fast), 5, word)


def test_results_print_what_the_executions_show(tables: Callable[[Sequence[float], Sequence[float]], Path]) -> None:
    folder = tables(around(80.0), around(80.1))
    # The reference itself: the same runs, which no claim is judged by.
    arguments = ["results", "--from", str(folder)]
    shutil.copytree(folder / "executions" / "fast-bf16", folder / "device")
    said = CliRunner().invoke(app, arguments)
    assert "fast, bf16 ends within 0.5 pp of stock PyTorch in fp32" in said.stdout
    document = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert [each["word"] for each in document["executions"]] == ["alike"]


def test_a_report_says_it_beside_runs_of_that_execution(
    tables: Callable[[Sequence[float], Sequence[float]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tables(around(80.0), around(80.1))
    monkeypatch.setattr("resnet_bench.reporting.executions.reference_folder", lambda: folder)
    written = report.write(str(folder / "executions" / "fast-bf16"), folder / "report")
    for made in (written.page, written.markdown):
        assert made.read_text("utf-8").count("ends within 0.5 pp of stock PyTorch in fp32") == 1


def test_without_tables_nothing_is_said(tmp_path: Path) -> None:
    assert read_executions(tmp_path) == []


def test_an_execution_is_named_by_what_decides_its_rounding() -> None:
    assert execution_name({"precision": "fp32", "fast_paths": False}) == "plain, fp32"
    assert execution_name({"precision": "bf16", "fast_paths": False, "fused_layers": True}) == "fast, bf16"
    assert execution_name({}) == "plain, unknown"
