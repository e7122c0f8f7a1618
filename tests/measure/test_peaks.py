"""The device's limits and its meter."""

from pathlib import Path

import pytest

from resnet_bench.execution.execution import Execution
from resnet_bench.measure import peaks
from resnet_bench.measure.energy import EnergyMeter
from resnet_bench.measure.peaks import cpu_seconds, peak_bandwidth, peak_flops

EXECUTION = Execution.resolve("cpu", "fp32", threads=1)


def test_peaks_are_plausible_and_measured_once(monkeypatch) -> None:
    peak_flops.cache_clear()
    assert 1e8 < peak_flops(EXECUTION) < 1e14
    assert 1e8 < peak_bandwidth(EXECUTION) < 1e13
    monkeypatch.setattr(peaks, "best_seconds", lambda *_: pytest.fail("measured again"))
    assert peak_flops(EXECUTION) > 0


def test_the_processors_clock_counts_work_and_not_waiting(monkeypatch) -> None:
    before = cpu_seconds()
    while cpu_seconds() == before:
        pass
    assert before < cpu_seconds() < before + 5


def test_energy_is_counted_for_what_is_watched() -> None:
    readings = iter([0.0, 5.0, 5.0, 20.0, 30.0, 31.0])

    def events():
        yield 1
        yield "evaluation"
        yield 2

    # Each wanted event costs a reading before and one after, any other only one before.
    meter = EnergyMeter(lambda: next(readings, 99.0))
    assert list(meter.watch(events(), int)) == [1, "evaluation", 2]
    assert meter.joules == (5.0 - 0.0) + (30.0 - 20.0)


def zone(powercap: Path, name: str, kind: str, microjoules: int) -> Path:
    """A counter as Linux shows it, which begins again at 0 after 1000 joules."""
    folder = powercap / name
    folder.mkdir(parents=True)
    for file, content in (("name", kind), ("energy_uj", microjoules), ("max_energy_range_uj", 1_000_000_000)):
        (folder / file).write_text(f"{content}\n")
    return folder


def test_a_cpu_consumes_what_its_packages_count(tmp_path: Path) -> None:
    packages = [zone(tmp_path, f"intel-rapl:{n}", f"package-{n}", 999_000_000) for n in (0, 1)]
    others = [
        zone(tmp_path, "intel-rapl:0:0", "core", 0),
        zone(tmp_path, "intel-rapl:2", "psys", 0),
        zone(tmp_path, "intel-rapl-mmio:0", "package-0", 0),
    ]
    (tmp_path / "dtpm").mkdir()

    def events():
        (packages[0] / "energy_uj").write_text("999500000")
        (packages[1] / "energy_uj").write_text("2000000")
        for other in others:
            (other / "energy_uj").write_text("700000000")
        yield 1
        (packages[0] / "energy_uj").write_text("600000000")
        yield "not counted"
        (packages[1] / "energy_uj").write_text("6000000")
        yield 2

    meter = EnergyMeter.of(EXECUTION, tmp_path)
    assert meter is not None
    assert list(meter.watch(events(), int)) == [1, "not counted", 2]
    # The second package went from 999 J over the end of its range, 1000 J, to 2 J.
    assert meter.joules == pytest.approx((0.5 + 3.0) + 4.0)


def test_a_cpu_without_a_counter_has_no_meter(tmp_path: Path) -> None:
    assert EnergyMeter.of(EXECUTION, tmp_path / "missing") is None
    zone(tmp_path, "intel-rapl:0:0", "core", 5)
    assert EnergyMeter.of(EXECUTION, tmp_path) is None


@pytest.mark.parametrize("file", ["energy_uj", "max_energy_range_uj", "name"])
def test_a_counter_that_cannot_be_read_is_no_meter(tmp_path: Path, file: str) -> None:
    broken = zone(tmp_path, "intel-rapl:0", "package-0", 5) / file
    assert EnergyMeter.of(EXECUTION, tmp_path) is not None
    # Root may read every file, but no folder as one.
    broken.unlink()
    broken.mkdir()
    assert EnergyMeter.of(EXECUTION, tmp_path) is None
