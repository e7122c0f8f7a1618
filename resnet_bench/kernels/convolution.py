"""ConvAlgorithms to compute convolutions on a CPU other than torch's own, equal to it up to rounding.

oneDNN's kernels are made for large maps. A map of at most 2×2 pixels makes a padded convolution a matrix product of
whole maps with no more products than the convolution has; of the taps of its kernel only those that touch a pixel are
used: at 1×1 the centre alone, a ninth of the work. The gradient of the weights is one product of the output's gradient
with the input's patches (im2col). And 3×3 taps need fewer products where tiles of maps are transformed (Winograd).
Which of these is faster than the library depends on the shape and the processor: that has to be measured.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from resnet_bench.kernels import winograd

MAX_DENSE_PIXELS = 4
"""Above 2×2 pixels a product of whole maps multiplies more than the convolution does."""


class Geometry(NamedTuple):
    """What relates a convolution's input to its output, the same for rows and columns."""

    kernel: int
    stride: int
    padding: int

    def output_size(self, size: int) -> int:
        """Rows (or columns) of the output for an input of `size` rows."""
        return (size + 2 * self.padding - self.kernel) // self.stride + 1


def is_square(images: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> bool:
    """Whether rows and columns are treated alike."""
    return (
        images.shape[-1] == images.shape[-2]
        and weight.shape[-1] == weight.shape[-2]
        and stride[0] == stride[1]
        and padding[0] == padding[1]
    )


# --- whole maps ------------------------------------------------------------------------------------


def is_dense(size: int, geometry: Geometry) -> bool:
    """Whether a convolution of `size` × `size` pixels costs less as a product of whole maps."""
    return geometry.kernel > 1 and size * size <= MAX_DENSE_PIXELS and geometry.output_size(size) >= 1


def dense_convolution(images: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """A convolution as one matrix product, from all pixels of a small map to all pixels of its output.

    Args:
        images: Shape `[N, C, S, S]`; the product is of their type.
        weight: Shape `[O, C, K, K]`; its gradient has its type and memory order. Taps that touch no pixel
            get a gradient of zero, as they do from a convolution.
        bias: Shape `[O]`.
        geometry: Kernel size, stride and padding.

    Returns:
        Shape `[N, O, T, T]`, in channels-last order.
    """
    count, _, size, _ = images.shape
    out_size, out_channels = geometry.output_size(size), weight.shape[0]
    matrix = cast(Tensor, _DenseWeight.apply(weight, size, geometry, images.dtype))
    flat = F.linear(images.permute(0, 2, 3, 1).reshape(count, -1), matrix)
    if bias is not None:
        flat = flat + bias.to(flat.dtype).repeat(out_size * out_size)
    return flat.view(count, out_size, out_size, out_channels).permute(0, 3, 1, 2)


def _taps(size: int, geometry: Geometry) -> list[list[tuple[int, int] | None]]:
    """For each pixel of the output and each of the input, the kernel's tap between them, if it has one."""
    out_size, (kernel, stride, padding) = geometry.output_size(size), geometry
    table: list[list[tuple[int, int] | None]] = []
    for out_pixel in range(out_size * out_size):
        out_row, out_column = divmod(out_pixel, out_size)
        corner_row, corner_column = out_row * stride - padding, out_column * stride - padding
        taps = [(pixel // size - corner_row, pixel % size - corner_column) for pixel in range(size * size)]
        table.append([tap if min(tap) >= 0 and max(tap) < kernel else None for tap in taps])
    return table


class _DenseWeight(torch.autograd.Function):
    """The matrix `[T * T * O, S * S * C]` that does to flattened maps what the kernel does to maps."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, size: int, geometry: Geometry, dtype: torch.dtype) -> Tensor:
        ctx.size, ctx.geometry = size, geometry
        ctx.save_for_backward(weight)
        taps = _taps(size, geometry)
        channels_out, channels_in = weight.shape[:2]
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


# --- the weights' gradient -------------------------------------------------------------------------


def grad_weight_default(images: Tensor, gradient: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The gradient of a convolution's weights, by torch's own kernel; see :func:`weight_gradient_by_product`."""
    return _convolution_backward(gradient, images, weight, geometry, (False, True))[1]


def grad_weight_gemm(images: Tensor, gradient: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The gradient of a convolution's weights, as the product of the output's gradient and the input's patches.

    Args:
        images: The input, shape `[N, C, S, S]`.
        gradient: The loss's gradient by the output, shape `[N, O, T, T]`.
        weight: Shape `[O, C, K, K]`.
        geometry: Kernel size, stride and padding.

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
    return (by_pixel.mT @ patches).view(out_channels, kernel, kernel, channels).permute(0, 3, 1, 2)


# --- passes by other algorithms -------------------------------------------------------------------


class ConvAlgorithms(NamedTuple):
    """How each pass of a convolution is computed: ``library`` is torch's own kernel.

    Attributes:
        forward: ``library`` or ``winograd``.
        images: The gradient of the images: ``library`` or ``winograd``.
        weight: The gradient of the weight: ``library``, ``product`` or ``winograd``.
    """

    forward: str = "library"
    images: str = "library"
    weight: str = "library"


def forward_by_library(images: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """A convolution by torch's own kernel, in the type of the images."""
    in_bias = None if bias is None else bias.to(images.dtype)
    return torch.conv2d(images, weight.to(images.dtype), in_bias, geometry.stride, geometry.padding)


def forward_by_winograd(images: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The same, of bfloat16 images that :func:`winograd.fits`."""
    return winograd.convolve(images, weight.float(), None if bias is None else bias.float(), geometry.padding)


def grad_input_default(images: Tensor, gradient: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The gradient of a convolution's images, by torch's own kernel."""
    return _convolution_backward(gradient, images, weight, geometry, (True, False))[0]


def images_gradient_by_winograd(images: Tensor, gradient: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The same, of a convolution that :func:`winograd.fits`."""
    size = (images.shape[-2], images.shape[-1])
    return winograd.gradient_of_images(gradient, weight.float(), geometry.padding, size)


def weight_gradient_by_winograd(
    images: Tensor,
    gradient: Tensor,
    weight: Tensor,  # noqa: ARG001 - all ways are called alike
    geometry: Geometry,
) -> Tensor:
    """The gradient of a convolution's weights; see :func:`weight_gradient_by_product`."""
    return winograd.gradient_of_weight(images, gradient, geometry.padding)


FORWARD: Mapping[str, Callable[[Tensor, Tensor, Tensor | None, Geometry], Tensor]] = {
    "library": forward_by_library,
    "winograd": forward_by_winograd,
}
IMAGES_GRADIENT: Mapping[str, Callable[[Tensor, Tensor, Tensor, Geometry], Tensor]] = {
    "library": grad_input_default,
    "winograd": images_gradient_by_winograd,
}
WEIGHT_GRADIENT: Mapping[str, Callable[[Tensor, Tensor, Tensor, Geometry], Tensor]] = {
    "library": grad_weight_default,
    "product": grad_weight_gemm,
    "winograd": weight_gradient_by_winograd,
}


def convolution(
    images: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, ways: ConvAlgorithms
) -> Tensor:
    """A convolution whose passes are computed in chosen ways.

    Args:
        images: Shape `[N, C, S, S]`; the convolution computes in their type.
        weight: Shape `[O, C, K, K]`; its gradient has its type and memory order.
        bias: Shape `[O]`.
        geometry: Kernel size, stride and padding.
        ways: Of each pass.

    Returns:
        Shape `[N, O, T, T]`.
    """
    return cast(Tensor, _Convolution.apply(images, weight, bias, geometry, ways))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, ways: ConvAlgorithms
    ) -> Tensor:
        ctx.geometry, ctx.ways = geometry, ways
        ctx.save_for_backward(images, weight)
        ctx.bias_type = None if bias is None else bias.dtype
        return FORWARD[ways.forward](images, weight, bias, geometry)

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
                lambda: IMAGES_GRADIENT[ctx.ways.images](*operands),
                lambda: WEIGHT_GRADIENT[ctx.ways.weight](*operands),
            ),
            None,
            None,
        )


def pooled_convolution(images: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """A convolution that :func:`winograd.fits`, and a 2×2 max pool behind it, as one operation.

    Args:
        images: Shape `[N, C, S, S]`, bfloat16.
        weight: Shape `[O, C, 3, 3]`; its gradient has its type and memory order.
        bias: Shape `[O]`.
        padding: Rows and columns of zeros around the images.

    Returns:
        Shape `[N, O, T, T]`, T half the size of the convolution's output, rounded down.
    """
    return cast(Tensor, _PooledConvolution.apply(images, weight, bias, padding))


class _PooledConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        in_bias = None if bias is None else bias.float()
        largest, places = winograd.convolve_and_pool(images, weight.float(), in_bias, padding)
        ctx.padding = padding
        ctx.save_for_backward(images, weight, places)
        ctx.bias_type = None if bias is None else bias.dtype
        return largest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        images, weight, places = ctx.saved_tensors
        size = (images.shape[-2], images.shape[-1])
        return (
            *_gradients(
                ctx,
                gradient,
                weight,
                lambda: winograd.gradient_of_images(gradient, weight.float(), ctx.padding, size, places),
                lambda: winograd.gradient_of_weight(images, gradient, ctx.padding, places),
            ),
            None,
        )


def _gradients(
    ctx: Any, gradient: Tensor, weight: Tensor, of_images: Callable[[], Tensor], of_weight: Callable[[], Tensor]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of images, weight and bias that are wanted; a parameter's has its type and memory order."""
    wants_images, wants_weight, wants_bias, *_ = ctx.needs_input_grad
    return (
        of_images() if wants_images else None,
        torch.empty_like(weight).copy_(of_weight()) if wants_weight else None,
        gradient.sum((0, 2, 3), dtype=ctx.bias_type) if wants_bias else None,
    )


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
