"""The peak memory of a run is that of the run."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from resnet_bench.execution import devices
from resnet_bench.execution.devices import reset_peak_memory

CPU = torch.device("cpu")

ALONE = """
import torch
from resnet_bench.execution.devices import peak_memory, reset_peak_memory

CPU, MEGABYTE = torch.device("cpu"), 2**20

def filled(megabytes):
    content = bytearray(megabytes * MEGABYTE)
    content[::4096] = b"x" * len(content[::4096])
    return content

def growth(megabytes):
    assert reset_peak_memory(CPU)
    before = peak_memory(CPU)
    more = filled(megabytes)
    return (peak_memory(CPU) - before) / MEGABYTE

large = filled(200)
before = peak_memory(CPU)
del large
assert reset_peak_memory(CPU)
assert peak_memory(CPU) < before - 150 * MEGABYTE
found = [growth(100) for _ in range(10)]
assert max(found) > 90, found
"""
"""In a process of a few seconds: from one that lives long, the system may take pages back meanwhile."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets a process's peak")
def test_the_peak_starts_again_from_the_current_memory() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_system_that_cannot_reset_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "CLEAR_REFS", tmp_path / "nowhere" / "clear_refs")
    assert not reset_peak_memory(CPU)
    assert not reset_peak_memory(torch.device("mps"))
