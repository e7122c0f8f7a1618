"""A report of seeds that were trained at once on one device."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.reporting import report
from resnet_bench.reporting.figures.curves import curves
from resnet_bench.reporting.noise_floor import noise_floor
from resnet_bench.reporting.run_cost import RunCost
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
    assert row.cost.seconds is not None
    assert row.cost.device == "Quiet CPU"
    assert row.cost.extrapolated_from == ""
    assert f"accuracy-time-{row.group.key}" in {plot.id for plot in curves(row.group)}


@pytest.fixture
def shared_and_short(benchmarks: dict[str, Benchmark]) -> list[FakeRun]:
    """Three seeds that shared a machine, and a run of two epochs that had it for itself."""
    shared = {"resnet_bench.seeds_per_device": "3"}
    ranged = benchmarks["ranged"]
    short = {"training.epochs": "2", "data.train_images": "10000"}
    return [
        *(FakeRun(ranged, seed=seed, final=62.0 + seed, tags=shared, device="Busy CPU") for seed in (0, 1, 2)),
        FakeRun(ranged, seed=100, device="Quiet CPU", overrides=short, fingerprint="f" * 16, epoch_seconds=4.0),
    ]


def test_times_are_extrapolated_from_a_short_run_that_was_alone(
    fresh_uri: str, benchmarks_folder: Path, tmp_path: Path, shared_and_short: list[FakeRun]
) -> None:
    log_all(fresh_uri, *shared_and_short)
    written = report.write(fresh_uri, tmp_path / "report", benchmarks_folder=benchmarks_folder)
    # The short run says what a whole one takes, and nothing else.
    [row] = [row for row in written.claims.rows if row.benchmark == "ranged" and row.headline]
    rate = row.cost.images_per_second
    assert rate is not None
    # Ten epochs of CIFAR-10's training images.
    assert row.cost.seconds == pytest.approx(10 * 50_000 / rate)
    assert row.cost.device == "Quiet CPU"
    assert row.device == "Busy CPU"
    said = "extrapolated from 2 epochs of 10,000 images on Quiet CPU"
    assert said in written.markdown.read_text()
    assert said in written.page.read_text("utf-8")
    line = next(line for line in written.markdown.read_text().splitlines() if line.startswith("| ranged "))
    assert line.split("|")[-3].strip().startswith("about ")
    floor = noise_floor("ranged", [fresh_uri])
    assert floor.cost.seconds == row.cost.seconds
    assert floor.cost.extrapolated_from in said


@pytest.mark.parametrize(
    "change",
    [
        {"overrides": {"training.epochs": "2", "training.batch_size": "100"}},
        {"tags": {"resnet_bench.seeds_per_device": "3"}},
        {"generated": True},
    ],
)
def test_a_run_of_other_steps_gives_no_times(
    fresh_uri: str, benchmarks_folder: Path, tmp_path: Path, shared_and_short: list[FakeRun], change: dict[str, Any]
) -> None:
    log_all(fresh_uri, *shared_and_short[:3], replace(shared_and_short[3], **change))
    written = report.write(fresh_uri, tmp_path / "report", benchmarks_folder=benchmarks_folder)
    row = next(row for row in written.claims.rows if row.benchmark == "ranged" and not row.group.changed)
    assert row.cost == RunCost("Busy CPU", None, None)
