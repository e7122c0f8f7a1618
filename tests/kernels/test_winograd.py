"""Convolutions with fewer products, against torch's own in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from resnet_bench.kernels import native, winograd

PROBLEM = winograd.problem()
pytestmark = pytest.mark.skipif(PROBLEM is not None, reason=f"{PROBLEM}")


def exact(images: Tensor, weight: Tensor, bias: Tensor | None, padding: int, gradient: Tensor) -> list[Tensor]:
    """The convolution and the gradients of its images and weight, in float64."""
    inputs = [images.double().requires_grad_(), weight.double().requires_grad_()]
    outputs = F.conv2d(*inputs, None if bias is None else bias.double(), padding=padding)
    return [outputs.detach(), *torch.autograd.grad(outputs, inputs, gradient.double())]


def ours(images: Tensor, weight: Tensor, bias: Tensor | None, padding: int, gradient: Tensor) -> list[Tensor]:
    return [
        winograd.convolve(images, weight, bias, padding),
        winograd.gradient_of_images(gradient, weight, padding),
        winograd.gradient_of_weight(images, gradient, padding),
    ]


def of_torch(images: Tensor, weight: Tensor, bias: Tensor | None, padding: int, gradient: Tensor) -> list[Tensor]:
    inputs = [images.clone().requires_grad_(), weight.bfloat16().requires_grad_()]
    outputs = F.conv2d(*inputs, None if bias is None else bias.bfloat16(), padding=padding)
    return [outputs.detach(), *torch.autograd.grad(outputs, inputs, gradient)]


def random_maps(*shape: int, seed: int) -> Tensor:
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()
    return maps.contiguous(memory_format=torch.channels_last)


@st.composite
def whole_numbers(draw):
    """A convolution of such small numbers that nothing is rounded before the end."""
    count, height, width = draw(st.integers(1, 12)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    padding = draw(st.integers(0 if min(height, width) >= 3 else 1, 2))
    channels, outputs = draw(st.sampled_from([16, 32, 80, 272])), draw(st.sampled_from([16, 48, 80, 144]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def numbers(*shape: int) -> Tensor:
        return torch.randint(-1, 2, shape, generator=generator).float()

    images = numbers(count, channels, height, width).bfloat16()
    if draw(st.booleans()):
        images = images.contiguous(memory_format=torch.channels_last)
    # Sums of these are divided by 4.
    weight = 4 * numbers(outputs, channels, 3, 3)
    bias = numbers(outputs) if draw(st.booleans()) else None
    gradient = numbers(count, outputs, height + 2 * padding - 2, width + 2 * padding - 2).bfloat16()
    return images, weight, bias, padding, gradient


@given(whole_numbers(), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_whole_numbers_are_convolved_exactly(case, threads) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = ours(*case)
    finally:
        torch.set_num_threads(before)
    for result, expected in zip(found, exact(*case), strict=True):
        assert torch.equal(result, expected.to(result.dtype))


@pytest.mark.parametrize("channels", [8, 24, 40])
def test_channels_need_not_fill_a_vector(channels) -> None:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(-1, 2, (3, channels, 7, 7), generator=generator).bfloat16()
    weight = 4.0 * torch.randint(-1, 2, (32, channels, 3, 3), generator=generator)
    gradient = torch.randint(-1, 2, (3, 32, 7, 7), generator=generator).bfloat16()
    outputs, _, of_weight = exact(images, weight, None, 1, gradient)
    assert torch.equal(winograd.convolve(images, weight, None, 1), outputs.bfloat16())
    assert torch.equal(winograd.gradient_of_weight(images, gradient, 1), of_weight.float())


@pytest.mark.parametrize(("size", "padding"), [(8, 1), (7, 1), (9, 0)])
def test_numbers_are_rounded_about_as_torch_rounds_them(size, padding) -> None:
    out_size = size + 2 * padding - 2
    images, gradient = random_maps(8, 64, size, size, seed=1), random_maps(8, 48, out_size, out_size, seed=2)
    weight = torch.randn(48, 64, 3, 3, generator=torch.Generator().manual_seed(3)) / 24
    case = (images, weight, torch.linspace(-1, 1, 48), padding, gradient)
    for result, theirs, expected in zip(ours(*case), of_torch(*case), exact(*case), strict=True):
        error, of_theirs = ((numbers.double() - expected).norm() / expected.norm() for numbers in (result, theirs))
        assert 0 < error < 2.5 * of_theirs
        assert error < 0.006


def test_what_is_no_number_stays_none() -> None:
    images, weight = random_maps(2, 16, 6, 6, seed=1), torch.randn(16, 16, 3, 3)
    images[1, 3, 2, 2] = torch.nan
    gradient = torch.ones(2, 16, 6, 6).bfloat16()
    outputs = winograd.convolve(images, weight, None, 1)
    assert outputs[0].isfinite().all()
    assert outputs[1, :, 1:4, 1:4].isnan().all()
    assert winograd.gradient_of_weight(images, gradient, 1)[:, 3].isnan().all()
    weight[2, 5, 1, 1] = torch.inf
    assert not winograd.gradient_of_images(gradient, weight, 1)[:, 5].isfinite().any()


def test_the_same_bits_come_again() -> None:
    case = random_maps(30, 32, 9, 9, seed=1), torch.randn(48, 32, 3, 3), None, 1, random_maps(30, 48, 9, 9, seed=2)
    for first, second in zip(ours(*case), ours(*case), strict=True):
        assert torch.equal(first, second)


def test_which_convolutions_fit(monkeypatch) -> None:
    assert winograd.fits(24, 48, 1)
    assert not winograd.fits(3, 48, 1)
    assert not winograd.fits(24, 40, 1)
    assert not winograd.fits(24, 48, 3)
    monkeypatch.setattr(native, "problem", lambda *_: "there is no compiler")
    assert not winograd.fits(24, 48, 1)
