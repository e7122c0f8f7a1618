"""The custom ResNet of Zhenye Na, "Deep Residual Neural Network for CIFAR100 with Pytorch" (2022).

Half as wide as a ResNet-18 and deeper in the middle. Three things set it apart from He et al. (2015): nothing
follows the addition, so that a block without projection passes its input on unchanged, negative values
included; a projection is a 3x3 convolution; and the last map is max-pooled instead of averaged.
"""

from torch import Tensor, nn

from resnet_bench.kernels.fusion import Branches, Fusible, Residual
from resnet_bench.models.blocks import conv3x3, initialize_by_fan_out, stage


class BlockWithoutReLU(Residual):
    """Two 3x3 convolutions beside a shortcut, with **no** ReLU after the addition.

    The shortcut is the identity where the block keeps the shape of its input, and otherwise a 3x3 convolution
    with BatchNorm.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                conv3x3(in_channels, out_channels, stride),
                nn.BatchNorm2d(out_channels),
            )

    def branches(self) -> Branches:
        """From `[N, in_channels, H, W]` to `[N, out_channels, H / stride, W / stride]`."""
        return Branches(
            main=[self.conv1, self.bn1, self.relu, self.conv2, self.bn2],
            shortcut=self.downsample,
            activation=None,
        )


class Cifar100ResNet(Fusible):
    """The network of the article; the comments give the shape of the map after each line.

    Args:
        num_classes: Outputs of the last layer.
        dropout: Probability of zeroing each whole channel of the stem's map.
    """

    def __init__(self, num_classes: int = 100, *, dropout: float = 0.02) -> None:
        super().__init__()
        self.conv1 = conv3x3(3, 32)  # 32 x 32 x 32
        self.bn = nn.BatchNorm2d(32)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout2d(dropout)
        self.conv2_x = stage(BlockWithoutReLU, 32, 32, blocks=2, stride=1)
        self.conv3_x = stage(BlockWithoutReLU, 32, 64, blocks=4, stride=2)  # 64 x 16 x 16
        self.conv4_x = stage(BlockWithoutReLU, 64, 128, blocks=4, stride=2)  # 128 x 8 x 8
        self.conv5_x = stage(BlockWithoutReLU, 128, 256, blocks=2, stride=2)  # 256 x 4 x 4
        self.maxpool = nn.MaxPool2d(kernel_size=4, stride=1)  # 256 x 1 x 1
        self.fc_layer = nn.Linear(256, num_classes)
        initialize_by_fan_out(self)
        nn.init.zeros_(self.fc_layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, num_classes]` of normalized images `[N, 3, 32, 32]`."""
        x = self.dropout(self.in_turn([self.conv1, self.bn, self.relu], images))
        x = self.conv2_x(x)
        x = self.conv3_x(x)
        x = self.conv4_x(x)
        x = self.conv5_x(x)
        logits: Tensor = self.fc_layer(self.maxpool(x).flatten(1))
        return logits
