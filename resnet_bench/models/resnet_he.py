"""The CIFAR networks of He et al., "Deep Residual Learning for Image Recognition" (2015), section 4.2.

Three stages of `n` blocks of two 3x3 convolutions, 16, 32 and 64 channels wide, between a 3x3 stem and an
average over the last map: 6n + 2 layers with weights. The shortcuts have no parameters ("option A"), so that
a residual network and its plain counterpart, the same layers without the shortcuts, are equal in parameters
and work: what differs in a comparison of the two is the shortcut alone.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from resnet_bench.kernels.fusion import Branches, Residual
from resnet_bench.models.blocks import conv3x3, initialize_by_fan_in, stage, two_convolutions


class SubsampleAndPad(nn.Module):
    """The parameter-free shortcut across a change of shape ("option A" of section 3.3).

    Every second row and column of the input, then channels of zeros behind its own until there are
    `out_channels`. The paper does not say where the zeros go; any place gives the same network up to the
    order of its channels.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.extra_channels = out_channels - in_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, in_channels, H, W]` to `[N, out_channels, H / stride, W / stride]`."""
        subsampled = x[:, :, :: self.stride, :: self.stride]
        return F.pad(subsampled, (0, 0, 0, 0, 0, self.extra_channels))


class Block(Residual):
    """Two 3x3 convolutions with BatchNorm; a residual block adds its input before the last ReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, residual: bool) -> None:
        super().__init__()
        self.layers = two_convolutions(in_channels, out_channels, stride)
        self.shortcut: nn.Module | None = None
        if residual:
            same_shape = stride == 1 and in_channels == out_channels
            self.shortcut = nn.Identity() if same_shape else SubsampleAndPad(in_channels, out_channels, stride)
        self.relu = nn.ReLU(inplace=True)

    def branches(self) -> Branches:
        """From `[N, in_channels, H, W]` to `[N, out_channels, H / stride, W / stride]`."""
        return Branches([self.layers], self.shortcut, self.relu)


class HeNetwork(nn.Module):
    """A residual or plain network of 6n + 2 layers; the comments give the shape of the map."""

    def __init__(self, depth: int, num_classes: int, *, residual: bool) -> None:
        super().__init__()
        if depth % 6 != 2:
            raise ValueError(f"the depth is 6n + 2 for a whole n, not {depth}")
        blocks, block = depth // 6, partial(Block, residual=residual)
        self.stem = nn.Sequential(
            conv3x3(3, 16),  # 16 x 32 x 32
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
        )
        self.stage1 = stage(block, 16, 16, blocks=blocks, stride=1)
        self.stage2 = stage(block, 16, 32, blocks=blocks, stride=2)  # 32 x 16 x 16
        self.stage3 = stage(block, 32, 64, blocks=blocks, stride=2)  # 64 x 8 x 8
        self.pool = nn.AvgPool2d(8)  # 64 x 1 x 1
        self.linear = nn.Linear(64, num_classes)
        initialize_by_fan_in(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, num_classes]` of normalized images `[N, 3, 32, 32]`."""
        x = self.stem(images)
        x = self.stage1(x)
        x = self.stage2(x)
        x = self.stage3(x)
        logits: Tensor = self.linear(self.pool(x).flatten(1))
        return logits
