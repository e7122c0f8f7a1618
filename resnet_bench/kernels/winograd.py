"""Winograd: 3×3 convolutions with fewer multiplications, and their gradients.

After A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308). Three kernels:

- ``winograd.c`` for bfloat16: 16 multiplications instead of 36. What is multiplied are sums of pixels and of weights,
  rounded to bfloat16 like the pixels themselves, so that the error of a result is up to twice that of torch's bfloat16
  convolution. A 2×2 max pool behind the convolution can be part of it; its windows' other pixels are never written
  then, nor their gradients. The processor must multiply bfloat16 by AVX-512.
- ``winograd4.c`` for bfloat16: 36 multiplications instead of 144, of sums of more pixels, for which bfloat16 is too
  coarse. Factors of the convolution and of the input gradient are whole numbers of 16 bits, and errors below those of
  ``winograd.c``. Those of the weight gradient are bfloat16; its error, 1%, goes no further. A pool can be part of it,
  too. The processor must also multiply whole numbers by AVX-512 (VNNI).
- ``winograd_fp32.c`` for float32: 36 multiplications instead of 144, on any processor. Errors are a few times those of
  torch's float32 convolution, 1e-6 of a result's norm.

A machine has them if it has a C compiler.
"""

import ctypes
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from resnet_bench.kernels import native

LIBRARIES: Mapping[torch.dtype, native.Library] = {
    torch.bfloat16: (Path(__file__).with_name("winograd.c"), ()),
    torch.float32: (Path(__file__).with_name("winograd_fp32.c"), ()),
}
LARGE_TILES: native.Library = (Path(__file__).with_name("winograd4.c"), ())
"""Of bfloat16; float32 has no other tiles than large ones."""

KERNEL = 3
MAX_PADDING = 2


def problem(dtype: torch.dtype) -> str | None:
    """Explain why this machine cannot compile the kernels for a type, or return None.

    They are compiled for the answer, which takes two seconds the first time.
    """
    return native.problem(*LIBRARIES[dtype])


def channel_multiple(dtype: torch.dtype) -> int:
    """Return what the numbers of channels that are convolved and that come out are multiples of.

    In float32 it is what the processor's vectors hold: 16 by AVX-512, 8 by AVX.
    """
    return 8 if dtype == torch.bfloat16 else int(native.library(*LIBRARIES[dtype]).lanes())


def fits(channels: int, outputs: int, padding: int, dtype: torch.dtype) -> bool:
    """Check whether 3×3 convolutions, stride 1, with these channels can be computed here, and their gradients."""
    return (
        dtype in LIBRARIES
        and 0 <= padding <= MAX_PADDING
        and problem(dtype) is None
        and channels % channel_multiple(dtype) == 0
        and outputs % channel_multiple(dtype) == 0
    )


def fits_large_tiles(channels: int, outputs: int, padding: int, dtype: torch.dtype) -> bool:
    """Check whether such a convolution of bfloat16 can be computed in tiles of 4×4 pixels instead of 2×2."""
    return dtype == torch.bfloat16 and fits(channels, outputs, padding, dtype) and native.problem(*LARGE_TILES) is None


def fits_pool(channels: int, outputs: int, padding: int, dtype: torch.dtype) -> bool:
    """Check whether a 2×2 max pool behind such a convolution can be part of it."""
    return dtype == torch.bfloat16 and fits(channels, outputs, padding, dtype)


def convolve(images: Tensor, weight: Tensor, bias: Tensor | None, padding: int, *, large_tiles: bool = False) -> Tensor:
    """Compute the convolution.

    Args:
        images: Shape `[N, C, H, W]`, bfloat16 or float32, H and W at least 3 with the padding.
        weight: Shape `[O, C, 3, 3]`, float32.
        bias: Shape `[O]`, float32.
        padding: Rows and columns of zeros around the images.
        large_tiles: Compute a convolution that :func:`fits_large_tiles` by them. Where one of the pixels that
            a tile's outputs, up to 4×4, come from is not a finite number, none of these is one.

    Returns:
        Shape `[N, O, H + 2 * padding - 2, W + 2 * padding - 2]`, of the images' type, in channels-last order.
    """
    results = _channels_last(images, weight.shape[0], *_out_size(images, padding))
    _convolve(images, None, weight, bias, padding, results, None, turned=False, large_tiles=large_tiles)
    return results


def convolve_and_pool(
    images: Tensor, weight: Tensor, bias: Tensor | None, padding: int, *, large_tiles: bool = False
) -> tuple[Tensor, Tensor]:
    """Compute the convolution and a 2×2 max pool behind it; pixels outside of the pool's windows are not computed.

    Args:
        images: Shape `[N, C, H, W]`, bfloat16, H and W at least 4 with the padding.
        weight: Shape `[O, C, 3, 3]`, float32.
        bias: Shape `[O]`, float32.
        padding: Rows and columns of zeros around the images.
        large_tiles: As in :func:`convolve`.

    Returns:
        The largest of each window, bfloat16, and their places in the windows, uint8 (0 and 1 above, 2 and 3 below),
        each of shape `[N, O, (H + 2 * padding - 2) // 2, (W + 2 * padding - 2) // 2]` and in channels-last order.
    """
    rows, columns = (size // 2 for size in _out_size(images, padding))
    largest = _channels_last(images, weight.shape[0], rows, columns)
    places = torch.empty_like(largest, dtype=torch.uint8)
    _convolve(images, None, weight, bias, padding, largest, places, turned=False, large_tiles=large_tiles)
    return largest, places


def grad_input(
    gradient: Tensor,
    weight: Tensor,
    padding: int,
    size: tuple[int, int],
    places: Tensor | None = None,
    *,
    large_tiles: bool = False,
) -> Tensor:
    """Compute the input gradient from the output's gradient.

    Args:
        gradient: Shape and type as :func:`convolve` or :func:`convolve_and_pool` gave it.
        weight: Shape `[O, C, 3, 3]`, float32.
        padding: As it was given.
        size: Height and width of the images.
        places: As :func:`convolve_and_pool` gave them.
        large_tiles: As in :func:`convolve`.

    Returns:
        Shape `[N, C, H, W]`, of the gradient's type, in channels-last order.
    """
    results = _channels_last(gradient, weight.shape[1], *size)
    padding = KERNEL - 1 - padding
    _convolve(gradient, places, weight, None, padding, results, None, turned=True, large_tiles=large_tiles)
    return results


def _channels_last(like: Tensor, channels: int, height: int, width: int) -> Tensor:
    # Not a view of a tensor in that order: autograd would refuse an in-place layer behind it, such as a ReLU.
    shape = (len(like), channels, height, width)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def grad_weight(
    images: Tensor, gradient: Tensor, padding: int, places: Tensor | None = None, *, large_tiles: bool = False
) -> Tensor:
    """Compute the weight gradient.

    Args:
        images: Shape `[N, C, H, W]`, bfloat16 or float32.
        gradient: Shape and type as :func:`convolve` or :func:`convolve_and_pool` gave it.
        padding: As it was given.
        places: As :func:`convolve_and_pool` gave them.
        large_tiles: As in :func:`convolve`.

    Returns:
        Shape `[O, C, 3, 3]`, float32, contiguous.
    """
    images, gradient = (maps.contiguous(memory_format=torch.channels_last) for maps in (images, gradient))
    (count, channels, height, width), outputs = images.shape, gradient.shape[1]
    found = torch.empty(outputs, channels, KERNEL, KERNEL)
    of_maps = (images, count, height, width, channels, padding)
    if images.dtype == torch.float32:
        of_gradient: tuple[Tensor | int | None, ...] = (gradient, outputs)
    else:
        of_gradient = (gradient, _in_order(places), outputs, *_whole_size(gradient, places))
    native.call(_library(images.dtype, large_tiles=large_tiles), "gradient_of_filters", *of_maps, *of_gradient, found)
    return found


def _library(dtype: torch.dtype, *, large_tiles: bool) -> ctypes.CDLL:
    return native.library(*(LARGE_TILES if large_tiles and dtype == torch.bfloat16 else LIBRARIES[dtype]))


def _convolve(
    maps: Tensor,
    places: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    padding: int,
    results: Tensor,
    out_places: Tensor | None,
    *,
    turned: bool,
    large_tiles: bool,
) -> None:
    """What the C files call `convolve`, with the size of maps that are pooled before they are."""
    maps = maps.contiguous(memory_format=torch.channels_last)
    library, count = _library(maps.dtype, large_tiles=large_tiles), len(maps)
    of_filters = (weight.contiguous(), results.shape[1], turned, bias, results)
    (height, width), channels = _whole_size(maps, places), maps.shape[1]
    if maps.dtype == torch.float32:
        native.call(library, "convolve", maps, count, height, width, channels, padding, *of_filters)
        return
    of_maps = (maps, _in_order(places), count, height, width, channels, padding)
    native.call(library, "convolve", *of_maps, *of_filters, out_places, *_whole_size(results, out_places))


def _out_size(images: Tensor, padding: int) -> tuple[int, int]:
    height, width = images.shape[-2:]
    return height + 2 * padding - (KERNEL - 1), width + 2 * padding - (KERNEL - 1)


def _whole_size(maps: Tensor, places: Tensor | None) -> tuple[int, int]:
    """Height and width of maps before they were pooled, if they are."""
    height, width = maps.shape[-2:]
    return (height, width) if places is None else (2 * height, 2 * width)


def _in_order(places: Tensor | None) -> Tensor | None:
    return None if places is None else places.contiguous(memory_format=torch.channels_last)
