"""Muon for filters, compared with torch's for matrices, and SGD beside it."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from resnet_bench.recipe.schema import parse
from resnet_bench.recipe.settings import MuonConfig
from resnet_bench.training.muon import COEFFICIENTS, Muon, orthogonalized
from resnet_bench.training.optimizers import build_optimizer
from tests.stub_cuda import needs_computing_gpu


def muon_recipe(**changes: Any) -> MuonConfig:
    sgd = {"lr": 0.05, "momentum": 0.85, "nesterov": True, "weight_decay": 0.01}
    table = {"name": "muon", "lr": 0.24, "momentum": 0.6, "nesterov": True, "rest": sgd, **changes}
    return parse(MuonConfig, table, where="test")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3, padding=1, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


@pytest.mark.parametrize("shape", [(8, 27), (27, 8), (16, 16)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_singular_values_come_near_one(shape: tuple[int, int], scale: float) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalized(scale * matrix, steps=5).float())
    assert values.min() > 0.5
    assert values.max() < 1.4
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    assert (
        torch.nn.functional.cosine_similarity(orthogonalized(matrix, 5).float().flatten(), (u @ v).flatten(), 0) > 0.95
    )


@pytest.mark.parametrize("shape", [(48, 27), (64, 576), (2, 96, 864)])
def test_widened_products_are_rounded_as_those_of_bfloat16(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    plain, widened = (orthogonalized(matrices, 1, widened=widened) for widened in (False, True))
    assert widened.dtype == plain.dtype == torch.bfloat16
    # Sums in another order are rounded otherwise only where they lie halfway between two numbers.
    assert (plain != widened).float().mean() < 0.1
    torch.testing.assert_close(widened, plain, rtol=2**-7, atol=1e-3)


@pytest.mark.parametrize("shape", [(48, 27), (64, 576), (2, 96, 864)])
def test_widened_products_are_as_far_from_exact_ones_as_those_of_bfloat16(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    a, b, c = COEFFICIENTS
    exact = matrices.double() / matrices.double().norm(dim=(-2, -1), keepdim=True)
    for _ in range(5):
        gram = exact @ exact.mT
        exact = a * exact + (b * gram + c * gram @ gram) @ exact
    plain, widened = (
        float((orthogonalized(matrices, 5, widened=widened) - exact).norm() / exact.norm()) for widened in (False, True)
    )
    assert widened == pytest.approx(plain, rel=0.1)


@pytest.mark.parametrize("has_bf16", [True, False])
def test_products_are_widened_where_the_processor_has_no_bfloat16(
    has_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiplied = []

    def multiply_add(*matrices: torch.Tensor, beta: float, alpha: float = 1.0) -> torch.Tensor:
        multiplied.append(matrices[1].dtype)
        return beta * matrices[0] + alpha * (matrices[1] @ matrices[2])

    monkeypatch.setattr("resnet_bench.training.optimizers.has_bf16", lambda _: has_bf16)
    monkeypatch.setattr(torch, "addmm", multiply_add)
    net = network()
    optimizer = build_optimizer(muon_recipe(), net, fused=True)
    net(torch.randn(6, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    assert set(multiplied) == {torch.bfloat16 if has_bf16 else torch.float32}


@pytest.mark.parametrize("nesterov", [True, False])
def test_a_filter_is_updated_as_torchs_muon_updates_its_matrix(nesterov: bool) -> None:
    torch.manual_seed(0)
    filters = nn.Parameter(torch.randn(8, 3, 3, 3))
    matrix = nn.Parameter(filters.detach().reshape(8, 27).clone())
    settings = {"lr": 0.1, "momentum": 0.6, "nesterov": nesterov, "weight_decay": 0.2}
    ours = Muon([{"params": [filters], "newton_schulz_steps": 3, "normalize": False, **settings}], fused=True)
    for _ in range(3):
        gradient = torch.randn(8, 27)
        # torch's buffer is a mean of gradients and ours a sum, so that its direction is rebuilt step by step.
        ours_before = ours.state[filters].get("momentum_buffer", torch.zeros(8, 3, 3, 3)).reshape(8, 27)
        momentum = 0.6 * ours_before + gradient
        direction = gradient + 0.6 * momentum if nesterov else momentum
        reference = torch.optim.Muon(
            [matrix],
            lr=0.1,
            momentum=0.0,
            nesterov=False,
            weight_decay=0.2,
            ns_steps=3,
            # Leaves the rate of a matrix as it is that has more columns than rows.
            adjust_lr_fn="original",
        )
        # Without momentum torch's direction is the gradient itself.
        matrix.grad = direction
        reference.step()

        filters.grad = gradient.reshape(8, 3, 3, 3)
        ours.step()
        torch.testing.assert_close(filters.detach().reshape(8, 27), matrix.detach(), rtol=1e-2, atol=1e-3)


def test_filters_keep_the_norm_that_the_recipe_says() -> None:
    filters = nn.Parameter(100 * torch.randn(16, 8, 3, 3))
    group = {"params": [filters], "newton_schulz_steps": 3, "normalize": True}
    optimizer = Muon([{**group, "lr": 1e-4, "momentum": 0.6, "nesterov": True, "weight_decay": 0.0}], fused=True)
    filters.grad = torch.randn_like(filters)
    optimizer.step()
    assert filters.norm().item() == pytest.approx(4.0, rel=1e-3)


def test_each_parameter_is_in_the_group_of_its_kind() -> None:
    head = {"lr": 0.7, "momentum": 0.5, "nesterov": False, "weight_decay": 0.0}
    net = network()
    net[1].weight.requires_grad = False
    optimizer = build_optimizer(muon_recipe(head=head), net, fused=True)
    filters, heads, rest = optimizer.param_groups
    assert [id(p) for p in filters["params"]] == [id(net[0].weight), id(net[3].weight)]
    assert [id(p) for p in heads["params"]] == [id(net[6].weight)]
    assert [id(p) for p in rest["params"]] == [id(net[0].bias), id(net[1].bias), id(net[6].bias)]
    assert (filters["lr"], heads["lr"], rest["lr"]) == (0.24, 0.7, 0.05)


def test_what_is_no_filter_is_updated_as_by_torchs_sgd() -> None:
    ours, reference = network(), network()
    optimizer = build_optimizer(muon_recipe(), ours, fused=True)
    others = [parameter for parameter in reference.parameters() if parameter.ndim != 4]
    sgd = torch.optim.SGD(others, lr=0.05, momentum=0.85, nesterov=True, weight_decay=0.01)
    images = torch.randn(6, 3, 8, 8)
    for _ in range(3):
        ours(images).square().sum().backward()
        for parameter, other in zip(ours.parameters(), reference.parameters(), strict=True):
            assert parameter.grad is not None
            other.grad = parameter.grad.clone()
        optimizer.step()
        sgd.step()
        optimizer.zero_grad()
    for parameter, other in zip(ours.parameters(), reference.parameters(), strict=True):
        if parameter.ndim != 4:
            torch.testing.assert_close(parameter, other)
        else:
            assert not torch.equal(parameter, other)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("nesterov", [True, False])
def test_filters_updated_together_are_updated_as_one_by_one(normalize: bool, nesterov: bool) -> None:
    """But for the rounding of bfloat16; a learning rate may be a tensor, and a filter may have no gradient."""
    torch.manual_seed(0)
    shapes = [(8, 3, 3, 3), (8, 8, 3, 3), (16, 8, 1, 1), (8, 8, 3, 3), (2, 4, 3, 3)]
    singly = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    together = [nn.Parameter(filters.detach().to(memory_format=torch.channels_last)) for filters in singly]
    group = {"momentum": 0.6, "nesterov": nesterov, "weight_decay": 0.02, "newton_schulz_steps": 3}
    rate = torch.tensor(0.1)
    one_by_one = Muon([{"params": singly, "lr": 0.1, "normalize": normalize, **group}], fused=True)
    batched = Muon([{"params": together, "lr": 0.1, "normalize": normalize, **group}], fused=True, together=True)
    batched.param_groups[0]["lr"] = rate
    for step in range(3):
        for filters, other in zip(singly[step:], together[step:], strict=True):
            filters.grad = torch.randn_like(filters)
            other.grad = filters.grad.to(memory_format=torch.channels_last)
        one_by_one.step()
        batched.step()
        assert all(filters.grad is None for filters in together)
    for filters, other in zip(singly, together, strict=True):
        torch.testing.assert_close(other, filters, rtol=1e-2, atol=3e-3)
        torch.testing.assert_close(
            batched.state[other]["momentum_buffer"], one_by_one.state[filters]["momentum_buffer"]
        )


@pytest.mark.gpu
@needs_computing_gpu
def test_on_a_gpu_filters_are_updated_together_and_as_on_the_cpu() -> None:
    on_cpu, on_gpu = network(), network().cuda()
    optimizers = [build_optimizer(muon_recipe(), net, fused=True) for net in (on_cpu, on_gpu)]
    images = torch.randn(6, 3, 8, 8)
    for _ in range(3):
        for net, optimizer in zip((on_cpu, on_gpu), optimizers, strict=True):
            net(images.to(next(net.parameters()).device)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    for parameter, other in zip(on_cpu.parameters(), on_gpu.parameters(), strict=True):
        torch.testing.assert_close(other.cpu(), parameter, rtol=2e-2, atol=2e-2)


def test_its_state_can_be_saved_and_taken_up() -> None:
    def steps(net: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
        torch.manual_seed(1)
        for _ in range(count):
            net(torch.randn(6, 3, 8, 8)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    first = network()
    optimizer = build_optimizer(muon_recipe(), first, fused=True)
    steps(first, optimizer, 2)
    second = network()
    second.load_state_dict(first.state_dict())
    again = build_optimizer(muon_recipe(), second, fused=True)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(first, optimizer, 2)
    steps(second, again, 2)
    for parameter, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(parameter, other)
