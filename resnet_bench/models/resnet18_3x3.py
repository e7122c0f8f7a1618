"""ResNet-18 with a 3x3 stem for CIFAR-10: the network of the cited recipe that reports 95.17%.

The article on step decay takes its settings from that recipe. Its network is the ResNet-18 of He et al.
(2015) with the stem of their CIFAR networks: one 3x3 convolution at full resolution and no max-pool, so that
the first stage sees 32x32 maps where the ImageNet stem leaves 8x8. It costs fifteen times the work.
"""

from torch import Tensor, nn

from resnet_bench.kernels.fusion import Branches, Residual


class BasicBlock(Residual):
    """Two 3x3 convolutions beside a shortcut: `relu(residual(x) + shortcut(x))`.

    The shortcut is the identity where the block keeps the shape of its input, and otherwise a 1x1 convolution
    with BatchNorm.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )
        self.relu = nn.ReLU(inplace=True)

    def branches(self) -> Branches:
        """From `[N, in_channels, H, W]` to `[N, out_channels, H / stride, W / stride]`."""
        return Branches([self.residual], self.shortcut, self.relu)


class ResNet18With3x3Stem(nn.Module):
    """The cited network; the comments give the shape of the map after each line."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False),  # 64 x 32 x 32
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
        )
        self.stage1 = nn.Sequential(BasicBlock(64, 64), BasicBlock(64, 64))
        self.stage2 = nn.Sequential(BasicBlock(64, 128, stride=2), BasicBlock(128, 128))  # 128 x 16 x 16
        self.stage3 = nn.Sequential(BasicBlock(128, 256, stride=2), BasicBlock(256, 256))  # 256 x 8 x 8
        self.stage4 = nn.Sequential(BasicBlock(256, 512, stride=2), BasicBlock(512, 512))  # 512 x 4 x 4
        self.pool = nn.AvgPool2d(4)  # 512 x 1 x 1
        self.linear = nn.Linear(512, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, num_classes]` of normalised images `[N, 3, 32, 32]`."""
        x = self.stem(images)
        x = self.stage1(x)
        x = self.stage2(x)
        x = self.stage3(x)
        x = self.stage4(x)
        logits: Tensor = self.linear(self.pool(x).flatten(1))
        return logits


def resnet18_3x3(num_classes: int = 10) -> ResNet18With3x3Stem:
    """ResNet-18 with a 3x3 stem for 32-pixel images: 11,173,962 parameters with 10 classes.

    Args:
        num_classes: Outputs of the last layer.
    """
    return ResNet18With3x3Stem(num_classes)
