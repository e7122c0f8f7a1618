"""Freed memory is kept inside the context and given back outside of it."""

import platform
import subprocess
import sys

import pytest
import torch

from resnet_bench.kernels import allocator
from resnet_bench.kernels.allocator import retain_heap

M_MMAP_THRESHOLD = -3  # <malloc.h>

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


class Glibc:
    """The C library's answers: before 2.35 it refuses more than 32 MiB for its threshold."""

    def __init__(self, largest: float) -> None:
        self.largest = largest
        self.accepted: dict[int, int] = {}

    def mallopt(self, parameter: int, value: int) -> int:
        if parameter == M_MMAP_THRESHOLD and value > self.largest:
            return 0
        self.accepted[parameter] = value
        return 1

    def malloc_trim(self, _: int) -> int:
        return 1


@pytest.mark.parametrize(("largest", "threshold"), [(2**31, 2**30), (2**25, 2**25)])
def test_a_threshold_that_is_refused_is_as_large_as_can_be(
    largest: float, threshold: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Glibc(largest)
    monkeypatch.setattr(allocator, "glibc", lambda: library)
    with retain_heap(True):
        assert library.accepted[M_MMAP_THRESHOLD] == threshold
