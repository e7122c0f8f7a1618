"""Generated images, for trying and testing the software without CIFAR."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from resnet_bench.data.content import Content, Progress, SplitArrays
from resnet_bench.data.random_streams import RandomStream
from resnet_bench.recipe.datasets import DatasetFacts

GENERATED = "generated"
"""What a generated dataset names as its source."""

_CELL = 4
_CONTRAST = 40
_NOISE = 48
_LARGEST_SHIFT = 2
_IMAGES_AT_ONCE = 2000


@dataclass(frozen=True)
class GeneratedSource:
    """Images with a class-dependent pattern each; the classes are equally frequent.

    A class is a coarse pattern of colored cells, symmetric so that flipping does not change the class. An image is the
    pattern of its class, shifted by up to 2 pixels, lighter or darker, under strong noise. Only integers are computed,
    so that every machine generates the same images. If they ever change, so must the format of the cache.

    Attributes:
        facts: The dataset whose number of classes and image size they have.
        train_size: Number of training images.
        test_size: Number of test images.
        seed: Another seed gives other patterns and other noise.
    """

    facts: DatasetFacts
    train_size: int
    test_size: int
    seed: int
    kind = GENERATED

    @property
    def location(self) -> Path:
        """How the images are made."""
        return Path(f"generated with seed {self.seed}, {self.train_size} + {self.test_size} images")

    def files(self) -> list[Path]:
        """List every file that is read: none."""
        return []

    def read(self, _: Progress) -> Content:
        """Generate the images."""
        patterns = _patterns(self.facts, self.seed)
        return Content(
            _split(patterns, self.train_size, RandomStream(self.seed, f"generated/{self.facts.name}/train")),
            _split(patterns, self.test_size, RandomStream(self.seed, f"generated/{self.facts.name}/test")),
        )

    def place(self, split_name: str, row: int) -> str:
        """Name an image by its number."""
        return f"generated {split_name} image {row}"


def _patterns(facts: DatasetFacts, seed: int) -> npt.NDArray[np.int16]:
    """Compute every shifted pattern of every class, int16 `[classes, shifts, 3, H, W]` around 128."""
    # Whole cells on both sides of the middle; what is more than the image is cut off.
    cells = 2 * -(-facts.image_size // (2 * _CELL))
    stream = RandomStream(seed, f"generated/{facts.name}/patterns")
    shape = (facts.num_classes, 3, cells, cells // 2)
    signs = 2 * stream.bits("cells", 0, int(np.prod(shape))).reshape(shape) - 1
    mirrored = np.concatenate((signs, signs[..., ::-1]), axis=-1)
    patterns = (128 + _CONTRAST * mirrored.repeat(_CELL, axis=-2).repeat(_CELL, axis=-1)).astype(np.int16)
    patterns = patterns[..., : facts.image_size, : facts.image_size]
    reach = range(-_LARGEST_SHIFT, _LARGEST_SHIFT + 1)
    return np.stack([np.roll(patterns, (down, right), axis=(-2, -1)) for down in reach for right in reach], axis=1)


def _split(patterns: npt.NDArray[np.int16], size: int, stream: RandomStream) -> SplitArrays:
    labels = np.arange(size, dtype=np.int64) % len(patterns)
    images = np.empty((size, *patterns.shape[2:]), dtype=np.uint8)
    for chunk, start in enumerate(range(0, size, _IMAGES_AT_ONCE)):
        part = labels[start : start + _IMAGES_AT_ONCE]
        images[start : start + _IMAGES_AT_ONCE] = draw_images(patterns, part, stream, chunk)
    return SplitArrays(images, labels)


def draw_images(
    patterns: npt.NDArray[np.int16], labels: npt.NDArray[np.int64], stream: RandomStream, chunk: int
) -> npt.NDArray[np.uint8]:
    """Generate one image per label: uint8 `[N, 3, H, W]`."""
    count = len(labels)
    shifts = stream.integers("shift", chunk, count, patterns.shape[1])
    images = patterns[labels, shifts]
    images += (stream.integers("brightness", chunk, count, 2 * _CONTRAST + 1) - _CONTRAST)[:, None, None, None]
    # A byte of noise per pixel: eight come out of one 64-bit number, in the same order on every machine.
    noise = stream.raw("noise", chunk, -(-images.size // 8)).astype("<u8").view(np.uint8)[: images.size]
    noise = noise.reshape(images.shape)
    images += (noise.astype(np.int16) - 128) * _NOISE // 64
    return images.clip(0, 255).astype(np.uint8)
