"""CIFAR as the Hugging Face hub stores it: Parquet shards with an encoded image in every row."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from resnet_bench.base.errors import UserError
from resnet_bench.data.content import Content, Progress, SplitArrays, check_complete
from resnet_bench.data.decode import decode_image, strict_decoding
from resnet_bench.recipe.datasets import DatasetFacts

_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMNS = {"cifar100": "fine_label"}
_ROWS_AT_ONCE = 1000
_ROWS_BETWEEN_MESSAGES = 10_000


@dataclass(frozen=True)
class ParquetSource:
    """The shards `train-*.parquet` and `test-*.parquet` of one folder.

    Attributes:
        info: The dataset.
        location: The folder.
    """

    info: DatasetFacts
    location: Path
    kind = "parquet"

    @property
    def label_column(self) -> str:
        """Name of the label column in the hub's files."""
        return _LABEL_COLUMNS.get(self.info.name, "label")

    def files(self) -> list[Path]:
        """Every file that is read."""
        return [*self._shards("train"), *self._shards("test")]

    def read(self, progress: Progress) -> Content:
        """Decodes every row.

        Raises:
            UserError: A file or a row is corrupt, a column is missing, a label is out of range, or rows are missing.
        """
        return Content(self._split("train", progress), self._split("test", progress))

    def _shards(self, split_name: str) -> list[Path]:
        return sorted(self.location.glob(f"{split_name}-*.parquet"))

    def _split(self, split_name: str, progress: Progress) -> SplitArrays:
        shards = self._shards(split_name)
        total = sum(_open(shard).metadata.num_rows for shard in shards)
        check_complete(self.info, split_name, total, str(self.location / f"{split_name}-*.parquet"))
        images = np.empty((total, 3, self.info.image_size, self.info.image_size), dtype=np.uint8)
        labels = np.empty(total, dtype=np.int64)
        rows = (row for shard in shards for row in self._rows(shard))
        with strict_decoding():
            for index, (encoded, label, where) in enumerate(rows):
                images[index] = decode_image(encoded, self.info.image_size, where).transpose(2, 0, 1)
                labels[index] = label
                if (index + 1) % _ROWS_BETWEEN_MESSAGES == 0:
                    progress(f"decoding {self.info.name}: {index + 1:,} of {total:,} {split_name} images")
        return SplitArrays(images, labels)

    def _rows(self, shard: Path) -> Iterator[tuple[bytes, int, str]]:
        """Encoded image, label and a description of the place, row by row."""
        with _open(shard) as file:
            image_column = self._image_column(file, shard)
            row = 0
            try:
                for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[image_column, self.label_column]):
                    encoded = batch.column(image_column).field("bytes").to_pylist()
                    labels = batch.column(self.label_column).to_pylist()
                    for image_bytes, label in zip(encoded, labels, strict=True):
                        where = f"row {row} of {shard}"
                        if not isinstance(image_bytes, bytes):
                            raise UserError(f"{where} holds no image")
                        if not isinstance(label, int) or not 0 <= label < self.info.num_classes:
                            raise UserError(
                                f"{where} holds label {label!r}, and labels of {self.info.name} are the integers "
                                f"from 0 to {self.info.num_classes - 1}"
                            )
                        yield image_bytes, label, where
                        row += 1
            except (OSError, pyarrow.ArrowException) as error:
                raise UserError(f"{shard} is damaged after row {row} ({error})") from error

    def _image_column(self, file: pyarrow.parquet.ParquetFile, path: Path) -> str:
        schema = file.schema_arrow
        for name in _IMAGE_COLUMNS:
            if name not in schema.names or self.label_column not in schema.names:
                continue
            column = schema.field(name).type
            if pyarrow.types.is_struct(column) and column.get_field_index("bytes") >= 0:
                return name
        raise UserError(
            f"{path} has the columns {', '.join(schema.names)}, and {self.info.name} needs img (or image) with the "
            f"field bytes, and {self.label_column}"
        )


def find_parquet(info: DatasetFacts, folder: Path) -> ParquetSource | None:
    """The Parquet files of a dataset: in its folder, one of the hub's subfolders, or the given folder itself."""
    own = folder / info.name
    for location in (own, own / "data", own / "plain_text", own / info.name):
        source = ParquetSource(info, location)
        if source.files():
            return source
    source = ParquetSource(info, folder)
    files = source.files()
    # The name of a folder of unknown origin says nothing, but the label column tells the datasets apart.
    if files and source.label_column in _open(files[0]).schema_arrow.names:
        return source
    return None


def _open(path: Path) -> pyarrow.parquet.ParquetFile:
    try:
        return pyarrow.parquet.ParquetFile(path)
    # A name of a column that is no UTF-8 is no error to Arrow itself.
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} is not a readable Parquet file ({error})") from error
