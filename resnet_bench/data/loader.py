"""A loader that keeps the whole split on the device and makes each batch in one indexing operation."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from resnet_bench.data.augmentation import (
    FIRST_EPOCH,
    Draws,
    all_sizes,
    draw,
    makes_copies,
    padded_orientations,
    size_at,
)
from resnet_bench.data.dataset import Split
from resnet_bench.data.random_streams import RandomStream
from resnet_bench.data.resize import pillow_weights, resize
from resnet_bench.recipe.settings import Augmentation

_BYTES_AT_ONCE_ON_ACCELERATORS = 64 * 2**20
"""On an accelerator several batches are prepared together, so that small ones do not wait for kernel launches."""

CHANNELS = 3

_SECOND_PASS = 1_000_000
"""Added to an epoch's number for its second pass; no run has as many epochs."""


class ResidentLoader:
    """Batches of a split that lives on the device as uint8.

    Every image is padded once, in both orientations if flips are asked for; the windows of all crops are a strided
    view of that, and a batch is one indexing operation into it, equal to the last bit to torchvision's RandomCrop
    and RandomHorizontalFlip for the same choices. Normalization is ToTensor's and Normalize's arithmetic in their
    order, in float32; on a GPU it is one multiplication and addition, which rounds differently.

    The choices are a function of seed, stream, epoch and position: an epoch can be started anywhere, any number of
    times, and resuming needs no saved state. They are made on the CPU, alike for all devices, for a whole epoch at
    once, so that an epoch never waits for the device.

    Args:
        split: The images. On the CPU, and without crop or flip, they are used in place.
        batch_size: Images per batch; the last batch of an epoch has the rest.
        mean: Mean of each channel, of pixels between 0 and 1.
        std: Standard deviation of each channel, likewise.
        device: Where the images live and the batches appear.
        augmentation: What happens to each image; nothing by default.
        shuffle: Whether every epoch has a new random order, rather than the split's.
        seed: The run's seed, from 0 to 2**64 - 1.
        stream: What the loader is for; loaders of different streams choose independently.
        drop_last: Whether a last batch that is not full is left out.
        dtype: Type of the normalized images.
        memory_format: Memory layout of the normalized images.

    Attributes:
        num_images: Number of images in the split.
        batch_size: Images per batch.

    Raises:
        ValueError: A batch has no image, the seed is out of range, or reflected padding is as large as the image.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        augmentation: Augmentation | None = None,
        shuffle: bool = False,
        seed: int = 0,
        stream: str = "train",
        drop_last: bool = False,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"a batch has at least one image; {batch_size} were asked for")
        self.num_images = len(split)
        self.batch_size = batch_size
        self._num_used = self.num_images - self.num_images % batch_size if drop_last else self.num_images
        self._device = torch.device(device)
        # Other accelerators share the CPU's memory or copy a strided view before they index it.
        self._home = self._device if self._device.type == "cuda" else torch.device("cpu")
        self._augmentation = augmentation or Augmentation()
        self._shuffle = shuffle
        self._stream = RandomStream(seed, stream)
        self._dtype = dtype
        self._memory_format = memory_format
        means, stds = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std))
        self._mean, self._std = means.to(self._device), stds.to(self._device)
        self._scale, self._shift = (1 / (255 * stds)).to(self._device), (-means / stds).to(self._device)
        self._labels = split.labels.to(self._home)
        height, width = split.images.shape[-2:]
        self._image_size = height, width
        # A row of a window is then one stretch of bytes, and its floats are where the model wants them from the start.
        # Images that are used in place stay as they are.
        self._is_interleaved = (
            self._device == self._home and memory_format == torch.channels_last and makes_copies(self._augmentation)
        )
        images = split.images.to(self._home)
        padded = padded_orientations(images, self._augmentation, interleaved=self._is_interleaved)
        if self._is_interleaved:
            rows = padded.permute(0, 1, 3, 4, 2).flatten(3)
            self._windows = rows.unfold(2, height, 1).unfold(3, width * CHANNELS, CHANNELS)
        else:
            self._windows = padded.unfold(3, height, 1).unfold(4, width, 1)
        self._prepared: dict[int, Draws | None] = {}
        if self._home.type == "cuda":
            for size in all_sizes(self._augmentation) - {height}:
                # Sent now, because within an epoch the host would have to wait for it.
                pillow_weights(height, size, self._windows.device)

    def __len__(self) -> int:
        """Count the batches of an epoch."""
        return math.ceil(self._num_used / self.batch_size)

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch on the device: normalized images `[B, 3, H, W]` and labels int64 `[B]`.

        Args:
            epoch: Epoch, counted from 0.
            start_batch: The first batch wanted; the ones before it are not made, and the others stay the same.

        Raises:
            ValueError: The epoch has fewer batches than `start_batch`.
        """
        if not 0 <= start_batch <= len(self):
            raise ValueError(f"an epoch has {len(self)} batches and cannot start at batch {start_batch}")
        return self._batches(epoch, start_batch)

    def second_pass(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of a pass beside an epoch's own, such as to measure accuracy on the training images.

        Order, crops, jitter and random flips are drawn independently of the epoch's; alternating flips are the
        epoch's. With `Augmentation.sizes`, images have the last size.
        """
        return self.epoch(_SECOND_PASS + epoch)

    def prepare(self, epoch: int) -> None:
        """Draw an epoch's choices ahead of time, while the device has other work, and send them to it."""
        self._prepared = {epoch: self._indices(epoch)}

    def batch_shape(self, epoch: int, batch: int) -> tuple[int, int]:
        """Return the number of images of a batch, and their height and width."""
        size = self._size(epoch, batch) or self._image_size[-1]
        return min(self.batch_size, self._num_used - batch * self.batch_size), size

    def raw_batch(self, epoch: int, batch: int) -> tuple[Tensor, Tensor]:
        """Make a batch before normalization: uint8 `[B, 3, H, W]` after augmentation, and labels int64 `[B]`."""
        if not 0 <= batch < len(self):
            raise ValueError(f"an epoch has {len(self)} batches, and there is no batch {batch}")
        start = batch * self.batch_size
        images, labels = self._gather(self._indices(epoch), start, min(start + self.batch_size, self._num_used))
        return self._at_size(images, self._size(epoch, batch)), labels

    def draws(self, epoch: int) -> Draws:
        """Draw the random choices of an epoch, on the CPU; choices that the augmentation does not need are 0."""
        return draw(self._augmentation, self._stream, epoch, self.num_images, shuffle=self._shuffle)

    def _size(self, epoch: int, batch: int) -> int | None:
        """Return the height and width of the images of a batch; None for the original ones."""
        return size_at(self._augmentation, (epoch - FIRST_EPOCH) + batch / len(self))

    def _batches(self, epoch: int, start_batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        indices = self._prepared.pop(epoch) if epoch in self._prepared else self._indices(epoch)
        batch = start_batch
        while batch < len(self):
            size = self._size(epoch, batch)
            together = self._batches_at_once()
            while self._size(epoch, batch + together - 1) != size:
                together -= 1
            start = batch * self.batch_size
            raw, labels = self._gather(indices, start, min(start + together * self.batch_size, self._num_used))
            images = self._normalize(self._at_size(raw, size).to(self._device))
            images = self._jittered(images, indices, start)
            labels = labels.to(self._device)
            for first in range(0, len(labels), self.batch_size):
                yield images[first : first + self.batch_size], labels[first : first + self.batch_size]
            batch += together

    def _at_size(self, images: Tensor, size: int | None) -> Tensor:
        return images if size in (None, images.shape[-1]) else resize(images, size)

    def _batches_at_once(self) -> int:
        if self._device.type == "cpu":
            return 1
        height, width = self._image_size
        size = self._augmentation.resize
        pixels = size * size if size else height * width
        batch_bytes = self.batch_size * CHANNELS * pixels * self._dtype.itemsize
        return max(1, _BYTES_AT_ONCE_ON_ACCELERATORS // batch_bytes)

    def _indices(self, epoch: int) -> Draws | None:
        """Return the choices of an epoch on the images' device; None if the images are used in place."""
        if not self._shuffle and not makes_copies(self._augmentation) and self._augmentation.jitter is None:
            return None
        draws = self.draws(epoch)
        # A window of the flipped image is as far from its right border as its original is from the left one.
        flipped_left = 2 * self._augmentation.crop_padding - draws.left
        left = torch.where(draws.flip == 1, flipped_left, draws.left)
        if self._home.type == "cpu":
            return replace(draws, left=left)
        choices = [self._sent(torch.stack([draws.order, draws.top, left, draws.flip]))]
        if draws.factor is not None and draws.addend is not None:
            choices.append(self._sent(torch.stack([draws.factor, draws.addend])))
        return Draws(*(choice for several in choices for choice in several.unbind()))

    def _sent(self, choices: Tensor) -> Tensor:
        # From pinned memory the host need not wait until the device has copied it.
        return choices.pin_memory().to(self._home, non_blocking=True)

    def _gather(self, indices: Draws | None, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Images from position `start` to before `stop` of an epoch, uint8 in their original size, and their labels."""
        if indices is None:
            images, labels = self._windows[start:stop, 0, :, 0, 0], self._labels[start:stop]
        else:
            order, top, left, flip = (
                choice[start:stop] for choice in (indices.order, indices.top, indices.left, indices.flip)
            )
            labels = self._labels[order]
            if self._is_interleaved:
                rows = self._windows[order, flip, top, left]
                images = rows.reshape(len(rows), *self._image_size, CHANNELS).permute(0, 3, 1, 2)
            else:
                images = self._windows[order, flip, :, top, left]
        return images, labels

    def _jittered(self, images: Tensor, indices: Draws | None, start: int) -> Tensor:
        if indices is None or indices.factor is None or indices.addend is None:
            return images
        factor, addend = (
            choice[start : start + len(images)].to(images).view(-1, 1, 1, 1)
            for choice in (indices.factor, indices.addend)
        )
        return torch.addcmul(addend, images, factor, out=images)

    def _normalize(self, images: Tensor) -> Tensor:
        if self._device.type == "cuda":
            return self._normalize_in_one_pass(images)
        if self._is_interleaved and images.is_contiguous(memory_format=torch.channels_last):
            return self._normalize_interleaved(images)
        is_reordered_here = self._device.type == "cpu" and self._memory_format == torch.channels_last
        memory_format = torch.contiguous_format if is_reordered_here else self._memory_format
        pixels = images.contiguous(memory_format=memory_format).float()
        pixels = pixels.div_(255).sub_(self._mean).div_(self._std).to(self._dtype)
        return _in_channels_last(pixels) if is_reordered_here else pixels

    def _normalize_interleaved(self, images: Tensor) -> Tensor:
        """The same bits, of images that lie in channels-last order already."""
        count, channels, height, width = images.shape
        # A whole image is a row: rows of a pixel's three numbers would be too short for vector instructions.
        mean, std = (values.flatten().repeat(height * width) for values in (self._mean, self._std))
        pixels = images.permute(0, 2, 3, 1).reshape(count, -1).float()
        pixels = pixels.div_(255).sub_(mean).div_(std).to(self._dtype)
        return pixels.view(count, height, width, channels).permute(0, 3, 1, 2)

    def _normalize_in_one_pass(self, images: Tensor) -> Tensor:
        """The same but for rounding; the floats are written once, where moving them is what takes time."""
        pixels = images.contiguous(memory_format=self._memory_format)
        return torch.addcmul(self._shift, pixels, self._scale).to(self._dtype)


def _in_channels_last(pixels: Tensor) -> Tensor:
    """The same in channels-last order; on a CPU faster than to compute in that order, where a row has 3 numbers."""
    reordered = torch.empty_like(pixels, memory_format=torch.channels_last)
    for channel in range(pixels.shape[1]):
        reordered[:, channel].copy_(pixels[:, channel])
    return reordered
