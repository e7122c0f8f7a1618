"""Reference results: folders of tables, read without any MLflow store."""

from pathlib import Path

import pytest

from resnet_bench.base.errors import UserError
from resnet_bench.reporting import readme, report, table
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
    monkeypatch.setattr(table, "StoreReader", None)
    result = report.write(source, Path("again"), benchmarks_folder=benchmarks_folder)
    assert result.problems == ()
    assert result.runs == written.runs
    words = [(row.benchmark, row.verdict.word) for row in result.claims.rows]
    assert words == [(row.benchmark, row.verdict.word) for row in written.claims.rows]
    assert "runs from reports/reference/" in result.page.read_text("utf-8")


def test_the_claims_of_reference_results_go_into_a_readme(reference: Path, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"# Title\n\n{readme.BEGIN}\nan old table\n{readme.END}\n\nThe rest.\n")
    readme.update(path, [reference])
    text = path.read_text()
    assert text.startswith(f"# Title\n\n{readme.BEGIN}\n\n| benchmark | claim |")
    assert text.endswith(f"\n\n{readme.END}\n\nThe rest.\n")
    assert "an old table" not in text
    assert "● reproduced" in text
    readme.update(path, [reference])
    assert path.read_text() == text, "the same results give the same README"


@pytest.mark.parametrize("text", ["", readme.BEGIN, readme.END + readme.BEGIN, 2 * (readme.BEGIN + readme.END)])
def test_a_readme_without_its_two_comments_is_left_alone(text: str) -> None:
    with pytest.raises(UserError, match="once each"):
        readme.with_claims(text, "| a table |")
