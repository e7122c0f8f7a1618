"""From a recipe's optimizer table to torch's optimizer."""

from collections.abc import Iterable

import torch

from resnet_bench import benchmark


def build_optimizer(
    recipe: benchmark.Optimizer, parameters: Iterable[torch.nn.Parameter], *, fused: bool
) -> torch.optim.Optimizer:
    """The optimizer of a recipe.

    Args:
        recipe: Its name and hyperparameters.
        parameters: What it updates.
        fused: Use torch's fused kernel: the same update in one pass over memory.
    """
    match recipe:
        case benchmark.SGD():
            return torch.optim.SGD(
                parameters,
                lr=recipe.lr,
                momentum=recipe.momentum,
                nesterov=recipe.nesterov,
                weight_decay=recipe.weight_decay,
                fused=fused,
            )
        case benchmark.Adam() | benchmark.AdamW():
            constructor = torch.optim.AdamW if isinstance(recipe, benchmark.AdamW) else torch.optim.Adam
            return constructor(
                parameters,
                lr=recipe.lr,
                betas=recipe.betas,
                eps=recipe.eps,
                weight_decay=recipe.weight_decay,
                fused=fused,
            )
