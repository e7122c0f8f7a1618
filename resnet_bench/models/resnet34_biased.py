"""ResNet-34 at 224 pixels for CIFAR-10, as in the DigitalOcean tutorial that builds it from scratch.

The ResNet-34 of He et al. (2015), but for one habit: every convolution keeps its bias, the projections
included. BatchNorm subtracts a channel's mean right after, so the biases cost 8,512 parameters and change no
output in training; the weight decay still moves them.
"""

from torch import Tensor, nn

from resnet_bench.kernels.fusion import Branches, Fusible, Residual
from resnet_bench.models.blocks import stage


class ResidualBlock(Residual):
    """Two 3x3 convolutions beside a shortcut: `relu(conv2(conv1(x)) + shortcut(x))`.

    The shortcut is the identity where the block keeps the shape of its input, and otherwise a biased 1x1
    convolution with BatchNorm.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )
        self.conv2 = nn.Sequential(
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(out_channels),
        )
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride),
                nn.BatchNorm2d(out_channels),
            )
        self.relu = nn.ReLU(inplace=True)

    def branches(self) -> Branches:
        """From `[N, in_channels, H, W]` to `[N, out_channels, H / stride, W / stride]`."""
        return Branches([self.conv1, self.conv2], self.downsample, self.relu)


class BiasedResNet34(Fusible):
    """The network of the tutorial; the comments give the shape of the map after each line."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
        )  # 64 x 112 x 112
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)  # 64 x 56 x 56
        self.layer0 = stage(ResidualBlock, 64, 64, blocks=3, stride=1)
        self.layer1 = stage(ResidualBlock, 64, 128, blocks=4, stride=2)  # 128 x 28 x 28
        self.layer2 = stage(ResidualBlock, 128, 256, blocks=6, stride=2)  # 256 x 14 x 14
        self.layer3 = stage(ResidualBlock, 256, 512, blocks=3, stride=2)  # 512 x 7 x 7
        self.avgpool = nn.AvgPool2d(7, stride=1)  # 512 x 1 x 1
        self.fc = nn.Linear(512, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, num_classes]` of normalized images `[N, 3, 224, 224]`."""
        x = self.in_turn([self.conv1, self.maxpool], images)
        x = self.layer0(x)
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits
