"""Our algorithms for convolutions, compared with torch's and autograd on many shapes."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resnet_bench.kernels import direct, winograd
from resnet_bench.kernels.convolution import (
    FORWARD,
    ConvAlgorithms,
    Geometry,
    convolution,
    dense_convolution,
    grad_weight_default,
    grad_weight_gemm,
    is_dense,
)
from resnet_bench.kernels.gemm import PRODUCTS, products


@st.composite
def convolutions(draw, largest_map: int):
    """Images, weight, bias and geometry in float64, in either memory order."""
    geometry = Geometry(draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(0, 3)))
    smallest = max(1, geometry.kernel - 2 * geometry.padding)
    size = draw(st.integers(smallest, max(smallest, largest_map)))
    count, channels, out_channels = (draw(st.integers(1, 4)) for _ in range(3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    order = draw(st.sampled_from([torch.contiguous_format, torch.channels_last]))
    images = torch.randn(count, channels, size, size, generator=generator, dtype=torch.float64).to(memory_format=order)
    shape = (out_channels, channels, geometry.kernel, geometry.kernel)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64).to(memory_format=order)
    bias = torch.randn(out_channels, generator=generator, dtype=torch.float64) if draw(st.booleans()) else None
    return images, weight, bias, geometry


def outputs_and_gradients(way, images, weight, bias, geometry):
    inputs = [tensor.clone().requires_grad_() for tensor in (images, weight, bias) if tensor is not None]
    outputs = way(*inputs, *([None] if bias is None else []), geometry)
    towards = torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype).view(outputs.shape)
    return [outputs.detach(), *torch.autograd.grad((outputs * towards).sum(), inputs)]


def by_gemm(images, weight, bias, geometry):
    return convolution(images, weight, bias, geometry, ConvAlgorithms(grad_weight="gemm"))


def by_torch(images, weight, bias, geometry):
    return F.conv2d(images, weight, bias, geometry.stride, geometry.padding)


@given(convolutions(largest_map=2).filter(lambda c: is_dense(c[0].shape[-1], c[3])))
@settings(max_examples=80)
def test_a_product_of_whole_maps_is_the_convolution(case) -> None:
    for ours, theirs in zip(
        outputs_and_gradients(dense_convolution, *case), outputs_and_gradients(by_torch, *case), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@given(convolutions(largest_map=7))
@settings(max_examples=80)
def test_the_weights_gradient_is_a_product_with_patches(case) -> None:
    for ours, theirs in zip(
        outputs_and_gradients(by_gemm, *case),
        outputs_and_gradients(by_torch, *case),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@given(convolutions(largest_map=7).filter(lambda c: (c[3].kernel, c[3].padding) == (1, 0)))
@settings(max_examples=40, suppress_health_check=[HealthCheck.filter_too_much])
def test_a_convolution_of_one_tap_is_a_product_in_each_pass(case) -> None:
    def way(*operands):
        return convolution(*operands, ConvAlgorithms("gemm", "gemm", "gemm"))

    for ours, theirs in zip(outputs_and_gradients(way, *case), outputs_and_gradients(by_torch, *case), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "geometry", [Geometry(3, 1, 1), Geometry(3, 2, 1), Geometry(1, 1, 0), Geometry(1, 2, 0)], ids=str
)
@pytest.mark.parametrize("product", list(PRODUCTS))
def test_each_library_multiplies_to_the_same(product: str, geometry: Geometry) -> None:
    """Each pass of a convolution that is a product, of float32, against torch's convolution of float64."""
    if product not in products(torch.float32):
        pytest.skip("this torch has no oneDNN")
    generator = torch.Generator().manual_seed(0)
    size = 2 if geometry.kernel == 3 else 5
    images = torch.randn(6, 24, size, size, generator=generator).to(memory_format=torch.channels_last)
    weight = torch.randn(40, 24, geometry.kernel, geometry.kernel, generator=generator)
    bias = torch.randn(40, generator=generator)
    of_all = ConvAlgorithms(product, product, product)
    ways = [lambda *operands: dense_convolution(*operands, product)] if is_dense(size, geometry) else []
    if geometry.kernel == 1:
        ways.append(lambda *operands: convolution(*operands, of_all))
    else:
        ways.append(lambda *operands: convolution(*operands, ConvAlgorithms(grad_weight=product)))
    exact = outputs_and_gradients(by_torch, images.double(), weight.double(), bias.double(), geometry)
    for way in ways:
        for ours, theirs in zip(outputs_and_gradients(way, images, weight, bias, geometry), exact, strict=True):
            assert (ours - theirs).norm() < 1e-6 * theirs.norm()


def test_only_products_of_float32_have_another_library() -> None:
    assert [list(products(dtype)) for dtype in (torch.bfloat16, torch.float64)] == [["gemm"], ["gemm"]]


def test_on_one_pixel_only_the_centre_tap_has_a_gradient() -> None:
    images, weight = torch.randn(2, 3, 1, 1), torch.randn(4, 3, 3, 3, requires_grad=True)
    dense_convolution(images, weight, None, Geometry(3, 1, 1)).sum().backward()
    centre = torch.zeros(3, 3, dtype=torch.bool)
    centre[1, 1] = True
    assert weight.grad is not None
    assert weight.grad[:, :, ~centre].eq(0).all()
    assert weight.grad[:, :, centre].ne(0).all()


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("way", [dense_convolution, by_gemm])
def test_a_gradient_has_the_type_and_order_of_its_weight(way, order) -> None:
    images = torch.randn(2, 3, 2, 2, dtype=torch.bfloat16)
    weight = torch.randn(4, 3, 3, 3).to(memory_format=order).requires_grad_()
    bias = torch.randn(4, requires_grad=True)
    outputs = way(images, weight, bias, Geometry(3, 1, 1))
    assert outputs.dtype == torch.bfloat16
    outputs.float().sum().backward()
    for parameter in (weight, bias):
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.stride() == parameter.stride()


@pytest.mark.parametrize("size", [3, 7])
def test_in_bf16_both_ways_to_the_weights_gradient_round_alike(size) -> None:
    torch.manual_seed(0)
    images, gradient = torch.randn(8, 32, size, size), torch.randn(8, 16, size, size)
    weight, geometry = torch.randn(16, 32, 3, 3), Geometry(3, 1, 1)
    exact = grad_weight_default(images.double(), gradient.double(), weight.double(), geometry)
    for way in (grad_weight_default, grad_weight_gemm):
        found = way(images.bfloat16(), gradient.bfloat16(), weight.bfloat16(), geometry)
        assert (found.double() - exact).abs().max() < 0.01 * exact.abs().max()


@pytest.mark.parametrize(
    ("size", "geometry", "expected"),
    [
        (1, Geometry(3, 1, 1), True),
        (2, Geometry(3, 2, 1), True),
        (2, Geometry(3, 1, 1), True),
        (3, Geometry(3, 1, 1), False),
        (2, Geometry(1, 1, 0), False),
        (1, Geometry(3, 1, 0), False),
    ],
)
def test_which_convolutions_are_products_of_whole_maps(size, geometry, expected) -> None:
    assert is_dense(size, geometry) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("forward", list(FORWARD))
def test_a_layer_behind_may_work_in_place(forward: str, dtype: torch.dtype) -> None:
    """As the ReLU of VGG-16 without BatchNorm does."""
    geometries = {**dict.fromkeys(PRODUCTS, Geometry(1, 1, 0)), "direct": Geometry(3, 2, 1)}
    geometry = geometries.get(forward, Geometry(3, 1, 1))
    if forward in PRODUCTS and forward not in products(dtype):
        pytest.skip("no such library here")
    fits = winograd.fits_large_tiles if (forward, dtype) == ("winograd4", torch.bfloat16) else winograd.fits
    if forward in ("winograd", "winograd4") and not fits(32, 32, 1, dtype):
        pytest.skip("no such kernels here")
    if forward == "direct" and not direct.fits(32, 32, geometry, dtype):
        pytest.skip("no such kernels here")
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(2, 32, 8, 8, generator=generator).to(dtype)
    weight = torch.randn(32, 32, geometry.kernel, geometry.kernel, generator=generator).requires_grad_()
    gradients = []
    for inplace in (False, True):
        outputs = convolution(images, weight, None, geometry, ConvAlgorithms(forward=forward))
        gradients += torch.autograd.grad(F.relu(outputs, inplace=inplace).sum(), [weight])
    assert torch.equal(*gradients)
