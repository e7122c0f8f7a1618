"""Winograd: 3×3 convolutions of bfloat16 activations with 16 multiplications instead of 36, and their gradients.

After A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308). What is multiplied
are sums of pixels and of weights, rounded to bfloat16 like the pixels themselves, so that the error of a result is up
to twice that of torch's bfloat16 convolution. A 2×2 max pool behind the convolution can be part of it; its windows'
other pixels are never written then, nor their gradients. The kernels are in ``winograd.c``; a machine has them if it
has a C compiler and its processor multiplies bfloat16 by AVX-512.
"""

from pathlib import Path

import torch
from torch import Tensor

from resnet_bench.kernels import native

_SOURCE = Path(__file__).with_name("winograd.c")

KERNEL = 3
MAX_PADDING = 2
CHANNELS = 8
"""The numbers of channels that are convolved and that come out are multiples of this."""


def problem() -> str | None:
    """Explain why this machine cannot compile the kernels, or return None.

    They are compiled for the answer, which takes two seconds the first time.
    """
    return native.problem(_SOURCE)


def fits(channels: int, outputs: int, padding: int) -> bool:
    """Check whether 3×3 convolutions, stride 1, with these channels can be computed here, and their gradients."""
    return channels % CHANNELS == 0 and outputs % CHANNELS == 0 and 0 <= padding <= MAX_PADDING and problem() is None


def convolve(images: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """Compute the convolution.

    Args:
        images: Shape `[N, C, H, W]`, bfloat16, H and W at least 3 with the padding.
        weight: Shape `[O, C, 3, 3]`, float32.
        bias: Shape `[O]`, float32.
        padding: Rows and columns of zeros around the images.

    Returns:
        Shape `[N, O, H + 2 * padding - 2, W + 2 * padding - 2]`, bfloat16, in channels-last order.
    """
    height, width = _out_size(images, padding)
    results = _channels_last(images, weight.shape[0], height, width)
    _convolve(images, None, weight, bias, padding, results.permute(0, 2, 3, 1), None, (height, width), turned=False)
    return results


def convolve_and_pool(images: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> tuple[Tensor, Tensor]:
    """Compute the convolution and a 2×2 max pool behind it; pixels outside of the pool's windows are not computed.

    Args:
        images: Shape `[N, C, H, W]`, bfloat16, H and W at least 4 with the padding.
        weight: Shape `[O, C, 3, 3]`, float32.
        bias: Shape `[O]`, float32.
        padding: Rows and columns of zeros around the images.

    Returns:
        The largest of each window, bfloat16, and their places in the windows, uint8 (0 and 1 above, 2 and 3 below),
        each of shape `[N, O, (H + 2 * padding - 2) // 2, (W + 2 * padding - 2) // 2]` and in channels-last order.
    """
    rows, columns = (size // 2 for size in _out_size(images, padding))
    largest = _channels_last(images, weight.shape[0], rows, columns)
    places = torch.empty_like(largest, dtype=torch.uint8)
    in_order = largest.permute(0, 2, 3, 1), places.permute(0, 2, 3, 1)
    _convolve(images, None, weight, bias, padding, *in_order, (2 * rows, 2 * columns), turned=False)
    return largest, places


def grad_input(
    gradient: Tensor, weight: Tensor, padding: int, size: tuple[int, int], places: Tensor | None = None
) -> Tensor:
    """Compute the input gradient from the output's gradient.

    Args:
        gradient: Shape as :func:`convolve` or :func:`convolve_and_pool` gave it, bfloat16.
        weight: Shape `[O, C, 3, 3]`, float32.
        padding: As it was given.
        size: Height and width of the images.
        places: As :func:`convolve_and_pool` gave them.

    Returns:
        Shape `[N, C, H, W]`, bfloat16, in channels-last order.
    """
    results = _channels_last(gradient, weight.shape[1], *size)
    in_order = results.permute(0, 2, 3, 1)
    _convolve(gradient, places, weight, None, KERNEL - 1 - padding, in_order, None, size, turned=True)
    return results


def _channels_last(like: Tensor, channels: int, height: int, width: int) -> Tensor:
    # Not a view of a tensor in that order: autograd would refuse an in-place layer behind it, such as a ReLU.
    shape = (len(like), channels, height, width)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def grad_weight(images: Tensor, gradient: Tensor, padding: int, places: Tensor | None = None) -> Tensor:
    """Compute the weight gradient.

    Args:
        images: Shape `[N, C, H, W]`, bfloat16.
        gradient: Shape as :func:`convolve` or :func:`convolve_and_pool` gave it, bfloat16.
        padding: As it was given.
        places: As :func:`convolve_and_pool` gave them.

    Returns:
        Shape `[O, C, 3, 3]`, float32, contiguous.
    """
    images, gradient = (maps.contiguous(memory_format=torch.channels_last) for maps in (images, gradient))
    (count, channels, height, width), outputs = images.shape, gradient.shape[1]
    found = torch.empty(outputs, channels, KERNEL, KERNEL)
    native.call(
        native.library(_SOURCE),
        "gradient_of_filters",
        *(images, count, height, width, channels, padding),
        *(gradient, _in_order(places), outputs, *_whole_size(gradient, places)),
        found,
    )
    return found


def _convolve(
    maps: Tensor,
    places: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    padding: int,
    results: Tensor,
    out_places: Tensor | None,
    out_size: tuple[int, int],
    *,
    turned: bool,
) -> None:
    """What the C file calls `convolve`, with the size of maps that are pooled before they are."""
    maps = maps.contiguous(memory_format=torch.channels_last)
    count, channels, _, _ = maps.shape
    native.call(
        native.library(_SOURCE),
        "convolve",
        *(maps, _in_order(places), count, *_whole_size(maps, places), channels, padding),
        *(weight.contiguous(), results.shape[-1], turned, bias),
        *(results, out_places, *out_size),
    )


def _out_size(images: Tensor, padding: int) -> tuple[int, int]:
    height, width = images.shape[-2:]
    return height + 2 * padding - (KERNEL - 1), width + 2 * padding - (KERNEL - 1)


def _whole_size(maps: Tensor, places: Tensor | None) -> tuple[int, int]:
    """Height and width of maps before they were pooled, if they are."""
    height, width = maps.shape[-2:]
    return (height, width) if places is None else (2 * height, 2 * width)


def _in_order(places: Tensor | None) -> Tensor | None:
    return None if places is None else places.contiguous(memory_format=torch.channels_last)
