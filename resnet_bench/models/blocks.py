"""What several networks are made of. Names and order of the layers are part of parameter names and random draws."""

from collections.abc import Callable

from torch import nn


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias that keeps the size of the map at stride 1."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)


def two_convolutions(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """The main branch of a basic block of He et al., up to the addition."""
    return nn.Sequential(
        conv3x3(in_channels, out_channels, stride),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
        conv3x3(out_channels, out_channels),
        nn.BatchNorm2d(out_channels),
    )


def stage(
    block: Callable[..., nn.Module], in_channels: int, out_channels: int, *, blocks: int, stride: int
) -> nn.Sequential:
    """Blocks in a row, the first of which has the stride and changes the channels."""
    first = block(in_channels, out_channels, stride=stride)
    return nn.Sequential(first, *(block(out_channels, out_channels, stride=1) for _ in range(blocks - 1)))


def initialize_by_fan_in(network: nn.Module) -> None:
    """The initialization of He et al., "Delving Deep into Rectifiers": variance 2 / fan-in, biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initialize_by_fan_out(network: nn.Module) -> None:
    """Kaiming-normal convolutions by fan-out; the sources' BatchNorm of 1 and 0 is torch's own already."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
