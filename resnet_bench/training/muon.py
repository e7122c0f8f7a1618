"""Muon: momentum whose update, a matrix for each filter tensor, is brought near the closest orthogonal one."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that Newton–Schulz iterates: steep at 0, and near 1 for whatever is not (K. Jordan)."""


@torch.no_grad()
def orthogonalized(matrices: Tensor, steps: int) -> Tensor:
    """About U·Vᵀ of a matrix U·S·Vᵀ [rows, columns], its singular values between 0.7 and 1.2, in bfloat16.

    Args:
        matrices: One matrix of any size and scale, or several of one size [count, rows, columns].
        steps: Newton–Schulz iterations; small singular values need more.
    """
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16()
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:
        x = x.mT
    norm = x.norm() if x.ndim == 2 else x.norm(dim=(-2, -1), keepdim=True)
    x = x / (norm + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        if x.ndim == 2:
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        else:
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


class Muon(torch.optim.SGD):
    """SGD in which some groups of parameters are updated by Muon.

    A group with ``newton_schulz_steps`` above 0 holds filters [out, in, h, w]; each is seen as a matrix [out, in·h·w].
    torch's own Muon takes matrices only. After K. Jordan, kellerjordan.github.io/posts/muon, and the record script of
    airbench for filters.

    Args:
        groups: As for ``torch.optim.SGD``; each also has ``newton_schulz_steps`` and ``normalize``, which brings each
            filter tensor to the norm √out before its update.
        fused: Use torch's fused kernel for the groups of SGD.
        together: Update the filters of a group in few operations, those of one size by products of whole batches: for
            devices that wait for launches. The same but for rounding; a group's learning rate may be a tensor there.
    """

    def __init__(self, groups: list[dict[str, Any]], *, fused: bool, together: bool = False) -> None:
        super().__init__(groups, lr=groups[0]["lr"], fused=fused)
        self._together = together

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; the filters' gradients are gone afterwards."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["newton_schulz_steps"]:
                filters = [parameter for parameter in group["params"] if parameter.grad is not None]
                if self._together:
                    self._update_together(filters, group)
                else:
                    for parameter in filters:
                        self._update(parameter, group)
                for parameter in filters:
                    # SGD passes over parameters without a gradient.
                    parameter.grad = None
        super().step()
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient = parameter.grad
        assert gradient is not None
        momentum = self._momentum(parameter).mul_(group["momentum"]).add_(gradient)
        direction = gradient.add(momentum, alpha=group["momentum"]) if group["nesterov"] else momentum
        out = len(parameter)
        update = orthogonalized(direction.reshape(out, -1), group["newton_schulz_steps"]).view(parameter.shape)
        if group["normalize"]:
            parameter.mul_(out**0.5 / parameter.norm())
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])

    def _update_together(self, filters: list[Tensor], group: dict[str, Any]) -> None:
        if not filters:
            return
        gradients = [parameter.grad for parameter in filters if parameter.grad is not None]
        momenta = [self._momentum(parameter) for parameter in filters]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, gradients)
        directions = momenta
        if group["nesterov"]:
            directions = list(torch._foreach_add(gradients, momenta, alpha=group["momentum"]))
        if group["normalize"]:
            factors = torch._foreach_reciprocal(torch._foreach_norm(filters))
            torch._foreach_mul_(factors, [len(parameter) ** 0.5 for parameter in filters])
            for parameter, factor in zip(filters, factors, strict=True):
                parameter.mul_(factor)
        if group["weight_decay"]:
            torch._foreach_mul_(filters, 1 - group["lr"] * group["weight_decay"])
        for same_size in _by_size(filters):
            matrices = torch.stack([directions[i].reshape(len(filters[i]), -1) for i in same_size])
            updates = orthogonalized(matrices, group["newton_schulz_steps"]).float() * group["lr"]
            for i, update in zip(same_size, updates, strict=True):
                filters[i].sub_(update.reshape(filters[i].shape))

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def _by_size(filters: Sequence[Tensor]) -> list[list[int]]:
    """Positions of the filters that are matrices of one size, size by size."""
    positions: dict[tuple[int, int], list[int]] = {}
    for i, parameter in enumerate(filters):
        positions.setdefault((len(parameter), parameter[0].numel()), []).append(i)
    return list(positions.values())
