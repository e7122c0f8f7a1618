"""Muon: momentum whose update, a matrix for each filter tensor, is brought near the closest orthogonal one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that Newton–Schulz iterates: steep at 0, and near 1 for whatever is not (K. Jordan)."""


@torch.no_grad()
def orthogonalized(matrix: Tensor, steps: int) -> Tensor:
    """About U·Vᵀ of a matrix U·S·Vᵀ [rows, columns], its singular values between 0.7 and 1.2, in bfloat16.

    Args:
        matrix: Of any size and scale.
        steps: Newton–Schulz iterations; small singular values need more.
    """
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16()
    if x.shape[0] > x.shape[1]:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.SGD):
    """SGD in which some groups of parameters are updated by Muon.

    A group with ``newton_schulz_steps`` above 0 holds filters [out, in, h, w]; each is seen as a matrix [out, in·h·w].
    torch's own Muon takes matrices only. After K. Jordan, kellerjordan.github.io/posts/muon, and the record script of
    airbench for filters.

    Args:
        groups: As for ``torch.optim.SGD``; each also has ``newton_schulz_steps`` and ``normalize``, which brings each
            filter tensor to the norm √out before its update.
        fused: Use torch's fused kernel for the groups of SGD.
    """

    def __init__(self, groups: list[dict[str, Any]], *, fused: bool) -> None:
        super().__init__(groups, lr=groups[0]["lr"], fused=fused)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; the filters' gradients are gone afterwards."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["newton_schulz_steps"]:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._update(parameter, group)
                        # SGD passes over parameters without a gradient.
                        parameter.grad = None
        super().step()
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        direction = gradient.add(momentum, alpha=group["momentum"]) if group["nesterov"] else momentum
        out = len(parameter)
        update = orthogonalized(direction.reshape(out, -1), group["newton_schulz_steps"]).view(parameter.shape)
        if group["normalize"]:
            parameter.mul_(out**0.5 / parameter.norm())
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])
