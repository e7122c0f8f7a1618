"""Your own datasets: class folders, Parquet, MATLAB or NumPy files, where ``datasets/NAME.toml`` says they are."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from resnet_bench.base.errors import UserError
from resnet_bench.base.files import expanded
from resnet_bench.base.image_folders import ImageFiles, check_classes, find_test_files, find_train_files, scan
from resnet_bench.data.content import Content, Progress, SplitArrays
from resnet_bench.data.decode import check_not_a_pointer, decode_image, fitted, strict_decoding
from resnet_bench.data.parquet import open_parquet, read_rows
from resnet_bench.recipe.dataset_files import find_dataset_file, own_dataset
from resnet_bench.recipe.datasets import DatasetFacts

_IMAGES_BETWEEN_MESSAGES = 10_000
DATA_SUFFIX, _LABELS = "_data.npy", "_labels.npy"

EncodedRow = tuple[bytes, int, str]
"""The bytes of an image file, its label, and its place for messages."""
ArrayPair = tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]
"""Images and their labels."""


class SplitFiles(Protocol):
    """The files of one split."""

    @property
    def kind(self) -> str:
        """What a run names as its source."""

    @property
    def folder(self) -> Path:
        """The folder that all files are below."""

    def files(self) -> list[Path]:
        """List every file that is read."""

    def read(self, facts: DatasetFacts, progress: Progress) -> SplitArrays:
        """Read and check everything; `UserError` names the file and row that are wrong."""

    def place(self, row: int) -> str:
        """Name an image by its file, or by its row in one."""


@dataclass(frozen=True)
class FolderSplit:
    """A folder with a folder of images per class, as torchvision's ImageFolder reads it.

    Attributes:
        folder: The folder of the split.
    """

    folder: Path
    kind = "image folder"

    @cached_property
    def found(self) -> ImageFiles:
        """The files, listed once."""
        return scan(self.folder)

    def files(self) -> list[Path]:
        """List every image."""
        return self.found.images

    def rows(self, facts: DatasetFacts) -> Iterator[EncodedRow]:
        """Yield the bytes of each image."""
        labels = {name: label for label, name in enumerate(facts.class_names)}
        for path in self.found.images:
            yield path.read_bytes(), labels[self.found.class_of(path)], str(path)

    def read(self, facts: DatasetFacts, progress: Progress) -> SplitArrays:
        """Decode every image."""
        check_classes(facts.class_names, None, self.found)
        return _decoded(self.rows(facts), len(self.found.images), facts, progress)

    def place(self, row: int) -> str:
        """Name an image by its file."""
        return str(self.found.images[row].relative_to(self.folder.parent))


@dataclass(frozen=True)
class ParquetSplit:
    """Parquet files with an encoded image (``image`` or ``img``) and a ``label`` per row.

    Attributes:
        shards: The files, in order.
    """

    shards: tuple[Path, ...]
    kind = "parquet"

    @property
    def folder(self) -> Path:
        """The folder of the files."""
        return self.shards[0].parent

    def files(self) -> list[Path]:
        """List the files."""
        return list(self.shards)

    def rows(self, facts: DatasetFacts) -> Iterator[EncodedRow]:
        """Yield the image of each row."""
        for shard in self.shards:
            yield from read_rows(shard, facts)

    def read(self, facts: DatasetFacts, progress: Progress) -> SplitArrays:
        """Decode every row."""
        return _decoded(self.rows(facts), sum(self._counts), facts, progress)

    def place(self, row: int) -> str:
        """Name an image by its file and its row in it."""
        for shard, count in zip(self.shards, self._counts, strict=True):
            if row < count:
                return f"row {row} of {shard.name}"
            row -= count
        return f"row {row} after the last"

    @cached_property
    def _counts(self) -> tuple[int, ...]:
        return tuple(map(_num_rows, self.shards))


@dataclass(frozen=True)
class MatlabSplit:
    """A ``.mat`` file as SVHN's cropped digits come in: X, uint8 `[H, W, 3, N]`, and y, `[N, 1]`.

    MATLAB counts from 1: of ten classes the label 10 is class 0, the digit 0. A file may have 0 instead, not both.

    Attributes:
        path: The file.
    """

    path: Path
    kind = "matlab"

    @property
    def folder(self) -> Path:
        """The folder of the file."""
        return self.path.parent

    def files(self) -> list[Path]:
        """List the file."""
        return [self.path]

    def arrays(self) -> ArrayPair:
        """Read both arrays: images as `[N, H, W, 3]`, and labels as they are in the file."""
        # Takes a while to import, and only such files need it.
        from scipy import io

        check_not_a_pointer(self.path)
        try:
            found = io.loadmat(self.path, variable_names=["X", "y"])
        # The reader raises whatever it runs into in a damaged file.
        except Exception as error:
            raise UserError(f"{self.path} is not a readable MATLAB file ({error})") from error
        images, labels = (np.asarray(found.get(name)) for name in ("X", "y"))
        if not _are_images(images, channels=2) or not _are_labels(labels, images.shape[3]):
            raise UserError(f"{self.path} needs X, uint8 [height, width, 3, images], and y, a label per image")
        return images.transpose(3, 0, 1, 2), labels

    def read(self, facts: DatasetFacts, _: Progress) -> SplitArrays:
        """Read both arrays."""
        images, labels = self.arrays()
        labels = _checked_labels(labels, facts.num_classes + 1, facts, self.path)
        if 0 in labels and facts.num_classes in labels:
            raise UserError(
                f"{self.path}: y has both 0 and {facts.num_classes}, which are one of {facts.num_classes} classes; "
                f"labels count from 1 to the number of classes, as MATLAB does"
            )
        return SplitArrays(_fitted(images, facts, self.path), labels % facts.num_classes)

    @staticmethod
    def count_classes(labels: npt.NDArray[Any]) -> int:
        """Count the classes of labels as they are in the file."""
        return int(labels.max())

    def place(self, row: int) -> str:
        """Name an image by its column, counted from 0."""
        return f"image {row} of {self.path.name}"


@dataclass(frozen=True)
class NumpySplit:
    """Two arrays, as CIFAR-10.1 comes in: ``NAME_data.npy``, uint8 `[N, H, W, 3]`, and ``NAME_labels.npy``, `[N]`.

    Attributes:
        path: The file of the images.
    """

    path: Path
    kind = "numpy"

    @property
    def folder(self) -> Path:
        """The folder of the files."""
        return self.path.parent

    def files(self) -> list[Path]:
        """List both files."""
        return [self.path, self.path.with_name(self.path.name.removesuffix(DATA_SUFFIX) + _LABELS)]

    def arrays(self) -> ArrayPair:
        """Read both arrays: images as `[N, H, W, 3]`, and labels as they are in the file."""
        images, labels = (_load_array(path) for path in self.files())
        if not _are_images(images, channels=3):
            raise UserError(f"{self.path} must be uint8 [images, height, width, 3], got {images.dtype} {images.shape}")
        if not _are_labels(labels, len(images)):
            raise UserError(f"{self.files()[1]} must have a whole number per image, got {labels.dtype} {labels.shape}")
        return images, labels

    def read(self, facts: DatasetFacts, _: Progress) -> SplitArrays:
        """Read both arrays."""
        images, labels = self.arrays()
        labels = _checked_labels(labels, facts.num_classes, facts, self.files()[1])
        return SplitArrays(_fitted(images, facts, self.path), labels)

    @staticmethod
    def count_classes(labels: npt.NDArray[Any]) -> int:
        """Count the classes of labels as they are in the file."""
        return int(labels.max()) + 1

    def place(self, row: int) -> str:
        """Name an image by its row."""
        return f"image {row} of {self.path.name}"


@dataclass(frozen=True)
class OwnSource:
    """The files of a user's dataset.

    Attributes:
        facts: The dataset.
        train: Its training images; None where there are only test images.
        test: Its test images.
    """

    facts: DatasetFacts
    train: SplitFiles | None
    test: SplitFiles

    @property
    def kind(self) -> str:
        """What a run names as its source."""
        return self.test.kind

    @property
    def location(self) -> Path:
        """The folder that all files are below."""
        return Path(os.path.commonpath([split.folder for split in self._splits]))

    @property
    def _splits(self) -> list[SplitFiles]:
        return [self.test] if self.train is None else [self.train, self.test]

    def files(self) -> list[Path]:
        """List every file that is read."""
        return [file for split in self._splits for file in split.files()]

    def read(self, progress: Progress) -> Content:
        """Decode every image.

        Raises:
            UserError: An image is damaged, a class has no images, or there are more or fewer images than described.
        """
        size = self.facts.image_size
        none = SplitArrays(np.empty((0, 3, size, size), dtype=np.uint8), np.empty(0, dtype=np.int64))
        train = none if self.train is None else self.train.read(self.facts, progress)
        test = self.test.read(self.facts, progress)
        described = {"train": (train, self.facts.train_size), "test": (test, self.facts.test_size)}
        for split_name, (split, count) in described.items():
            if len(split.labels) != count:
                raise UserError(
                    f"{self.location} has {len(split.labels):,} {split_name} images, and the description of "
                    f"{self.facts.name} says {count:,}; make it again with: resnet-bench data describe"
                )
            if count:
                check_every_class(split.labels, self.facts, f"{self.location} ({split_name})")
        return Content(train, test)

    def place(self, split_name: str, row: int) -> str:
        """Name the image in a row of a split."""
        split = self.train if split_name == "train" and self.train is not None else self.test
        return split.place(row)


def find_own(facts: DatasetFacts, folder: Path) -> OwnSource:
    """Find the files of a user's dataset.

    Args:
        facts: The dataset.
        folder: The data folder.

    Raises:
        UserError: A file is missing, or ``datasets/NAME.toml`` describes another dataset.
    """
    if facts.path is not None:
        root = expanded(facts.path).resolve()
        train, test = find_train_files(root), find_test_files(root)
        check_classes(None, train, test)
        return OwnSource(facts, FolderSplit(train.folder), FolderSplit(test.folder))
    file = own_dataset(facts.name)
    where = find_dataset_file(facts.name)
    now = (file.classes, file.train_images or 0, file.test_images)
    if now != (facts.class_names, facts.train_size, facts.test_size):
        raise UserError(f"{where} describes other images than the recipe; load the benchmark again")
    try:
        training = None if file.train is None else _find_split(file.train, folder)
        return OwnSource(facts, training, _find_split(file.test, folder))
    except UserError as error:
        published = f"; it is published at {file.url}" if file.url else ""
        raise UserError(f"{where}: {error}{published}") from None


def check_every_class(labels: npt.NDArray[np.int64], facts: DatasetFacts, where: str) -> None:
    """Reject a split without an image of some class.

    Raises:
        UserError: Names the first such class.
    """
    counts = np.bincount(labels, minlength=facts.num_classes)
    if (missing := np.flatnonzero(counts == 0)).size:
        raise UserError(f"{where} has no image of the class {facts.class_names[missing[0]]!r}; each split needs some")


def _find_split(text: str, folder: Path) -> SplitFiles:
    """Find what a dataset's file names: below the data folder or, where it is not there, the working directory."""
    name = expanded(text)
    for root in (folder, Path.cwd()):
        path = (root / name).resolve()
        if path.suffix == ".parquet":
            if shards := tuple(sorted(path.parent.glob(path.name))):
                return ParquetSplit(shards)
        elif path.is_dir():
            return FolderSplit(path)
        elif path.is_file():
            return _of_file(path)
    if name.is_absolute():
        raise UserError(f"there is no {text}")
    raise UserError(f"{text} is neither in {folder} nor in {Path.cwd()}")


def _of_file(path: Path) -> SplitFiles:
    if path.suffix == ".mat":
        return MatlabSplit(path)
    if path.name.endswith(DATA_SUFFIX):
        return NumpySplit(path)
    raise UserError(
        f"{path} is neither a folder, nor .parquet, .mat, or an array of images that is called …{DATA_SUFFIX}"
    )


def _decoded(rows: Iterator[EncodedRow], total: int, facts: DatasetFacts, progress: Progress) -> SplitArrays:
    images = np.empty((total, 3, facts.image_size, facts.image_size), dtype=np.uint8)
    labels = np.empty(total, dtype=np.int64)
    with strict_decoding():
        for index, (encoded, label, where) in enumerate(rows):
            images[index] = decode_image(encoded, facts.image_size, where, facts.fit).transpose(2, 0, 1)
            labels[index] = label
            if (index + 1) % _IMAGES_BETWEEN_MESSAGES == 0:
                progress(f"decoding {facts.name}: {index + 1:,} of {total:,} images")
    return SplitArrays(images, labels)


def _fitted(images: npt.NDArray[np.uint8], facts: DatasetFacts, path: Path) -> npt.NDArray[np.uint8]:
    """Bring `[N, H, W, 3]` to `[N, 3, size, size]`."""
    from PIL import Image

    size = facts.image_size
    if images.shape[1:3] == (size, size):
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    if facts.fit == "exact":
        height, width = images.shape[1:3]
        raise UserError(f"{path} has images of {width}x{height} pixels, and {size}x{size} are expected")
    resized = np.empty((len(images), 3, size, size), dtype=np.uint8)
    for index, image in enumerate(images):
        pixels = Image.fromarray(np.ascontiguousarray(image))
        resized[index] = np.asarray(fitted(pixels, size, facts.fit)).transpose(2, 0, 1)
    return resized


def _load_array(path: Path) -> npt.NDArray[Any]:
    try:
        check_not_a_pointer(path)
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; it belongs beside the images") from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is not a readable NumPy array ({error})") from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path} is not one NumPy array")
    return array


def _are_images(array: npt.NDArray[Any], *, channels: int) -> bool:
    return array.dtype == np.uint8 and array.ndim == 4 and array.shape[channels] == 3 and array.size > 0


def _are_labels(array: npt.NDArray[Any], count: int) -> bool:
    return array.dtype.kind in "iu" and array.size == count


def _checked_labels(given: npt.NDArray[Any], below: int, facts: DatasetFacts, path: Path) -> npt.NDArray[np.int64]:
    labels: npt.NDArray[np.int64] = given.reshape(-1).astype(np.int64)
    wrong = np.flatnonzero((labels < 0) | (labels >= below))
    if wrong.size:
        label = labels[wrong[0]]
        raise UserError(f"{path}: image {wrong[0]} has label {label}, and there are {facts.num_classes} classes")
    return labels


def _num_rows(shard: Path) -> int:
    with open_parquet(shard) as file:
        return int(file.metadata.num_rows)
