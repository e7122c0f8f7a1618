"""Compile all kernels that a run will ask for at the same time, before it asks for the first."""

import torch

from resnet_bench.kernels import direct, native, normalization, weights, winograd


def begin_compiling(dtype: torch.dtype) -> None:
    """Begin to compile the kernels for a type, unless that was done before, and return at once.

    The largest takes 6 s of a slow core; meanwhile images can be decoded.
    """
    rooms = (normalization, winograd, direct, weights)
    large_tiles = [winograd.LARGE_TILES] if dtype == torch.bfloat16 else []
    native.load_ahead([*(room.LIBRARIES[dtype] for room in rooms), *large_tiles])
