"""The crops and flips of a split's images, each a window of a padded image."""

from dataclasses import replace

import torch
from torch import Tensor

from resnet_bench.data.augmentation import Draws, all_sizes, makes_copies, padded_orientations
from resnet_bench.data.dataset import Split
from resnet_bench.data.normalization import CHANNELS
from resnet_bench.data.resize import pillow_weights
from resnet_bench.recipe.settings import Augmentation


class Windows:
    """Every window that an augmentation can cut from a split's images, of which a batch gathers some.

    Every image is padded once, in both orientations if flips are asked for; the windows of all crops are a strided
    view of that, and a batch is one indexing operation into it, equal to the last bit to torchvision's RandomCrop
    and RandomHorizontalFlip for the same choices.

    Args:
        split: The images. On the CPU, and without crop or flip, they are used in place.
        augmentation: What happens to each image.
        device: Where the batches are wanted.
        memory_format: Memory layout that they will have.

    Attributes:
        image_size: Height and width of the split's images.

    Raises:
        ValueError: Reflected padding is as large as the image.
    """

    def __init__(
        self, split: Split, augmentation: Augmentation, *, device: torch.device, memory_format: torch.memory_format
    ) -> None:
        # Other accelerators share the CPU's memory or copy a strided view before they index it.
        self._home = device if device.type == "cuda" else torch.device("cpu")
        self._padding = augmentation.crop_padding
        self._labels = split.labels.to(self._home)
        height, width = split.images.shape[-2:]
        self.image_size = height, width
        # A row of a window is then one stretch of bytes, and its floats are where the model wants them from the start.
        # Images that are used in place stay as they are.
        self._is_interleaved = (
            device == self._home and memory_format == torch.channels_last and makes_copies(augmentation)
        )
        images = split.images.to(self._home)
        padded = padded_orientations(images, augmentation, interleaved=self._is_interleaved)
        if self._is_interleaved:
            rows = padded.permute(0, 1, 3, 4, 2).flatten(3)
            self._windows = rows.unfold(2, height, 1).unfold(3, width * CHANNELS, CHANNELS)
        else:
            self._windows = padded.unfold(3, height, 1).unfold(4, width, 1)
        if self._home.type == "cuda":
            for size in all_sizes(augmentation) - {height}:
                # Sent now, because within an epoch the host would have to wait for it.
                pillow_weights(height, size, self._windows.device)

    def place(self, draws: Draws) -> Draws:
        """Turn the choices of an epoch into indices of windows, on the images' device."""
        # A window of the flipped image is as far from its right border as its original is from the left one.
        left = torch.where(draws.flip == 1, 2 * self._padding - draws.left, draws.left)
        draws = replace(draws, left=left)
        if self._home.type == "cpu":
            return draws
        given = {name: choice for name, choice in vars(draws).items() if choice is not None}
        # Those of one type are sent together.
        for dtype in {choice.dtype for choice in given.values()}:
            names = [name for name, choice in given.items() if choice.dtype == dtype]
            given |= zip(names, self._sent(torch.stack([given[name] for name in names])).unbind(), strict=True)
        return Draws(**given)

    def gather(self, placed: Draws | None, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Images from position `start` to before `stop` of an epoch, uint8 in their original size, and their labels.

        Args:
            placed: What `place` returned; None for the split's own images in their order.
            start: First position.
            stop: The position after the last.
        """
        if placed is None:
            return self._windows[start:stop, 0, :, 0, 0], self._labels[start:stop]
        order, top, left, flip = (choice[start:stop] for choice in (placed.order, placed.top, placed.left, placed.flip))
        if self._is_interleaved:
            rows = self._windows[order, flip, top, left]
            images = rows.reshape(len(rows), *self.image_size, CHANNELS).permute(0, 3, 1, 2)
        else:
            images = self._windows[order, flip, :, top, left]
        return images, self._labels[order]

    def _sent(self, choices: Tensor) -> Tensor:
        # From pinned memory the host need not wait until the device has copied it.
        return choices.pin_memory().to(self._home, non_blocking=True)
