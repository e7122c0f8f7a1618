"""What weights and biases need beside matrix products, against torch's operations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_bench.kernels import weights
from resnet_bench.kernels.convolution import Geometry, dense_convolution
from tests.kernels.exact import assert_same_bits

pytestmark = pytest.mark.skipif(
    not weights.fits(torch.zeros(1), torch.bfloat16), reason="no C compiler here makes these kernels"
)
TYPES = (torch.bfloat16, torch.float32)


@st.composite
def tables(draw):
    """A tap, or none, for each pair of some output pixels and some input pixels, of a kernel of 3x3."""
    tap = st.none() | st.tuples(st.integers(0, 2), st.integers(0, 2))
    pixels = draw(st.integers(1, 4))
    return draw(st.lists(st.lists(tap, min_size=pixels, max_size=pixels), min_size=1, max_size=4))


def matrix_by_torch(weight: torch.Tensor, taps) -> torch.Tensor:
    nothing = 0 * weight[:, :, 0, 0]
    rows = [[nothing if tap is None else weight[:, :, tap[0], tap[1]] for tap in row] for row in taps]
    return torch.stack([torch.stack(row, 1) for row in rows])


@given(tables(), st.sampled_from(TYPES), st.integers(1, 5), st.integers(1, 40))
@settings(max_examples=60)
def test_the_matrix_of_a_small_map_and_its_gradient(taps, dtype, outputs, channels) -> None:
    weight = torch.randn(outputs, channels, 3, 3, requires_grad=True)
    expected = matrix_by_torch(weight, taps)
    assert torch.equal(weights.dense_matrix(weight.detach(), taps, dtype), expected.to(dtype))
    gradient = torch.randn(expected.shape).to(dtype)
    (wanted,) = torch.autograd.grad(expected, [weight], gradient.float())
    found = weights.grad_weight_of_dense(gradient, taps, weight.detach())
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_convolution_of_small_maps_takes_these_kernels(dtype, monkeypatch) -> None:
    used = []
    collect = weights.grad_weight_of_dense
    monkeypatch.setattr(weights, "grad_weight_of_dense", lambda *operands: used.append(1) or collect(*operands))
    images, weight = torch.randn(8, 16, 2, 2).to(dtype), torch.randn(4, 16, 3, 3, requires_grad=True)
    exact = weight.detach().double().requires_grad_()
    dense_convolution(images, weight, None, Geometry(3, 1, 1)).float().square().sum().backward()
    dense_convolution(images.double(), exact, None, Geometry(3, 1, 1)).square().sum().backward()
    assert used
    assert weight.grad is not None
    assert exact.grad is not None
    error = (weight.grad - exact.grad).norm() / exact.grad.norm()
    assert error < (0.01 if dtype == torch.bfloat16 else 1e-6)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(3, 5, 7, 7), (1, 1, 1, 1), (40, 24, 9, 9)])
def test_the_gradient_of_biases(shape, dtype) -> None:
    gradient = torch.randn(shape).to(dtype).to(memory_format=torch.channels_last)
    exact = gradient.double().sum((0, 2, 3))
    found = weights.grad_bias(gradient, torch.float32)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)
    assert_same_bits(lambda: [weights.grad_bias(gradient, torch.float32)])


def test_what_is_not_for_these_kernels_takes_torchs_operations() -> None:
    gradient = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    assert weights.grad_bias(gradient, torch.float64).dtype == torch.float64
    assert torch.equal(weights.grad_bias(gradient, torch.float64), gradient.sum((0, 2, 3)))
    assert not weights.fits(torch.zeros(2, dtype=torch.float64), torch.float32)
    assert not weights.fits(torch.zeros(2, 2).mT[:1], torch.float16)
