"""What weights and biases of convolutions need beside matrix multiplications, by ``weights.c`` where a compiler is.

As torch's operations these are a copy per tap and pair of pixels, and a float copy of whole maps.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from resnet_bench.kernels import native

LIBRARIES = native.by_type(Path(__file__).with_name("weights.c"))

Taps = Sequence[Sequence[tuple[int, int] | None]]
"""The kernel's tap between each pixel of a small output and each of its input, if there is one."""


def fits(weight: Tensor, dtype: torch.dtype) -> bool:
    """Check whether the kernels take a parameter for maps of a type."""
    return (
        dtype in LIBRARIES
        and weight.dtype == torch.float32
        and weight.device.type == "cpu"
        and weight.is_contiguous()
        and native.problem(*LIBRARIES[dtype]) is None
    )


def dense_matrix(weight: Tensor, taps: Taps, dtype: torch.dtype) -> Tensor:
    """Build the matrix of a convolution of a small map.

    Args:
        weight: Shape `[O, C, K, K]`; it :func:`fits`.
        taps: One row for each of P output pixels, with Q input pixels each.
        dtype: Type of the matrix.

    Returns:
        Shape `[P, O, Q, C]`.
    """
    matrix = torch.empty(len(taps), weight.shape[0], len(taps[0]), weight.shape[1], dtype=dtype)
    _call("spread", dtype, weight, taps, weight.shape, matrix)
    return matrix


def grad_weight_of_dense(gradient: Tensor, taps: Taps, weight: Tensor) -> Tensor:
    """Compute the weight gradient from that of the matrix; taps that touch no pixel get zero.

    Args:
        gradient: Shape `[P, O, Q, C]`, contiguous.
        taps: As in :func:`dense_matrix`.
        weight: Shape `[O, C, K, K]`; it :func:`fits`.
    """
    found = torch.empty_like(weight)
    _call("collect", gradient.dtype, gradient, taps, weight.shape, found)
    return found


def grad_bias(gradient: Tensor, bias_type: torch.dtype) -> Tensor:
    """Compute the gradient of a convolution's bias.

    Args:
        gradient: Of the outputs, shape `[N, O, T, T]`.
        bias_type: Type of the bias.

    Returns:
        Shape `[O]`, of the bias's type.
    """
    found = torch.empty(gradient.shape[1], dtype=bias_type)
    if not fits(found, gradient.dtype) or not gradient.is_contiguous(memory_format=torch.channels_last):
        return gradient.sum((0, 2, 3), dtype=bias_type)
    library = native.library(*LIBRARIES[gradient.dtype])
    native.call(library, "sum_pixels", gradient, gradient[:, 0].numel(), len(found), found)
    return found


def _call(name: str, dtype: torch.dtype, source: Tensor, taps: Taps, shape: Sequence[int], result: Tensor) -> None:
    outputs, channels, rows, columns = shape
    numbers = torch.tensor([[-1 if tap is None else tap[0] * columns + tap[1] for tap in row] for row in taps])
    library = native.library(*LIBRARIES[dtype])
    native.call(library, name, source, numbers, *numbers.shape, outputs, channels, rows * columns, result)
