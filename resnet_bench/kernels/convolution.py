"""Algorithms for convolutions on a CPU besides torch's default, equal to it up to rounding.

oneDNN's kernels are made for large activations. At most 2×2 pixels make a padded convolution one small-map GEMM with no
more multiplications than the convolution; only those taps of its kernel are used that touch a pixel: at 1×1 the center
alone, a ninth of the work. The weight gradient is one GEMM of the output's gradient with the input's patches (im2col).
Winograd needs fewer multiplications for 3×3 taps without a stride; with one, products of the pixels where they lie are
faster. Which of these is faster than the default depends on the shape and the processor, so it has to be measured.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from resnet_bench.kernels import direct, weights, winograd
from resnet_bench.kernels.gemm import PRODUCTS, Product, multiply_by_onednn

MAX_DENSE_PIXELS = 4
"""Above 2×2 pixels a small-map GEMM multiplies more than the convolution does."""


class Geometry(NamedTuple):
    """Kernel size, stride and padding of a convolution, the same for rows and columns."""

    kernel: int
    stride: int
    padding: int

    def output_size(self, size: int) -> int:
        """Compute the rows (or columns) of the output for an input of `size` rows."""
        return (size + 2 * self.padding - self.kernel) // self.stride + 1


def is_square(images: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> bool:
    """Check whether rows and columns are treated alike."""
    return (
        images.shape[-1] == images.shape[-2]
        and weight.shape[-1] == weight.shape[-2]
        and stride[0] == stride[1]
        and padding[0] == padding[1]
    )


# --- small-map GEMM ------------------------------------------------------------------------------------


def is_dense(size: int, geometry: Geometry) -> bool:
    """Check whether a convolution of `size` × `size` pixels costs less as a small-map GEMM."""
    return geometry.kernel > 1 and size * size <= MAX_DENSE_PIXELS and geometry.output_size(size) >= 1


def dense_convolution(
    images: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, product: str = "gemm"
) -> Tensor:
    """Compute a convolution as one GEMM, from all pixels of a small input to all pixels of its output.

    Args:
        images: Shape `[N, C, S, S]`; the GEMM has their dtype.
        weight: Shape `[O, C, K, K]`; its gradient has its dtype and memory order. Taps that touch no pixel get a
            gradient of zero, as they do from a convolution.
        bias: Shape `[O]`.
        geometry: Kernel size, stride and padding.
        product: One of the :data:`PRODUCTS`, by which all passes multiply.

    Returns:
        Shape `[N, O, T, T]`, in channels-last order.
    """
    count, _, size, _ = images.shape
    out_size, out_channels = geometry.output_size(size), weight.shape[0]
    matrix = cast(Tensor, _DenseWeight.apply(weight, size, geometry, images.dtype))
    pixels = images.permute(0, 2, 3, 1).reshape(count, -1)
    # torch differentiates its own.
    multiply = PRODUCTS[product] if product == "gemm" else _OnednnProduct.apply
    flat = cast(Tensor, multiply(pixels, matrix))
    if bias is not None:
        flat = flat + bias.to(flat.dtype).repeat(out_size * out_size)
    return flat.view(count, out_size, out_size, out_channels).permute(0, 3, 1, 2)


def _taps(size: int, geometry: Geometry) -> weights.Taps:
    """Return the kernel's tap between each pixel of the output and each of the input, if there is one."""
    out_size, (kernel, stride, padding) = geometry.output_size(size), geometry
    table: list[list[tuple[int, int] | None]] = []
    for out_pixel in range(out_size * out_size):
        out_row, out_column = divmod(out_pixel, out_size)
        corner_row, corner_column = out_row * stride - padding, out_column * stride - padding
        taps = [(pixel // size - corner_row, pixel % size - corner_column) for pixel in range(size * size)]
        table.append([tap if min(tap) >= 0 and max(tap) < kernel else None for tap in taps])
    return table


class _OnednnProduct(torch.autograd.Function):
    """What oneDNN's product gives, and its gradients by the same."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        return multiply_by_onednn(left, right)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        left, right = ctx.saved_tensors
        wants_left, wants_right = ctx.needs_input_grad
        return (
            multiply_by_onednn(gradient, right.mT) if wants_left else None,
            multiply_by_onednn(gradient.mT, left.mT) if wants_right else None,
        )


class _DenseWeight(torch.autograd.Function):
    """The matrix `[T * T * O, S * S * C]` that convolves flattened inputs."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, size: int, geometry: Geometry, dtype: torch.dtype) -> Tensor:
        ctx.size, ctx.geometry = size, geometry
        ctx.save_for_backward(weight)
        taps = _taps(size, geometry)
        channels_out, channels_in = weight.shape[:2]
        if weights.fits(weight, dtype):
            return weights.dense_matrix(weight, taps, dtype).view(len(taps) * channels_out, -1)
        matrix = weight.new_zeros((len(taps), channels_out, size * size, channels_in), dtype=dtype)
        for out_pixel, row in enumerate(taps):
            for pixel, tap in enumerate(row):
                if tap is not None:
                    matrix[out_pixel, :, pixel].copy_(weight[:, :, tap[0], tap[1]])
        return matrix.view(len(taps) * channels_out, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        taps = _taps(ctx.size, ctx.geometry)
        by_pixel = gradient.view(len(taps), weight.shape[0], ctx.size**2, weight.shape[1])
        if weights.fits(weight, gradient.dtype) and gradient.is_contiguous():
            return weights.grad_weight_of_dense(by_pixel, taps, weight), None, None, None
        sums: dict[tuple[int, int], Tensor] = {}
        for out_pixel, row in enumerate(taps):
            for pixel, tap in enumerate(row):
                if tap is not None:
                    part = by_pixel[out_pixel, :, pixel]
                    sums[tap] = sums[tap] + part if tap in sums else part.to(weight.dtype)
        weight_gradient = torch.zeros_like(weight)
        for (row_tap, column_tap), total in sums.items():
            weight_gradient[:, :, row_tap, column_tap].copy_(total)
        return weight_gradient, None, None, None


# --- weight gradient -------------------------------------------------------------------------


def grad_weight_default(images: Tensor, gradient: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Compute the weight gradient by torch's default kernel; see :func:`grad_weight_gemm`."""
    return _convolution_backward(gradient, images, weight, geometry, (False, True))[1]


def grad_weight_gemm(
    images: Tensor, gradient: Tensor, weight: Tensor, geometry: Geometry, *, product: Product = PRODUCTS["gemm"]
) -> Tensor:
    """Compute the weight gradient as one GEMM of the output's gradient and the input's patches.

    Args:
        images: The input, shape `[N, C, S, S]`.
        gradient: The loss's gradient by the output, shape `[N, O, T, T]`.
        weight: Shape `[O, C, K, K]`.
        geometry: Kernel size, stride and padding.
        product: What multiplies.

    Returns:
        Shape `[O, C, K, K]`, in channels-last order.
    """
    kernel, stride, padding = geometry
    out_channels, channels = weight.shape[:2]
    pixels = F.pad(images.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))
    count, out_size = len(images), gradient.shape[-1]
    of_image, of_row, of_column, of_channel = pixels.stride()
    patches = pixels.as_strided(
        (count, out_size, out_size, kernel, kernel, channels),
        (of_image, of_row * stride, of_column * stride, of_row, of_column, of_channel),
    ).reshape(count * out_size * out_size, -1)
    by_pixel = gradient.permute(0, 2, 3, 1).reshape(-1, out_channels)
    return product(by_pixel.mT, patches.mT).view(out_channels, kernel, kernel, channels).permute(0, 3, 1, 2)


# --- algorithms per pass -------------------------------------------------------------------


class ConvAlgorithms(NamedTuple):
    """The algorithm of each pass of a convolution: ``default`` is torch's kernel.

    Attributes:
        forward: ``default``, ``winograd`` or ``winograd4``, which is Winograd in tiles of 4×4 pixels; with a stride,
            ``default`` or ``direct``; of one tap without padding, ``default`` or one of the :data:`PRODUCTS`.
        grad_input: The same.
        grad_weight: The same, or one of the :data:`PRODUCTS` for any number of taps.
    """

    forward: str = "default"
    grad_input: str = "default"
    grad_weight: str = "default"


def forward_default(images: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Compute a convolution by torch's default kernel, in the dtype of the images."""
    in_bias = None if bias is None else bias.to(images.dtype)
    return torch.conv2d(images, weight.to(images.dtype), in_bias, geometry.stride, geometry.padding)


def forward_gemm(
    images: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, *, product: Product = PRODUCTS["gemm"]
) -> Tensor:
    """Compute a convolution of one tap without padding as one GEMM of the pixels that it touches."""
    touched = images.permute(0, 2, 3, 1)[:, :: geometry.stride, :: geometry.stride]
    (count, rows, columns, channels), outputs = touched.shape, len(weight)
    flat = product(touched.reshape(-1, channels), weight.flatten(1).to(images.dtype))
    if bias is not None:
        flat += bias.to(flat.dtype)
    maps = flat.view(count, rows, columns, outputs).permute(0, 3, 1, 2)
    # Not a view of a tensor in that order: autograd would refuse an in-place layer behind it.
    return flat.new_empty(0).set_(flat.untyped_storage(), 0, maps.shape, maps.stride())


def forward_winograd(
    images: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, *, large_tiles: bool = False
) -> Tensor:
    """Compute a convolution that :func:`winograd.fits`, or :func:`winograd.fits_large_tiles`."""
    in_bias = None if bias is None else bias.float()
    return winograd.convolve(images, weight.float(), in_bias, geometry.padding, large_tiles=large_tiles)


def forward_direct(images: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Compute a convolution that :func:`direct.fits`."""
    return direct.convolve(images, weight.float(), None if bias is None else bias.float(), geometry)


def grad_input_default(images: Tensor, gradient: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Compute the input gradient by torch's default kernel."""
    return _convolution_backward(gradient, images, weight, geometry, (True, False))[0]


def grad_input_gemm(
    images: Tensor, gradient: Tensor, weight: Tensor, geometry: Geometry, *, product: Product = PRODUCTS["gemm"]
) -> Tensor:
    """Compute the input gradient of such a convolution; pixels that it does not touch get zero."""
    by_pixel = gradient.permute(0, 2, 3, 1)
    of_pixels = product(by_pixel.reshape(-1, len(weight)), weight.flatten(1).to(gradient.dtype).mT)
    found = of_pixels.view(*by_pixel.shape[:-1], -1)
    if geometry.stride > 1:
        touched, found = found, gradient.new_zeros(len(images), *images.shape[2:], images.shape[1])
        found[:, :: geometry.stride, :: geometry.stride] = touched
    return found.permute(0, 3, 1, 2)


def grad_input_winograd(
    images: Tensor, gradient: Tensor, weight: Tensor, geometry: Geometry, *, large_tiles: bool = False
) -> Tensor:
    """Compute the input gradient of such a convolution."""
    size = (images.shape[-2], images.shape[-1])
    return winograd.grad_input(gradient, weight.float(), geometry.padding, size, large_tiles=large_tiles)


def grad_input_direct(images: Tensor, gradient: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Compute the input gradient of such a convolution."""
    return direct.grad_input(gradient, weight.float(), geometry, (images.shape[-2], images.shape[-1]))


def grad_weight_winograd(
    images: Tensor,
    gradient: Tensor,
    weight: Tensor,  # noqa: ARG001 - all algorithms have one signature
    geometry: Geometry,
    *,
    large_tiles: bool = False,
) -> Tensor:
    """Compute the weight gradient of such a convolution."""
    return winograd.grad_weight(images, gradient, geometry.padding, large_tiles=large_tiles)


def grad_weight_direct(
    images: Tensor,
    gradient: Tensor,
    weight: Tensor,  # noqa: ARG001 - all algorithms have one signature
    geometry: Geometry,
) -> Tensor:
    """Compute the weight gradient of such a convolution."""
    return direct.grad_weight(images, gradient, geometry)


FORWARD: Mapping[str, Callable[[Tensor, Tensor, Tensor | None, Geometry], Tensor]] = {
    "default": forward_default,
    **{name: partial(forward_gemm, product=product) for name, product in PRODUCTS.items()},
    "winograd": forward_winograd,
    "winograd4": partial(forward_winograd, large_tiles=True),
    "direct": forward_direct,
}
GRAD_INPUT: Mapping[str, Callable[[Tensor, Tensor, Tensor, Geometry], Tensor]] = {
    "default": grad_input_default,
    **{name: partial(grad_input_gemm, product=product) for name, product in PRODUCTS.items()},
    "winograd": grad_input_winograd,
    "winograd4": partial(grad_input_winograd, large_tiles=True),
    "direct": grad_input_direct,
}
GRAD_WEIGHT: Mapping[str, Callable[[Tensor, Tensor, Tensor, Geometry], Tensor]] = {
    "default": grad_weight_default,
    **{name: partial(grad_weight_gemm, product=product) for name, product in PRODUCTS.items()},
    "winograd": grad_weight_winograd,
    "winograd4": partial(grad_weight_winograd, large_tiles=True),
    "direct": grad_weight_direct,
}


def convolution(
    images: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, algorithms: ConvAlgorithms
) -> Tensor:
    """Compute a convolution, each pass by a chosen algorithm.

    Args:
        images: Shape `[N, C, S, S]`; the convolution computes in their dtype.
        weight: Shape `[O, C, K, K]`; its gradient has its dtype and memory order.
        bias: Shape `[O]`.
        geometry: Kernel size, stride and padding.
        algorithms: The algorithm of each pass.

    Returns:
        Shape `[N, O, T, T]`.
    """
    return cast(Tensor, _Convolution.apply(images, weight, bias, geometry, algorithms))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, algorithms: ConvAlgorithms
    ) -> Tensor:
        ctx.geometry, ctx.algorithms = geometry, algorithms
        ctx.save_for_backward(images, weight)
        ctx.bias_type = None if bias is None else bias.dtype
        return FORWARD[algorithms.forward](images, weight, bias, geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        images, weight = ctx.saved_tensors
        operands = (images, gradient, weight, ctx.geometry)
        return (
            *_gradients(
                ctx,
                gradient,
                weight,
                lambda: GRAD_INPUT[ctx.algorithms.grad_input](*operands),
                lambda: GRAD_WEIGHT[ctx.algorithms.grad_weight](*operands),
            ),
            None,
            None,
        )


def pooled_convolution(
    images: Tensor, weight: Tensor, bias: Tensor | None, padding: int, algorithms: ConvAlgorithms
) -> Tensor:
    """Compute a convolution that :func:`winograd.fits_pool` and a 2×2 max pool behind it as one operation.

    Args:
        images: Shape `[N, C, S, S]`, bfloat16.
        weight: Shape `[O, C, 3, 3]`; its gradient has its dtype and memory order.
        bias: Shape `[O]`.
        padding: Rows and columns of zeros around the images.
        algorithms: ``winograd4`` for passes in tiles of 4×4 pixels; others are in tiles of 2×2.

    Returns:
        Shape `[N, O, T, T]`, T half the size of the convolution's output, rounded down.
    """
    return cast(Tensor, _PooledConvolution.apply(images, weight, bias, padding, algorithms))


class _PooledConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, padding: int, algorithms: ConvAlgorithms
    ) -> Tensor:
        in_bias = None if bias is None else bias.float()
        largest, places = winograd.convolve_and_pool(
            images, weight.float(), in_bias, padding, large_tiles=algorithms.forward == "winograd4"
        )
        ctx.padding, ctx.algorithms = padding, algorithms
        ctx.save_for_backward(images, weight, places)
        ctx.bias_type = None if bias is None else bias.dtype
        return largest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        images, weight, places = ctx.saved_tensors
        size, algorithms = (images.shape[-2], images.shape[-1]), ctx.algorithms
        return (
            *_gradients(
                ctx,
                gradient,
                weight,
                lambda: winograd.grad_input(
                    gradient,
                    weight.float(),
                    ctx.padding,
                    size,
                    places,
                    large_tiles=algorithms.grad_input == "winograd4",
                ),
                lambda: winograd.grad_weight(
                    images, gradient, ctx.padding, places, large_tiles=algorithms.grad_weight == "winograd4"
                ),
            ),
            None,
            None,
        )


def _gradients(
    ctx: Any, gradient: Tensor, weight: Tensor, of_images: Callable[[], Tensor], of_weight: Callable[[], Tensor]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Compute the gradients of input, weight and bias that are needed; a parameter's has its dtype and memory order."""
    wants_images, wants_weight, wants_bias, *_ = ctx.needs_input_grad
    return (
        of_images() if wants_images else None,
        _like(weight, of_weight()) if wants_weight else None,
        weights.grad_bias(gradient, ctx.bias_type) if wants_bias else None,
    )


def _like(weight: Tensor, gradient: Tensor) -> Tensor:
    alike = gradient.dtype == weight.dtype and gradient.stride() == weight.stride()
    return gradient if alike else torch.empty_like(weight).copy_(gradient)


def _convolution_backward(
    gradient: Tensor, images: Tensor, weight: Tensor, geometry: Geometry, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    of_images, of_weight, _ = torch.ops.aten.convolution_backward(
        gradient,
        images,
        weight.to(images.dtype),
        None,
        [geometry.stride] * 2,
        [geometry.padding] * 2,
        [1, 1],
        False,
        [0, 0],
        1,
        [*wanted, False],
    )
    return of_images, of_weight
