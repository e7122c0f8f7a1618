"""Freed memory is kept inside the context and given back outside of it."""

import platform

import psutil
import pytest
import torch

from resnet_bench.kernels import kept_allocations

MIB = 2**20


def resident() -> int:
    return psutil.Process().memory_info().rss


def growth_after_freeing() -> int:
    before = resident()
    block = torch.ones(100 * MIB // 4)
    del block
    return resident() - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_kept_inside_and_given_back_outside() -> None:
    outside = resident()
    with kept_allocations(True):
        assert growth_after_freeing() > 90 * MIB
        with kept_allocations(False):
            assert growth_after_freeing() < 10 * MIB
        assert growth_after_freeing() > 90 * MIB
    assert resident() - outside < 20 * MIB


def test_without_glibc_it_does_nothing(monkeypatch) -> None:
    monkeypatch.setattr("resnet_bench.kernels.allocator._glibc", lambda: None)
    with kept_allocations(True):
        assert torch.ones(3).sum() == 3
