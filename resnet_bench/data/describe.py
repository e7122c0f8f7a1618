"""Describe a folder of images as ``datasets/NAME.toml``: classes, sizes, and the statistics of its training images."""

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from resnet_bench.base.errors import UserError
from resnet_bench.base.image_folders import check_classes, find_test_files, find_train_files
from resnet_bench.data.content import Progress
from resnet_bench.data.decode import strict_decoding
from resnet_bench.data.own import (
    DATA_SUFFIX,
    FolderSplit,
    MatlabSplit,
    NumpySplit,
    ParquetSplit,
    SplitFiles,
    check_every_class,
)
from resnet_bench.data.parquet import open_parquet
from resnet_bench.recipe.dataset_files import DEFAULT_IMAGE_SIZE, DatasetDescription, DatasetFile, facts_of
from resnet_bench.recipe.datasets import DatasetFacts, Fit
from resnet_bench.recipe.schema import parse

_PARQUET = ("{split}-*.parquet", "{split}.parquet", "{split}/*.parquet", "data/{split}-*.parquet")
_ARRAYS = ("{split}_32x32.mat", "{split}.mat", "{split}" + DATA_SUFFIX)
_MOST_CLASSES = 100_000
_DIGITS = 4
_IMAGES_AT_ONCE = 4096

Arrays = MatlabSplit | NumpySplit
Found = FolderSplit | ParquetSplit


def describe(
    folder: Path, *, image_size: int | None = None, fit: Fit = "crop", progress: Progress | None = None
) -> DatasetFile:
    """Describe class folders, Parquet files, or arrays as SVHN and CIFAR-10.1 come in.

    Args:
        folder: The folder that has both splits: ``train/<class>`` and ``test/<class>``, ``train-*.parquet`` and
            ``test-*.parquet``, ``train_32x32.mat`` and ``test_32x32.mat``, or ``train_data.npy`` and
            ``test_data.npy``. A single ``…_data.npy`` is a dataset that only tests.
        image_size: Height and width that images are brought to; by default their own, if all have one square size.
        fit: How.
        progress: Called with a line of text now and then.

    Raises:
        UserError: A split is missing, a class has no images, an image cannot be read, or a channel does not vary.
    """
    progress = progress or (lambda _: None)
    if not folder.is_dir():
        raise UserError(f"{folder} {'is not a folder' if folder.exists() else 'does not exist'}")
    splits: Mapping[str, SplitFiles]
    if files := _find_files(folder):
        splits, names, classes = files
        unsized = _facts(folder, classes, DEFAULT_IMAGE_SIZE, fit)
        own_size = None if image_size else _common_size(files[0].values(), unsized)
    elif arrays := _find_arrays(folder):
        splits, names = arrays, {name: str(split.path) for name, split in arrays.items()}
        classes, own_size = _outline(arrays)
    else:
        raise UserError(_nothing_found(folder))
    size = image_size or own_size or DEFAULT_IMAGE_SIZE
    facts = _facts(folder, classes, size, fit)
    # The test images are read as well: a description of images that cannot be read helps nobody.
    read = {name: split.read(facts, progress) for name, split in splits.items()}
    for split_name, split in read.items():
        check_every_class(split.labels, facts, names[split_name])
    table: dict[str, Any] = {
        **names,
        "classes": list(classes),
        "image_size": size,
        "fit": fit,
        **{f"{split_name}_images": len(split.labels) for split_name, split in read.items()},
    }
    if "train" in read:
        table["mean"], table["std"] = statistics(read["train"].images)
        if min(table["std"]) <= 0:
            raise UserError(
                f"{folder}: a color channel is the same in all training images; nothing can be learned from it"
            )
    return parse(DatasetFile, table, where=str(folder))


def statistics(images: npt.NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Compute mean and standard deviation of each channel of `[N, 3, H, W]`, of pixels between 0 and 1, rounded.

    Sums are of whole numbers, so that every machine gets the same digits.
    """
    total, squares = np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int64)
    for start in range(0, len(images), _IMAGES_AT_ONCE):
        part = images[start : start + _IMAGES_AT_ONCE].astype(np.int64)
        total += part.sum(axis=(0, 2, 3))
        squares += (part * part).sum(axis=(0, 2, 3))
    count = images.size // 3
    mean = total / count
    std = np.sqrt(squares / count - mean * mean)
    return [round(float(value) / 255, _DIGITS) for value in mean], [round(float(value) / 255, _DIGITS) for value in std]


def _find_files(folder: Path) -> tuple[dict[str, Found], dict[str, str], tuple[str, ...]] | None:
    """Find the image files of both splits, as they are named in a dataset's file, and the classes."""
    train, test = find_train_files(folder), find_test_files(folder)
    if train.folder.is_dir() and train.count_by_class():
        classes = check_classes(None, train, test)
        found: dict[str, Found] = {"train": FolderSplit(train.folder), "test": FolderSplit(test.folder)}
        return found, {"train": str(train.folder), "test": str(test.folder)}, classes
    for pattern in _PARQUET:
        names = {split: str(folder / pattern.format(split=split)) for split in ("train", "test")}
        shards = {split: sorted(folder.glob(pattern.format(split=split))) for split in names}
        if all(shards.values()):
            return {split: ParquetSplit(tuple(paths)) for split, paths in shards.items()}, names, _classes(shards)
    return None


def _nothing_found(folder: Path) -> str:
    unsplit = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    split = [path for path in unsplit if find_train_files(path).folder.is_dir()]
    hint = f"; sort the images of {unsplit[0]} into train and test" if unsplit else ""
    hint = f"; name {split[0]}, which has" if split else hint
    kinds = "train/<class> and test/<class>, train-*.parquet and test-*.parquet, train.mat and test.mat"
    return f"{folder} has no {kinds}, or NAME{DATA_SUFFIX} with its labels{hint}"


def _find_arrays(folder: Path) -> dict[str, Arrays]:
    """Find MATLAB or NumPy files of both splits, or the one array of a dataset that only tests."""
    for pattern in _ARRAYS:
        paths = {split: folder / pattern.format(split=split) for split in ("train", "test")}
        if all(path.is_file() for path in paths.values()):
            kind = MatlabSplit if pattern.endswith(".mat") else NumpySplit
            return {split: kind(path) for split, path in paths.items()}
    images = sorted(path for path in folder.glob(f"*{DATA_SUFFIX}") if path.name != f"train{DATA_SUFFIX}")
    if len(images) > 1:
        raise UserError(
            f"{folder} has several arrays of images ({', '.join(path.name for path in images)}); keep one that only "
            f"tests, or call two train{DATA_SUFFIX} and test{DATA_SUFFIX}"
        )
    return {"test": NumpySplit(images[0])} if images else {}


def _outline(splits: Mapping[str, Arrays]) -> tuple[tuple[str, ...], int | None]:
    """Return the classes of arrays and the height and width that all their images have."""
    counts, sizes = [], set()
    for split in splits.values():
        images, labels = split.arrays()
        counts.append(split.count_classes(labels))
        sizes.add((images.shape[1], images.shape[2]))
    return _numbered(max(counts)), _square(sizes)


def _numbered(count: int) -> tuple[str, ...]:
    """Name classes by their numbers: two at least, and not as many as a label that is huge by mistake."""
    return tuple(str(label) for label in range(min(max(count, 2), _MOST_CLASSES)))


def _classes(shards: dict[str, list[Path]]) -> tuple[str, ...]:
    """Read the class names that the Hugging Face hub writes into Parquet; without them, classes are numbered."""
    highest = 1
    for shard in shards["train"]:
        with open_parquet(shard) as file:
            metadata = file.schema_arrow.metadata or {}
            try:
                names = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]["label"]["names"]
                return tuple(str(name) for name in names)
            except (ValueError, KeyError, TypeError):
                labels = file.read(columns=["label"]).to_pydict().get("label", [])
        highest = max([highest, *(label for label in labels if isinstance(label, int))])
    return _numbered(highest + 1)


def _facts(folder: Path, classes: tuple[str, ...], size: int, fit: Fit) -> DatasetFacts:
    """Say what is known before images are counted, for which the smallest numbers stand."""
    if len(classes) < 2:
        raise UserError(f"{folder} has one class, {classes[0]!r}; there must be two to tell apart")
    table = {"classes": list(classes), "image_size": size, "fit": fit, "train_images": 2, "test_images": 1}
    return facts_of("the folder", parse(DatasetDescription, table, where=str(folder)))


def _common_size(splits: Iterable[FolderSplit | ParquetSplit], facts: DatasetFacts) -> int | None:
    """Return the height and width that all images have; None where they differ or are not square."""
    sizes = set()
    with strict_decoding():
        for split in splits:
            for encoded, _, where in split.rows(facts):
                try:
                    with Image.open(io.BytesIO(encoded)) as image:
                        sizes.add(image.size)
                except Exception as error:  # Pillow's plugins raise whatever their parsers run into.
                    raise UserError(f"{where} is not a readable image ({error})") from error
                if len(sizes) > 1:
                    return None
    return _square(sizes)


def _square(sizes: set[tuple[int, int]]) -> int | None:
    if len(sizes) != 1:
        return None
    width, height = sizes.pop()
    return width if width == height and 8 <= width <= 512 else None
