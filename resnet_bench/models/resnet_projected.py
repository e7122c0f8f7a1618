"""ResNet-18, 34, 50, 101 and 152 at 32 pixels, as in "ResNet18 is introduced and used to classify CIFAR-10".

The ImageNet networks of He et al. (2015), given CIFAR's images as they are: the stem alone takes 32 pixels to
8, and the last map is 1x1, which is why the article comments its average pool out. The first block of *every*
stage has a projection, even where ResNet-18 and 34 would need none.

The listing that this follows lost lines. The stem's BatchNorm and ReLU and the layers of the blocks and
projections are what its remaining lines and the paper leave possible. The bottleneck's Dropout, which the
article defines and never applies, is left out.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from resnet_bench.kernels.fusion import Branches, Residual
from resnet_bench.models.blocks import initialize_by_fan_out, two_convolutions


class BasicBlock(Residual):
    """Two 3x3 convolutions beside a shortcut: `relu(residual(x) + shortcut(x))`."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, *, stride: int, project: bool) -> None:
        super().__init__()
        self.residual = two_convolutions(in_channels, width, stride)
        self.shortcut = projection(in_channels, width, stride) if project else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def branches(self) -> Branches:
        """From `[N, in_channels, H, W]` to `[N, width, H / stride, W / stride]`."""
        return Branches([self.residual], self.shortcut, self.relu)


class Bottleneck(Residual):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; the last makes the map four times as wide.

    The stride is the 3x3 convolution's, where torchvision has it too; He et al. give it to the first 1x1.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, *, stride: int, project: bool) -> None:
        super().__init__()
        out_channels = self.expansion * width
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, width, kernel_size=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, kernel_size=3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, out_channels, kernel_size=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut = projection(in_channels, out_channels, stride) if project else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def branches(self) -> Branches:
        """From `[N, in_channels, H, W]` to `[N, 4 * width, H / stride, W / stride]`."""
        return Branches([self.residual], self.shortcut, self.relu)


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """The shortcut of a stage's first block: a 1x1 convolution with BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class ProjectedResNet(nn.Module):
    """The article's family; the comments give the shape of the map, with its width in basic blocks."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, int, int, int],
        num_classes: int,
    ) -> None:
        super().__init__()
        expansion = block.expansion
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False),  # 64 x 16 x 16
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),  # 64 x 8 x 8
        )
        self.stage1 = _stage(block, 64, 64, blocks=blocks[0], stride=1)
        self.stage2 = _stage(block, 64 * expansion, 128, blocks=blocks[1], stride=2)  # 128 x 4 x 4
        self.stage3 = _stage(block, 128 * expansion, 256, blocks=blocks[2], stride=2)  # 256 x 2 x 2
        self.stage4 = _stage(block, 256 * expansion, 512, blocks=blocks[3], stride=2)  # 512 x 1 x 1
        self.linear = nn.Linear(512 * expansion, num_classes)
        initialize_by_fan_out(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, num_classes]` of normalized images `[N, 3, 32, 32]`."""
        x = self.stem(images)
        x = self.stage1(x)
        x = self.stage2(x)
        x = self.stage3(x)
        x = self.stage4(x)
        logits: Tensor = self.linear(x.flatten(1))
        return logits


def _stage(
    block: type[BasicBlock] | type[Bottleneck], in_channels: int, width: int, *, blocks: int, stride: int
) -> nn.Sequential:
    first = block(in_channels, width, stride=stride, project=True)
    rest = [block(block.expansion * width, width, stride=1, project=False) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


LAYERS: Mapping[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
"""Blocks of each stage, by depth. The article forgets to set the classes of the last three, and so has 1000."""
