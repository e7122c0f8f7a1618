"""The verb ``results``, and what a command says of the reference runs beside one's own."""

import csv
import io
import json

import pytest
from typer.testing import CliRunner

from resnet_bench.cli.app import app
from resnet_bench.judging.verdict import MIN_SEEDS
from resnet_bench.recipe.toml_files import reference_folder
from resnet_bench.reporting.reference import ReferenceResult, beside_the_reference, read_reference


@pytest.fixture(scope="module")
def speedrun() -> ReferenceResult:
    return read_reference(benchmarks=["speedrun-90"]).results["speedrun-90"]


def results(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["results", *arguments], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_every_format_says_the_same(speedrun: ReferenceResult) -> None:
    document = json.loads(results("--format", "json", "--benchmark", "speedrun-90"))
    assert document["schema"] == 1
    [row] = document["results"]
    assert row == json.loads(json.dumps(speedrun.asdict()))
    [line] = csv.DictReader(io.StringIO(results("--format", "csv", "--benchmark", "speedrun-90")))
    assert line == {key: str(value) for key, value in row.items()}
    table = results("--benchmark", "speedrun-90")
    assert f"{row['mean']:.2f} ±" in table
    assert row["verdict"] in table
    assert row["reason"] in table
    assert max(map(len, table.splitlines()[:3])) <= 80


def test_csv_is_one_table_of_claims_and_the_help_says_so() -> None:
    document = json.loads(results("--json"))
    assert document["executions"]
    lines = [*csv.DictReader(io.StringIO(results("--format", "csv")))]
    assert [[*line] for line in lines] == [[*row] for row in document["results"]]
    assert "without the executions" in " ".join(results("--help").replace("│", " ").split())


def test_a_benchmark_without_times_names_its_device_alone() -> None:
    # What a run takes alone stands in another folder, from which its time is extrapolated.
    folder = reference_folder() / "amd-epyc-2-cores"
    [found] = read_reference(folder, benchmarks=["resnet9-onecycle-adam"]).results.values()
    assert found.row.cost.seconds is None
    printed = results("--from", str(folder), "--benchmark", found.benchmark)
    assert "(on AMD EPYC" in printed
    assert "– on" not in printed


def test_two_formats_are_refused() -> None:
    result = CliRunner().invoke(app, ["results", "--json", "--format", "csv"])
    assert "--json and --format csv: give one of them" in str(result.exception)


def test_results_are_of_runs_in_full_on_published_images() -> None:
    found = read_reference().results.values()
    assert found
    assert all(not each.row.group.apart and each.row.group.published_images for each in found)
    assert all((each.row.verdict.word == "not judged") == (each.row.verdict.n < MIN_SEEDS) for each in found)


def test_results_from_a_folder_without_tables_are_refused(tmp_path: object) -> None:
    result = CliRunner().invoke(app, ["results", "--from", str(tmp_path)])
    assert result.exit_code != 0
    assert "runs.parquet" in str(result.exception)


def test_a_run_that_the_reference_expects_agrees(speedrun: ReferenceResult) -> None:
    mean = speedrun.row.verdict.mean
    assert mean is not None
    said = beside_the_reference(speedrun, [mean], speedrun.fingerprint)
    assert "the reference reached" in said
    assert "your run agrees" in said
    assert "does not agree" in beside_the_reference(speedrun, [mean + 5, mean + 5], speedrun.fingerprint)


@pytest.mark.parametrize(("accuracies", "fingerprint"), [([], None), ([90.2], "another recipe")])
def test_what_cannot_be_compared_stands_beside_the_reference_only(
    speedrun: ReferenceResult, accuracies: list[float], fingerprint: str | None
) -> None:
    said = beside_the_reference(speedrun, accuracies, fingerprint or speedrun.fingerprint)
    assert "the reference reached" in said
    assert "your" not in said
