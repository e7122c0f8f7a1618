"""Muon: SGD with momentum whose update, a matrix per filter tensor, is approximately orthogonalized."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic Newton–Schulz iteration: steep at 0, near 1 elsewhere (K. Jordan)."""


@torch.no_grad()
def orthogonalized(matrices: Tensor, steps: int, *, widened: bool = False) -> Tensor:
    """Approximate U·Vᵀ of a matrix U·S·Vᵀ in bfloat16; its singular values are between 0.7 and 1.2.

    Args:
        matrices: One matrix [rows, columns] of any scale, or several [count, rows, columns].
        steps: Number of Newton–Schulz iterations; small singular values need more.
        widened: Multiply in float32 and round each product to bfloat16, which sums in float32 itself: equal up to the
            order of sums, and many times as fast where nothing multiplies bfloat16 in hardware.
    """
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16()
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:
        x = x.mT
    norm = x.norm() if x.ndim == 2 else x.norm(dim=(-2, -1), keepdim=True)
    multiplied = torch.float32 if widened else torch.bfloat16
    x = (x / (norm + 1e-7)).to(multiplied)

    def rounded(product: Tensor) -> Tensor:
        return product.bfloat16().to(multiplied)

    multiply_add = torch.addmm if x.ndim == 2 else torch.baddbmm
    for _ in range(steps):
        gram = rounded(x @ x.mT)
        polynomial = rounded(multiply_add(gram, gram, gram, beta=b, alpha=c))
        x = rounded(multiply_add(x, polynomial, x, beta=a))
    return (x.mT if is_tall else x).bfloat16()


class Muon(torch.optim.SGD):
    """SGD that updates some groups of parameters by Muon.

    A group with ``newton_schulz_steps`` above 0 contains filters [out, in, h, w], each treated as a matrix
    [out, in·h·w]; torch's Muon takes matrices only. After K. Jordan, kellerjordan.github.io/posts/muon, and for
    filters the record script of airbench.

    Args:
        groups: As for ``torch.optim.SGD``; each also has ``newton_schulz_steps`` and ``normalize``, which scales each
            filter tensor to the norm √out before its update.
        fused: Use torch's fused kernel for the groups of SGD.
        together: Update the filters of a group in few operations, with batched matrix multiplications for filters of
            the same size; for devices bound by launches. Equal up to rounding. Allows a tensor as learning rate.
        widened: Multiply in float32, for devices that do not multiply bfloat16; see :func:`orthogonalized`.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, fused: bool, together: bool = False, widened: bool = False
    ) -> None:
        super().__init__(groups, lr=groups[0]["lr"], fused=fused)
        self._together = together
        self._widened = widened

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; afterwards the filters have none."""
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
                        if parameter.grad is not None:
                            self._update(parameter, parameter.grad, group)
                for parameter in filters:
                    # SGD skips parameters without a gradient.
                    parameter.grad = None
        super().step()
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        momentum = self._momentum(parameter).mul_(group["momentum"]).add_(gradient)
        direction = gradient.add(momentum, alpha=group["momentum"]) if group["nesterov"] else momentum
        out = len(parameter)
        update = self._orthogonalized(direction.reshape(out, -1), group).view(parameter.shape)
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
            updates = self._orthogonalized(matrices, group).float() * group["lr"]
            for i, update in zip(same_size, updates, strict=True):
                filters[i].sub_(update.reshape(filters[i].shape))

    def _orthogonalized(self, matrices: Tensor, group: dict[str, Any]) -> Tensor:
        return orthogonalized(matrices, group["newton_schulz_steps"], widened=self._widened)

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def _by_size(filters: Sequence[Tensor]) -> list[list[int]]:
    """Group the positions of the filters by the size of their matrices."""
    positions: dict[tuple[int, int], list[int]] = {}
    for i, parameter in enumerate(filters):
        positions.setdefault((len(parameter), parameter[0].numel()), []).append(i)
    return list(positions.values())
