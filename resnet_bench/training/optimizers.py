"""Build and control torch's optimizer as a recipe describes it."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from resnet_bench.execution.execution import device_type_of, has_bf16
from resnet_bench.recipe.settings import SGD, Adam, AdamW, MuonConfig, Optimizer, SGDSettings, Training
from resnet_bench.training.muon import Muon


def build_optimizer(recipe: Optimizer, network: nn.Module, *, fused: bool) -> torch.optim.Optimizer:
    """Build the optimizer of a recipe.

    Args:
        recipe: The optimizer's name and hyperparameters.
        network: The network to update; parameters that need no gradient are excluded.
        fused: Use torch's fused kernel: the same update in one pass over memory.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    match recipe:
        case MuonConfig():
            device_type = device_type_of(str(parameters[0].device))
            groups = _muon_groups(recipe, network)
            return Muon(groups, fused=fused, together=device_type == "cuda", widened=not has_bf16(device_type))
        case SGD():
            return torch.optim.SGD(parameters, **_sgd_arguments(recipe), fused=fused)
        case Adam() | AdamW():
            constructor = torch.optim.AdamW if isinstance(recipe, AdamW) else torch.optim.Adam
            return constructor(
                parameters,
                lr=recipe.lr,
                betas=recipe.betas,
                eps=recipe.eps,
                weight_decay=recipe.weight_decay,
                fused=fused,
            )


def clip_gradients(recipe: Training, network: nn.Module) -> None:
    """Clip the network's gradients by value or by total norm, if the recipe says so."""
    if recipe.clip_value is not None:
        nn.utils.clip_grad_value_(network.parameters(), recipe.clip_value)
    if recipe.clip_norm is not None:
        nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)


def forget_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Reset an optimizer's state to zero in place, because CUDA graphs keep using the same memory."""
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                value.zero_()


@contextlib.contextmanager
def rates_from(optimizer: torch.optim.Optimizer, rates: Sequence[Tensor]) -> Iterator[None]:
    """Make an optimizer read its learning rates from tensors, so that its steps can be captured.

    Args:
        optimizer: A fused one, or Muon on a GPU.
        rates: One float32 [] per group, on the device of its parameters.
    """
    before = [dict(group) for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
        if "capturable" in group:
            group["capturable"] = True
    try:
        yield
    finally:
        for group, values in zip(optimizer.param_groups, before, strict=True):
            group.update(values)


def _muon_groups(recipe: MuonConfig, network: nn.Module) -> list[dict[str, Any]]:
    """List the groups that are not empty; filters come first, because the first group's learning rate is logged."""
    filters: list[nn.Parameter] = []
    heads: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    linear_weights = {id(module.weight) for module in network.modules() if isinstance(module, nn.Linear)}
    for parameter in network.parameters():
        if parameter.requires_grad:
            kind = filters if parameter.ndim == 4 else heads if id(parameter) in linear_weights else rest
            kind.append(parameter)
    muon = {"newton_schulz_steps": recipe.steps, "normalize": recipe.normalize_filters}
    sgd = {"newton_schulz_steps": 0, "normalize": False}
    groups = [
        {"params": filters, **_sgd_arguments(recipe), **muon},
        {"params": heads, **_sgd_arguments(recipe.head or recipe.rest), **sgd},
        {"params": rest, **_sgd_arguments(recipe.rest), **sgd},
    ]
    return [group for group in groups if group["params"]]


def _sgd_arguments(recipe: SGDSettings) -> dict[str, Any]:
    return {
        "lr": recipe.lr,
        "momentum": recipe.momentum,
        "nesterov": recipe.nesterov,
        "weight_decay": recipe.weight_decay,
    }
