"""CIFAR as folders of image files, one folder a class, as torchvision's ImageFolder reads them."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from resnet_bench.base.errors import UserError
from resnet_bench.base.names import nearest
from resnet_bench.data.content import Content, Progress, SplitArrays
from resnet_bench.data.decode import IMAGE_SUFFIXES, decode_image, strict_decoding
from resnet_bench.recipe.datasets import DatasetFacts

_TEST_FOLDERS = ("test", "valid", "val")
_IMAGES_BETWEEN_MESSAGES = 10_000


@dataclass(frozen=True)
class ClassFolderSource:
    """`train/<class>/*.png` and `test/<class>/*.png` (or `valid`, `val`) under one folder.

    A class folder may lie deeper, as in `train/<superclass>/<class>`: the name of the folder that holds the image
    counts. Unlike the published formats, class folders may hold any number of images.

    Attributes:
        info: The dataset.
        location: The folder that holds `train`.
    """

    info: DatasetFacts
    location: Path
    kind = "image folder"

    def files(self) -> list[Path]:
        """Every file that is read."""
        return [*self._train_files, *self._test_files]

    def read(self, progress: Progress) -> Content:
        """Decodes every image.

        Raises:
            UserError: An image is corrupt or of another size, or the folders are not the dataset's classes.
        """
        class_indices = self._class_indices()
        return Content(
            self._split("train", self._train_files, class_indices, progress),
            self._split("test", self._test_files, class_indices, progress),
        )

    @cached_property
    def _train_files(self) -> list[Path]:
        return _image_files(self.location / "train")

    @cached_property
    def _test_files(self) -> list[Path]:
        for name in _TEST_FOLDERS:
            if files := _image_files(self.location / name):
                return files
        return []

    def _class_indices(self) -> dict[str, int]:
        """Class folder names to labels: by official name, else by number, else in sorted order."""
        names = {path.parent.name for path in self._train_files}
        unseen = {path.parent.name for path in self._test_files} - names
        if not self._test_files or unseen:
            what = f"test images of {min(unseen)} but no train images" if unseen else "train images but no test images"
            raise UserError(f"{self.location} holds {what}: train and test need the same class folders")
        official = self.info.class_names
        if len(names) != len(official):
            raise UserError(
                f"{self.location / 'train'} holds {len(names)} class folders and {self.info.name} has "
                f"{len(official)} classes{_suggestion(names, official)}"
            )
        if names == set(official):
            return {name: official.index(name) for name in names}
        if known := names & set(official):
            raise UserError(
                f"{self.location / 'train'} names {len(known)} class folders as {self.info.name} does and the "
                f"others differently{_suggestion(names, official)}"
            )
        numbers = {name: int(name) for name in names if name.isdecimal()}
        if set(numbers.values()) == set(range(len(official))):
            return numbers
        return {name: index for index, name in enumerate(sorted(names))}

    def _split(
        self, split_name: str, files: list[Path], class_indices: dict[str, int], progress: Progress
    ) -> SplitArrays:
        images = np.empty((len(files), 3, self.info.image_size, self.info.image_size), dtype=np.uint8)
        with strict_decoding():
            for index, path in enumerate(files):
                images[index] = decode_image(path.read_bytes(), self.info.image_size, str(path)).transpose(2, 0, 1)
                if (index + 1) % _IMAGES_BETWEEN_MESSAGES == 0:
                    progress(f"decoding {self.info.name}: {index + 1:,} of {len(files):,} {split_name} images")
        labels = np.array([class_indices[path.parent.name] for path in files], dtype=np.int64)
        return SplitArrays(images, labels)


def find_class_folders(info: DatasetFacts, folder: Path) -> ClassFolderSource | None:
    """The class folders of a dataset: in its folder, or the given folder itself if it has as many classes."""
    source = ClassFolderSource(info, folder / info.name)
    if source.files():
        return source
    source = ClassFolderSource(info, folder)
    if len({path.parent.name for path in source.files()}) == info.num_classes:
        return source
    return None


def _image_files(folder: Path) -> list[Path]:
    """Image files in the subfolders of a folder, however deep, sorted."""
    found = []
    for directory, _, names in os.walk(folder):
        if Path(directory) != folder:
            found += [Path(directory, name) for name in names if _is_image(name)]
    return sorted(found)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES


def _suggestion(names: set[str], official: tuple[str, ...]) -> str:
    """The first misspelt class name with the nearest official one, or nothing."""
    for name in sorted(names - set(official)):
        if near := nearest(name, official, cutoff=0.6):
            return f" ({name} is perhaps {near})"
    return ""
