"""How images reach the model: the whole split on the device, a batch of it in one indexing operation."""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_bench.data.dataset import Split
from resnet_bench.data.random_streams import RandomStream

_BYTES_AT_ONCE_ON_ACCELERATORS = 64 * 2**20
"""On an accelerator several batches are prepared together, so that small ones do not wait for kernel launches."""

_BYTES_RESIZED_AT_ONCE = 128 * 2**20
_IMAGES_PADDED_AT_ONCE = 5000

CHANNELS = 3

FIRST_EPOCH = 1
"""The number of the epoch that the stretches of `Augmentation.sizes` are counted from."""

_SECOND_PASS = 1_000_000
"""Added to an epoch's number for its second pass; no run has as many epochs."""


@dataclass(frozen=True)
class Augmentation:
    """What happens to an image, in this order: crop, flip, resize; normalisation; brightness, contrast.

    Attributes:
        crop_padding: Pixels added on every side before a window of the original size is cut out at random; 0 for none.
        padding_mode: What the added pixels are: black, or the image mirrored at its border.
        flip: Whether every other image, by chance, is mirrored left to right.
        alternate: Let chance decide on flips in the first epoch only, and then mirror each image in every other epoch.
        resize: Height and width in pixels of the images that the model gets, by bilinear interpolation that equals
            Pillow's; None keeps the original size.
        sizes: Instead of `resize`, stretches of training: the epoch that each ends at, as a float counted from the
            start of the first, and its height and width in pixels.
        brightness: Most that is added to the normalised values of an image, or taken from them, by chance.
        contrast: Most that the factor of an image's normalised values is above or below 1, by chance.
    """

    crop_padding: int = 0
    padding_mode: Literal["zeros", "reflect"] = "zeros"
    flip: bool = False
    alternate: bool = False
    resize: int | None = None
    sizes: tuple[tuple[float, int], ...] = ()
    brightness: float = 0.0
    contrast: float = 0.0

    @property
    def makes_copies(self) -> bool:
        """Whether padded or mirrored images are kept beside the split's own."""
        return bool(self.crop_padding or self.flip)

    @property
    def jitters(self) -> bool:
        """Whether brightness or contrast vary."""
        return bool(self.brightness or self.contrast)


@dataclass(frozen=True)
class Draws:
    """The random choices of one epoch, each `[N]`; entry i is for the i-th image that the model sees.

    Attributes:
        order: Index of the image in the split; this and the next three are int64.
        top: First row of the window in the padded image, from 0 to twice the padding.
        left: First column of the window in the padded image, before flipping.
        flip: 1 where the window is mirrored left to right.
        factor: What the normalised image is multiplied by, float32; None where brightness and contrast stay.
        addend: What is added then, float32.
    """

    order: Tensor
    top: Tensor
    left: Tensor
    flip: Tensor
    factor: Tensor | None = None
    addend: Tensor | None = None


class ResidentLoader:
    """Batches of a split that lives on the device as uint8.

    Every image is padded once, in both orientations if flips are asked for; the windows of all crops are a strided
    view of that, and a batch is one indexing operation into it, equal to the last bit to torchvision's RandomCrop
    and RandomHorizontalFlip for the same choices. Normalisation is ToTensor's and Normalize's arithmetic in their
    order, in float32; on a GPU it is one multiplication and addition, which rounds otherwise.

    The choices are a function of seed, stream, epoch and position: an epoch can be started anywhere, any number of
    times, and nothing about the loader need be saved to resume. They are made on the CPU, alike for all devices,
    for a whole epoch at once, so that the device is never waited for within one.

    Args:
        split: The images. On the CPU, and without crop or flip, they are used in place.
        batch_size: Images a batch; the last batch of an epoch holds the rest.
        mean: Mean of each channel, of pixels between 0 and 1.
        std: Standard deviation of each channel, likewise.
        device: Where the images live and the batches appear.
        augmentation: What happens to each image; nothing by default.
        shuffle: Whether every epoch has a random order of its own, rather than the split's.
        seed: The run's seed, from 0 to 2**64 - 1.
        stream: What the loader is for; loaders of different streams choose independently.
        drop_last: Whether a last batch that is not full is left out.
        dtype: Type of the normalised images.
        memory_format: Memory layout of the normalised images.

    Attributes:
        num_images: Number of images in the split.
        batch_size: Images a batch.

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
            self._device == self._home and memory_format == torch.channels_last and self._augmentation.makes_copies
        )
        images = split.images.to(self._home)
        padded = _padded_orientations(images, self._augmentation, interleaved=self._is_interleaved)
        if self._is_interleaved:
            rows = padded.permute(0, 1, 3, 4, 2).flatten(3)
            self._windows = rows.unfold(2, height, 1).unfold(3, width * CHANNELS, CHANNELS)
        else:
            self._windows = padded.unfold(3, height, 1).unfold(4, width, 1)
        self._prepared: dict[int, Draws | None] = {}
        if self._home.type == "cuda":
            for size in {self._augmentation.resize, *(size for _, size in self._augmentation.sizes)} - {None, height}:
                # Sent now, because within an epoch the host would have to wait for it.
                _pillow_weights(height, size, self._windows.device)

    def __len__(self) -> int:
        """Batches an epoch."""
        return math.ceil(self._num_used / self.batch_size)

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch on the device: normalised images `[B, 3, H, W]` and labels int64 `[B]`.

        Args:
            epoch: Epoch, counted from 0.
            start_batch: The first batch wanted; the ones before it are neither made nor drawn differently.

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
        """Images of a batch, and their height and width."""
        size = self._size(epoch, batch) or self._image_size[-1]
        return min(self.batch_size, self._num_used - batch * self.batch_size), size

    def raw_batch(self, epoch: int, batch: int) -> tuple[Tensor, Tensor]:
        """A batch before normalisation: uint8 `[B, 3, H, W]`, cropped, flipped and resized, and labels int64 `[B]`."""
        if not 0 <= batch < len(self):
            raise ValueError(f"an epoch has {len(self)} batches, and there is no batch {batch}")
        start = batch * self.batch_size
        images, labels = self._gather(self._indices(epoch), start, min(start + self.batch_size, self._num_used))
        return self._at_size(images, self._size(epoch, batch)), labels

    def draws(self, epoch: int) -> Draws:
        """The random choices of an epoch, on the CPU; choices that the augmentation does not need are 0."""
        size = self.num_images
        padding = self._augmentation.crop_padding
        none = torch.zeros(size, dtype=torch.int64)
        order = torch.from_numpy(self._stream.permutation(epoch, size)) if self._shuffle else torch.arange(size)
        if padding:
            top = torch.from_numpy(self._stream.integers("top", epoch, size, below=2 * padding + 1))
            left = torch.from_numpy(self._stream.integers("left", epoch, size, below=2 * padding + 1))
        else:
            top = left = none
        flip = self._flips(epoch, order) if self._augmentation.flip else none
        return Draws(order, top, left, flip, *(self._jitter(epoch) if self._augmentation.jitters else ()))

    def _flips(self, epoch: int, order: Tensor) -> Tensor:
        if not self._augmentation.alternate:
            return torch.from_numpy(self._stream.bits("flip", epoch, len(order)))
        # Here chance belongs to the image, wherever it stands in the order.
        return torch.from_numpy(self._stream.bits("flip", 0, len(order)))[order] ^ (epoch & 1)

    def _jitter(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Factor and addend of each image: moved by a brightness and multiplied by a contrast then."""
        brightness = self._augmentation.brightness * self._stream.signed("brightness", epoch, self.num_images)
        contrast = 1 + self._augmentation.contrast * self._stream.signed("contrast", epoch, self.num_images)
        return torch.from_numpy(contrast).float(), torch.from_numpy(brightness * contrast).float()

    def _size(self, epoch: int, batch: int) -> int | None:
        """Height and width of the images of a batch; None for the original ones."""
        sizes = self._augmentation.sizes
        if not sizes:
            return self._augmentation.resize
        position = (epoch - FIRST_EPOCH) + batch / len(self)
        return next((size for end, size in sizes if position < end), sizes[-1][1])

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
            images = self._normalised(self._at_size(raw, size).to(self._device))
            images = self._jittered(images, indices, start)
            labels = labels.to(self._device)
            for first in range(0, len(labels), self.batch_size):
                yield images[first : first + self.batch_size], labels[first : first + self.batch_size]
            batch += together

    def _at_size(self, images: Tensor, size: int | None) -> Tensor:
        return images if size in (None, images.shape[-1]) else _resized(images, size)

    def _batches_at_once(self) -> int:
        if self._device.type == "cpu":
            return 1
        height, width = self._image_size
        size = self._augmentation.resize
        pixels = size * size if size else height * width
        batch_bytes = self.batch_size * CHANNELS * pixels * self._dtype.itemsize
        return max(1, _BYTES_AT_ONCE_ON_ACCELERATORS // batch_bytes)

    def _indices(self, epoch: int) -> Draws | None:
        """The choices of an epoch where the images are, or nothing if the images are used as they lie."""
        if not self._shuffle and not self._augmentation.makes_copies and not self._augmentation.jitters:
            return None
        draws = self.draws(epoch)
        # A window of the mirrored image lies as far from its right border as its original does from the left one.
        mirrored_left = 2 * self._augmentation.crop_padding - draws.left
        left = torch.where(draws.flip == 1, mirrored_left, draws.left)
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

    def _normalised(self, images: Tensor) -> Tensor:
        if self._device.type == "cuda":
            return self._normalised_in_one_pass(images)
        if self._is_interleaved and images.is_contiguous(memory_format=torch.channels_last):
            return self._normalised_interleaved(images)
        is_reordered_here = self._device.type == "cpu" and self._memory_format == torch.channels_last
        memory_format = torch.contiguous_format if is_reordered_here else self._memory_format
        pixels = images.contiguous(memory_format=memory_format).float()
        pixels = pixels.div_(255).sub_(self._mean).div_(self._std).to(self._dtype)
        return _in_channels_last(pixels) if is_reordered_here else pixels

    def _normalised_interleaved(self, images: Tensor) -> Tensor:
        """The same bits, of images that lie in channels-last order already."""
        count, channels, height, width = images.shape
        # A whole image is a row: rows of a pixel's three numbers would be too short for vector instructions.
        mean, std = (values.flatten().repeat(height * width) for values in (self._mean, self._std))
        pixels = images.permute(0, 2, 3, 1).reshape(count, -1).float()
        pixels = pixels.div_(255).sub_(mean).div_(std).to(self._dtype)
        return pixels.view(count, height, width, channels).permute(0, 3, 1, 2)

    def _normalised_in_one_pass(self, images: Tensor) -> Tensor:
        """The same but for rounding; the floats are written once, where moving them is what takes time."""
        pixels = images.contiguous(memory_format=self._memory_format)
        return torch.addcmul(self._shift, pixels, self._scale).to(self._dtype)


def _in_channels_last(pixels: Tensor) -> Tensor:
    """The same in channels-last order; on a CPU faster than to compute in that order, where a row has 3 numbers."""
    reordered = torch.empty_like(pixels, memory_format=torch.channels_last)
    for channel in range(pixels.shape[1]):
        reordered[:, channel].copy_(pixels[:, channel])
    return reordered


def _padded_orientations(images: Tensor, augmentation: Augmentation, *, interleaved: bool) -> Tensor:
    """Padded images as they are and, if flips are asked for, mirrored: uint8 `[N, 1 or 2, 3, H + 2p, W + 2p]`.

    Interleaved, the three numbers of a pixel lie side by side in memory.
    """
    if not augmentation.makes_copies:
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
            padded = _reflected_by_index(images[part], padding)
        else:
            padded = _reflected(images[part], padding)
        orientations[part, 0] = padded
        if augmentation.flip:
            orientations[part, 1] = padded.flip(-1)
    return orientations


def _reflected(images: Tensor, padding: int) -> Tensor:
    widths = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    return torch.from_numpy(np.pad(images.numpy(), widths, mode="reflect"))


def _reflected_by_index(images: Tensor, padding: int) -> Tensor:
    """The same on any device, of which none but the CPU reflects integers."""
    rows, columns = (
        torch.from_numpy(np.pad(np.arange(size), padding, mode="reflect")).to(images.device)
        for size in images.shape[-2:]
    )
    return images.index_select(-2, rows).index_select(-1, columns)


def _resized(images: Tensor, size: int) -> Tensor:
    """Bilinear interpolation of square uint8 images, equal to Pillow's to the last bit."""
    if images.device.type == "cpu" and _integer_kernel_is_exact(images.shape[-1], size):
        return _resized_by_integer_kernel(images, size)
    return _resized_by_matrices(images, size)


def _resized_by_integer_kernel(images: Tensor, size: int) -> Tensor:
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def _resized_by_matrices(images: Tensor, size: int) -> Tensor:
    """Pillow's two passes as matrix products, on any device with float64.

    Pillow weighs pixels with multiples of 2**-22; in float64 such products and sums are exact in any order. They are
    made for as many images at a time as keep them within some memory.
    """
    weights, half = _pillow_weights(images.shape[-1], size, images.device)
    resized = torch.empty((*images.shape[:-2], size, size), dtype=torch.uint8, device=images.device)
    together = max(1, _BYTES_RESIZED_AT_ONCE // (images.shape[1] * size * size * torch.float64.itemsize))
    for start in range(0, len(images), together):
        part = slice(start, start + together)
        # Converting to an integer cuts the fraction off, so that adding a half first rounds as Pillow does.
        rows = F.linear(images[part].double(), weights, half).to(torch.uint8)
        columns = F.linear(rows.mT.double(), weights, half).to(torch.uint8)
        resized[part] = columns.mT
    return resized


@functools.cache
def _integer_kernel_is_exact(old: int, new: int) -> bool:
    """Whether torch's CPU kernel, ten times as fast, equals Pillow; seen from 32 to 224 and not for all sizes."""
    noise = torch.randint(0, 256, (16, 3, old, old), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return torch.equal(_resized_by_integer_kernel(noise, new), _resized_by_matrices(noise, new))


@functools.cache
def _pillow_weights(old: int, new: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Weights of old pixels in new ones as in Pillow's `Resample.c`, float64 `[new, old]`, and halves `[new]`."""
    scale = old / new
    reach = max(scale, 1.0)
    centres = (np.arange(new)[:, None] + 0.5) * scale
    pixels = np.arange(old)[None]
    # Pillow looks at these pixels only; with its own rounding at the ends, not all that the triangle covers.
    first = np.maximum((centres - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + reach + 0.5).astype(np.int64), old)
    triangle = np.maximum(1 - np.abs((pixels - centres + 0.5) / reach), 0) * ((first <= pixels) & (pixels < last))
    weights = triangle / triangle.sum(axis=1, keepdims=True)
    rounded = torch.from_numpy(np.floor(weights * 2**22 + 0.5) / 2**22)
    return rounded.to(device), torch.full((new,), 0.5, dtype=torch.float64, device=device)
