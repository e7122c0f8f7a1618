"""CIFAR as folders of image files, one folder per class, as torchvision's ImageFolder reads them."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from resnet_bench.base.errors import UserError
from resnet_bench.base.image_folders import ImageFiles, find_test_files, find_train_files
from resnet_bench.base.names import nearest
from resnet_bench.base.text import plural
from resnet_bench.data.content import Content, Progress, SplitArrays
from resnet_bench.data.decode import decode_image, strict_decoding
from resnet_bench.recipe.datasets import DatasetFacts

_IMAGES_BETWEEN_MESSAGES = 10_000
_SHOWN = 3


@dataclass(frozen=True)
class ClassFolderSource:
    """`train/<class>/*.png` and `test/<class>/*.png` (or `valid`, `val`) under one folder; links are followed.

    A class folder may lie deeper, as in `train/<superclass>/<class>`: the folder that contains the image is its class.
    Unlike the published formats, class folders may have any number of images.

    Attributes:
        facts: The dataset.
        location: The folder that contains `train`.
    """

    facts: DatasetFacts
    location: Path
    kind = "image folder"

    def files(self) -> list[Path]:
        """List every file that is read."""
        return [*self._train.images, *self._test.images]

    def read(self, progress: Progress) -> Content:
        """Decode every image.

        Raises:
            UserError: An image is corrupt or of another size, or the folders are not the dataset's classes.
        """
        labels = self._labels()
        if left_out := [*self._train.others, *self._test.others]:
            names = ", ".join(str(path.relative_to(self.location)) for path in left_out[:_SHOWN])
            more = ", …" if len(left_out) > _SHOWN else ""
            count = f"{plural(len(left_out), 'file')} {'is' if len(left_out) == 1 else 'are'}"
            progress(f"{self.location}: {count} not read as images and left out: {names}{more}")
        return Content(
            self._split("train", self._train.images, labels, progress),
            self._split("test", self._test.images, labels, progress),
        )

    def place(self, split_name: str, row: int) -> str:
        """Name an image by its file."""
        files = self._train.images if split_name == "train" else self._test.images
        return str(files[row].relative_to(self.location)) if row < len(files) else f"image {row} of {split_name}"

    @property
    def class_folders(self) -> set[str]:
        """Names of the folders that contain images."""
        return {path.parent.name for path in self.files()}

    @cached_property
    def _train(self) -> ImageFiles:
        return find_train_files(self.location)

    @cached_property
    def _test(self) -> ImageFiles:
        return find_test_files(self.location)

    def _labels(self) -> dict[str, int]:
        """Map class folders to labels, by the official names or by number."""
        names = {path.parent.name for path in self._train.images}
        unseen = {path.parent.name for path in self._test.images} - names
        if not self._test.images or unseen:
            what = f"test images of {min(unseen)} but no train images" if unseen else "train images but no test images"
            raise UserError(f"{self.location} has {what}: train and test need the same class folders")
        official = self.facts.class_names
        if len(names) != len(official):
            raise UserError(
                f"{self._train.folder} has {len(names)} class folders and {self.facts.name} has "
                f"{len(official)} classes{_renaming(names, official)}"
            )
        by_name = {name: official.index(spelled) for name in names if (spelled := _spelled(name)) in official}
        by_number = {name: int(name) for name in names if name.isdecimal()}
        for labels in (by_name, by_number):
            if sorted(labels.values()) == list(range(len(official))):
                return labels
        raise UserError(
            f"{self._train.folder} has class folders that {self.facts.name} does not have; rename them to its classes, "
            f"or to their numbers, 0 to {len(official) - 1}{_renaming(names, official)}"
        )

    def _split(self, split_name: str, files: list[Path], labels: dict[str, int], progress: Progress) -> SplitArrays:
        size = self.facts.image_size
        images = np.empty((len(files), 3, size, size), dtype=np.uint8)
        with strict_decoding():
            for index, path in enumerate(files):
                images[index] = decode_image(path.read_bytes(), size, str(path)).transpose(2, 0, 1)
                if (index + 1) % _IMAGES_BETWEEN_MESSAGES == 0:
                    progress(f"decoding {self.facts.name}: {index + 1:,} of {len(files):,} {split_name} images")
        return SplitArrays(images, np.array([labels[path.parent.name] for path in files], dtype=np.int64))


def find_class_folders(facts: DatasetFacts, folder: Path) -> ClassFolderSource | None:
    """Find the class folders of a dataset: in its folder, or the given folder itself if it has as many classes."""
    own, given = ClassFolderSource(facts, folder / facts.name), ClassFolderSource(facts, folder)
    if own.files():
        return own
    return given if len(given.class_folders) == facts.num_classes else None


def _spelled(name: str) -> str:
    """Spell a class as the published datasets do."""
    return name.lower().replace(" ", "_").replace("-", "_")


def _renaming(names: Iterable[str], official: tuple[str, ...]) -> str:
    """Show what each class folder would have to be called, as far as its name tells."""
    unknown = [name for name in sorted(names) if _spelled(name) not in official and not name.isdecimal()]
    free = [name for name in official if name not in {_spelled(known) for known in names}]
    if not unknown:
        return ""
    shown = [f"{name} → {nearest(name, free, cutoff=0.7) or '?'}" for name in unknown[:12]]
    more = ", …" if len(unknown) > len(shown) else ""
    missing = f"{', '.join(free[:12])}{', …' if len(free) > 12 else ''}"
    return f" ({', '.join(shown)}{more}; not among the folders: {missing})"
