"""A context in which torch's convolutions take the fastest way there is on this CPU.

It changes no network: parameters, buffers and state dicts are the same with and without it.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from resnet_bench.kernels import convolution, winograd
from resnet_bench.kernels.convolution import Geometry, Ways
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
        if images.device.type != "cpu" or images.shape[1] != weight.shape[1]:
            return None
        if not convolution.is_square(images, weight, stride, padding):
            return None
        geometry = Geometry(weight.shape[-1], stride[0], padding[0])
        dtype = self._dtype or images.dtype
        if convolution.is_dense(images.shape[-1], geometry):
            return convolution.dense_convolution(images.to(dtype), weight, bias, geometry)
        if self._memory is None:
            return None
        ways = chosen_ways(self._memory, images, weight, geometry, dtype)
        # Where nothing is to be gained torch's own function is the shortest way.
        return None if ways == Ways() else convolution.convolution(images.to(dtype), weight, bias, geometry, ways)


class _Shape(NamedTuple):
    """All that the time of a convolution depends on."""

    images: int
    channels: int
    size: int
    outputs: int
    geometry: Geometry
    dtype: torch.dtype

    @property
    def out_size(self) -> int:
        return self.geometry.output_size(self.size)

    def __str__(self) -> str:
        return (
            f"{self.images}x{self.channels}x{self.size}x{self.size} to {self.outputs}, kernel {self.geometry.kernel}, "
            f"stride {self.geometry.stride}, padding {self.geometry.padding}, {str(self.dtype).removeprefix('torch.')}"
        )


def chosen_ways(memory: Remembered, images: Tensor, weight: Tensor, geometry: Geometry, dtype: torch.dtype) -> Ways:
    """The fastest way of each pass that a convolution is going to have, measured once a shape and machine.

    A pass that it is not going to have is the library's.
    """
    count, channels, size, _ = images.shape
    shape = _Shape(count, channels, size, weight.shape[0], geometry, dtype)
    trained = torch.is_grad_enabled()
    needed = {"forward": True, "images": trained and images.requires_grad, "weight": trained and weight.requires_grad}
    possible = _possible_ways(shape)
    return Ways(**{name: _fastest(memory, name, possible[name], shape) for name in needed if needed[name]})


def _possible_ways(shape: _Shape) -> Mapping[str, Sequence[str]]:
    """What there is to choose from, for each pass."""
    kernel, stride, padding = shape.geometry
    ways: dict[str, list[str]] = {name: ["library"] for name in Ways._fields}
    if kernel == 1 or shape.out_size < 1:
        return ways
    if 1 < shape.out_size**2 <= MAX_PRODUCT_PIXELS:
        ways["weight"].append("product")
    if shape.dtype == torch.bfloat16 and kernel == winograd.KERNEL and stride == 1:
        if winograd.fits(shape.channels, shape.outputs, padding):
            ways["forward"].append("winograd")
            ways["weight"].append("winograd")
        if winograd.fits(shape.outputs, shape.channels, padding):
            ways["images"].append("winograd")
    return ways


def _fastest(memory: Remembered, name: str, ways: Sequence[str], shape: _Shape) -> str:
    """The way of a pass that was measured to be fastest."""
    if len(ways) == 1:
        return ways[0]
    key = f"{name} of a convolution {shape}"
    chosen = memory.get(key)
    if chosen is None:
        seconds = _time(name, ways, shape)
        best = min(seconds, key=seconds.__getitem__)
        chosen = memory.put(key, best if seconds[best] < WORTHWHILE * seconds["library"] else "library")
    # What another machine, or another compiler, chose may not be there.
    return chosen if chosen in ways else "library"


@torch.no_grad()
def _time(name: str, ways: Sequence[str], shape: _Shape) -> dict[str, float]:
    """Seconds of a pass by each way, the best of a few that take turns."""
    images = _ones(shape.images, shape.channels, shape.size, shape.dtype)
    gradient = _ones(shape.images, shape.outputs, shape.out_size, shape.dtype)
    weight = torch.ones(shape.outputs, shape.channels, shape.geometry.kernel, shape.geometry.kernel)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(1 + TIMINGS):
        for way, taken in seconds.items():
            started = time.perf_counter()
            if name == "forward":
                convolution.FORWARD[way](images, weight, None, shape.geometry)
            elif name == "images":
                convolution.IMAGES_GRADIENT[way](images, gradient, weight, shape.geometry)
            else:
                found = convolution.WEIGHT_GRADIENT[way](images, gradient, weight, shape.geometry)
                # As in training, the gradient ends up in the weights' own type and memory order.
                torch.empty_like(weight).copy_(found)
            taken.append(time.perf_counter() - started)
    return {way: min(taken[1:]) for way, taken in seconds.items()}


def _ones(count: int, channels: int, size: int, dtype: torch.dtype) -> Tensor:
    return torch.ones(count, channels, size, size, dtype=dtype).contiguous(memory_format=torch.channels_last)
