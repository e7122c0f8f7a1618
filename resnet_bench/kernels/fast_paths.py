"""A context in which torch's convolutions take the fastest way there is on this CPU.

It changes no network: parameters, buffers and state dicts are the same with and without it.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from resnet_bench.kernels import convolution
from resnet_bench.kernels.convolution import Geometry
from resnet_bench.kernels.remembered import Remembered

MAX_PRODUCT_PIXELS = 64
"""Above 8×8 pixels im2col has never been seen to pay; such maps are not measured."""

TIMINGS = 3
WORTHWHILE = 0.9
"""Of the library's time; a smaller gain is within the noise of the measurement."""


class FastPaths(TorchFunctionMode):
    """Within this context, `torch.conv2d` on a CPU takes a faster way where there is one.

    Args:
        dtype: The type that convolutions compute in, where autocast casts; None keeps that of the images.
        memory: Where measured choices are kept. Without one nothing is measured and only those ways are taken that
            save work on every processor, so that the same bits come out everywhere that torch gives them.
    """

    def __init__(self, dtype: torch.dtype | None, memory: Remembered | None) -> None:
        super().__init__()
        self._dtype = dtype
        self._memory = memory

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called by torch in place of each of its functions."""
        if func is torch.conv2d and not kwargs and len(args) == 7:
            faster = self._convolution(*args)
            if faster is not None:
                return faster
        return func(*args, **(kwargs or {}))

    def _convolution(
        self,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int] | str,
        dilation: tuple[int, int],
        groups: int,
    ) -> Tensor | None:
        """The convolution, or None if torch's own is to be taken."""
        if isinstance(padding, str) or groups != 1 or tuple(dilation) != (1, 1) or images.dim() != 4:
            return None
        if images.device.type != "cpu" or not convolution.is_square(images, weight, stride, padding):
            return None
        geometry = Geometry(weight.shape[-1], stride[0], padding[0])
        size, dtype = images.shape[-1], self._dtype or images.dtype
        if convolution.is_dense(size, geometry):
            return convolution.dense_convolution(images.to(dtype), weight, bias, geometry)
        trained = weight.requires_grad and torch.is_grad_enabled()
        if self._memory is not None and trained and geometry.kernel > 1:
            out_size = geometry.output_size(size)
            if 1 < out_size**2 <= MAX_PRODUCT_PIXELS and product_pays(self._memory, images, weight, geometry, dtype):
                return convolution.convolution_with_product_gradient(images.to(dtype), weight, bias, geometry)
        return None


def product_pays(memory: Remembered, images: Tensor, weight: Tensor, geometry: Geometry, dtype: torch.dtype) -> bool:
    """Whether a matrix product is the faster way to the weights' gradient, measured once a shape and machine."""
    count, channels, size, _ = images.shape
    key = (
        f"weight gradient {count}x{channels}x{size}x{size} to {weight.shape[0]}, kernel {geometry.kernel}, "
        f"stride {geometry.stride}, padding {geometry.padding}, {str(dtype).removeprefix('torch.')}"
    )
    remembered = memory.get(key)
    if remembered is None:
        by_library, by_product = _time_weight_gradients(images, weight, geometry, dtype)
        chosen = "product" if by_product < WORTHWHILE * by_library else "library"
        remembered = memory.put(key, chosen)
    return bool(remembered == "product")


@torch.no_grad()
def _time_weight_gradients(
    images: Tensor, weight: Tensor, geometry: Geometry, dtype: torch.dtype
) -> tuple[float, float]:
    """Seconds by the library and by the matrix product, the best of a few that take turns."""
    ours = images.detach().to(dtype)
    kernel = weight.detach().to(dtype)
    out_size = geometry.output_size(images.shape[-1])
    gradient = torch.ones_like(ours[:, :1]).new_ones((len(images), weight.shape[0], out_size, out_size))
    gradient = gradient.to(memory_format=torch.channels_last)
    ways = (convolution.weight_gradient_by_library, convolution.weight_gradient_by_product)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(1 + TIMINGS):
        for way, taken in zip(ways, seconds, strict=True):
            started = time.perf_counter()
            # As in training, the gradient ends up in the weights' own type and memory order.
            torch.empty_like(weight).copy_(way(ours, gradient, kernel, geometry))
            taken.append(time.perf_counter() - started)
    return min(seconds[0][1:]), min(seconds[1][1:])
