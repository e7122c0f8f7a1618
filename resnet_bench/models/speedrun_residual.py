"""The convolutional network of a CIFAR-100 speed record, in widths to choose.

Three groups of a pooled convolution and two more, which are a residual branch: cheap on the large maps of the first
groups and wide on the small ones of the last. After the entries futurebiohackers and NAVIER-STOKED of
github.com/AIDDA-Institute/CIFAR-100-speedrun, which have a whitening layer before it and a 2x2 kernel in the last
group, where a 3x3 one costs no more on a CPU.
"""

from torch import Tensor, nn

from resnet_bench.models.speedrun import IdentityConvolution, PooledConvolution

LOGIT_SCALE = 1.25 / 9
"""What logits are multiplied by, so that the head learns at the rate of the other parameters."""


class ResidualGroup(nn.Module):
    """A pooled 3x3 convolution, and a branch of two more from its output."""

    def __init__(self, in_channels: int, out_channels: int, middle: int, kernel_sizes: tuple[int, int]) -> None:
        super().__init__()
        self.first = nn.Sequential(
            PooledConvolution(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(out_channels),
            nn.SiLU(),
        )
        one, other = kernel_sizes
        self.branch = nn.Sequential(
            IdentityConvolution(out_channels, middle, kernel_size=one, padding=one // 2, bias=False),
            nn.BatchNorm2d(middle),
            nn.SiLU(),
            IdentityConvolution(middle, out_channels, kernel_size=other, padding=other // 2, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.SiLU(),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Maps `[N, out_channels, H / 2, W / 2]` of maps `[N, in_channels, H, W]`."""
        pooled = self.first(maps)
        outputs: Tensor = pooled + self.branch(pooled)
        return outputs


class SpeedrunResidual(nn.Module):
    """The network; it takes images of any size from 8 pixels.

    Args:
        num_classes: Outputs of the last layer.
        width1: Channels of the first group.
        width2: Channels of the second group.
        width3: Channels of the third group.
        middle2: Channels within the branch of the second group.
        middle3: Channels within the branch of the third group.
    """

    def __init__(
        self,
        num_classes: int = 100,
        *,
        width1: int = 64,
        width2: int = 256,
        width3: int = 768,
        middle2: int = 192,
        middle3: int = 512,
    ) -> None:
        super().__init__()
        self.group1 = ResidualGroup(3, width1, width1, (1, 1))
        self.group2 = ResidualGroup(width1, width2, middle2, (3, 1))
        self.group3 = ResidualGroup(width2, width3, middle3, (3, 3))
        self.largest, self.mean = nn.AdaptiveMaxPool2d(1), nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(width3, num_classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, num_classes]` of normalized images `[N, 3, H, W]`, H and W from 8."""
        maps = self.group3(self.group2(self.group1(images)))
        features = (self.largest(maps) + self.mean(maps)).flatten(1)
        logits: Tensor = self.head(features) * LOGIT_SCALE
        return logits
