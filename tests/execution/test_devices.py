"""The peak memory of a run is that of the run."""

import sys
from pathlib import Path

import pytest
import torch

from resnet_bench.execution import devices
from resnet_bench.execution.devices import peak_memory, reset_peak_memory

CPU = torch.device("cpu")
MEGABYTE = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets a process's peak")
def test_the_peak_starts_again_from_the_current_memory() -> None:
    large = bytearray(200 * MEGABYTE)
    large[::4096] = b"x" * len(large[::4096])
    before = peak_memory(CPU)
    del large
    assert reset_peak_memory(CPU)
    after = peak_memory(CPU)
    assert after < before - 150 * MEGABYTE
    again = bytearray(100 * MEGABYTE)
    again[::4096] = b"x" * len(again[::4096])
    assert peak_memory(CPU) > after + 90 * MEGABYTE


def test_a_system_that_cannot_reset_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "CLEAR_REFS", tmp_path / "nowhere" / "clear_refs")
    assert not reset_peak_memory(CPU)
    assert not reset_peak_memory(torch.device("mps"))
