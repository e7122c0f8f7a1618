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
    # The system may take pages back meanwhile; it has no more to take before long.
    assert any(_peak_of_another(100) > 90 * MEGABYTE for _ in range(10))


def _peak_of_another(megabytes: int) -> int:
    """How far the peak grows with so much more."""
    assert reset_peak_memory(CPU)
    before = peak_memory(CPU)
    more = bytearray(megabytes * MEGABYTE)
    more[::4096] = b"x" * len(more[::4096])
    return peak_memory(CPU) - before


def test_a_system_that_cannot_reset_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "CLEAR_REFS", tmp_path / "nowhere" / "clear_refs")
    assert not reset_peak_memory(CPU)
    assert not reset_peak_memory(torch.device("mps"))
