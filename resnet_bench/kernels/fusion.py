"""Layers of a network that are computed as one operation: in a sequence, and where a residual block ends."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from resnet_bench.kernels import fast_paths, normalization
from resnet_bench.kernels.normalization import Activation, Pool

FOR_A_POOL = "for_a_pool"
"""An attribute of convolutions that compute only what a 2×2 pool behind them takes."""

_ACTIVATIONS: dict[type[nn.Module], Activation] = {nn.ReLU: Activation.RELU, nn.SiLU: Activation.SILU}


def fuse(network: nn.Module) -> None:
    """Have a network compute layers that follow each other as one operation where it can.

    In a sequence these are a convolution and a pool, and BatchNorm with the activation behind it and a pool before or
    behind it. Layers that a :class:`Fusible` module runs in turn are fused in the same way, and in a :class:`Residual`
    block the BatchNorm that ends its main branch with that of its shortcut, the addition and the activation.

    Layers, parameters, names and state dicts stay as they are, and so does what the network does in eval mode.
    """
    for module in network.modules():
        if type(module) is nn.Sequential:
            module.__class__ = FusedSequential
        elif isinstance(module, Fusible):
            module.fused = True


class FusedSequential(nn.Sequential):
    """Equal to ``nn.Sequential`` up to rounding."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """The outputs of the last layer; the layers' own shapes."""
        return _run(self, input)


class Branches(NamedTuple):
    """The layers of a block `activation(main(x) + shortcut(x))`."""

    main: Sequence[nn.Module]
    """Run one after the other."""
    shortcut: nn.Module | None
    """None adds nothing: the block is a plain one."""
    activation: nn.Module | None
    """None leaves the sum as it is."""


class Fusible(nn.Module):
    """A module that says which of its layers follow each other, so that :func:`fuse` can fuse them."""

    fused = False

    def in_turn(self, layers: Iterable[nn.Module], x: Tensor) -> Tensor:
        """Run layers one after the other; the layers' own shapes."""
        if self.fused:
            return _run(_opened(layers), x)
        for layer in layers:
            x = layer(x)
        return x


class Residual(Fusible):
    """A block of a residual network. It says what its branches are, so that :func:`fuse` can compute their sum."""

    def branches(self) -> Branches:
        """The block's layers."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, C, H, W]` to the activated sum of both branches."""
        branches = self.branches()
        if self.fused:
            return _sum_of(branches, x)
        outputs = self.in_turn(branches.main, x)
        if branches.shortcut is not None:
            outputs = outputs + branches.shortcut(x)
        return outputs if branches.activation is None else branches.activation(outputs)


def _sum_of(branches: Branches, x: Tensor) -> Tensor:
    """What a block gives, with its end as one operation if these are maps for it."""
    end = [] if branches.activation is None else [branches.activation]
    if branches.shortcut is None:
        return _run(_opened([*branches.main, *end]), x)
    main, norm = _without_norm(_opened(branches.main))
    beside, shortcut_norm = _without_norm(_opened([branches.shortcut]))
    activation = _activation(branches.activation)
    maps, shortcut = _run(main, x), _run(beside, x)
    # What watches every call of torch, as the fast paths do, has nothing to do here and takes as long as small maps.
    with torch._C.DisableTorchFunction():
        if norm is not None and activation is not None and normalization.fits_sum(maps, norm, shortcut, shortcut_norm):
            return normalization.normalize_and_add(maps, norm, shortcut, shortcut_norm, activation=activation)
    if norm is not None:
        maps = _run([norm], maps)
    if shortcut_norm is not None:
        shortcut = _run([shortcut_norm], shortcut)
    return _run(end, maps + shortcut)


def _opened(layers: Iterable[nn.Module]) -> list[nn.Module]:
    """The layers, with those of a sequence in its place."""
    opened: list[nn.Module] = []
    for layer in layers:
        if type(layer) is FusedSequential and not _is_watched(layer):
            opened += _opened(layer)
        else:
            opened.append(layer)
    return opened


def _without_norm(layers: list[nn.Module]) -> tuple[list[nn.Module], nn.BatchNorm2d | None]:
    """The layers before the BatchNorm that they end with, and that one, if they do."""
    if layers and type(layers[-1]) is nn.BatchNorm2d and not _is_watched(layers[-1]):
        return layers[:-1], layers[-1]
    return layers, None


def _run(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """What layers give that follow each other."""
    rest = list(layers)
    while rest:
        if (pooled := _convolved_and_pooled(rest, x)) is not None:
            x, rest = pooled, rest[2:]
            continue
        group = _leading_group(rest)
        if group is not None and (normalized := _normalized(group, x)) is not None:
            x, rest = normalized, rest[group.length :]
        else:
            x = rest.pop(0)(x)
    return x


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
    if len(rest) > 1 and (following := _activation(rest[1])) is not None:
        activation = following
        length += 1
    if pooled_first:
        return _Group(norm, Pool.BEFORE, activation, length)
    # A pool behind BatchNorm alone would come before the activation that is not known here.
    if activation is not Activation.IDENTITY and len(rest) > 2:
        for pool, overlapping in ((Pool.BEHIND, False), (Pool.OVERLAPPING_BEHIND, True)):
            if _is_pool(rest[2], overlapping=overlapping):
                return _Group(norm, pool, activation, length + 1)
    return _Group(norm, Pool.NONE, activation, length)


def _activation(layer: nn.Module | None) -> Activation | None:
    """What a layer does, no layer being the identity; None if the kernels do not have it."""
    if layer is None:
        return Activation.IDENTITY
    return None if _is_watched(layer) else _ACTIVATIONS.get(type(layer))


def _normalized(group: _Group, maps: Tensor) -> Tensor | None:
    """What a group gives as one operation, or None if the kernels do not take these maps."""
    with torch._C.DisableTorchFunction():
        if not normalization.fits(maps, group.norm, group.pool):
            return None
        return normalization.normalize(maps, group.norm, pool=group.pool, activation=group.activation)


def _is_pool(layer: nn.Module, *, overlapping: bool = False) -> bool:
    """Whether it takes the largest of each 2×2 pixels, or of 3×3 around every second pixel of every second row."""
    size, padding = (3, 1) if overlapping else (2, 0)
    return (
        type(layer) is nn.MaxPool2d
        and layer.kernel_size in (size, (size, size))
        and layer.stride in (2, (2, 2))
        and layer.padding in (padding, (padding, padding))
        and layer.dilation in (1, (1, 1))
        and not layer.return_indices
        and not layer.ceil_mode
        and not _is_watched(layer)
    )


def _is_watched(layer: nn.Module) -> bool:
    """Whether somebody wants to see what goes in or out of it."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)
