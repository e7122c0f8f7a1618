"""Reference results: folders of tables, read without any MLflow store."""

from pathlib import Path

import pytest

from resnet_bench.reporting import reading, report
from resnet_bench.reporting.report import ReportResult


@pytest.fixture
def reference(written: ReportResult, tmp_path: Path) -> Path:
    """Two kept results, of one of which only what must be there is left."""
    folder = tmp_path / "reports" / "reference"
    for name, kept in (("one", ("runs", "metrics", "confusion", "mistakes")), ("two", ("runs", "metrics"))):
        (folder / name).mkdir(parents=True)
        for part in kept:
            (folder / name / f"{part}.parquet").write_bytes((written.page.parent / f"{part}.parquet").read_bytes())
    return folder


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
