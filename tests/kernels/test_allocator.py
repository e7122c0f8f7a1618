"""Freed memory is kept inside the context and given back outside of it."""

import platform
import subprocess
import sys

import pytest
import torch

from resnet_bench.kernels.allocator import retain_heap

IN_A_PROCESS_OF_ITS_OWN = """
import psutil
import torch
from resnet_bench.kernels.allocator import retain_heap

def use_and_free():
    torch.ones(100 * 2**20 // 4)

def growth():
    return (psutil.Process().memory_info().rss - at_first) >> 20

use_and_free()
at_first = psutil.Process().memory_info().rss
use_and_free()
found = [growth()]
with retain_heap(True):
    use_and_free()
    found.append(growth())
    with retain_heap(False):
        found.append(growth())
    use_and_free()
    found.append(growth())
found.append(growth())
print(*found)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_kept_inside_and_given_back_outside() -> None:
    # Among other tests, a free piece of the heap may be large enough to serve without asking the system.
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS_OF_ITS_OWN], capture_output=True, text=True, check=True, timeout=120
    )
    before, kept, given_back, kept_again, after = map(int, done.stdout.split())
    assert max(before, given_back, after) < 10
    assert min(kept, kept_again) > 90


def test_without_glibc_it_does_nothing(monkeypatch) -> None:
    monkeypatch.setattr("resnet_bench.kernels.allocator.glibc", lambda: None)
    with retain_heap(True):
        assert torch.ones(3).sum() == 3
