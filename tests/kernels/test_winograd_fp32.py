"""Convolutions of float32 maps with a quarter of the products, against torch's own in float64."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from resnet_bench.base.tuning_cache import TuningCache
from resnet_bench.kernels import fast_paths, native, winograd
from resnet_bench.kernels.convolution import ConvAlgorithms, Geometry, convolution
from resnet_bench.kernels.fast_paths import FastPaths, Shape
from resnet_bench.models.catalogue import build
from tests.kernels.exact import assert_same_bits

PROBLEM = winograd.problem(torch.float32)
pytestmark = pytest.mark.skipif(PROBLEM is not None, reason=f"{PROBLEM}")

WINOGRAD = ConvAlgorithms("winograd", "winograd", "winograd")
# Of a result's norm; with 512 channels it was 2.4e-6 and torch's own 1.1e-6.
LARGEST_ERROR = 4e-6


class Case(NamedTuple):
    """A convolution and the gradient of what comes out."""

    images: Tensor
    weight: Tensor
    bias: Tensor | None
    padding: int
    gradient: Tensor


def results(case: Case, dtype: torch.dtype, algorithms: ConvAlgorithms | None = None) -> list[Tensor]:
    """What comes out, and the gradients of images and weight, by torch or by algorithms of ours."""
    inputs = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (case.images, case.weight)]
    bias = None if case.bias is None else case.bias.to(dtype)
    if algorithms is None:
        outputs = F.conv2d(*inputs, bias, padding=case.padding)
    else:
        outputs = convolution(*inputs, bias, Geometry(3, 1, case.padding), algorithms)
    return [outputs.detach(), *torch.autograd.grad(outputs, inputs, case.gradient.to(dtype))]


@st.composite
def cases(draw):
    """Maps of all sizes around whole tiles, in either memory order."""
    height, width = draw(st.integers(1, 13)), draw(st.integers(1, 13))
    padding = draw(st.integers(0 if min(height, width) >= 3 else 1, 2))
    least = winograd.channel_multiple(torch.float32)
    channels, outputs = (least * draw(st.sampled_from([1, 2, 3, 5, 10])) for _ in range(2))
    count = draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    images = numbers(count, channels, height, width)
    gradient = numbers(count, outputs, height + 2 * padding - 2, width + 2 * padding - 2)
    if draw(st.booleans()):
        images, gradient = (maps.contiguous(memory_format=torch.channels_last) for maps in (images, gradient))
    bias = numbers(outputs) if draw(st.booleans()) else None
    return Case(images, numbers(outputs, channels, 3, 3), bias, padding, gradient)


@given(cases())
@settings(max_examples=20)
def test_results_are_near_to_those_in_float64(case) -> None:
    for ours, exact in zip(results(case, torch.float32, WINOGRAD), results(case, torch.float64), strict=True):
        assert ours.dtype == torch.float32
        assert ours.shape == exact.shape
        assert (ours.double() - exact).norm() <= LARGEST_ERROR * exact.norm()


def large_case(size: int, channels: int, outputs: int, images: int) -> Case:
    """More tiles than are at hand at once."""
    generator = torch.Generator().manual_seed(size)

    def maps(channels: int) -> Tensor:
        return torch.randn(images, channels, size, size, generator=generator).contiguous(
            memory_format=torch.channels_last
        )

    weight = torch.randn(outputs, channels, 3, 3, generator=generator)
    return Case(maps(channels), weight, torch.linspace(-1, 1, outputs), 1, maps(outputs))


@pytest.mark.parametrize(
    ("size", "channels", "outputs", "images"),
    [(4, 512, 256, 8), (4, 272, 256, 200), (4, 256, 16, 60), (7, 32, 48, 60), (16, 48, 80, 30)],
)
def test_many_channels_and_many_tiles_are_near_too(size, channels, outputs, images) -> None:
    case = large_case(size, channels, outputs, images)
    exact, of_torch = results(case, torch.float64), results(case, torch.float32)
    for ours, theirs, expected in zip(results(case, torch.float32, WINOGRAD), of_torch, exact, strict=True):
        error, of_theirs = ((numbers.double() - expected).norm() / expected.norm() for numbers in (ours, theirs))
        assert 0 < error < LARGEST_ERROR
        # A whole step in bfloat16 is 10,000 times as far.
        assert error < 20 * of_theirs


def test_the_same_bits_come_from_every_number_of_threads() -> None:
    case = large_case(9, 32, 48, 60)
    assert_same_bits(lambda: results(case, torch.float32, WINOGRAD))


def test_what_is_no_number_stays_within_its_tile_and_channel() -> None:
    images, weight = torch.randn(2, 16, 8, 8), torch.randn(16, 16, 3, 3)
    images[1, 3, 1, 1] = torch.nan
    outputs = winograd.convolve(images, weight, None, 1)
    assert outputs[0].isfinite().all()
    assert outputs[1, :, :3, :3].isnan().all()
    assert outputs[1, :, 4:, 4:].isfinite().all()
    of_weight = winograd.grad_weight(images, torch.ones(2, 16, 8, 8), 1)
    assert of_weight[:, 3].isnan().all()
    assert of_weight[:, :3].isfinite().all()


def test_no_images_give_no_outputs() -> None:
    images, weight = torch.empty(0, 16, 8, 8), torch.randn(32, 16, 3, 3)
    outputs = winograd.convolve(images, weight, None, 1)
    assert outputs.shape == (0, 32, 8, 8)
    assert winograd.grad_input(outputs, weight, 1, (8, 8)).shape == images.shape
    assert not winograd.grad_weight(images, outputs, 1).any()


def test_which_convolutions_fit(monkeypatch) -> None:
    fp32 = torch.float32
    least = winograd.channel_multiple(fp32)
    assert 16 % least == 0, "networks of 16, 32 and more channels fit on every processor"
    assert winograd.fits(32, 48, 1, fp32)
    assert winograd.fits(least, 3 * least, 1, fp32)
    assert not winograd.fits_pool(32, 48, 1, fp32)
    assert not winograd.fits(32 + least // 2, 48, 1, fp32)
    assert not winograd.fits(32, 48 + least // 2, 1, fp32)
    assert not winograd.fits(32, 48, 3, fp32)
    assert not winograd.fits(32, 48, 1, torch.float64)
    monkeypatch.setattr(native, "problem", lambda *_: "there is no compiler")
    assert not winograd.fits(32, 48, 1, fp32)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (Shape(2, 16, 4, 16, Geometry(3, 1, 1), torch.float32), True),
        (Shape(2, 16, 4, 16, Geometry(3, 2, 1), torch.float32), False),
        (Shape(2, 16, 5, 16, Geometry(5, 1, 2), torch.float32), False),
        (Shape(2, 3, 4, 16, Geometry(3, 1, 1), torch.float32), False),
    ],
)
def test_which_shapes_have_the_choice(shape, expected) -> None:
    assert [("winograd" in algorithms) for algorithms in fast_paths.candidates(shape).values()] == [expected] * 3


def test_a_network_has_nearly_the_gradient_of_a_plain_one(tmp_path, monkeypatch) -> None:
    asked: list[str] = []

    def measure(name, algorithms, shape):
        asked.append(name)
        return {algorithm: 0.1 if algorithm == "winograd" else 1.0 for algorithm in algorithms}

    monkeypatch.setattr(fast_paths, "time_pass", measure)
    torch.manual_seed(0)
    network = build("resnet9", num_classes=10)
    images, labels = torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,))
    found = []
    for context in (torch.enable_grad(), FastPaths(None, TuningCache(tmp_path / "choices.json"))):
        network.zero_grad()
        with context:
            outputs = network(images)
        nn.functional.cross_entropy(outputs, labels).backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in network.parameters()]))
    plain, ours = found
    assert set(asked) == {"forward", "grad_input", "grad_weight"}
    # A ReLU or a pool that decides otherwise, as any other rounding lets it, moves the gradient by a thousandth.
    assert 0 < torch.dist(ours, plain) < 1e-2 * plain.norm()
