"""Describe a folder of images as ``datasets/NAME.toml``: classes, sizes, and the statistics of its training images."""

import io
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from resnet_bench.base.errors import UserError
from resnet_bench.base.image_folders import check_classes, find_test_files, find_train_files
from resnet_bench.data.content import Progress
from resnet_bench.data.decode import strict_decoding
from resnet_bench.data.own import FolderSplit, ParquetSplit, check_every_class
from resnet_bench.data.parquet import open_parquet
from resnet_bench.recipe.dataset_files import DEFAULT_IMAGE_SIZE, DatasetDescription, DatasetFile, facts_of
from resnet_bench.recipe.datasets import DatasetFacts, Fit
from resnet_bench.recipe.schema import parse

_PARQUET = ("{split}-*.parquet", "{split}.parquet", "{split}/*.parquet", "data/{split}-*.parquet")
_MOST_CLASSES = 100_000
_DIGITS = 4
_IMAGES_AT_ONCE = 4096

Found = FolderSplit | ParquetSplit


def describe(
    folder: Path, *, image_size: int | None = None, fit: Fit = "crop", progress: Progress | None = None
) -> DatasetFile:
    """Describe class folders (``train/<class>``, ``test/<class>``) or Parquet files (``train-*.parquet``, ``test-*``).

    Args:
        folder: The folder that has both splits.
        image_size: Height and width that images are brought to; by default their own, if all have one square size.
        fit: How.
        progress: Called with a line of text now and then.

    Raises:
        UserError: A split is missing, a class has no images, an image cannot be read, or a channel does not vary.
    """
    progress = progress or (lambda _: None)
    if not folder.is_dir():
        raise UserError(f"{folder} {'is not a folder' if folder.exists() else 'does not exist'}")
    splits, names, classes = _find(folder)
    unsized = _facts(classes, 2, 1, DEFAULT_IMAGE_SIZE, fit)
    size = image_size or _common_size([*splits.values()], unsized) or DEFAULT_IMAGE_SIZE
    facts = _facts(classes, 2, 1, size, fit)
    # The test images are read as well: a description of images that cannot be read helps nobody.
    train, test = (split.read(facts, progress) for split in splits.values())
    for split_name, split in (("train", train), ("test", test)):
        check_every_class(split.labels, facts, names[split_name])
    mean, std = statistics(train.images)
    if min(std) <= 0:
        raise UserError(f"{folder}: a color channel is the same in all training images; nothing can be learned from it")
    table = {
        "train": names["train"],
        "test": names["test"],
        "classes": list(classes),
        "image_size": size,
        "fit": fit,
        "train_images": len(train.labels),
        "test_images": len(test.labels),
        "mean": mean,
        "std": std,
    }
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


def _find(folder: Path) -> tuple[dict[str, Found], dict[str, str], tuple[str, ...]]:
    """Find both splits, as they are named in a dataset's file, and the classes."""
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
    unsplit = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    split = [path for path in unsplit if find_train_files(path).folder.is_dir()]
    hint = f"; sort the images of {unsplit[0]} into train and test" if unsplit else ""
    hint = f"; name {split[0]}, which has" if split else hint
    raise UserError(f"{folder} has neither train/<class> and test/<class> nor train-*.parquet and test-*.parquet{hint}")


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
    return tuple(str(label) for label in range(min(highest, _MOST_CLASSES) + 1))


def _facts(classes: tuple[str, ...], train: int, test: int, size: int, fit: Fit) -> DatasetFacts:
    description = DatasetDescription(classes=classes, image_size=size, fit=fit, train_images=train, test_images=test)
    return facts_of("the folder", description)


def _common_size(splits: list[Found], facts: DatasetFacts) -> int | None:
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
    width, height = sizes.pop()
    return width if width == height and 8 <= width <= 512 else None
