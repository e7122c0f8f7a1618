"""A context in which torch's convolutions take the fastest way there is on this CPU.

It changes no network: parameters, buffers and state dicts are the same with and without it.
"""

import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar, Token
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from resnet_bench.base.tuning_cache import TuningCache
from resnet_bench.kernels import convolution, winograd
from resnet_bench.kernels.convolution import ConvAlgorithms, Geometry

MAX_PRODUCT_PIXELS = 64
"""Above 8×8 pixels im2col has never been seen to pay; such maps are not measured."""

TIMINGS = 3
WORTHWHILE = 0.9
"""Of the time of torch's own; a smaller gain is within the noise of the measurement."""

_active: ContextVar["FastPaths | None"] = ContextVar("fast_paths", default=None)


def active() -> "FastPaths | None":
    """The innermost context that this is called in."""
    return _active.get()


class FastPaths(TorchFunctionMode):
    """Within this context, `torch.conv2d` on a CPU takes a faster way where there is one.

    Args:
        dtype: The type that convolutions compute in, where autocast casts; None keeps that of the images.
        memory: Where measured choices are kept. Without one nothing is measured and only those ways are taken that
            save work on every processor, so that the same bits come out everywhere that torch gives them.
    """

    def __init__(self, dtype: torch.dtype | None, memory: TuningCache | None) -> None:
        super().__init__()
        self._dtype = dtype
        self._memory = memory
        self._outer: Token[FastPaths | None] | None = None

    def __enter__(self) -> Self:
        """Begin to take over."""
        self._outer = _active.set(self)
        return super().__enter__()  # type: ignore[no-any-return, no-untyped-call]

    def __exit__(self, *exception: Any) -> None:
        """Leave convolutions to what did them before."""
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        assert self._outer is not None
        _active.reset(self._outer)

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

    def convolve_and_pool(self, layer: nn.Conv2d, images: Tensor) -> Tensor | None:
        """What a layer gives with a 2×2 max pool behind it, as one operation.

        Args:
            layer: A convolution with 3×3 taps or others.
            images: Shape `[N, C, S, S]`.

        Returns:
            Shape `[N, O, T, T]`, or None if one after the other is faster, or all there is.
        """
        if isinstance(layer.padding, str) or layer.padding_mode != "zeros" or self._memory is None:
            return None
        (rows, columns), (up, left), (below, right) = layer.stride, layer.padding, layer.dilation
        shape = self._shape(images, layer.weight, (rows, columns), (up, left), (below, right), layer.groups)
        if shape is None or shape.out_size < 2:
            return None
        if not _fits_winograd(shape):
            return None
        memory, needed = self._memory, _needed(images, layer.weight)

        def measure() -> dict[str, float]:
            return _time_pooled(shape, needed, chosen_algorithms(memory, images, layer.weight, shape))

        key = f"convolution and pool {shape}, {' '.join(needed)}"
        if _fastest(memory, key, ("apart", "winograd"), measure) == "apart":
            return None
        return convolution.pooled_convolution(images.to(shape.dtype), layer.weight, layer.bias, shape.geometry.padding)

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
        shape = None if isinstance(padding, str) else self._shape(images, weight, stride, padding, dilation, groups)
        if shape is None:
            return None
        if convolution.is_dense(shape.size, shape.geometry):
            return convolution.dense_convolution(images.to(shape.dtype), weight, bias, shape.geometry)
        if self._memory is None:
            return None
        ways = chosen_algorithms(self._memory, images, weight, shape)
        # Where nothing is to be gained torch's own function is the shortest way.
        if ways == ConvAlgorithms():
            return None
        return convolution.convolution(images.to(shape.dtype), weight, bias, shape.geometry, ways)

    def _shape(
        self,
        images: Tensor,
        weight: Tensor,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
    ) -> "Shape | None":
        """The shape of a convolution that there may be ways for; of one that is wrong torch is to say so."""
        if groups != 1 or tuple(dilation) != (1, 1) or images.dim() != 4 or images.device.type != "cpu":
            return None
        if images.shape[1] != weight.shape[1] or not convolution.is_square(images, weight, stride, padding):
            return None
        count, channels, size, _ = images.shape
        geometry = Geometry(weight.shape[-1], stride[0], padding[0])
        return Shape(count, channels, size, weight.shape[0], geometry, self._dtype or images.dtype)


class Shape(NamedTuple):
    """All that the time of a convolution depends on."""

    images: int
    channels: int
    size: int
    outputs: int
    geometry: Geometry
    dtype: torch.dtype

    @property
    def out_size(self) -> int:
        """Rows of the output."""
        return self.geometry.output_size(self.size)

    def __str__(self) -> str:
        return (
            f"{self.images}x{self.channels}x{self.size}x{self.size} to {self.outputs}, kernel {self.geometry.kernel}, "
            f"stride {self.geometry.stride}, padding {self.geometry.padding}, {str(self.dtype).removeprefix('torch.')}"
        )


def chosen_algorithms(memory: TuningCache, images: Tensor, weight: Tensor, shape: Shape) -> ConvAlgorithms:
    """The fastest way of each pass that a convolution is going to have, measured once a shape and machine.

    A pass that it is not going to have is the library's.
    """
    possible = _possible_ways(shape)
    return ConvAlgorithms(
        **{
            name: _fastest(
                memory, f"{name} of a convolution {shape}", ways, functools.partial(_time, name, ways, shape)
            )
            for name in _needed(images, weight)
            if len(ways := possible[name]) > 1
        }
    )


def _needed(images: Tensor, weight: Tensor) -> tuple[str, ...]:
    """The passes that a convolution is going to have."""
    trained = torch.is_grad_enabled()
    has = {"forward": True, "images": trained and images.requires_grad, "weight": trained and weight.requires_grad}
    return tuple(name for name, needed in has.items() if needed)


def _possible_ways(shape: Shape) -> Mapping[str, Sequence[str]]:
    """What there is to choose from, for each pass; first torch's own."""
    ways: dict[str, list[str]] = {name: ["library"] for name in ConvAlgorithms._fields}
    if shape.geometry.kernel == 1 or shape.out_size < 1:
        return ways
    if 1 < shape.out_size**2 <= MAX_PRODUCT_PIXELS:
        ways["weight"].append("product")
    if _fits_winograd(shape):
        for of_pass in ways.values():
            of_pass.append("winograd")
    return ways


def _fits_winograd(shape: Shape) -> bool:
    kernel, stride, padding = shape.geometry
    is_of_its_kind = shape.dtype == torch.bfloat16 and kernel == winograd.KERNEL and stride == 1
    return is_of_its_kind and winograd.fits(shape.channels, shape.outputs, padding)


def _fastest(memory: TuningCache, key: str, ways: Sequence[str], measure: Callable[[], Mapping[str, float]]) -> str:
    """The way that was measured to be fastest; the first one unless another is worthwhile."""
    chosen = memory.get(key)
    if chosen is None:
        seconds = measure()
        best = min(seconds, key=seconds.__getitem__)
        chosen = memory.put(key, best if seconds[best] < WORTHWHILE * seconds[ways[0]] else ways[0])
    # What another machine, or another compiler, chose may not be there.
    return chosen if chosen in ways else ways[0]


@torch.no_grad()
def _time(name: str, ways: Sequence[str], shape: Shape) -> dict[str, float]:
    """Seconds of a pass by each way."""
    images, weight = _operands(shape)
    gradient = _ones(shape.images, shape.outputs, shape.out_size, shape.dtype)

    def compute(way: str) -> None:
        if name == "forward":
            convolution.FORWARD[way](images, weight, None, shape.geometry)
        elif name == "images":
            convolution.IMAGES_GRADIENT[way](images, gradient, weight, shape.geometry)
        else:
            found = convolution.WEIGHT_GRADIENT[way](images, gradient, weight, shape.geometry)
            # As in training, the gradient ends up in the weights' own type and memory order.
            torch.empty_like(weight).copy_(found)

    return _seconds(ways, compute)


@torch.enable_grad()
def _time_pooled(shape: Shape, needed: Sequence[str], ways: ConvAlgorithms) -> dict[str, float]:
    """Seconds of a convolution and a pool, with the gradients that are needed, apart and as one."""
    images, weight = _operands(shape)
    inputs = [tensor.requires_grad_() for name, tensor in (("images", images), ("weight", weight)) if name in needed]

    def compute(way: str) -> None:
        if way == "apart":
            outputs = F.max_pool2d(convolution.convolution(images, weight, None, shape.geometry, ways), 2)
        else:
            outputs = convolution.pooled_convolution(images, weight, None, shape.geometry.padding)
        if inputs:
            torch.autograd.grad(outputs, inputs, torch.ones_like(outputs))

    # Otherwise the context would look for ways of the convolution that is timed.
    with torch._C.DisableTorchFunction():
        return _seconds(("apart", "winograd"), compute)


def _seconds(ways: Sequence[str], compute: Callable[[str], None]) -> dict[str, float]:
    """The best of a few that take turns."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(1 + TIMINGS):
        for way, taken in seconds.items():
            started = time.perf_counter()
            compute(way)
            taken.append(time.perf_counter() - started)
    return {way: min(taken[1:]) for way, taken in seconds.items()}


def _operands(shape: Shape) -> tuple[Tensor, Tensor]:
    weight = torch.ones(shape.outputs, shape.channels, shape.geometry.kernel, shape.geometry.kernel)
    return _ones(shape.images, shape.channels, shape.size, shape.dtype), weight


def _ones(count: int, channels: int, size: int, dtype: torch.dtype) -> Tensor:
    return torch.ones(count, channels, size, size, dtype=dtype).contiguous(memory_format=torch.channels_last)
