"""BatchNorm in training with what surrounds it, as one operation on a CPU.

That is the activation behind it with a max pool before or behind it, or the end of a residual block: the shortcut,
which may be normalized itself, and the activation of the sum.

As separate operations these read and write whole maps a dozen times forward and backward, and move more bytes than the
convolutions between them. Here it is two passes forward and two backward, and what a pool drops is never written. The
kernels are in ``normalization.c``.
"""

import enum
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from resnet_bench.kernels import native

LIBRARIES = native.by_type(Path(__file__).with_name("normalization.c"))

LANES = 16
"""The number of channels is a multiple of this."""


class Pool(enum.IntEnum):
    """Where there is a max pool; the numbers are those of the C file."""

    NONE = 0
    BEFORE = 1
    """Of 2×2 pixels, before the normalization."""
    BEHIND = 2
    """Of 2×2 pixels, behind the activation."""
    OVERLAPPING_BEHIND = 3
    """Of 3×3 pixels with stride 2 and padding 1, behind the activation."""

    def size(self, size: int) -> int:
        """Return what is left of a map's height or width."""
        if self is Pool.NONE:
            return size
        return (size + 1) // 2 if self is Pool.OVERLAPPING_BEHIND else size // 2


class Activation(enum.IntEnum):
    """What follows the normalization; the numbers are those of the C file."""

    IDENTITY = 0
    RELU = 1
    SILU = 2


def problem(dtype: torch.dtype) -> str | None:
    """Why there are no such kernels for a type on this machine, or None where there are.

    They are compiled for the answer, which takes a second the first time.
    """
    return native.problem(*LIBRARIES[dtype])


def fits(maps: Tensor, norm: nn.BatchNorm2d, pool: Pool) -> bool:
    """Whether :func:`normalize` takes these maps; if not, they are for torch's own operations."""
    if not norm.training or maps.device.type != "cpu" or maps.dim() != 4 or maps.dtype not in LIBRARIES:
        return False
    count, channels, height, width = maps.shape
    rows, columns = pool.size(height), pool.size(width)
    normalized = count * rows * columns if pool is Pool.BEFORE else count * height * width
    tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    return (
        channels == norm.num_features
        and channels % LANES == 0
        # A single value has no variance, and torch refuses it with a sentence.
        and normalized > 1
        and min(rows, columns) > 0
        and maps.is_contiguous(memory_format=torch.channels_last)
        and norm.momentum is not None
        and all(tensor is None or (tensor.dtype == torch.float32 and tensor.is_contiguous()) for tensor in tensors)
        and problem(maps.dtype) is None
    )


def normalize(maps: Tensor, norm: nn.BatchNorm2d, *, pool: Pool, activation: Activation) -> Tensor:
    """What BatchNorm in training gives, activated and pooled; its running statistics are updated.

    Args:
        maps: Shape `[N, C, H, W]`, bfloat16 or float32, in channels-last order.
        norm: A layer that :func:`fits`.
        pool: Where the maps are pooled; what an odd map has beyond its windows is left out, as torch does.
        activation: What is done to normalized values.

    Returns:
        Shape `[N, C, pool.size(H), pool.size(W)]`, of the maps' type, in channels-last order.
    """
    outputs, mean, variance = cast(
        tuple[Tensor, Tensor, Tensor], _Normalize.apply(maps, norm.weight, norm.bias, norm.eps, pool, activation)
    )
    _update_statistics(norm, mean, variance, values=(outputs if pool is Pool.BEFORE else maps)[:, 0].numel())
    return outputs


def fits_sum(maps: Tensor, norm: nn.BatchNorm2d, shortcut: Tensor, shortcut_norm: nn.BatchNorm2d | None) -> bool:
    """Whether :func:`normalize_and_add` takes these maps; if not, they are for torch's own operations."""
    return (
        fits(maps, norm, Pool.NONE)
        and (shortcut.shape, shortcut.dtype, shortcut.device) == (maps.shape, maps.dtype, maps.device)
        and shortcut.is_contiguous(memory_format=torch.channels_last)
        and (shortcut_norm is None or fits(shortcut, shortcut_norm, Pool.NONE))
    )


def normalize_and_add(
    maps: Tensor,
    norm: nn.BatchNorm2d,
    shortcut: Tensor,
    shortcut_norm: nn.BatchNorm2d | None,
    *,
    activation: Activation,
) -> Tensor:
    """Normalize maps, add a shortcut and activate the sum, in training; running statistics are updated.

    Args:
        maps: Shape `[N, C, H, W]`, bfloat16 or float32, in channels-last order.
        norm: The layer that normalizes the maps.
        shortcut: What is added, alike in shape, type and order; together they :func:`fits_sum`.
        shortcut_norm: The layer that normalizes the shortcut; None adds it as it is.
        activation: What is done to the sum.

    Returns:
        Shape, type and order of the maps.
    """
    other = (None, None, None) if shortcut_norm is None else _parameters(shortcut_norm)
    outputs, *moments = cast(
        tuple[Tensor, ...], _NormalizedSum.apply(maps, shortcut, *_parameters(norm), *other, activation)
    )
    values = maps[:, 0].numel()
    _update_statistics(norm, *moments[:2], values=values)
    if shortcut_norm is not None:
        _update_statistics(shortcut_norm, *moments[2:], values=values)
    return outputs


def _parameters(norm: nn.BatchNorm2d) -> tuple[Tensor | None, Tensor | None, float]:
    return norm.weight, norm.bias, norm.eps


@torch.no_grad()
def _update_statistics(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, *, values: int) -> None:
    """Move the running statistics towards moments of so many values per channel; the variance is over all of them."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    # A norm without one does not fit.
    momentum = cast(float, norm.momentum)
    norm.running_mean.lerp_(mean, momentum)
    norm.running_var.lerp_(variance * (values / (values - 1)), momentum)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        maps: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        pool: Pool,
        activation: Activation,
    ) -> tuple[Tensor, Tensor, Tensor]:
        count, channels, height, width = maps.shape
        rows, columns = pool.size(height), pool.size(width)
        mean, variance = torch.empty(channels), torch.empty(channels)
        # Not a view of a tensor in that order: autograd would refuse an in-place layer behind it, such as a ReLU.
        shape = (count, channels, rows, columns)
        outputs = torch.empty(shape, dtype=maps.dtype, memory_format=torch.channels_last)
        # What a pool before the normalization gives, or what each overlapping window's largest was before it.
        pooled = torch.empty_like(outputs) if pool in (Pool.BEFORE, Pool.OVERLAPPING_BEHIND) else None
        places = torch.empty((count, rows, columns, channels), dtype=torch.uint8) if pool is not Pool.NONE else None
        native.call(
            native.library(*LIBRARIES[maps.dtype]),
            "forward",
            maps,
            *(count, height, width, channels),
            *(pool, activation),
            *(weight, bias, eps),
            *(mean, variance, pooled, places, outputs),
        )
        normalized, largest = (pooled, None) if pool is Pool.BEFORE else (maps, pooled)
        ctx.save_for_backward(normalized, largest, weight, bias, mean, variance, places)
        ctx.shape, ctx.eps, ctx.pool, ctx.activation = maps.shape, eps, pool, activation
        ctx.mark_non_differentiable(mean, variance)
        return outputs, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        maps, largest, weight, bias, mean, variance, places = ctx.saved_tensors
        count, channels, height, width = ctx.shape
        of_maps = maps.new_empty((count, height, width, channels)).permute(0, 3, 1, 2)
        of_weight, of_bias = torch.empty(channels), torch.empty(channels)
        native.call(
            native.library(*LIBRARIES[maps.dtype]),
            "backward",
            maps,
            *(count, height, width, channels),
            *(ctx.pool, ctx.activation),
            *(weight, bias, ctx.eps),
            *(mean, variance, largest, places),
            gradients.contiguous(memory_format=torch.channels_last),
            *(of_maps, of_weight, of_bias),
        )
        return (
            of_maps,
            of_weight if weight is not None else None,
            of_bias if bias is not None else None,
            None,
            None,
            None,
        )


class _NormalizedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        maps: Tensor,
        shortcut: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        other_weight: Tensor | None,
        other_bias: Tensor | None,
        other_eps: float | None,
        activation: Activation,
    ) -> tuple[Tensor, ...]:
        count, channels, height, width = maps.shape
        # Those of the shortcut, unless it is added as it is.
        moments = [torch.empty(channels) for _ in range(2 if other_eps is None else 4)]
        other_mean, other_variance = moments[2:] or (None, None)
        outputs = torch.empty_like(maps)
        native.call(
            native.library(*LIBRARIES[maps.dtype]),
            "forward_sum",
            *(maps, shortcut),
            *(count, height, width, channels),
            activation,
            *(weight, bias, eps, *moments[:2]),
            *(other_weight, other_bias, other_eps or 0.0, other_mean, other_variance),
            outputs,
        )
        ctx.save_for_backward(maps, shortcut, weight, bias, other_weight, other_bias, *moments)
        ctx.eps, ctx.other_eps, ctx.activation = eps, other_eps, activation
        ctx.mark_non_differentiable(*moments)
        return outputs, *moments

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        maps, shortcut, weight, bias, other_weight, other_bias, *moments = ctx.saved_tensors
        count, channels, height, width = maps.shape
        other_mean, other_variance = moments[2:] or (None, None)
        gradients = gradients.contiguous(memory_format=torch.channels_last)
        passed_on = other_mean is None and ctx.activation is Activation.IDENTITY
        of_maps, of_shortcut = torch.empty_like(maps), gradients if passed_on else torch.empty_like(shortcut)
        of_weight, of_bias, of_other_weight, of_other_bias = (torch.empty(channels) for _ in range(4))
        native.call(
            native.library(*LIBRARIES[maps.dtype]),
            "backward_sum",
            *(maps, shortcut),
            *(count, height, width, channels),
            ctx.activation,
            *(weight, bias, ctx.eps, *moments[:2]),
            *(other_weight, other_bias, ctx.other_eps or 0.0, other_mean, other_variance),
            *(gradients, of_maps, of_shortcut),
            *(of_weight, of_bias, of_other_weight, of_other_bias),
        )
        return (
            of_maps,
            of_shortcut,
            of_weight if weight is not None else None,
            of_bias if bias is not None else None,
            None,
            of_other_weight if other_weight is not None else None,
            of_other_bias if other_bias is not None else None,
            None,
            None,
        )
