"""Convolutions of bfloat16 with fewer products, against torch's own in float64."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from resnet_bench.kernels import native, winograd
from tests.kernels.exact import assert_exact, computed_by

PROBLEM = winograd.problem(torch.bfloat16)
pytestmark = pytest.mark.skipif(PROBLEM is not None, reason=f"{PROBLEM}")
needs_large_tiles = pytest.mark.skipif(
    PROBLEM is None and not winograd.fits_large_tiles(32, 32, 1, torch.bfloat16), reason="no tiles of 4x4 here"
)


class Case(NamedTuple):
    """A convolution, perhaps with a pool behind it, and the gradient of what comes out."""

    images: Tensor
    weight: Tensor
    bias: Tensor | None
    padding: int
    pooled: bool
    gradient: Tensor


def by_torch(case: Case, dtype: torch.dtype) -> list[Tensor]:
    """What comes out, and the gradients of images and weight, computed in a type."""
    inputs = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (case.images, case.weight)]
    outputs = F.conv2d(*inputs, None if case.bias is None else case.bias.to(dtype), padding=case.padding)
    outputs = F.max_pool2d(outputs, 2) if case.pooled else outputs
    return [outputs.detach(), *torch.autograd.grad(outputs, inputs, case.gradient.to(dtype))]


def ours(case: Case, *, large_tiles: bool = False) -> list[Tensor]:
    images, weight, bias, padding, pooled, gradient = case
    places = None
    if pooled:
        outputs, places = winograd.convolve_and_pool(images, weight, bias, padding, large_tiles=large_tiles)
    else:
        outputs = winograd.convolve(images, weight, bias, padding, large_tiles=large_tiles)
    return [
        outputs,
        winograd.grad_input(gradient, weight, padding, images.shape[-2:], places, large_tiles=large_tiles),
        winograd.grad_weight(images, gradient, padding, places, large_tiles=large_tiles),
    ]


def random_maps(*shape: int, seed: int) -> Tensor:
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()
    return maps.contiguous(memory_format=torch.channels_last)


@st.composite
def whole_numbers(draw):
    """A convolution of such small numbers that nothing is rounded before the end."""
    count, height, width = draw(st.integers(1, 12)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    padding = draw(st.integers(0 if min(height, width) >= 3 else 1, 2))
    channels, outputs = (draw(st.sampled_from([8, 16, 24, 40, 80, 144, 272])) for _ in range(2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def numbers(*shape: int) -> Tensor:
        return torch.randint(-1, 2, shape, generator=generator).float()

    images = numbers(count, channels, height, width).bfloat16()
    if draw(st.booleans()):
        images = images.contiguous(memory_format=torch.channels_last)
    # Sums of these are divided by 4.
    weight = 4 * numbers(outputs, channels, 3, 3)
    bias = numbers(outputs) if draw(st.booleans()) else None
    out_height, out_width = height + 2 * padding - 2, width + 2 * padding - 2
    pooled = min(out_height, out_width) >= 2 and draw(st.booleans())
    if pooled:
        out_height, out_width = out_height // 2, out_width // 2
    return Case(images, weight, bias, padding, pooled, numbers(count, outputs, out_height, out_width).bfloat16())


@given(whole_numbers(), st.integers(1, 3))
@settings(max_examples=100)
def test_whole_numbers_are_convolved_exactly(case, threads) -> None:
    assert_exact(lambda: ours(case), by_torch(case, torch.float64), threads)


def random_case(size: int, padding: int, *, pooled: bool, outputs: int = 48) -> Case:
    out_size = (size + 2 * padding - 2) // (2 if pooled else 1)
    weight = torch.randn(outputs, 64, 3, 3, generator=torch.Generator().manual_seed(3)) / 24
    images, gradient = random_maps(8, 64, size, size, seed=1), random_maps(8, outputs, out_size, out_size, seed=2)
    return Case(images, weight, torch.linspace(-1, 1, outputs), padding, pooled, gradient)


@pytest.mark.parametrize(("size", "padding"), [(8, 1), (7, 1), (9, 0)])
def test_numbers_are_rounded_about_as_torch_rounds_them(size, padding) -> None:
    case = random_case(size, padding, pooled=False)
    exact, of_torch = by_torch(case, torch.float64), by_torch(case, torch.bfloat16)
    for result, theirs, expected in zip(ours(case), of_torch, exact, strict=True):
        error, of_theirs = ((numbers.double() - expected).norm() / expected.norm() for numbers in (result, theirs))
        assert 0 < error < 2.5 * of_theirs
        assert error < 0.006


@st.composite
def cases_for_large_tiles(draw):
    """Maps of all sizes around whole tiles, in either memory order; gradients are tiny or huge, and have outliers."""
    height, width = draw(st.integers(1, 13)), draw(st.integers(1, 13))
    padding = draw(st.integers(0 if min(height, width) >= 3 else 1, 2))
    # The products of more than 128 channels are summed in parts.
    channels, outputs = (8 * draw(st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 12, 20, 36])) for _ in range(2))
    count, size = draw(st.integers(1, 4)), 10.0 ** draw(st.integers(-12, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    out_height, out_width = height + 2 * padding - 2, width + 2 * padding - 2
    pooled = min(out_height, out_width) >= 2 and draw(st.booleans())
    if pooled:
        out_height, out_width = out_height // 2, out_width // 2
    images, gradient = numbers(count, channels, height, width), numbers(count, outputs, out_height, 1)
    gradient = gradient * numbers(count, outputs, 1, out_width) * size
    images[:, 0] *= draw(st.sampled_from([0, 1, 10]))
    images, gradient = images.bfloat16(), gradient.bfloat16()
    if draw(st.booleans()):
        images, gradient = (maps.contiguous(memory_format=torch.channels_last) for maps in (images, gradient))
    bias = numbers(outputs) if draw(st.booleans()) else None
    return Case(images, numbers(outputs, channels, 3, 3), bias, padding, pooled, gradient)


def through_places(case: Case) -> list[Tensor]:
    """As by torch in float64, but the gradient goes to the places that we found: of two alike another may be larger."""
    _, places = winograd.convolve_and_pool(*case[:4], large_tiles=True)
    windows = F.one_hot(places.long(), 4) * case.gradient.double()[..., None]
    height, width = (size + 2 * case.padding - 2 for size in case.images.shape[-2:])
    rows = windows.unflatten(-1, (2, 2)).permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)
    gradient = F.pad(rows, (0, width % 2, 0, height % 2))
    outputs, *_ = by_torch(case, torch.float64)
    of_whole = Case(*case[:4], pooled=False, gradient=gradient)
    return [outputs, *by_torch(of_whole, torch.float64)[1:]]


@needs_large_tiles
@given(cases_for_large_tiles(), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_large_tiles_are_near_to_float64(case, threads) -> None:
    found = computed_by(threads, lambda: ours(case, large_tiles=True))
    exact = through_places(case) if case.pooled else by_torch(case, torch.float64)
    for result, expected, largest in zip(found, exact, (0.02, 0.02, 0.04), strict=True):
        assert result.shape == expected.shape
        assert (result.double() - expected).norm() < largest * expected.norm()


@needs_large_tiles
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("size", [5, 7, 10, 14])
def test_more_large_tiles_than_are_at_hand_at_once_are_near_to_float64(size, pooled) -> None:
    # Of so many images are more tiles than one sum of a weight gradient takes, some of them with a side of 3 pixels.
    images, weight = random_maps(150, 16, size, size, seed=size), random_maps(24, 16, 3, 3, seed=1).float()
    out_size = size // 2 if pooled else size
    case = Case(images, weight, None, 1, pooled, random_maps(150, 24, out_size, out_size, seed=2))
    exact = through_places(case) if pooled else by_torch(case, torch.float64)
    for result, expected in zip(ours(case, large_tiles=True), exact, strict=True):
        assert (result.double() - expected).norm() < 0.02 * expected.norm()


@needs_large_tiles
@pytest.mark.parametrize("channels", [64, 512])
def test_large_tiles_round_convolutions_less_than_small_ones(channels) -> None:
    weight = torch.randn(64, channels, 3, 3, generator=torch.Generator().manual_seed(3)) / 24
    maps = random_maps(8, channels, 8, 8, seed=1).relu(), random_maps(8, 64, 8, 8, seed=2)
    case = Case(maps[0], weight, None, 1, pooled=False, gradient=maps[1])
    exact = by_torch(case, torch.float64)
    errors = [
        [(result.double() - expected).norm() / expected.norm() for result, expected in zip(results, exact, strict=True)]
        for results in (ours(case, large_tiles=True), ours(case))
    ]
    (output, of_images, of_weight), (of_small, of_images_of_small, _) = errors
    assert output < of_small
    assert of_images < of_images_of_small
    assert 0 < of_weight < 0.015


@needs_large_tiles
@pytest.mark.parametrize("size", [5e36, 2e37, 3e38])
def test_large_tiles_take_no_large_number_for_zero(size) -> None:
    images, weight = torch.full((1, 32, 4, 4), size).bfloat16(), torch.full((32, 32, 3, 3), 1e-3)
    outputs, exact = (
        winograd.convolve(images, weight, None, 1, large_tiles=True),
        torch.conv2d(images.double(), weight.double(), padding=1),
    )
    if size < 1e37:
        torch.testing.assert_close(outputs.double(), exact, rtol=0.02, atol=0)
    else:
        assert outputs.isnan().all()


@needs_large_tiles
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_large_tiles_pass_on_what_is_not_a_number(bad) -> None:
    images, weight = random_maps(2, 32, 8, 8, seed=1), torch.randn(32, 32, 3, 3)
    images[1, 3, 1, 1] = bad
    outputs = winograd.convolve(images, weight, None, 1, large_tiles=True)
    assert outputs[0].isfinite().all()
    assert outputs[1, :, 4:, 4:].isfinite().all()
    assert not outputs[1, :, :3, :3].isfinite().any()
    weight[5, 2, 1, 1] = bad
    of_weight = winograd.convolve(images[:1], weight, None, 1, large_tiles=True)
    assert not of_weight[:, 5].isfinite().any()
    assert of_weight[:, 6:].isfinite().all()
    assert not winograd.grad_weight(images, images, 1, large_tiles=True)[:, 3].isfinite().any()


@needs_large_tiles
def test_what_is_not_a_number_spares_large_tiles_that_do_not_come_from_it() -> None:
    # A side of 10 pixels is tiles of 4, 3 and 3: the outputs 4 to 6 come from the pixels 3 to 7.
    images, weight = random_maps(1, 16, 10, 10, seed=1), torch.randn(16, 16, 3, 3)
    images[0, 3, 1, 8] = torch.nan
    outputs = winograd.convolve(images, weight, None, 1, large_tiles=True)
    assert outputs[..., :7].isfinite().all()
    assert outputs[0, :, :4, 7:].isnan().all()
    assert outputs[0, :, 4:].isfinite().all()


@pytest.mark.parametrize("large", [False, pytest.param(True, marks=needs_large_tiles)])
def test_no_images_give_no_outputs(large) -> None:
    images, weight = torch.empty(0, 16, 8, 8, dtype=torch.bfloat16), torch.randn(24, 16, 3, 3)
    outputs = winograd.convolve(images, weight, None, 1, large_tiles=large)
    assert outputs.shape == (0, 24, 8, 8)
    assert winograd.grad_input(outputs, weight, 1, (8, 8), large_tiles=large).shape == images.shape
    assert not winograd.grad_weight(images, outputs, 1, large_tiles=large).any()


@needs_large_tiles
def test_what_large_tiles_bear_at_most_is_exact_in_sign_and_size() -> None:
    """Every product has one sign, so that a sum is as large as it can be: it does not overflow."""
    for channels in (32, 128, 160):
        images, weight = torch.ones(1, channels, 8, 8).bfloat16(), torch.ones(32, channels, 3, 3)
        outputs = winograd.convolve(images, weight, None, 1, large_tiles=True)
        exact = F.conv2d(images.double(), weight.double(), padding=1)
        assert (outputs.double() - exact).abs().max() < 0.005 * exact.max()
        # The pixels with the largest frequencies.
        signs = torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0, -1.0])
        images = (signs[:, None] * signs).bfloat16().expand(1, channels, 6, 6)
        outputs = winograd.convolve(images, weight, None, 0, large_tiles=True)
        exact = F.conv2d(images.double(), weight.double())
        assert (outputs.double() - exact).abs().max() < 0.01 * 9 * channels


@pytest.mark.parametrize("large", [False, pytest.param(True, marks=needs_large_tiles)])
def test_a_pool_takes_what_is_largest_before_it_is_rounded(large) -> None:
    case = random_case(9, 1, pooled=True, outputs=64)
    (largest, *_), (expected, *_) = ours(case, large_tiles=large), by_torch(case, torch.float64)
    assert (largest.double() - expected).norm() < 0.006 * expected.norm()
    _, places = winograd.convolve_and_pool(case.images, case.weight, case.bias, 1, large_tiles=large)
    outputs = F.conv2d(case.images.double(), case.weight.double(), case.bias.double(), padding=1)[:, :, :8, :8]
    windows = outputs.unflatten(2, (4, 2)).unflatten(4, (4, 2)).permute(0, 1, 2, 4, 3, 5).flatten(4)
    assert (windows.argmax(-1) == places).double().mean() > 0.98


def test_what_is_no_number_stays_none() -> None:
    images, weight = random_maps(2, 16, 6, 6, seed=1), torch.randn(16, 16, 3, 3)
    images[0, 3, 0, 0] = -torch.inf
    pooled, _ = winograd.convolve_and_pool(images, weight, None, 1)
    assert pooled[0, :, 1:, 1:].isfinite().all()
    assert not pooled[0, :, 0, 0].isfinite().any()
    images[0, 3, 0, 0] = 0
    images[1, 3, 2, 2] = torch.nan
    gradient = torch.ones(2, 16, 6, 6).bfloat16()
    outputs = winograd.convolve(images, weight, None, 1)
    assert outputs[0].isfinite().all()
    assert outputs[1, :, 1:4, 1:4].isnan().all()
    pooled, _ = winograd.convolve_and_pool(images, weight, None, 1)
    assert pooled[0].isfinite().all()
    assert pooled[1, :, :2, :2].isnan().all()
    assert winograd.grad_weight(images, gradient, 1)[:, 3].isnan().all()
    weight[2, 5, 1, 1] = torch.inf
    assert not winograd.grad_input(gradient, weight, 1, (6, 6))[:, 5].isfinite().any()


@pytest.mark.parametrize(
    ("pooled", "large"),
    [(False, False), (True, False), *(pytest.param(pooled, True, marks=needs_large_tiles) for pooled in (False, True))],
)
def test_the_same_bits_come_again(pooled, large) -> None:
    case = random_case(9, 1, pooled=pooled, outputs=32)
    for first, second in zip(ours(case, large_tiles=large), ours(case, large_tiles=large), strict=True):
        assert torch.equal(first, second)


def test_which_convolutions_fit(monkeypatch) -> None:
    bf16 = torch.bfloat16
    assert winograd.fits(24, 48, 1, bf16)
    assert winograd.fits_pool(24, 48, 1, bf16)
    assert not winograd.fits(3, 48, 1, bf16)
    assert not winograd.fits(24, 10, 1, bf16)
    assert not winograd.fits(24, 48, 3, bf16)
    assert not winograd.fits_large_tiles(24, 10, 1, bf16)
    assert not winograd.fits_large_tiles(32, 64, 1, torch.float32)
    monkeypatch.setattr(native, "problem", lambda *_: "there is no compiler")
    assert not winograd.fits(24, 48, 1, bf16)
    assert not winograd.fits_large_tiles(32, 64, 1, bf16)
