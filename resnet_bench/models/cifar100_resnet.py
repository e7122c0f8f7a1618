"""The custom ResNet of Zhenye Na, "Deep Residual Neural Network for CIFAR100 with Pytorch" (2022).

Half as wide as a ResNet-18 and deeper in the middle. Three things set it apart from He et al. (2015): nothing
follows the addition, so that a block without projection passes its input on unchanged, negative values
included; a projection is a 3x3 convolution; and the last map is max-pooled instead of averaged.
"""

from torch import Tensor, nn

from resnet_bench.kernels.fusion import Branches, Residual


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias that keeps the size of the map at stride 1."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)


class BasicBlock(Residual):
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


class Cifar100ResNet(nn.Module):
    """The network of the article; the comments give the shape of the map after each line."""

    def __init__(self, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = conv3x3(3, 32)  # 32 x 32 x 32
        self.bn = nn.BatchNorm2d(32)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout2d(dropout)
        self.conv2_x = _stage(32, 32, blocks=2, stride=1)
        self.conv3_x = _stage(32, 64, blocks=4, stride=2)  # 64 x 16 x 16
        self.conv4_x = _stage(64, 128, blocks=4, stride=2)  # 128 x 8 x 8
        self.conv5_x = _stage(128, 256, blocks=2, stride=2)  # 256 x 4 x 4
        self.maxpool = nn.MaxPool2d(kernel_size=4, stride=1)  # 256 x 1 x 1
        self.fc_layer = nn.Linear(256, num_classes)
        _initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, num_classes]` of normalized images `[N, 3, 32, 32]`."""
        x = self.dropout(self.relu(self.bn(self.conv1(images))))
        x = self.conv2_x(x)
        x = self.conv3_x(x)
        x = self.conv4_x(x)
        x = self.conv5_x(x)
        logits: Tensor = self.fc_layer(self.maxpool(x).flatten(1))
        return logits


def _stage(in_channels: int, out_channels: int, *, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    rest = [BasicBlock(out_channels, out_channels) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def _initialize(network: nn.Module) -> None:
    """Kaiming-normal convolutions by fan-out; the article's BatchNorm of 1 and 0 is torch's own already."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


def cifar100_resnet(num_classes: int = 100, *, dropout: float = 0.02) -> Cifar100ResNet:
    """The custom ResNet for 32-pixel images: 3,903,620 parameters with 100 classes.

    Args:
        num_classes: Outputs of the last layer.
        dropout: Probability of zeroing each whole channel of the stem's map.
    """
    return Cifar100ResNet(num_classes, dropout)
