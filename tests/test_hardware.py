"""The device's limits and its meter."""

import pytest

from resnet_bench import hardware
from resnet_bench.execution import Execution
from resnet_bench.hardware import EnergyMeter, peak_bandwidth, peak_flops, processor_seconds

EXECUTION = Execution.resolve("cpu", "fp32", threads=1)


def test_peaks_are_plausible_and_measured_once(monkeypatch) -> None:
    peak_flops.cache_clear()
    assert 1e8 < peak_flops(EXECUTION) < 1e14
    assert 1e8 < peak_bandwidth(EXECUTION) < 1e13
    monkeypatch.setattr(hardware, "best_seconds", lambda *_: pytest.fail("measured again"))
    assert peak_flops(EXECUTION) > 0


def test_the_processors_clock_counts_work_and_not_waiting(monkeypatch) -> None:
    before = processor_seconds()
    while processor_seconds() == before:
        pass
    assert before < processor_seconds() < before + 5


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


def test_without_an_nvidia_gpu_there_is_no_meter() -> None:
    assert EnergyMeter.of(EXECUTION) is None
