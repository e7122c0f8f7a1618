"""A context in which torch's convolutions use the fastest algorithm on this CPU.

It changes no network: parameters, buffers and state dicts are the same with and without it.
"""

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar, Token
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from resnet_bench.base.tuning_cache import TuningCache
from resnet_bench.kernels import convolution, direct, gemm, winograd
from resnet_bench.kernels.convolution import ConvAlgorithms, Geometry

MAX_GEMM_PIXELS = 64
"""Above 8×8 pixels im2col has never been faster; such shapes are not measured."""

TURNS = 5
WORTHWHILE = 0.9
"""Fraction of the default's time; a smaller gain is within the noise of the measurement."""

MEASURED_MACS = 4_000_000_000
"""Multiply-accumulates of a pass that is timed. Larger batches are measured, and remembered, by as many images as that
takes: a tenth of a second in fp32."""
ALIKE_MACS = 1_000_000_000
"""Passes of more than these are measured, and remembered, by a power of two of images, so that batches of training and
of evaluation share a choice."""
LONG_SECONDS = 0.05
"""A pass that takes longer, as on slow machines, is timed with fewer images, a quarter of them at least."""
LEAST_PIXELS = 4096
"""Of the outputs of all images, where a pass is measured with fewer: what an algorithm does once per batch, as
Winograd's transforms of filters, has to stay a small part of it."""

_active: ContextVar["FastPaths | None"] = ContextVar("fast_paths", default=None)


def active() -> "FastPaths | None":
    """Return the innermost active context."""
    return _active.get()


class FastPaths(TorchFunctionMode):
    """Within this context, `torch.conv2d` on a CPU uses a faster algorithm where there is one.

    Args:
        dtype: The dtype that convolutions compute in, where autocast casts; None keeps that of the images.
        memory: Where measured choices are kept. Without one nothing is measured, and only algorithms that save work on
            every processor are used, so that results are bit-identical wherever torch's are.
    """

    def __init__(self, dtype: torch.dtype | None, memory: TuningCache | None) -> None:
        super().__init__()
        self._dtype = dtype
        self._memory = memory
        self._outer: list[Token[FastPaths | None]] = []

    def __enter__(self) -> Self:
        """Start replacing convolutions."""
        self._outer.append(_active.set(self))
        return super().__enter__()  # type: ignore[no-any-return, no-untyped-call]

    def __exit__(self, *exception: Any) -> None:
        """Stop replacing convolutions."""
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        _active.reset(self._outer.pop())

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Handle a call of a torch function."""
        if func is torch.conv2d and not kwargs and len(args) == 7:
            faster = self._convolution(*args)
            if faster is not None:
                return faster
        return func(*args, **(kwargs or {}))

    def convolve_and_pool(self, layer: nn.Conv2d, images: Tensor) -> Tensor | None:
        """Compute a layer and a 2×2 max pool behind it as one operation.

        Args:
            layer: A convolution with 3×3 taps or others.
            images: Shape `[N, C, S, S]`.

        Returns:
            Shape `[N, O, T, T]`, or None if one after the other is faster, or the only algorithm.
        """
        if isinstance(layer.padding, str) or layer.padding_mode != "zeros" or self._memory is None:
            return None
        (rows, columns), (up, left), (below, right) = layer.stride, layer.padding, layer.dilation
        shape = self._shape(images, layer.weight, (rows, columns), (up, left), (below, right), layer.groups)
        if shape is None or shape.out_size < 2:
            return None
        if not _is_of_winograds_kind(shape) or not winograd.fits_pool(
            shape.channels, shape.outputs, shape.geometry.padding, shape.dtype
        ):
            return None
        memory, needed = self._memory, _needed(images, layer.weight)

        measured = shape.measured()

        def chosen(*, pool: bool) -> ConvAlgorithms:
            return chosen_algorithms(memory, images, layer.weight, shape._replace(pool=pool))

        def measure() -> dict[str, float]:
            return time_pooled(measured, needed, chosen(pool=False), chosen(pool=True))

        key = f"convolution and pool {measured}, {' '.join(needed)}"
        if _fastest(memory, key, ("apart", "winograd"), measure) == "apart":
            return None
        padding = shape.geometry.padding
        algorithms = chosen(pool=True)
        return convolution.pooled_convolution(images.to(shape.dtype), layer.weight, layer.bias, padding, algorithms)

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
        """Compute the convolution, or return None to use torch's default."""
        shape = None if isinstance(padding, str) else self._shape(images, weight, stride, padding, dilation, groups)
        if shape is None:
            return None
        if convolution.is_dense(shape.size, shape.geometry):
            product = "gemm" if self._memory is None else chosen_product(self._memory, shape)
            return convolution.dense_convolution(images.to(shape.dtype), weight, bias, shape.geometry, product)
        if self._memory is None:
            return None
        algorithms = chosen_algorithms(self._memory, images, weight, shape)
        # If nothing is faster, torch's function has the least overhead.
        if algorithms == ConvAlgorithms():
            return None
        return convolution.convolution(images.to(shape.dtype), weight, bias, shape.geometry, algorithms)

    def _shape(
        self,
        images: Tensor,
        weight: Tensor,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
    ) -> "Shape | None":
        """Return the shape of a convolution that may have other algorithms; invalid ones are left to torch's errors."""
        if groups != 1 or tuple(dilation) != (1, 1) or images.dim() != 4 or images.device.type != "cpu":
            return None
        if len(images) == 0:
            return None
        if images.shape[1] != weight.shape[1] or not convolution.is_square(images, weight, stride, padding):
            return None
        count, channels, size, _ = images.shape
        geometry = Geometry(weight.shape[-1], stride[0], padding[0])
        return Shape(count, channels, size, weight.shape[0], geometry, self._dtype or images.dtype)


class Shape(NamedTuple):
    """Everything that the time of a convolution depends on."""

    images: int
    channels: int
    size: int
    outputs: int
    geometry: Geometry
    dtype: torch.dtype
    pool: bool = False
    """Whether a 2×2 max pool behind the convolution is part of it."""

    @property
    def out_size(self) -> int:
        """Rows of the output."""
        return self.geometry.output_size(self.size)

    def measured(self) -> Self:
        """Return the shape by which this one is measured: with fewer images where so many take long."""
        macs_per_image = self.channels * self.outputs * (self.geometry.kernel * self.out_size) ** 2
        images = max(1, min(self.images, MEASURED_MACS // max(macs_per_image, 1)))
        fewer = 2 ** (images.bit_length() - 1)
        if images * macs_per_image > ALIKE_MACS and fewer * self.out_size**2 >= LEAST_PIXELS:
            images = fewer
        return self._replace(images=images)

    def __str__(self) -> str:
        return (
            f"{self.images}x{self.channels}x{self.size}x{self.size} to {self.outputs}, kernel {self.geometry.kernel}, "
            f"stride {self.geometry.stride}, padding {self.geometry.padding}, {str(self.dtype).removeprefix('torch.')}"
            f"{', pool' if self.pool else ''}"
        )


def chosen_algorithms(memory: TuningCache, images: Tensor, weight: Tensor, shape: Shape) -> ConvAlgorithms:
    """Choose the fastest algorithm of each pass that a convolution needs, measured once per shape and machine.

    A pass that it does not need has the default.
    """
    possible, measured = candidates(shape), shape.measured()
    return ConvAlgorithms(
        **{
            name: _fastest(
                memory,
                f"{name} of a convolution {measured}",
                algorithms,
                functools.partial(time_pass, name, algorithms, measured),
            )
            for name in _needed(images, weight)
            if len(algorithms := possible[name]) > 1
        }
    )


def chosen_product(memory: TuningCache, shape: Shape) -> str:
    """Choose what multiplies in a convolution that is one GEMM, measured once per shape and machine."""
    measured, products = shape.measured(), gemm.products(shape.dtype)
    if len(products) == 1:
        return products[0]

    @torch.no_grad()
    def measure() -> dict[str, float]:
        pixels = torch.ones(measured.images, measured.channels * measured.size**2, dtype=measured.dtype)
        matrix = torch.ones(measured.outputs * measured.out_size**2, pixels.shape[1], dtype=measured.dtype)
        gradient = torch.ones(len(pixels), len(matrix), dtype=measured.dtype)

        def multiply(product: str) -> None:
            # Those of all passes, whose operands lie differently.
            for operands in ((pixels, matrix), (gradient, matrix.mT), (gradient.mT, pixels.mT)):
                gemm.PRODUCTS[product](*operands)

        return relative_times(products, multiply)

    return _fastest(memory, f"product of a convolution {measured}", products, measure)


def _needed(images: Tensor, weight: Tensor) -> tuple[str, ...]:
    """List the passes that a convolution needs."""
    trained = torch.is_grad_enabled()
    needed = {
        "forward": True,
        "grad_input": trained and images.requires_grad,
        "grad_weight": trained and weight.requires_grad,
    }
    return tuple(name for name, is_needed in needed.items() if is_needed)


def candidates(shape: Shape) -> Mapping[str, Sequence[str]]:
    """List the algorithms of each pass, first the one that others have to beat."""
    if shape.pool:
        large = winograd.fits_large_tiles(shape.channels, shape.outputs, shape.geometry.padding, shape.dtype)
        return {name: ["winograd", "winograd4"] if large else ["winograd"] for name in ConvAlgorithms._fields}
    algorithms: dict[str, list[str]] = {name: ["default"] for name in ConvAlgorithms._fields}
    if shape.out_size < 1:
        return algorithms
    if shape.geometry.kernel == 1:
        if shape.geometry.padding == 0:
            for of_pass in algorithms.values():
                of_pass.extend(gemm.products(shape.dtype))
        return algorithms
    if 1 < shape.out_size**2 <= MAX_GEMM_PIXELS:
        algorithms["grad_weight"].extend(gemm.products(shape.dtype))
    if _is_of_winograds_kind(shape):
        for name, fits in (("winograd", winograd.fits), ("winograd4", winograd.fits_large_tiles)):
            if fits(shape.channels, shape.outputs, shape.geometry.padding, shape.dtype):
                for of_pass in algorithms.values():
                    of_pass.append(name)
    if direct.fits(shape.channels, shape.outputs, shape.geometry, shape.dtype):
        for of_pass in algorithms.values():
            of_pass.append("direct")
    return algorithms


def _is_of_winograds_kind(shape: Shape) -> bool:
    return shape.geometry.kernel == winograd.KERNEL and shape.geometry.stride == 1


def _fastest(
    memory: TuningCache, key: str, algorithms: Sequence[str], measure: Callable[[], Mapping[str, float]]
) -> str:
    """Choose the algorithm that was measured to be fastest; the first one unless another is worthwhile."""
    chosen = memory.get(key)
    if chosen is None:
        times = measure()
        best = min(times, key=times.__getitem__)
        chosen = memory.put(key, best if times[best] < WORTHWHILE * times[algorithms[0]] else algorithms[0])
    # A choice of another machine or compiler may not exist here.
    return chosen if chosen in algorithms else algorithms[0]


@torch.no_grad()
def time_pass(name: str, algorithms: Sequence[str], shape: Shape) -> dict[str, float]:
    """Time a pass by each algorithm, as :func:`relative_times` does."""
    compute = _pass(name, shape)
    started = time.perf_counter()
    compute(algorithms[0])
    if (seconds := time.perf_counter() - started) > LONG_SECONDS:
        fewer = max(shape.images * LONG_SECONDS / seconds, shape.images / 4, LEAST_PIXELS / shape.out_size**2)
        if fewer < shape.images:
            compute = _pass(name, shape._replace(images=math.ceil(fewer)))
    return relative_times(algorithms, compute)


def _pass(name: str, shape: Shape) -> Callable[[str], None]:
    """What computes a pass of a convolution by an algorithm."""
    images, weight = _operands(shape)
    if shape.pool:
        return _pooled_pass(name, images, weight, shape)
    gradient = _ones(shape.images, shape.outputs, shape.out_size, shape.dtype)

    def compute(algorithm: str) -> None:
        if name == "forward":
            convolution.FORWARD[algorithm](images, weight, None, shape.geometry)
        elif name == "grad_input":
            convolution.GRAD_INPUT[algorithm](images, gradient, weight, shape.geometry)
        else:
            found = convolution.GRAD_WEIGHT[algorithm](images, gradient, weight, shape.geometry)
            # As in training, the gradient ends up in the weights' dtype and memory order.
            torch.empty_like(weight).copy_(found)

    return compute


def _pooled_pass(name: str, images: Tensor, weight: Tensor, shape: Shape) -> Callable[[str], None]:
    """What computes a pass of a convolution with a pool by an algorithm."""
    padding = shape.geometry.padding
    gradient, places = winograd.convolve_and_pool(images, weight, None, padding)

    def compute(algorithm: str) -> None:
        large = algorithm == "winograd4"
        if name == "forward":
            winograd.convolve_and_pool(images, weight, None, padding, large_tiles=large)
        elif name == "grad_input":
            winograd.grad_input(gradient, weight, padding, (shape.size, shape.size), places, large_tiles=large)
        else:
            winograd.grad_weight(images, gradient, padding, places, large_tiles=large)

    return compute


@torch.enable_grad()
def time_pooled(
    shape: Shape, needed: Sequence[str], algorithms: ConvAlgorithms, as_one: ConvAlgorithms
) -> dict[str, float]:
    """Time a convolution and a pool with the gradients that are needed, apart and as one, by :func:`relative_times`."""
    images, weight = _operands(shape)
    inputs = [
        tensor.requires_grad_() for name, tensor in (("grad_input", images), ("grad_weight", weight)) if name in needed
    ]

    def compute(algorithm: str) -> None:
        if algorithm == "apart":
            outputs = F.max_pool2d(convolution.convolution(images, weight, None, shape.geometry, algorithms), 2)
        else:
            outputs = convolution.pooled_convolution(images, weight, None, shape.geometry.padding, as_one)
        if inputs:
            torch.autograd.grad(outputs, inputs, torch.ones_like(outputs))

    # The context would be asked at every call of torch, which takes time.
    with torch._C.DisableTorchFunction():
        return relative_times(("apart", "winograd"), compute)


def relative_times(
    algorithms: Sequence[str], compute: Callable[[str], None], clock: Callable[[], float] | None = None
) -> dict[str, float]:
    """Time each algorithm in turns, and return its time in units of the first one's: the median of the turns' ratios.

    What disturbs up to two turns of five, or slows all of a turn, decides nothing. Turns end early where the medians of
    all five would choose the same, whatever the turns left out took.

    Args:
        algorithms: The default first.
        compute: Computes by an algorithm.
        clock: By default CPU time if there is one thread, which other processes do not lengthen, and else wall time.
    """
    if clock is None:
        clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    ratios: dict[str, list[float]] = {algorithm: [] for algorithm in algorithms}
    for turn in range(1 + TURNS):
        seconds = {}
        for algorithm in algorithms:
            started = clock()
            compute(algorithm)
            seconds[algorithm] = clock() - started
        # The first turn warms up.
        if turn and seconds[algorithms[0]] > 0:
            for algorithm, taken in seconds.items():
                ratios[algorithm].append(taken / seconds[algorithms[0]])
            if _is_decided(ratios, algorithms[0]):
                break
    # A clock too coarse to see the default shows no gain either.
    return {algorithm: statistics.median(found) if found else 1.0 for algorithm, found in ratios.items()}


def _is_decided(ratios: Mapping[str, Sequence[float]], default: str) -> bool:
    """Check whether the turns left cannot change which algorithm is chosen."""
    others = [_median_bounds(found) for algorithm, found in ratios.items() if algorithm != default]
    if all(lowest >= WORTHWHILE for lowest, _ in others):
        return True
    best = min(others, key=lambda bounds: bounds[1])
    rest = [lowest for lowest, _ in others]
    rest.remove(best[0])
    return best[1] < WORTHWHILE and all(best[1] < lowest for lowest in rest)


def _median_bounds(ratios: Sequence[float]) -> tuple[float, float]:
    """Return the least and the greatest median that all turns can have, given the first ones."""
    left = TURNS - len(ratios)
    return (
        statistics.median([*ratios, *[0.0] * left]),
        statistics.median([*ratios, *[math.inf] * left]),
    )


def _operands(shape: Shape) -> tuple[Tensor, Tensor]:
    weight = torch.ones(shape.outputs, shape.channels, shape.geometry.kernel, shape.geometry.kernel)
    return _ones(shape.images, shape.channels, shape.size, shape.dtype), weight


def _ones(count: int, channels: int, size: int, dtype: torch.dtype) -> Tensor:
    return torch.ones(count, channels, size, size, dtype=dtype).contiguous(memory_format=torch.channels_last)
