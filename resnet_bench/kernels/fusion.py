"""Layers of a network that are computed as one operation where they follow each other in a sequence."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from resnet_bench.kernels import fast_paths, normalization
from resnet_bench.kernels.normalization import Activation, Pool

FOR_A_POOL = "for_a_pool"
"""An attribute of convolutions that compute only what a 2×2 pool behind them takes."""

_ACTIVATIONS: dict[type[nn.Module], Activation] = {nn.ReLU: Activation.RELU, nn.SiLU: Activation.SILU}


def fuse(network: nn.Module) -> None:
    """Have every sequence of a network compute layers that follow each other as one operation where it can.

    These are a convolution and a pool, and BatchNorm with the activation behind it and a pool before or behind it.

    Layers, parameters, names and state dicts stay as they are, and so does what a sequence does in eval mode.
    """
    for module in network.modules():
        if type(module) is nn.Sequential:
            module.__class__ = FusedSequential


class FusedSequential(nn.Sequential):
    """Equal to ``nn.Sequential`` up to rounding."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """The outputs of the last layer; the layers' own shapes."""
        layers: list[nn.Module] = list(self)
        while layers:
            if (pooled := _convolved_and_pooled(layers, input)) is not None:
                input, layers = pooled, layers[2:]  # noqa: A001
                continue
            group = _leading_group(layers)
            if group is not None and normalization.fits(input, group.norm, group.pool):
                input = normalization.normalize(  # noqa: A001
                    input, group.norm, pool=group.pool, activation=group.activation
                )
                layers = layers[group.length :]
            else:
                input = layers.pop(0)(input)  # noqa: A001
        return input


def _convolved_and_pooled(layers: Sequence[nn.Module], images: Tensor) -> Tensor | None:
    """What the first two layers give, if they are a convolution and a pool that are computed faster as one."""
    paths = fast_paths.active()
    if paths is None or len(layers) < 2 or not _is_pool(layers[1]) or not isinstance(layers[0], nn.Conv2d):
        return None
    computed_as_usual = type(layers[0]).forward is nn.Conv2d.forward or hasattr(layers[0], FOR_A_POOL)
    return paths.convolve_and_pool(layers[0], images) if computed_as_usual and not _is_watched(layers[0]) else None


class _Group(NamedTuple):
    """Layers that follow each other and are one operation."""

    norm: nn.BatchNorm2d
    pool: Pool
    activation: Activation
    length: int


def _leading_group(layers: Sequence[nn.Module]) -> _Group | None:
    """The longest such group that the layers begin with."""
    pooled_first = _is_pool(layers[0])
    rest = layers[1:] if pooled_first else layers
    if not rest or type(rest[0]) is not nn.BatchNorm2d or _is_watched(rest[0]):
        return None
    norm, length = rest[0], len(layers) - len(rest) + 1
    activation = Activation.IDENTITY
    if len(rest) > 1 and type(rest[1]) in _ACTIVATIONS and not _is_watched(rest[1]):
        activation = _ACTIVATIONS[type(rest[1])]
        length += 1
    if pooled_first:
        return _Group(norm, Pool.BEFORE, activation, length)
    # A pool behind BatchNorm alone would come before the activation that is not known here.
    if activation is not Activation.IDENTITY and len(rest) > 2 and _is_pool(rest[2]):
        return _Group(norm, Pool.BEHIND, activation, length + 1)
    return _Group(norm, Pool.NONE, activation, length)


def _is_pool(layer: nn.Module) -> bool:
    """Whether it takes the largest of each 2×2 pixels."""
    return (
        type(layer) is nn.MaxPool2d
        and layer.kernel_size in (2, (2, 2))
        and layer.stride in (2, (2, 2))
        and layer.padding in (0, (0, 0))
        and layer.dilation in (1, (1, 1))
        and not layer.return_indices
        and not layer.ceil_mode
        and not _is_watched(layer)
    )


def _is_watched(layer: nn.Module) -> bool:
    """Whether somebody wants to see what goes in or out of it."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)
