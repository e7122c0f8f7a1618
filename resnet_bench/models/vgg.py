"""VGG-16 for 32-pixel images, after Simonyan and Zisserman (2014), configuration D of table 1.

Five halvings leave a map of a single pixel, so that the linear layers see 512 values where the paper's see 25,088;
they have 512 units where the paper's have 4096.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from resnet_bench.models.blocks import initialize_by_fan_in

GROUPS: Sequence[Sequence[int]] = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of the convolutions in each group; a 2x2 max pool follows each group."""


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions in five groups, and three linear layers.

    Args:
        num_classes: Outputs of the last layer.
        batch_norm: Put BatchNorm behind each convolution, which then has no bias; the paper is older than it.
    """

    def __init__(self, num_classes: int = 10, *, batch_norm: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for group in GROUPS:
            for width in group:
                layers.append(nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=not batch_norm))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU(inplace=True))
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)  # 512 x 1 x 1
        self.classifier = nn.Sequential(
            nn.Linear(512, 512),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(512, 512),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(512, num_classes),
        )
        initialize_by_fan_in(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, num_classes]` of normalized images `[N, 3, 32, 32]`."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits
