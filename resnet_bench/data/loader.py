"""A loader that keeps the whole split on the device and makes each batch in one indexing operation."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from resnet_bench.data.augmentation import (
    FIRST_EPOCH,
    Draws,
    draw,
    makes_copies,
    size_at,
)
from resnet_bench.data.crops_and_flips import Windows
from resnet_bench.data.dataset import Split
from resnet_bench.data.normalization import CHANNELS, Normalizer
from resnet_bench.data.random_streams import RandomStream
from resnet_bench.data.resize import resize
from resnet_bench.recipe.settings import Augmentation

_BYTES_AT_ONCE = 64 * 2**20
"""On an accelerator several batches are prepared together, so that small ones do not wait for kernel launches."""

_SECOND_PASS = 1_000_000
"""Added to an epoch's number for its second pass; no run has as many epochs."""


class ResidentLoader:
    """Batches of a split that lives on the device as uint8.

    It decides which images are in a batch, and in which order; :class:`Windows` crops and flips them, and
    :class:`Normalizer` makes them numbers.

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
        memory_format: Memory layout of the normalized images.
        batches_at_once: Batches to prepare together; by default one on a CPU, as many as take 64 MiB elsewhere.

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
        memory_format: torch.memory_format = torch.contiguous_format,
        batches_at_once: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"a batch has at least one image; {batch_size} were asked for")
        self.num_images = len(split)
        self.batch_size = batch_size
        self._num_used = self.num_images - self.num_images % batch_size if drop_last else self.num_images
        self._device = torch.device(device)
        self._augmentation = augmentation or Augmentation()
        self._shuffle = shuffle
        self._stream = RandomStream(seed, stream)
        self._normalize = Normalizer(mean, std, device=self._device, memory_format=memory_format)
        self._windows = Windows(split, self._augmentation, device=self._device, memory_format=memory_format)
        self._batches_at_once = batches_at_once or self._fitting_batches()
        self._prepared: dict[int, Draws | None] = {}

    def __len__(self) -> int:
        """Count the batches of an epoch."""
        return math.ceil(self._num_used / self.batch_size)

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch on the device: normalized images float32 `[B, 3, H, W]`, labels int64 `[B]`.

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
        self._prepared = {epoch: self._placed_draws(epoch)}

    def batch_shape(self, epoch: int, batch: int) -> tuple[int, int]:
        """Return the number of images of a batch, and their height and width."""
        size = self._size(epoch, batch) or self._windows.image_size[-1]
        return min(self.batch_size, self._num_used - batch * self.batch_size), size

    def raw_batch(self, epoch: int, batch: int) -> tuple[Tensor, Tensor]:
        """Make a batch before normalization: uint8 `[B, 3, H, W]` after augmentation, and labels int64 `[B]`."""
        if not 0 <= batch < len(self):
            raise ValueError(f"an epoch has {len(self)} batches, and there is no batch {batch}")
        start = batch * self.batch_size
        stop = min(start + self.batch_size, self._num_used)
        images, labels = self._windows.gather(self._placed_draws(epoch), start, stop)
        return _at_size(images, self._size(epoch, batch)), labels

    def draws(self, epoch: int) -> Draws:
        """Draw the random choices of an epoch, on the CPU; choices that the augmentation does not need are 0."""
        return draw(self._augmentation, self._stream, epoch, self.num_images, shuffle=self._shuffle)

    def _size(self, epoch: int, batch: int) -> int | None:
        """Return the height and width of the images of a batch; None for the original ones."""
        return size_at(self._augmentation, (epoch - FIRST_EPOCH) + batch / len(self))

    def _batches(self, epoch: int, start_batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        draws = self._prepared.pop(epoch) if epoch in self._prepared else self._placed_draws(epoch)
        batch = start_batch
        while batch < len(self):
            size = self._size(epoch, batch)
            together = self._batches_at_once
            while self._size(epoch, batch + together - 1) != size:
                together -= 1
            start = batch * self.batch_size
            raw, labels = self._windows.gather(draws, start, min(start + together * self.batch_size, self._num_used))
            images = self._normalize(_at_size(raw, size).to(self._device))
            images = _jittered(images, draws, start)
            labels = labels.to(self._device)
            for first in range(0, len(labels), self.batch_size):
                yield images[first : first + self.batch_size], labels[first : first + self.batch_size]
            batch += together

    def _fitting_batches(self) -> int:
        if self._device.type == "cpu":
            return 1
        height, width = self._windows.image_size
        size = self._augmentation.resize
        pixels = size * size if size else height * width
        return max(1, _BYTES_AT_ONCE // (self.batch_size * CHANNELS * pixels * torch.float32.itemsize))

    def _placed_draws(self, epoch: int) -> Draws | None:
        """Return the choices of an epoch on the images' device; None if the images are used in place."""
        if not self._shuffle and not makes_copies(self._augmentation) and self._augmentation.jitter is None:
            return None
        return self._windows.place(self.draws(epoch))


def _jittered(images: Tensor, draws: Draws | None, start: int) -> Tensor:
    if draws is None or draws.factor is None or draws.addend is None:
        return images
    factor, addend = (
        choice[start : start + len(images)].to(images).view(-1, 1, 1, 1) for choice in (draws.factor, draws.addend)
    )
    return torch.addcmul(addend, images, factor, out=images)


def _at_size(images: Tensor, size: int | None) -> Tensor:
    return images if size in (None, images.shape[-1]) else resize(images, size)
