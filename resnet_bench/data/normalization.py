"""Turning uint8 images into the numbers that a model takes."""

from collections.abc import Sequence

import torch
from torch import Tensor

CHANNELS = 3


class Normalizer:
    """The arithmetic of torchvision's ToTensor and Normalize, in their order, in float32.

    On a GPU it is one multiplication and addition, which rounds differently.

    Args:
        mean: Mean of each channel, of pixels between 0 and 1.
        std: Standard deviation of each channel, likewise.
        device: Where the images are.
        memory_format: Memory layout of the normalized images.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        device: torch.device,
        memory_format: torch.memory_format,
    ) -> None:
        means, stds = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std))
        self._mean, self._std = means.to(device), stds.to(device)
        self._scale, self._shift = (1 / (255 * stds)).to(device), (-means / stds).to(device)
        self._device = device
        self._memory_format = memory_format

    def __call__(self, images: Tensor) -> Tensor:
        """Normalize uint8 images `[B, 3, H, W]` on the device."""
        if self._device.type == "cuda":
            return self.in_one_pass(images)
        wants_channels_last = self._device.type == "cpu" and self._memory_format == torch.channels_last
        if wants_channels_last and images.is_contiguous(memory_format=torch.channels_last):
            return self._in_rows(images)
        memory_format = torch.contiguous_format if wants_channels_last else self._memory_format
        pixels = images.contiguous(memory_format=memory_format).float()
        pixels = pixels.div_(255).sub_(self._mean).div_(self._std)
        return _in_channels_last(pixels) if wants_channels_last else pixels

    def in_one_pass(self, images: Tensor) -> Tensor:
        """The same but for rounding; the floats are written once, where moving them is what takes time."""
        pixels = images.contiguous(memory_format=self._memory_format)
        return torch.addcmul(self._shift, pixels, self._scale)

    def _in_rows(self, images: Tensor) -> Tensor:
        """The same bits, of images that lie in channels-last order already."""
        count, channels, height, width = images.shape
        # A whole image is a row: rows of a pixel's three numbers would be too short for vector instructions.
        mean, std = (values.flatten().repeat(height * width) for values in (self._mean, self._std))
        pixels = images.permute(0, 2, 3, 1).reshape(count, -1).float()
        pixels = pixels.div_(255).sub_(mean).div_(std)
        return pixels.view(count, height, width, channels).permute(0, 3, 1, 2)


def _in_channels_last(pixels: Tensor) -> Tensor:
    """The same in channels-last order; on a CPU faster than to compute in that order, where a row has 3 numbers."""
    reordered = torch.empty_like(pixels, memory_format=torch.channels_last)
    for channel in range(pixels.shape[1]):
        reordered[:, channel].copy_(pixels[:, channel])
    return reordered
