"""3×3 convolutions of bfloat16 maps with 16 products where the plain way needs 36, and their gradients.

After A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308). What is multiplied
are sums of pixels and of weights, rounded to bfloat16 like the pixels themselves, so that the error of a result is up
to twice that of torch's bfloat16 convolution. The kernels are in ``winograd.c``; a machine has them if it has a C
compiler and its processor multiplies bfloat16 by AVX-512.
"""

from pathlib import Path

import torch
from torch import Tensor

from resnet_bench.kernels import native

_SOURCE = Path(__file__).with_name("winograd.c")

KERNEL = 3
MAX_PADDING = 2
CHANNELS = 8
"""The number of channels that are convolved is a multiple of this."""
OUTPUTS = 16
"""The number of channels that come out is a multiple of this."""


def problem() -> str | None:
    """Why there are no such kernels on this machine, or None where there are.

    They are compiled for the answer, which takes two seconds the first time.
    """
    return native.problem(_SOURCE)


def fits(channels: int, outputs: int, padding: int) -> bool:
    """Whether convolutions with 3×3 taps and stride 1 from so many channels to so many can be computed here."""
    return channels % CHANNELS == 0 and outputs % OUTPUTS == 0 and 0 <= padding <= MAX_PADDING and problem() is None


def convolve(images: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """The convolution.

    Args:
        images: Shape `[N, C, H, W]`, bfloat16, H and W at least 3 with the padding.
        weight: Shape `[O, C, 3, 3]`, float32.
        bias: Shape `[O]`, float32.
        padding: Rows and columns of zeros around the images.

    Returns:
        Shape `[N, O, H + 2 * padding - 2, W + 2 * padding - 2]`, bfloat16, in channels-last order.
    """
    return _convolve(images, weight, bias, padding, outputs=weight.shape[0], turned=False)


def gradient_of_images(gradient: Tensor, weight: Tensor, padding: int) -> Tensor:
    """The gradient of what :func:`convolve` was given, from that of what it gave.

    Args:
        gradient: Shape `[N, O, H + 2 * padding - 2, W + 2 * padding - 2]`, bfloat16.
        weight: Shape `[O, C, 3, 3]`, float32; C is a multiple of `OUTPUTS`.
        padding: As it was given.

    Returns:
        Shape `[N, C, H, W]`, bfloat16, in channels-last order.
    """
    return _convolve(gradient, weight, None, KERNEL - 1 - padding, outputs=weight.shape[1], turned=True)


def gradient_of_weight(images: Tensor, gradient: Tensor, padding: int) -> Tensor:
    """The gradient of the weight that :func:`convolve` was given.

    Args:
        images: Shape `[N, C, H, W]`, bfloat16.
        gradient: Shape `[N, O, H + 2 * padding - 2, W + 2 * padding - 2]`, bfloat16.
        padding: As it was given.

    Returns:
        Shape `[O, C, 3, 3]`, float32, contiguous.
    """
    images, gradient = (maps.contiguous(memory_format=torch.channels_last) for maps in (images, gradient))
    count, channels, height, width = images.shape
    _, outputs, out_height, out_width = gradient.shape
    found = torch.empty(outputs, channels, KERNEL, KERNEL)
    native.call(
        native.library(_SOURCE),
        "gradient_of_filters",
        *(images, count, height, width, channels, padding),
        *(gradient, outputs, out_height, out_width),
        found,
    )
    return found


def _convolve(
    images: Tensor, weight: Tensor, bias: Tensor | None, padding: int, *, outputs: int, turned: bool
) -> Tensor:
    images = images.contiguous(memory_format=torch.channels_last)
    count, channels, height, width = images.shape
    out_height, out_width = (size + 2 * padding - (KERNEL - 1) for size in (height, width))
    results = images.new_empty((count, out_height, out_width, outputs))
    native.call(
        native.library(_SOURCE),
        "convolve",
        *(images, count, height, width, channels, padding),
        *(weight.contiguous(), outputs, turned, bias),
        *(results, out_height, out_width),
    )
    return results.permute(0, 3, 1, 2)
