"""``resnet-bench perf`` from the command line."""

import json

import mlflow
import pytest
from typer.testing import CliRunner

from resnet_bench.cli.app import app

SMALL = """
extends = "resnet18-step-decay"
[recipe.data]
train_images = 64
test_images = 4
[recipe.training]
batch_size = 8
"""


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Measures a small benchmark in an empty folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "small.toml").write_text(SMALL)
    command = ["perf", "small", "--benchmark-dir", "benchmarks", "--steps", "1", "--threads", "1", "--json"]
    return lambda *words: CliRunner().invoke(app, [*command, *words], catch_exceptions=False)


@pytest.mark.slow
def test_perf_prints_writes_and_logs(tmp_path, measured) -> None:
    result = measured("--repeats", "2", "--output", "out/perf.json")
    assert result.exit_code == 0
    assert "GENERATED IMAGES" in result.output
    assert "each stage separately" in result.output
    document = json.loads(result.stdout)
    assert (document["kind"], document["file"]) == ("perf", "out/perf.json")
    (comparison,) = document["comparisons"]
    assert [comparison] == json.loads((tmp_path / "out" / "perf.json").read_text())
    assert [arm["name"] for arm in comparison["arms"]] == ["source", "plain", "fast", "auto"]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("resnet-bench perf")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["fast/ratio"] == pytest.approx(comparison["arms"][2]["ratio"]["median"])


@pytest.mark.slow
def test_perf_takes_a_precision(measured) -> None:
    """Given one, each of our executions computes in it, also one that has another by default."""
    result = measured("--repeats", "1", "--execution", "plain", "--precision", "bf16", "--device", "cpu")
    ((source, plain),) = (each["arms"] for each in json.loads(result.stdout)["comparisons"])
    assert "fp32" in source["execution"]
    assert "bf16" in plain["execution"]


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(invoke, tmp_path) -> None:
    (tmp_path / "a-file").touch()
    found = invoke("perf he-resnet20 --output a-file/speed/perf.json")
    assert (found.code, found.out) == (2, "")
    assert found.err == "error: a-file/speed/perf.json: cannot be written: Not a directory; name another --output\n"
    found = invoke("perf he-resnet20 --output .")
    assert (found.code, found.out) == (2, "")
    assert found.err == "error: .: cannot be written: Is a directory; name another --output\n"
