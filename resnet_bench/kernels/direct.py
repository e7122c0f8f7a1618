"""3×3 convolutions with a stride and others like them, by matrix products of pixels where they lie.

Winograd has no use for a stride, and oneDNN's kernels reach a third to two thirds of what the processor multiplies,
these up to nine tenths. Results are those of torch's convolution but for the order of sums. The machine must have a C
compiler; for bfloat16 the processor multiplies it by AVX-512.
"""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from resnet_bench.kernels import native

LIBRARIES = native.by_type(Path(__file__).with_name("direct.c"))

Geometry = tuple[int, int, int]
"""Kernel size, stride and padding."""


def fits(channels: int, outputs: int, geometry: Geometry, dtype: torch.dtype) -> bool:
    """Check whether such convolutions can be computed here, and their gradients."""
    kernel, stride, padding = geometry
    in_pairs = stride * channels % 2 == 0 and outputs % 2 == 0
    return (
        dtype in LIBRARIES
        and 1 < stride <= kernel
        and 0 <= padding < kernel
        and (in_pairs or dtype == torch.float32)
        and native.problem(*LIBRARIES[dtype]) is None
    )


def convolve(images: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Compute the convolution.

    Args:
        images: Shape `[N, C, H, W]`, bfloat16 or float32.
        weight: Shape `[O, C, K, K]`, float32.
        bias: Shape `[O]`, float32.
        geometry: Kernel size K, stride and padding.

    Returns:
        Shape `[N, O, (H + 2 * padding - K) // stride + 1, (W + 2 * padding - K) // stride + 1]`, of the type of the
        images, in channels-last order. Where K * C is odd, a bfloat16 pixel that is not a finite number may spoil an
        output left of those that it belongs to.
    """
    kernel, stride, padding = geometry
    size = ((pixels + 2 * padding - kernel) // stride + 1 for pixels in images.shape[-2:])
    results = _channels_last(images, len(weight), *size)
    arguments = (*_of_maps(images), *geometry, weight.contiguous(), bias, *_of_results(results))
    native.call(_library(images), "convolve", *arguments)
    return results


def grad_input(gradient: Tensor, weight: Tensor, geometry: Geometry, size: tuple[int, int]) -> Tensor:
    """Compute the input gradient from the output's gradient.

    Args:
        gradient: Shape and type as :func:`convolve` gave it.
        weight: Shape `[O, C, K, K]`, float32.
        geometry: As it was given.
        size: Height and width of the images.

    Returns:
        Shape `[N, C, H, W]`, of the gradient's type, in channels-last order.
    """
    results = _channels_last(gradient, weight.shape[1], *size)
    arguments = (*_of_maps(gradient), *geometry, weight.contiguous(), *_of_results(results))
    native.call(_library(gradient), "gradient_of_maps", *arguments)
    return results


def grad_weight(images: Tensor, gradient: Tensor, geometry: Geometry) -> Tensor:
    """Compute the weight gradient.

    Args:
        images: Shape `[N, C, H, W]`, bfloat16 or float32.
        gradient: Shape and type as :func:`convolve` gave it.
        geometry: As it was given.

    Returns:
        Shape `[O, C, K, K]`, float32, in channels-last order.
    """
    kernel = geometry[0]
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    found = torch.empty(gradient.shape[1], kernel, kernel, images.shape[1])
    arguments = (*_of_maps(images), *geometry, *_of_results(gradient), found)
    native.call(_library(images), "gradient_of_filters", *arguments)
    return found.permute(0, 3, 1, 2)


def _library(maps: Tensor) -> ctypes.CDLL:
    """Load the kernels for a type of maps."""
    return native.library(*LIBRARIES[maps.dtype])


def _channels_last(like: Tensor, channels: int, height: int, width: int) -> Tensor:
    # Not a view of a tensor in that order: autograd would refuse an in-place layer behind it, such as a ReLU.
    shape = (len(like), channels, height, width)
    return torch.empty(shape, dtype=like.dtype, memory_format=torch.channels_last)


def _of_maps(maps: Tensor) -> tuple[Tensor, int, int, int, int]:
    """Return maps as the C file has them, their count, height, width and channels."""
    maps = maps.contiguous(memory_format=torch.channels_last)
    count, channels, height, width = maps.shape
    return maps, count, height, width, channels


def _of_results(maps: Tensor) -> tuple[Tensor, int, int, int]:
    """Return results, or their gradient, and what else of them differs from the maps."""
    _, channels, height, width = maps.shape
    return maps, height, width, channels
