"""The bundles that are published here: each states what its files give, and the documentation says what they state."""

import statistics
from pathlib import Path

import pytest
from typer.testing import CliRunner

from resnet_bench.cli.app import app
from resnet_bench.running.record_bundle import RecordBundle
from resnet_bench.running.record_reading import read_bundle

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "reports" / "records"
BUNDLES = sorted(path.parent for path in RECORDS.glob("*/record.json"))


def documented_row(bundle: RecordBundle) -> str:
    """The row of docs/records.md for a bundle."""
    record, result = bundle.record, bundle.conclude()
    seconds = [attempt.seconds for attempt in record.finished]
    cells = (
        f"`reports/records/{bundle.path.name}`",
        f"{record.plan.device}, {record.plan.commit[:7]}",
        record.plan.claim,
        str(len(record.attempts)),
        f"{result.mean:.2f} ({result.standard_deviation:.2f})",
        f"{result.lower_bound:.2f}",
        "yes" if result.holds else "no",
        f"{statistics.median(seconds):.1f} s [{min(seconds):.1f}, {max(seconds):.1f}]",
        f"{result.speedup:.1f}×",
    )
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: path.name)
def test_a_published_bundle_states_what_its_files_give(path: Path) -> None:
    result = CliRunner().invoke(app, ["record", "verify", str(path), "--seeds", "0"])
    assert result.exit_code == 0, result.output
    assert "recomputed: the bundle states what its files give" in result.output
    assert sum(file.stat().st_size for file in path.rglob("*")) < 2**20, "small enough for git"


def test_the_documentation_has_the_figures_of_each_bundle_and_of_no_other() -> None:
    page = (ROOT / "docs" / "records.md").read_text(encoding="utf-8")
    documented = [line for line in page.splitlines() if line.startswith("| `reports/records/")]
    assert documented == [documented_row(read_bundle(path)) for path in BUNDLES]
