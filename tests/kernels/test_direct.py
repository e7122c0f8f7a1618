"""Convolutions with a stride, against torch's own in float64."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from resnet_bench.kernels import direct, fast_paths
from resnet_bench.kernels.convolution import ConvAlgorithms, Geometry, convolution
from resnet_bench.kernels.fast_paths import Shape
from tests.kernels.exact import assert_exact

PASSES = ("forward", "grad_input", "grad_weight")
TYPES = [
    pytest.param(
        dtype,
        id=name,
        marks=pytest.mark.skipif(
            not direct.fits(32, 64, Geometry(3, 2, 1), dtype), reason=f"no kernels of {name} here"
        ),
    )
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32))
]
each_type = pytest.mark.parametrize("dtype", TYPES)


class Case(NamedTuple):
    """A convolution, and the gradient of what comes out."""

    images: Tensor
    weight: Tensor
    bias: Tensor | None
    geometry: Geometry
    gradient: Tensor


def by_torch(case: Case, dtype: torch.dtype) -> list[Tensor]:
    """What comes out, and the gradients of images and weight, computed in a type."""
    inputs = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (case.images, case.weight)]
    bias = None if case.bias is None else case.bias.to(dtype)
    outputs = F.conv2d(*inputs, bias, case.geometry.stride, case.geometry.padding)
    return [outputs.detach(), *torch.autograd.grad(outputs, inputs, case.gradient.to(dtype))]


def ours(case: Case) -> list[Tensor]:
    images, weight, bias, geometry, gradient = case
    return [
        direct.convolve(images, weight, bias, geometry),
        direct.grad_input(gradient, weight, geometry, (images.shape[-2], images.shape[-1])),
        direct.grad_weight(images, gradient, geometry),
    ]


@st.composite
def whole_numbers(draw):
    """A convolution of such small numbers that nothing is rounded before the end."""
    kernel = draw(st.integers(2, 7))
    geometry = Geometry(kernel, draw(st.integers(2, min(kernel, 4))), draw(st.integers(0, kernel - 1)))
    smallest = max(1, kernel - 2 * geometry.padding)
    count, height, width = draw(st.integers(1, 30)), *(smallest + draw(st.integers(0, 9)) for _ in range(2))
    # An odd number of channels needs an even stride.
    channels = draw(st.sampled_from([2, 16, 34, 64] if geometry.stride % 2 else [1, 2, 3, 16, 17, 64]))
    outputs = draw(st.sampled_from([2, 16, 18, 64, 66, 144]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def numbers(*shape: int) -> Tensor:
        return torch.randint(-1, 2, shape, generator=generator).float()

    images = numbers(count, channels, height, width)
    weight = numbers(outputs, channels, kernel, kernel)
    if draw(st.booleans()):
        images, weight = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (images, weight))
    bias = numbers(outputs) if draw(st.booleans()) else None
    size = (geometry.output_size(height), geometry.output_size(width))
    return Case(images, weight, bias, geometry, numbers(count, outputs, *size))


def of_type(case: Case, dtype: torch.dtype) -> Case:
    images, weight, bias, geometry, gradient = case
    return Case(images.to(dtype), weight, bias, geometry, gradient.to(dtype))


@each_type
@given(whole_numbers(), st.integers(1, 3))
@settings(max_examples=100)
def test_whole_numbers_are_convolved_exactly(dtype, case, threads) -> None:
    case = of_type(case, dtype)
    assert_exact(lambda: ours(case), by_torch(case, torch.float64), threads)


@each_type
@pytest.mark.parametrize(
    ("size", "geometry"), [(8, Geometry(3, 2, 1)), (15, Geometry(7, 2, 3)), (9, Geometry(3, 3, 0))]
)
def test_numbers_are_rounded_as_torch_rounds_them(size, geometry, dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    images, weight = torch.randn(8, 64, size, size, generator=generator), torch.randn(48, 64, *2 * [geometry.kernel])
    gradient = torch.randn(8, 48, *2 * [geometry.output_size(size)], generator=generator)
    case = of_type(Case(images, weight, torch.linspace(-1, 1, 48), geometry, gradient), dtype)
    exact, of_torch = by_torch(case, torch.float64), by_torch(case, dtype)
    for result, theirs, expected in zip(ours(case), of_torch, exact, strict=True):
        error, of_theirs = ((numbers.double() - expected).norm() / expected.norm() for numbers in (result, theirs))
        # A float32 sum has an error of its order; bfloat16 results are rounded much more coarsely than sums are.
        assert error <= (1.02 * of_theirs if dtype == torch.bfloat16 else 1e-6)


@each_type
def test_images_without_a_number_spoil_none_but_their_own_outputs(dtype) -> None:
    images, weight = torch.randn(40, 16, 4, 4).to(dtype), torch.randn(32, 16, 3, 3)
    geometry = Geometry(3, 2, 1)
    expected = direct.convolve(images, weight, None, geometry)
    images[7] = torch.nan
    found = direct.convolve(images, weight, None, geometry)
    assert found[7].isnan().all()
    others = [image for image in range(40) if image != 7]
    assert torch.equal(found[others], expected[others])


@each_type
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_a_gradient_has_the_type_and_order_of_its_weight(order, dtype) -> None:
    images = torch.randn(2, 4, 7, 7, dtype=dtype, requires_grad=True)
    weight = torch.randn(6, 4, 3, 3).to(memory_format=order).requires_grad_()
    bias = torch.randn(6, requires_grad=True)
    outputs = convolution(images, weight, bias, Geometry(3, 2, 1), ConvAlgorithms("direct", "direct", "direct"))
    outputs.float().square().sum().backward()
    for tensor in (images, weight, bias):
        assert tensor.grad is not None
        assert tensor.grad.dtype == tensor.dtype
    assert weight.grad is not None
    assert weight.grad.stride() == weight.stride()


@each_type
@pytest.mark.parametrize("name", PASSES)
def test_it_is_measured_against_the_default_where_there_is_a_stride(name, dtype) -> None:
    with_stride, without = (Shape(2, 16, 20, 16, Geometry(3, stride, 1), dtype) for stride in (2, 1))
    assert list(fast_paths.candidates(with_stride)[name]) == ["default", "direct"]
    assert "direct" not in fast_paths.candidates(without)[name]
    times = fast_paths.time_pass(name, ["default", "direct"], with_stride)
    assert all(taken > 0 for taken in times.values())


@pytest.mark.parametrize(
    ("channels", "outputs", "geometry", "dtype"),
    [
        (32, 64, Geometry(3, 2, 1), torch.float64),
        (32, 64, Geometry(3, 1, 1), torch.float32),
        (32, 64, Geometry(3, 1, 1), torch.bfloat16),
        (32, 64, Geometry(1, 2, 0), torch.bfloat16),
        (32, 64, Geometry(3, 2, 3), torch.bfloat16),
        (32, 63, Geometry(3, 2, 1), torch.bfloat16),
        (31, 64, Geometry(3, 3, 1), torch.bfloat16),
    ],
)
def test_others_are_left_to_torch(channels, outputs, geometry, dtype) -> None:
    assert not direct.fits(channels, outputs, geometry, dtype)
