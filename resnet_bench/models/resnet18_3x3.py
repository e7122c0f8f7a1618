"""ResNet-18 with a 3x3 stem for CIFAR-10: the network of the cited recipe that reports 95.17%.

The article on step decay takes its settings from that recipe. Its network is the ResNet-18 of He et al.
(2015) with the stem of their CIFAR networks: one 3x3 convolution at full resolution and no max-pool, so that
the first stage sees 32x32 maps where the ImageNet stem leaves 8x8. It costs fifteen times the work.
"""

from torch import Tensor, nn

from resnet_bench.models.blocks import conv3x3
from resnet_bench.models.resnet_projected import BasicBlock


class ResNet18With3x3Stem(nn.Module):
    """The cited network; the comments give the shape of the map after each line."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv3x3(3, 64),  # 64 x 32 x 32
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
        )
        self.stage1 = _stage(64, 64, stride=1)
        self.stage2 = _stage(64, 128, stride=2)  # 128 x 16 x 16
        self.stage3 = _stage(128, 256, stride=2)  # 256 x 8 x 8
        self.stage4 = _stage(256, 512, stride=2)  # 512 x 4 x 4
        self.pool = nn.AvgPool2d(4)  # 512 x 1 x 1
        self.linear = nn.Linear(512, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, num_classes]` of normalized images `[N, 3, 32, 32]`."""
        x = self.stem(images)
        x = self.stage1(x)
        x = self.stage2(x)
        x = self.stage3(x)
        x = self.stage4(x)
        logits: Tensor = self.linear(self.pool(x).flatten(1))
        return logits


def _stage(in_channels: int, width: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        BasicBlock(in_channels, width, stride=stride, project=stride != 1),
        BasicBlock(width, width, stride=1, project=False),
    )
