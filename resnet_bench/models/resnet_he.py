"""The CIFAR networks of He et al., "Deep Residual Learning for Image Recognition" (2015), section 4.2.

Three stages of `n` blocks of two 3x3 convolutions, 16, 32 and 64 channels wide, between a 3x3 stem and an
average over the last map: 6n + 2 layers with weights. The shortcuts have no parameters ("option A"), so that
a residual network and its plain counterpart, the same layers without the shortcuts, are equal in parameters
and work: what differs in a comparison of the two is the shortcut alone.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from resnet_bench.kernels.fusion import Branches, Residual


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
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
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
        blocks = depth // 6
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, kernel_size=3, padding=1, bias=False),  # 16 x 32 x 32
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
        )
        self.stage1 = _stage(16, 16, blocks=blocks, stride=1, residual=residual)
        self.stage2 = _stage(16, 32, blocks=blocks, stride=2, residual=residual)  # 32 x 16 x 16
        self.stage3 = _stage(32, 64, blocks=blocks, stride=2, residual=residual)  # 64 x 8 x 8
        self.pool = nn.AvgPool2d(8)  # 64 x 1 x 1
        self.linear = nn.Linear(64, num_classes)
        _initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, num_classes]` of normalized images `[N, 3, 32, 32]`."""
        x = self.stem(images)
        x = self.stage1(x)
        x = self.stage2(x)
        x = self.stage3(x)
        logits: Tensor = self.linear(self.pool(x).flatten(1))
        return logits


def _stage(in_channels: int, out_channels: int, *, blocks: int, stride: int, residual: bool) -> nn.Sequential:
    first = Block(in_channels, out_channels, stride=stride, residual=residual)
    rest = [Block(out_channels, out_channels, stride=1, residual=residual) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def _initialize(network: nn.Module) -> None:
    """The initialization of He et al., "Delving Deep into Rectifiers": variance 2 / fan-in, biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def he_resnet20(num_classes: int = 10) -> HeNetwork:
    """ResNet-20 for 32-pixel images: 269,722 parameters with 10 classes; test error in the paper 8.75%."""
    return HeNetwork(20, num_classes, residual=True)


def he_resnet32(num_classes: int = 10) -> HeNetwork:
    """ResNet-32 for 32-pixel images; test error in the paper 7.51%."""
    return HeNetwork(32, num_classes, residual=True)


def he_resnet44(num_classes: int = 10) -> HeNetwork:
    """ResNet-44 for 32-pixel images; test error in the paper 7.17%."""
    return HeNetwork(44, num_classes, residual=True)


def he_resnet56(num_classes: int = 10) -> HeNetwork:
    """ResNet-56 for 32-pixel images: 853,018 parameters with 10 classes; test error in the paper 6.97%."""
    return HeNetwork(56, num_classes, residual=True)


def he_resnet110(num_classes: int = 10) -> HeNetwork:
    """ResNet-110 for 32-pixel images: 1,727,962 parameters with 10 classes; test error in the paper 6.43%."""
    return HeNetwork(110, num_classes, residual=True)


def plain20(num_classes: int = 10) -> HeNetwork:
    """`he_resnet20` without its shortcuts."""
    return HeNetwork(20, num_classes, residual=False)


def plain32(num_classes: int = 10) -> HeNetwork:
    """`he_resnet32` without its shortcuts."""
    return HeNetwork(32, num_classes, residual=False)


def plain44(num_classes: int = 10) -> HeNetwork:
    """`he_resnet44` without its shortcuts."""
    return HeNetwork(44, num_classes, residual=False)


def plain56(num_classes: int = 10) -> HeNetwork:
    """`he_resnet56` without its shortcuts; the deepest plain network that the paper's figure 6 shows."""
    return HeNetwork(56, num_classes, residual=False)
