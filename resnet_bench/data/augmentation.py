"""What a recipe's augmentation does to images: the random choices of an epoch, padded copies, and image sizes.

:mod:`resnet_bench.data.crops_and_flips` cuts a batch's images with them, :mod:`resnet_bench.data.loader` does the rest.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_bench.data.random_streams import RandomStream
from resnet_bench.recipe.settings import Augmentation

FIRST_EPOCH = 1
"""The number of the epoch that the stages of `Augmentation.sizes` are counted from."""

_IMAGES_PADDED_AT_ONCE = 5000


@dataclass(frozen=True)
class Draws:
    """The random choices of one epoch, each `[N]`; entry i is for the i-th image that the model sees.

    Attributes:
        order: Index of the image in the split; this and the next three are int64.
        top: First row of the window in the padded image, from 0 to twice the padding.
        left: First column of the window in the padded image, before flipping.
        flip: 1 where the window is flipped left to right.
        factor: What the normalized image is multiplied by, float32; None without jitter.
        addend: What is added then, float32.
    """

    order: Tensor
    top: Tensor
    left: Tensor
    flip: Tensor
    factor: Tensor | None = None
    addend: Tensor | None = None


def draw(augmentation: Augmentation, stream: RandomStream, epoch: int, size: int, *, shuffle: bool) -> Draws:
    """Draw the random choices of an epoch, on the CPU.

    Args:
        augmentation: Choices that it does not need are 0.
        stream: Where the numbers come from.
        epoch: The epoch.
        size: Images of the split.
        shuffle: Whether the order is random rather than the split's.
    """
    none = torch.zeros(size, dtype=torch.int64)
    order = torch.from_numpy(stream.permutation(epoch, size)) if shuffle else torch.arange(size)
    top = left = none
    if augmentation.crop_padding:
        below = 2 * augmentation.crop_padding + 1
        top = torch.from_numpy(stream.integers("top", epoch, size, below=below))
        left = torch.from_numpy(stream.integers("left", epoch, size, below=below))
    flip = _flips(augmentation, stream, epoch, order) if augmentation.flip else none
    return Draws(order, top, left, flip, *_jitter(augmentation, stream, epoch, size))


def makes_copies(augmentation: Augmentation) -> bool:
    """Check whether padded or flipped images are kept beside the split's own."""
    return bool(augmentation.crop_padding or augmentation.flip)


def size_at(augmentation: Augmentation, position: float) -> int | None:
    """Return the height and width of training images at a position of the run; None for the original ones.

    Args:
        augmentation: With the stages of progressive resizing.
        position: Epochs since the start of `FIRST_EPOCH`.
    """
    stages = augmentation.sizes
    if not stages:
        return augmentation.resize
    ends = itertools.accumulate(stage.epochs for stage in stages)
    return next((stage.pixels for stage, end in zip(stages, ends, strict=True) if position < end), stages[-1].pixels)


def all_sizes(augmentation: Augmentation) -> set[int]:
    """Return every height and width that images are resized to."""
    resized = [] if augmentation.resize is None else [augmentation.resize]
    return {*resized, *(stage.pixels for stage in augmentation.sizes or ())}


def padded_orientations(images: Tensor, augmentation: Augmentation, *, interleaved: bool) -> Tensor:
    """Pad images, as they are and, if flips are asked for, flipped.

    Args:
        images: uint8 `[N, 3, H, W]`.
        augmentation: Padding and flips.
        interleaved: Whether the three numbers of a pixel are adjacent in memory.

    Returns:
        uint8 `[N, 1 or 2, 3, H + 2p, W + 2p]`; without padding and flips a view of the images.

    Raises:
        ValueError: Reflected padding is as large as the image.
    """
    if not makes_copies(augmentation):
        return images.unsqueeze(1)
    padding = augmentation.crop_padding
    count, channels, height, width = images.shape
    if augmentation.padding_mode == "reflect" and padding >= min(height, width):
        raise ValueError(f"an image of {height}x{width} pixels cannot be padded by {padding} reflected ones")
    shape = (count, 1 + augmentation.flip, channels, height + 2 * padding, width + 2 * padding)
    if interleaved:
        pixel_by_pixel = (*shape[:2], *shape[3:], channels)
        orientations = torch.empty(pixel_by_pixel, dtype=torch.uint8, device=images.device).permute(0, 1, 4, 2, 3)
    else:
        orientations = torch.empty(shape, dtype=torch.uint8, device=images.device)
    for start in range(0, count, _IMAGES_PADDED_AT_ONCE):
        part = slice(start, start + _IMAGES_PADDED_AT_ONCE)
        if augmentation.padding_mode == "zeros":
            padded = F.pad(images[part], (padding, padding, padding, padding))
        elif images.is_cuda:
            padded = reflect_by_index(images[part], padding)
        else:
            padded = _reflected(images[part], padding)
        orientations[part, 0] = padded
        if augmentation.flip:
            orientations[part, 1] = padded.flip(-1)
    return orientations


def _flips(augmentation: Augmentation, stream: RandomStream, epoch: int, order: Tensor) -> Tensor:
    if augmentation.flip_mode != "alternating":
        return torch.from_numpy(stream.bits("flip", epoch, len(order)))
    # Here chance belongs to the image, wherever it is in the order.
    return torch.from_numpy(stream.bits("flip", 0, len(order)))[order] ^ (epoch & 1)


def _jitter(augmentation: Augmentation, stream: RandomStream, epoch: int, size: int) -> tuple[Tensor, ...]:
    """Draw factor and addend of each image: shifted by a brightness, then multiplied by a contrast."""
    if augmentation.jitter is None:
        return ()
    brightness = augmentation.jitter.brightness * stream.signed("brightness", epoch, size)
    contrast = 1 + augmentation.jitter.contrast * stream.signed("contrast", epoch, size)
    return torch.from_numpy(contrast).float(), torch.from_numpy(brightness * contrast).float()


def _reflected(images: Tensor, padding: int) -> Tensor:
    widths = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    return torch.from_numpy(np.pad(images.numpy(), widths, mode="reflect"))


def reflect_by_index(images: Tensor, padding: int) -> Tensor:
    """Reflect at the border on any device; only the CPU reflects integers itself."""
    rows, columns = (
        torch.from_numpy(np.pad(np.arange(size), padding, mode="reflect")).to(images.device)
        for size in images.shape[-2:]
    )
    return images.index_select(-2, rows).index_select(-1, columns)
