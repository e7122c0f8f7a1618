"""Folders of image files, one folder per class: what is in them, without opening a file."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from resnet_bench.base.errors import UserError

IMAGE_SUFFIXES = frozenset({".png", ".webp", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"})
"""Suffixes, in lower case, of the files that class folders are searched for."""

_TEST_FOLDERS = ("test", "valid", "val")
_NOT_DATA = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
"""Files and folders that systems put beside images, in lower case."""


class ImageFiles(NamedTuple):
    """The files of one split, each kind sorted.

    Attributes:
        folder: The folder with a folder per class.
        images: Files with a suffix of `IMAGE_SUFFIXES`.
        others: All other files.
    """

    folder: Path
    images: list[Path]
    others: list[Path]

    def class_of(self, image: Path) -> str:
        """Name the class of an image as torchvision's ImageFolder does: the folder directly below the split's."""
        return image.relative_to(self.folder).parts[0]

    def count_by_class(self) -> dict[str, int]:
        """Count the images of each class folder, those without any included, sorted by name."""
        counts = {folder.name: 0 for folder in sorted(_subfolders(self.folder))} if self.folder.is_dir() else {}
        for image in self.images:
            counts[self.class_of(image)] += 1
        return counts


def find_train_files(folder: Path) -> ImageFiles:
    """List the training images below a folder: those in ``train``."""
    return scan(_child(folder, "train"))


def find_test_files(folder: Path) -> ImageFiles:
    """List the test images below a folder: those in ``test``, else ``valid``, else ``val``."""
    found = [scan(_child(folder, name)) for name in _TEST_FOLDERS]
    return next((split for split in found if split.images), found[0])


def scan(folder: Path) -> ImageFiles:
    """Sort the files in the subfolders of a folder, however deep; hidden files and folders are left out."""
    if not folder.is_dir():
        return ImageFiles(folder, [], [])
    files = [file for below in _subfolders(folder) for file in _files(below, (_identity(folder),))]
    return ImageFiles(
        folder,
        sorted(file for file in files if file.suffix.lower() in IMAGE_SUFFIXES),
        sorted(file for file in files if file.suffix.lower() not in IMAGE_SUFFIXES),
    )


def check_classes(classes: tuple[str, ...] | None, train: ImageFiles | None, test: ImageFiles) -> tuple[str, ...]:
    """Check that the folders of both splits are the classes, and that each has images.

    Args:
        classes: The classes; without them, the folders of the training images, sorted by name.
        train: The training images; None where there are only test images.
        test: The test images.

    Returns:
        The classes.

    Raises:
        UserError: A folder is missing, a class has no images, or a folder is not a class.
    """
    for split in filter(None, (train, test)):
        counts = split.count_by_class()
        if not counts:
            what = "has no folder per class" if split.folder.is_dir() else "is not a folder"
            raise UserError(f"{split.folder} {what}; put images into {split.folder / '<class>'}")
        classes = classes or tuple(counts)
        if unknown := [name for name in counts if name not in classes]:
            known = f"{train.folder} does not have" if train is not None and split is test else "is not described"
            raise UserError(f"{split.folder} has the class {unknown[0]!r}, which {known}")
        if empty := [name for name in classes if not counts.get(name)]:
            raise UserError(f"{split.folder / empty[0]} has no images; each class needs some in every split")
    return classes or ()


def _child(folder: Path, name: str) -> Path:
    """Return a subfolder in whatever case its name is spelled."""
    if folder.is_dir() and not (folder / name).is_dir():
        return next((path for path in sorted(folder.iterdir()) if path.name.lower() == name), folder / name)
    return folder / name


def _files(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    here = _identity(folder)
    # A link may lead back to a folder above it.
    if here in above:
        return
    for path in folder.iterdir():
        if path.is_dir():
            if not _is_hidden(path.name):
                yield from _files(path, (*above, here))
        elif not _is_hidden(path.name):
            yield path


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _subfolders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir() and not _is_hidden(path.name)]


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _NOT_DATA
