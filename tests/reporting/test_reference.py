"""Reference results: folders of tables, read without any MLflow store."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from resnet_bench.base.files import write_together
from resnet_bench.cli.app import app
from resnet_bench.recipe.files import load_benchmark
from resnet_bench.recipe.toml_files import reference_folder
from resnet_bench.recipe.writing import to_toml
from resnet_bench.reporting import reading, report, runs
from resnet_bench.reporting.reference import beside_the_reference, read_reference
from resnet_bench.reporting.report import ReportResult
from tests.reporting import synthetic
from tests.reporting.synthetic import FakeRun


@pytest.fixture
def reference(written: ReportResult, tmp_path: Path) -> Path:
    """Two kept results, of one of which only what must be there is left."""
    folder = tmp_path / "reports" / "reference"
    for name, kept in (("one", ("runs", "metrics", "confusion", "mistakes")), ("two", ("runs", "metrics"))):
        (folder / name).mkdir(parents=True)
        for part in kept:
            (folder / name / f"{part}.parquet").write_bytes((written.page.parent / f"{part}.parquet").read_bytes())
    return folder


def test_a_benchmark_has_one_result_that_of_todays_recipe(
    fresh_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = (
        synthetic.benchmark("twice", [{"value": "90"}], optimizer={"name": "adam", "lr": rate, "weight_decay": 1e-4})
        for rate in (0.01, 0.02)
    )
    runs = [FakeRun(bench, seed=seed, final=final) for bench, final in ((old, 90.0), (new, 90.2)) for seed in range(3)]
    synthetic.log_all(fresh_uri, *runs)
    benchmarks = tmp_path / "benchmarks"
    benchmarks.mkdir()
    (benchmarks / "twice.toml").write_text(to_toml(new))
    folder = tmp_path / "reference" / "here"
    folder.mkdir(parents=True)
    tables = reading.read([fresh_uri])
    write_together(folder, report.table_files(tables))
    monkeypatch.chdir(tmp_path)
    (result,) = read_reference(folder.parent).results.values()
    assert result.fingerprint == new.recipe.fingerprint
    assert report.build(tables, benchmarks_folder=benchmarks).verdict_counts == {"reproduced": 1}


def test_seeds_from_several_devices_name_each_of_them(
    fresh_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = ["EPYC, 1 thread"] * 3 + ["EPYC, 2 threads"] * 2
    bench = load_benchmark("resnet9-onecycle-adam")
    synthetic.log_all(
        fresh_uri, *(FakeRun(bench, seed=seed, final=90.0 + seed, device=name) for seed, name in enumerate(devices))
    )
    monkeypatch.chdir(tmp_path)
    write_together(tmp_path, report.table_files(reading.read([fresh_uri])))
    (result,) = read_reference(tmp_path).results.values()
    said = beside_the_reference(result, [], result.fingerprint)
    assert "in full (5 seeds, EPYC, 1 thread and EPYC, 2 threads, " in said
    planned = CliRunner().invoke(app, ["plan", "resnet9-onecycle-adam", "--seeds", "3", "--from", str(tmp_path)]).output
    planned = " ".join(planned.split())
    assert "5 seeds on EPYC, 1 thread and EPYC, 2 threads" in planned
    assert "hours are of one run after another on EPYC, 1 thread." in planned


@pytest.mark.parametrize("source", ["reports/reference/one", "reports/reference/two", "reports/reference"])
def test_a_report_is_made_from_tables_alone(
    source: str, reference: Path, benchmarks_folder: Path, written: ReportResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(reference.parents[1])
    monkeypatch.setattr(reading, "StoreReader", None)
    result = report.write(source, Path("again"), benchmarks_folder=benchmarks_folder)
    assert result.problems == ()
    assert result.runs == written.runs
    words = [(row.benchmark, row.verdict.word) for row in result.claims.rows]
    assert words == [(row.benchmark, row.verdict.word) for row in written.claims.rows]
    assert "runs from reports/reference/" in result.page.read_text("utf-8")


def test_shipped_runs_that_overlap_are_marked_as_sharing_their_machine() -> None:
    folder = reference_folder()
    timed = [run for run in runs.load(reading.read([folder]))[0] if run.role == "run"]
    beside = runs.load(reading.read([folder / "executions"]))[0]
    unmarked = [
        f"{run.benchmark} seed {run.seed}"
        for run in timed
        if not run.shared_device and any(_overlap(run, other) for other in (*timed, *beside) if other.id != run.id)
    ]
    assert unmarked == []


def _overlap(run: runs.Run, other: runs.Run) -> bool:
    return (
        run.host == other.host
        and run.ended is not None
        and other.ended is not None
        and run.started < other.ended
        and other.started < run.ended
    )


def test_shipped_peaks_of_memory_are_of_one_run_each() -> None:
    """A peak of the whole process, carried from run to run, is the same number in each."""
    by_peak: dict[float, list[str]] = {}
    for run in runs.load(reading.read([reference_folder()]))[0]:
        if run.peak_memory is not None:
            by_peak.setdefault(run.peak_memory, []).append(f"{run.benchmark} seed {run.seed}")
    assert [names for names in by_peak.values() if len(names) > 1] == []
