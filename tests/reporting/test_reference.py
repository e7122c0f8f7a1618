"""Reference results: folders of tables, read without any MLflow store."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from resnet_bench.base.files import write_together
from resnet_bench.cli.app import app
from resnet_bench.recipe.benchmark import Benchmark
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


def full_runs(bench: Benchmark, finals: Sequence[float], **changes: Any) -> list[FakeRun]:
    return [FakeRun(bench, seed=seed, final=final, **changes) for seed, final in enumerate(finals)]


@pytest.fixture
def shipped(fresh_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose reference results are three seeds of two claims."""
    claims = [{"value": "90.2"}, {"value": "92.2", "split": "train"}]
    bench = synthetic.benchmark("judged", claims)
    synthetic.log_all(fresh_uri, *full_runs(bench, [90.0, 90.2, 90.4], device="AMD EPYC, 2 threads"))
    benchmarks = tmp_path / "benchmarks"
    benchmarks.mkdir()
    (benchmarks / "judged.toml").write_text(to_toml(bench))
    folder = tmp_path / "reports" / "reference" / "here"
    folder.mkdir(parents=True)
    write_together(folder, report.table_files(reading.read([fresh_uri])))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("resnet_bench.reporting.reference.reference_folder", lambda: folder.parent)
    return tmp_path


def report_of(empty_database: Path, folder: Path, *runs: FakeRun, beside: Sequence[str] = ()) -> tuple[str, str]:
    """The words of the Markdown and of the page about some runs, and perhaps those of other sources."""
    uri = synthetic.database(empty_database, folder / "own")
    synthetic.log_all(uri, *runs)
    written = report.write([uri, *beside], folder / "latest", benchmarks_folder=folder / "benchmarks")
    page = " ".join(written.page.read_text("utf-8").split())
    return " ".join(written.markdown.read_text("utf-8").split()), page


REACHED = (
    "he reference reached 90.20 ± 0.50% in full (3 seeds, AMD EPYC, 2 threads, bf16); its claim of 90.2%: reproduced."
)


@pytest.mark.parametrize(
    ("finals", "said"),
    [
        ([90.3], "90.30% of your run agrees with it: 89.21 to 91.19% is expected."),
        ([80.0, 81.0], "80.50% of your 2 runs does not agree with it: 89.41 to 90.99% is expected."),
    ],
)
def test_judged_runs_stand_beside_the_reference_and_agree_or_not(
    finals: list[float], said: str, shipped: Path, empty_database: Path
) -> None:
    bench = load_benchmark("judged", shipped / "benchmarks")
    for words in report_of(empty_database, shipped, *full_runs(bench, finals)):
        assert f"{REACHED} {said}" in words
        # The claim about the training set has its own sentence.
        assert words.count("he reference reached 92.20") == 1


def test_runs_that_are_not_judged_stand_beside_the_reference(shipped: Path, empty_database: Path) -> None:
    bench = load_benchmark("judged", shipped / "benchmarks")
    for words in report_of(empty_database, shipped, *full_runs(bench, [41.0], generated=True)):
        assert REACHED in words
        assert "of your" not in words


def test_runs_of_another_recipe_neither_agree_nor_disagree(shipped: Path, empty_database: Path) -> None:
    bench = load_benchmark("judged", shipped / "benchmarks")
    runs = full_runs(bench, [70.0], overrides={"optimizer.lr": "0.1"})
    for words in report_of(empty_database, shipped, *runs):
        assert REACHED in words
        assert "of your" not in words


def test_reference_runs_are_not_compared_with_themselves(shipped: Path, empty_database: Path) -> None:
    bench = load_benchmark("judged", shipped / "benchmarks")
    alone = report.write(
        "reports/reference", shipped / "latest", benchmarks_folder=shipped / "benchmarks"
    ).markdown.read_text("utf-8")
    assert "he reference reached" not in alone
    own = FakeRun(bench, seed=7, final=90.3)
    for words in report_of(empty_database, shipped, own, beside=["reports/reference"]):
        assert f"{REACHED} 90.30% of your run agrees with it" in words


def test_a_benchmark_without_runs_names_how_its_reference_was_trained(shipped: Path, empty_database: Path) -> None:
    other = synthetic.benchmark("other", [{"value": "90.2"}])
    markdown, page = report_of(empty_database, shipped, FakeRun(other))
    assert "| 90.20 ± 0.50%, reproduced (3 seeds, AMD EPYC, 2 threads, bf16) |" in markdown
    assert "90.20 ± 0.50%, reproduced" in page
    assert "3 seeds, AMD EPYC, 2 threads, bf16" in page


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
