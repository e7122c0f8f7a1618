"""The convolutional network of the CIFAR-10 speed records, in widths to choose.

Three groups of two convolutions, pooled before normalization, so that whatever is not a convolution works on the
small map. After K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv 2404.00498); that record's
network is this one with a whitening layer before it and widths 64, 256 and 256.
"""

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}

NEW_BATCH_WEIGHT = 0.4
"""What a batch weighs in BatchNorm's running statistics: much, because there are few steps."""


class IdentityConvolution(nn.Conv2d):
    """A 3x3 convolution that begins as the identity, as far as it has output channels for it."""

    def reset_parameters(self) -> None:
        """Draw torch's default weights, and let the first output channels pass the input channels on."""
        super().reset_parameters()
        nn.init.dirac_(self.weight.data[: self.in_channels])


class PooledConvolution(IdentityConvolution):
    """A 3x3 convolution before a 2x2 pool, which leaves the last row and column of an odd map out: so does this.

    What the pool takes is the same as from the whole map. Of 7x7 pixels a quarter need not be computed.
    """

    for_a_pool = True
    """For kernels that compute convolution and pool as one."""

    def forward(self, maps: Tensor) -> Tensor:
        """Maps `[N, out_channels, H, W]`, H and W rounded down to even numbers, of maps `[N, in_channels, H, W]`."""
        rows_left_out, columns_left_out = maps.shape[-2] % 2, maps.shape[-1] % 2
        if not rows_left_out and not columns_left_out:
            return super().forward(maps)
        # What a row of zeros behind the map would be for is left out.
        padded = F.pad(maps, (1, 1 - columns_left_out, 1, 1 - rows_left_out))
        return F.conv2d(padded, self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """BatchNorm with a trained bias and a scale that stays 1."""
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=NEW_BATCH_WEIGHT)
    norm.weight.requires_grad = False
    return norm


class Group(nn.Module):
    """Convolutions of one width, the first of them pooled to half the map."""

    def __init__(self, in_channels: int, out_channels: int, *, convolutions: int, activation: str) -> None:
        super().__init__()
        activate = ACTIVATIONS[activation]
        self.first = nn.Sequential(
            PooledConvolution(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
            nn.MaxPool2d(2),
            batch_norm(out_channels),
            activate(),
        )
        self.second = nn.Sequential(
            IdentityConvolution(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
            batch_norm(out_channels),
            activate(),
        )
        self.third = (
            nn.Sequential(
                IdentityConvolution(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
                batch_norm(out_channels),
            )
            if convolutions == 3
            else None
        )
        self.last_activation = activate() if convolutions == 3 else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        """Maps `[N, out_channels, H / 2, W / 2]` of maps `[N, in_channels, H, W]`."""
        x = self.first(maps)
        if self.third is None:
            output: Tensor = self.second(x)
            return output
        # The shortcut runs from the first convolution's output over the other two.
        return self.last_activation(self.third(self.second(x)) + x)  # type: ignore[no-any-return]


class Speedrun(nn.Module):
    """The network; it takes images of any size from 8 pixels."""

    def __init__(self, num_classes: int, widths: tuple[int, int, int], convolutions: int, activation: str) -> None:
        super().__init__()
        first, second, third = widths
        self.group1 = Group(3, first, convolutions=convolutions, activation=activation)
        self.group2 = Group(first, second, convolutions=convolutions, activation=activation)
        self.group3 = Group(second, third, convolutions=convolutions, activation=activation)
        # The largest value of each map, so that maps of all sizes give features alike.
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.head = nn.Linear(third, num_classes, bias=False)
        nn.init.normal_(self.head.weight, std=1 / third)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, num_classes]` of normalized images `[N, 3, H, W]`, H and W from 8."""
        features = self.pool(self.group3(self.group2(self.group1(images)))).flatten(1)
        logits: Tensor = self.head(features)
        return logits


def speedrun(
    num_classes: int = 10,
    *,
    width1: int = 64,
    width2: int = 256,
    width3: int = 256,
    convolutions: int = 2,
    activation: str = "gelu",
) -> Speedrun:
    """The network of the speed records.

    Args:
        num_classes: Outputs of the last layer.
        width1: Channels of the first group.
        width2: Channels of the second group.
        width3: Channels of the third group.
        convolutions: 2 or 3 in each group; with 3, a shortcut spans the last two.
        activation: One of `ACTIVATIONS`.
    """
    return Speedrun(num_classes, (width1, width2, width3), convolutions, activation)
