"""Normalization with a pool or a shortcut and an activation as one operation, against torch's own in float64."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from resnet_bench.kernels import normalization
from resnet_bench.kernels.normalization import Activation, Pool
from tests.kernels.exact import assert_same_bits

PROBLEM = normalization.problem(torch.float32)
pytestmark = pytest.mark.skipif(PROBLEM is not None, reason=f"{PROBLEM}")

ACTIVATE = {Activation.IDENTITY: lambda x: x, Activation.RELU: F.relu, Activation.SILU: F.silu}


def by_torch(maps: Tensor, norm: nn.BatchNorm2d, pool: Pool, activation: Activation) -> Tensor:
    if pool is Pool.BEFORE:
        maps = F.max_pool2d(maps, 2)
    outputs = ACTIVATE[activation](norm(maps))
    if pool is Pool.OVERLAPPING_BEHIND:
        return F.max_pool2d(outputs, 3, stride=2, padding=1)
    return F.max_pool2d(outputs, 2) if pool is Pool.BEHIND else outputs


def some_maps(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Maps far from the mean 0 and the variance 1, of numbers that bfloat16 has."""
    maps = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 2
    return maps.bfloat16().float().contiguous(memory_format=torch.channels_last)


def some_norm(channels: int, **options: object) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, **options)
    if norm.affine:
        generator = torch.Generator().manual_seed(1)
        norm.weight.data = torch.randn(channels, generator=generator)
        norm.bias.data = torch.randn(channels, generator=generator)
    return norm


def gradients_of(outputs: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    # Of a seed that no maps have: gradients that are the maps themselves cancel out.
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(77)).bfloat16()
    return list(torch.autograd.grad(outputs, inputs, weights.to(outputs.dtype)))


def compare(maps: Tensor, norm: nn.BatchNorm2d, pool: Pool, activation: Activation, dtype: torch.dtype) -> None:
    """Outputs, gradients and running statistics against those of float64."""
    found = []
    for kind in (dtype, torch.float64):
        ours = copy.deepcopy(norm).to(torch.float64 if kind is torch.float64 else torch.float32)
        images = maps.detach().to(kind).requires_grad_()
        if kind is torch.float64:
            outputs = by_torch(images, ours, pool, activation)
        else:
            assert normalization.fits(images, ours, pool)
            outputs = normalization.normalize(images, ours, pool=pool, activation=activation)
            assert outputs.dtype == dtype
            assert outputs.is_contiguous(memory_format=torch.channels_last)
        parameters = [images, *ours.parameters()]
        found.append([outputs, *gradients_of(outputs, parameters), *ours.buffers()])
    tolerance = 2e-5 if dtype is torch.float32 else 1e-2
    for one, other in zip(*found, strict=True):
        scale = other.abs().max().item() if other.numel() else 0.0
        torch.testing.assert_close(one.double(), other.double(), rtol=tolerance, atol=tolerance * max(scale, 1e-6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("pool", "activation"), list(itertools.product(Pool, Activation)))
def test_it_gives_what_torch_gives(pool: Pool, activation: Activation, dtype: torch.dtype) -> None:
    for shape in ((3, 16, 7, 6), (2, 48, 8, 8), (5, 16, 2, 3), (130, 32, 5, 5)):
        compare(some_maps(shape), some_norm(shape[1], momentum=0.3), pool, activation, dtype)


@given(
    count=st.integers(1, 9),
    channels=st.sampled_from([16, 32, 80]),
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    pool=st.sampled_from(Pool),
    activation=st.sampled_from(Activation),
    seed=st.integers(0, 9),
)
@example(count=1, channels=16, height=3, width=3, pool=Pool.BEHIND, activation=Activation.RELU, seed=0)
@settings(max_examples=60)
def test_any_shape_will_do(count, channels, height, width, pool, activation, seed) -> None:
    values = count * height * width if pool is not Pool.BEFORE else count * (height // 2) * (width // 2)
    # Of two values the normalised ones are nearly -1 and 1 whatever they are, and gradients are only rounding.
    if values > 8:
        compare(some_maps((count, channels, height, width), seed), some_norm(channels), pool, activation, torch.float32)


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}, {"eps": 1e-12}])
def test_layers_without_parameters_or_statistics(options: dict[str, object]) -> None:
    compare(some_maps((4, 16, 6, 6)), some_norm(16, **options), Pool.BEHIND, Activation.RELU, torch.float32)


def test_a_mean_far_larger_than_the_deviation_costs_no_digits() -> None:
    maps = some_maps((8, 16, 8, 8)) + 5000
    norm = some_norm(16)
    outputs = normalization.normalize(maps, norm, pool=Pool.NONE, activation=Activation.IDENTITY)
    expected = some_norm(16).double()(maps.double())
    torch.testing.assert_close(outputs.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("pool", list(Pool))
def test_nan_is_passed_on(pool: Pool) -> None:
    maps = some_maps((4, 16, 4, 4))
    maps[1, 3, 2, 2] = float("nan")
    outputs = normalization.normalize(maps, some_norm(16), pool=pool, activation=Activation.SILU)
    assert outputs[:, 3].isnan().all()
    assert not outputs[:, :3].isnan().any()


def test_a_gradient_is_passed_on_where_the_output_is_not_a_number() -> None:
    maps, shortcut = some_maps((4, 16, 4, 4)), some_maps((4, 16, 4, 4), 1).requires_grad_()
    with torch.no_grad():
        shortcut[1, 3, 2, 2] = torch.nan
    outputs = normalization.normalize_and_add(maps, some_norm(16), shortcut, None, activation=Activation.RELU)
    (ours,) = torch.autograd.grad(outputs, shortcut, torch.ones_like(outputs))
    torchs = F.relu(some_norm(16)(maps) + shortcut)
    (theirs,) = torch.autograd.grad(torchs, shortcut, torch.ones_like(torchs))
    assert ours[1, 3, 2, 2] == 1
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("pool", list(Pool))
def test_a_layer_behind_may_change_what_comes_out_in_place(pool: Pool) -> None:
    found = []
    for inplace in (False, True):
        maps = some_maps((4, 16, 6, 6)).requires_grad_()
        outputs = normalization.normalize(maps, some_norm(16), pool=pool, activation=Activation.IDENTITY)
        (gradient,) = torch.autograd.grad(F.relu(outputs, inplace=inplace).square().sum(), maps)
        found.append(gradient)
    assert torch.equal(*found)


@pytest.mark.parametrize("value", [-1e30, -200.0, -90.0, -20.0, 0.0, 20.0, 90.0, 200.0, 1e30])
def test_silu_of_large_numbers(value: float) -> None:
    norm = some_norm(16, affine=True)
    norm.weight.data.fill_(0.0)
    norm.bias.data.fill_(value)
    outputs = normalization.normalize(some_maps((2, 16, 2, 2)), norm, pool=Pool.NONE, activation=Activation.SILU)
    torch.testing.assert_close(outputs, F.silu(torch.full_like(outputs, value)), rtol=2e-6, atol=1e-7)


def test_the_number_of_threads_changes_no_bit() -> None:
    def compute() -> list[Tensor]:
        maps, norm = some_maps((37, 16, 9, 9)).requires_grad_(), some_norm(16)
        outputs = normalization.normalize(maps, norm, pool=Pool.BEFORE, activation=Activation.SILU)
        return [outputs, *gradients_of(outputs, [maps, *norm.parameters()])]

    assert_same_bits(compute)


def test_gradients_may_lie_in_any_order() -> None:
    maps = some_maps((3, 16, 4, 4)).requires_grad_()
    outputs = normalization.normalize(maps, some_norm(16), pool=Pool.NONE, activation=Activation.RELU)
    weights = torch.randn(16, 3, 4, 4).transpose(0, 1)
    (contiguous,) = torch.autograd.grad(outputs, maps, weights.contiguous(), retain_graph=True)
    (transposed,) = torch.autograd.grad(outputs, maps, weights)
    assert contiguous.equal(transposed)


@pytest.mark.parametrize(
    ("maps", "norm", "pool"),
    [
        (some_maps((2, 16, 4, 4)), some_norm(16).eval(), Pool.NONE),
        (some_maps((2, 16, 4, 4)).contiguous(), some_norm(16), Pool.NONE),
        (some_maps((2, 16, 4, 4)).double(), some_norm(16), Pool.NONE),
        (some_maps((2, 24, 4, 4)), some_norm(24), Pool.NONE),
        (some_maps((2, 32, 4, 4)), some_norm(16), Pool.NONE),
        (some_maps((1, 16, 1, 1)), some_norm(16), Pool.NONE),
        (some_maps((4, 16, 1, 4)), some_norm(16), Pool.BEHIND),
        (some_maps((2, 16, 4, 4)), some_norm(16, momentum=None), Pool.NONE),
        (some_maps((2, 16, 4, 4)), some_norm(16).double(), Pool.NONE),
        (some_maps((2, 16, 4, 4)).to("meta"), some_norm(16), Pool.NONE),
    ],
)
def test_what_it_was_not_made_for_is_left_to_torch(maps: Tensor, norm: nn.BatchNorm2d, pool: Pool) -> None:
    assert not normalization.fits(maps, norm, pool)


def sums_of(
    maps: Tensor, shortcut: Tensor, norms: list[nn.BatchNorm2d], activation: Activation, kind: str, dtype: torch.dtype
) -> list[Tensor]:
    """Outputs, gradients and running statistics of a sum; one norm is that of the maps, a second of the shortcut.

    `kind` is "fused", "torch", or "exact", which is torch in float64.
    """
    inputs = torch.float64 if kind == "exact" else dtype
    parameters = torch.float64 if kind == "exact" else torch.float32
    norm, other, *_ = [*(copy.deepcopy(layer).to(parameters) for layer in norms), None]
    x, y = (each.detach().to(inputs).requires_grad_() for each in (maps, shortcut))
    if kind == "fused":
        assert normalization.fits_sum(x, norm, y, other)
        outputs = normalization.normalize_and_add(x, norm, y, other, activation=activation)
        assert outputs.dtype == dtype
        assert outputs.is_contiguous(memory_format=torch.channels_last)
    else:
        outputs = ACTIVATE[activation](norm(x) + (y if other is None else other(y)))
    layers = nn.ModuleList(layer for layer in (norm, other) if layer is not None)
    return [outputs, *gradients_of(outputs, [x, y, *layers.parameters()]), *layers.buffers()]


def some_norms(channels: int, *, projected: bool, **options: object) -> list[nn.BatchNorm2d]:
    return [some_norm(channels, **options) for _ in range(2 if projected else 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("activation", list(Activation))
def test_a_sum_is_at_least_as_exact_as_torchs(activation: Activation, projected: bool, dtype: torch.dtype) -> None:
    for shape in ((3, 16, 7, 6), (130, 64, 1, 1), (33, 48, 2, 2), (40, 32, 9, 9)):
        arguments = (some_maps(shape), some_maps(shape, seed=5), some_norms(shape[1], projected=projected), activation)
        ours, torchs, exact = (sums_of(*arguments, kind, dtype) for kind in ("fused", "torch", "exact"))
        for one, other, true in zip(ours, torchs, exact, strict=True):
            # Running statistics of few values are equal up to the last digit, which is chance.
            rounding = 2e-7 * true.double().norm()
            assert (one.double() - true).norm() <= 1.05 * (other.double() - true).norm() + rounding


@given(
    count=st.integers(1, 200),
    channels=st.sampled_from([16, 32, 80]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    projected=st.booleans(),
    activation=st.sampled_from(Activation),
    seed=st.integers(0, 9),
)
@settings(max_examples=60)
def test_maps_of_any_shape_are_added(count, channels, height, width, projected, activation, seed) -> None:
    # Of two values the normalized ones are nearly -1 and 1 whatever they are, and gradients are only rounding.
    if count * height * width <= 8:
        return
    shape = (count, channels, height, width)
    arguments = (some_maps(shape, seed), some_maps(shape, seed + 10), some_norms(channels, projected=projected))
    ours, exact = (sums_of(*arguments, activation, kind, torch.float32) for kind in ("fused", "exact"))
    for one, true in zip(ours, exact, strict=True):
        torch.testing.assert_close(one.double(), true.double(), rtol=2e-5, atol=2e-5 * true.abs().max().item())


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}, {"eps": 1e-12}])
@pytest.mark.parametrize("projected", [False, True])
def test_sums_of_layers_without_parameters_or_statistics(options: dict[str, object], projected: bool) -> None:
    arguments = (some_maps((4, 16, 6, 6)), some_maps((4, 16, 6, 6), 1), some_norms(16, projected=projected, **options))
    ours, exact = (sums_of(*arguments, Activation.RELU, kind, torch.float32) for kind in ("fused", "exact"))
    for one, true in zip(ours, exact, strict=True):
        torch.testing.assert_close(one.double(), true.double(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("projected", [False, True])
def test_the_number_of_threads_changes_no_bit_of_a_sum(projected: bool) -> None:
    shape = (37, 16, 9, 9)
    arguments = (some_maps(shape), some_maps(shape, 1), some_norms(16, projected=projected), Activation.RELU)
    assert_same_bits(lambda: sums_of(*arguments, "fused", torch.bfloat16))


@pytest.mark.parametrize("channel_of_nan", ["maps", "shortcut"])
def test_a_sum_passes_nan_on(channel_of_nan: str) -> None:
    maps, shortcut = some_maps((4, 16, 4, 4)), some_maps((4, 16, 4, 4), 1)
    (maps if channel_of_nan == "maps" else shortcut)[1, 3, 2, 2] = float("nan")
    outputs = normalization.normalize_and_add(maps, some_norm(16), shortcut, None, activation=Activation.RELU)
    assert outputs[:, 3].isnan().sum() == (4 * 4 * 4 if channel_of_nan == "maps" else 1)
    assert not outputs[:, :3].isnan().any()


def test_a_shortcut_that_is_the_maps_has_both_gradients() -> None:
    maps, norm = some_maps((4, 16, 5, 5)).requires_grad_(), some_norm(16)
    outputs = normalization.normalize_and_add(maps, norm, maps, None, activation=Activation.IDENTITY)
    expected = copy.deepcopy(norm)(maps) + maps
    torch.testing.assert_close(gradients_of(outputs, [maps])[0], gradients_of(expected, [maps])[0])


@pytest.mark.parametrize(
    ("shortcut", "shortcut_norm"),
    [
        (some_maps((2, 16, 4, 4)).contiguous(), None),
        (some_maps((2, 16, 4, 4)).bfloat16(), None),
        (some_maps((1, 16, 4, 4)), None),
        (some_maps((2, 16, 4, 4)), some_norm(16).eval()),
        (some_maps((2, 16, 4, 4)), some_norm(32)),
    ],
)
def test_shortcuts_that_do_not_fit_are_left_to_torch(shortcut: Tensor, shortcut_norm: nn.BatchNorm2d | None) -> None:
    maps = some_maps((2, 16, 4, 4))
    assert normalization.fits_sum(maps, some_norm(16), maps, None)
    assert not normalization.fits_sum(maps, some_norm(16), shortcut, shortcut_norm)
