"""A report of seeds that were trained at once on one device."""

from pathlib import Path

from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.reporting import report
from resnet_bench.reporting.figures.curves import curves
from resnet_bench.reporting.noise_floor import NoiseFloor
from tests.reporting.synthetic import FakeRun, log_all


def test_a_report_without_any_times_has_its_accuracies(
    fresh_uri: str, benchmarks: dict[str, Benchmark], benchmarks_folder: Path, tmp_path: Path
) -> None:
    shared = {"resnet_bench.seeds_per_device": "3"}
    log_all(
        fresh_uri,
        *(
            FakeRun(benchmarks[name], seed=seed, tags=shared)
            for name in ("ranged", "nine-onecycle")
            for seed in (0, 1, 2)
        ),
    )
    written = report.write(fresh_uri, tmp_path / "report", benchmarks_folder=benchmarks_folder)
    assert written.problems == ()
    row = next(line for line in written.markdown.read_text().splitlines() if line.startswith("| ranged "))
    assert "90.00" in row
    assert [cell.strip() for cell in row.split("|")[-3:-1]] == ["–", "–"]
    assert "some seeds shared a device" in written.page.read_text("utf-8")


def test_times_are_of_the_device_that_has_some(
    fresh_uri: str, benchmarks: dict[str, Benchmark], benchmarks_folder: Path, tmp_path: Path
) -> None:
    shared = {"resnet_bench.seeds_per_device": "3"}
    beside = [FakeRun(benchmarks["ranged"], seed=seed, tags=shared, device="Busy CPU") for seed in (0, 1, 2)]
    log_all(fresh_uri, *beside, FakeRun(benchmarks["ranged"], seed=3, device="Quiet CPU"))
    written = report.write(fresh_uri, tmp_path / "report", benchmarks_folder=benchmarks_folder)
    row = next(row for row in written.claims.rows if row.benchmark == "ranged")
    assert row.device == "Quiet CPU"
    assert row.seconds is not None
    assert NoiseFloor(row.group).seconds == row.seconds
    assert f"accuracy-time-{row.group.key}" in {plot.id for plot in curves(row.group)}
