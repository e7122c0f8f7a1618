"""ResNet-9 for CIFAR-10, as in "Residual Neural network on CIFAR10".

Six convolution blocks in a row, two of which are followed by a residual pair. Unlike the networks of He et
al., every convolution keeps its bias beside BatchNorm, a block ends in its ReLU *before* the addition, and
the shortcuts cross no change of shape, so that none of them needs a projection.
"""

from torch import Tensor, nn


def conv_block(in_channels: int, out_channels: int, *, pool: bool = False) -> nn.Sequential:
    """A biased 3x3 convolution, BatchNorm and ReLU; with `pool`, a max-pool that halves the map."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]
    if pool:
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


class ResNet9(nn.Module):
    """The network of the article; the comments give the shape of the map after each line.

    Args:
        num_classes: Outputs of the last layer.
        dropout: Probability of zeroing each of the 512 features before the last layer. The article has none;
            its author's later variant uses 0.2.
    """

    def __init__(self, num_classes: int = 10, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = conv_block(3, 64)  # 64 x 32 x 32
        self.conv2 = conv_block(64, 128, pool=True)  # 128 x 16 x 16
        self.res1 = nn.Sequential(conv_block(128, 128), conv_block(128, 128))

        self.conv3 = conv_block(128, 256, pool=True)  # 256 x 8 x 8
        self.conv4 = conv_block(256, 512, pool=True)  # 512 x 4 x 4
        self.res2 = nn.Sequential(conv_block(512, 512), conv_block(512, 512))

        self.classifier = nn.Sequential(
            nn.MaxPool2d(4),  # 512 x 1 x 1
            nn.Flatten(),
            # Kept at rate 0 too, where it is the identity, so that both variants share their parameter names.
            nn.Dropout(dropout),
            nn.Linear(512, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, num_classes]` of normalized images `[N, 3, 32, 32]`."""
        x = self.conv2(self.conv1(images))
        x = self.res1(x) + x
        x = self.conv4(self.conv3(x))
        x = self.res2(x) + x
        logits: Tensor = self.classifier(x)
        return logits
