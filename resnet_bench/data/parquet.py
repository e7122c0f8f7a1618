"""CIFAR as the Hugging Face hub stores it: Parquet files with an encoded image per row.

Arrow is imported where a file is opened: it takes as long as everything else that looks for images.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resnet_bench.base.errors import UserError
from resnet_bench.data.content import Content, Progress, SplitArrays, check_complete
from resnet_bench.data.decode import check_not_a_pointer, decode_image, strict_decoding
from resnet_bench.recipe.datasets import DatasetFacts

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

_IMAGE_COLUMNS = ("img", "image")
_PATTERNS = ("{split}-*.parquet", "{split}.parquet", "{split}/*.parquet")
"""Shards of the hub, one file as pandas writes it, and the hub's converted branch."""
_ROWS_AT_ONCE = 1000
_ROWS_BETWEEN_MESSAGES = 10_000


@dataclass(frozen=True)
class ParquetSource:
    """The files of both splits below one folder, in one of the layouts of `_PATTERNS`.

    Attributes:
        facts: The dataset.
        location: The folder.
    """

    facts: DatasetFacts
    location: Path
    kind = "parquet"

    def files(self) -> list[Path]:
        """List every file that is read."""
        return [*self._shards("train"), *self._shards("test")]

    def read(self, progress: Progress) -> Content:
        """Decode every row.

        Raises:
            UserError: A file or a row is corrupt, a column is missing, a label is out of range, or rows are missing.
        """
        return Content(self._split("train", progress), self._split("test", progress))

    def place(self, split_name: str, row: int) -> str:
        """Name an image by its file and its row in it."""
        for shard, count in self._counts[split_name]:
            if row < count:
                return f"row {row} of {shard}"
            row -= count
        return f"row {row} behind the last of {split_name}"

    @cached_property
    def _counts(self) -> dict[str, list[tuple[Path, int]]]:
        """Rows of each file, by split."""
        counts: dict[str, list[tuple[Path, int]]] = {}
        for split_name in ("train", "test"):
            counts[split_name] = []
            for shard in self._shards(split_name):
                with open_parquet(shard) as file:
                    counts[split_name].append((shard.relative_to(self.location), file.metadata.num_rows))
        return counts

    def _shards(self, split_name: str) -> list[Path]:
        for pattern in _PATTERNS:
            if found := sorted(self.location.glob(pattern.format(split=split_name))):
                return found
        return []

    def _split(self, split_name: str, progress: Progress) -> SplitArrays:
        shards = self._shards(split_name)
        total = sum(open_parquet(shard).metadata.num_rows for shard in shards)
        check_complete(self.facts, split_name, total, str(self.location / f"{split_name}-*.parquet"))
        images = np.empty((total, 3, self.facts.image_size, self.facts.image_size), dtype=np.uint8)
        labels = np.empty(total, dtype=np.int64)
        rows = (row for shard in shards for row in read_rows(shard, self.facts))
        with strict_decoding():
            for index, (encoded, label, where) in enumerate(rows):
                images[index] = decode_image(encoded, self.facts.image_size, where).transpose(2, 0, 1)
                labels[index] = label
                if (index + 1) % _ROWS_BETWEEN_MESSAGES == 0:
                    progress(f"decoding {self.facts.name}: {index + 1:,} of {total:,} {split_name} images")
        return SplitArrays(images, labels)


def find_parquet(facts: DatasetFacts, folder: Path) -> ParquetSource | None:
    """Find the Parquet files of a dataset, in the folders that the hub's clients write.

    In this order: below the dataset's own folder, below the given folder, and in snapshots of the hub's cache.
    """
    for root in (folder / facts.name, folder, *_snapshots(facts, folder)):
        for below in ("", "data", "plain_text", facts.name, "default"):
            source = ParquetSource(facts, root / below)
            if not (files := source.files()):
                continue
            # The name of a folder of unknown origin says nothing, but the label column tells the datasets apart.
            if root == folder / facts.name or facts.label_column in open_parquet(files[0]).schema_arrow.names:
                return source
    return None


def read_rows(shard: Path, facts: DatasetFacts) -> Iterator[tuple[bytes, int, str]]:
    """Yield encoded image, label and a description of the place, row by row.

    Raises:
        UserError: The file or a row is damaged, a column is missing, or a label is out of range.
    """
    from pyarrow import ArrowException

    label_column = facts.label_column
    with open_parquet(shard) as file:
        image_column = _image_column(file, shard, facts)
        row = 0
        try:
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[image_column, label_column]):
                encoded = _encoded(batch.column(image_column))
                labels = batch.column(label_column).to_pylist()
                for image_bytes, label in zip(encoded, labels, strict=True):
                    where = f"row {row} of {shard}"
                    if not isinstance(image_bytes, bytes):
                        raise UserError(f"{where} has no image")
                    if type(label) is not int or not 0 <= label < facts.num_classes:
                        raise UserError(
                            f"{where} has label {label!r}, and labels of {facts.name} are the integers "
                            f"from 0 to {facts.num_classes - 1}"
                        )
                    yield image_bytes, label, where
                    row += 1
        except (OSError, ArrowException) as error:
            raise UserError(f"{shard} is damaged after row {row} ({error})") from error


def _image_column(file: "ParquetFile", path: Path, facts: DatasetFacts) -> str:
    from pyarrow.types import is_struct

    label_column = facts.label_column
    schema = file.schema_arrow
    for name in (*_IMAGE_COLUMNS, label_column):
        if schema.names.count(name) > 1:
            raise UserError(f"{path} has the column {name} {schema.names.count(name)} times; keep one of them")
    for name in _IMAGE_COLUMNS:
        if name not in schema.names or label_column not in schema.names:
            continue
        column = schema.field(name).type
        if _is_binary(column) or (is_struct(column) and column.get_field_index("bytes") >= 0):
            return name
    raise UserError(
        f"{path} has the columns {', '.join(schema.names)}, and {facts.name} needs img (or image) with the "
        f"field bytes, and {label_column}"
    )


def _snapshots(facts: DatasetFacts, folder: Path) -> list[Path]:
    """Find snapshots of the hub's cache, the newest first: in the folder of one repository or of all of them."""
    repositories = [folder, *folder.glob(f"datasets--*--{facts.name}")]
    found = [snapshot for repository in repositories for snapshot in repository.glob("snapshots/*")]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def open_parquet(path: Path) -> "ParquetFile":
    """Open a Parquet file.

    Raises:
        UserError: It cannot be read, or is a pointer of Git LFS.
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        check_not_a_pointer(path)
        return ParquetFile(path)
    # A name of a column that is not UTF-8 raises nothing in Arrow itself.
    except (OSError, UnicodeDecodeError, ArrowException) as error:
        raise UserError(f"{path} is not a readable Parquet file ({error})") from error


def _is_binary(column: Any) -> bool:
    from pyarrow.types import is_binary, is_large_binary

    return bool(is_binary(column) or is_large_binary(column))


def _encoded(column: Any) -> list[Any]:
    return list((column if _is_binary(column.type) else column.field("bytes")).to_pylist())
