"""Faster ways through a training step on a CPU, each equal to torch's own up to rounding."""

from resnet_bench.kernels.allocator import kept_allocations
from resnet_bench.kernels.fast_paths import FastPaths
from resnet_bench.kernels.fusion import fuse
from resnet_bench.kernels.remembered import Remembered, machine_memory

__all__ = ["FastPaths", "Remembered", "fuse", "kept_allocations", "machine_memory"]
