"""Small datasets in each of the formats that CIFAR comes in, written without the code under test."""

import dataclasses
import hashlib
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from resnet_bench.data.archive import ARCHIVES, ArchiveFacts
from resnet_bench.data.content import Content, SplitArrays
from resnet_bench.recipe.datasets import DATASETS, DatasetFacts

LABEL_COLUMNS = {"cifar10": "label", "cifar100": "fine_label", "other": "label"}
TRAIN_SIZE = 60
TEST_SIZE = 20


def small_info(name: str = "cifar10") -> DatasetFacts:
    """A published dataset with 60 training and 20 test images."""
    return dataclasses.replace(
        DATASETS[name],
        train_size=TRAIN_SIZE,
        test_size=TEST_SIZE,
    )


def random_content(info: DatasetFacts, seed: int = 0) -> Content:
    """Noise images; every class occurs in both splits if there are at most 20."""
    random = np.random.default_rng(seed)

    def split(size: int) -> SplitArrays:
        images = random.integers(0, 256, (size, 3, 32, 32), dtype=np.uint8)
        return SplitArrays(images, random.permutation(np.arange(size, dtype=np.int64) % info.num_classes))

    return Content(split(info.train_size), split(info.test_size))


def write_extracted_archive(root: Path, info: DatasetFacts, content: Content) -> ArchiveFacts:
    """Writes two training batches and a test batch as Python 2 pickled them in 2009; returns their checksums."""
    archive = ARCHIVES[info.name]
    folder = root / archive.folder
    folder.mkdir(parents=True, exist_ok=True)
    half = len(content.train.labels) // 2
    splits = {
        "data_batch_1": SplitArrays(content.train.images[:half], content.train.labels[:half]),
        "data_batch_2": SplitArrays(content.train.images[half:], content.train.labels[half:]),
        "test_batch": content.test,
    }
    checksums = [
        (name, _write(folder / name, python2_batch(split, archive.label_key))) for name, split in splits.items()
    ]
    meta_name = archive.meta_batch[0]
    names = b"](" + b"".join(_string(name.encode()) for name in info.class_names) + b"e"
    meta = _write(folder / meta_name, _pickle(_string(archive.meta_key.encode()) + names))
    return dataclasses.replace(
        archive, train_batches=tuple(checksums[:2]), test_batches=tuple(checksums[2:]), meta_batch=(meta_name, meta)
    )


def replace_test_batch(root: Path, archive: ArchiveFacts, data: bytes) -> ArchiveFacts:
    """Overwrites the test batch; returns the archive as if this were the published file."""
    name = archive.test_batches[0][0]
    return dataclasses.replace(archive, test_batches=((name, _write(root / archive.folder / name, data)),))


def pack_archive(root: Path, archive: ArchiveFacts) -> ArchiveFacts:
    """Packs the extracted folder; returns the archive with its checksums."""
    path = root / archive.filename
    with tarfile.open(path, "w:gz") as file:
        file.add(root / archive.folder, arcname=archive.folder)
    return with_checksums_of(path, archive)


def with_checksums_of(path: Path, archive: ArchiveFacts) -> ArchiveFacts:
    data = path.read_bytes()
    return dataclasses.replace(archive, md5=hashlib.md5(data).hexdigest(), sha256=hashlib.sha256(data).hexdigest())


def write_parquet(folder: Path, info: DatasetFacts, content: Content, image_column: str = "img") -> None:
    """Two shards of training images and one of test images, as lossless WebP and PNG."""
    half = len(content.train.labels) // 2
    for shard, part in enumerate((slice(0, half), slice(half, None))):
        split = SplitArrays(content.train.images[part], content.train.labels[part])
        write_shard(folder / f"train-0000{shard}-of-00002.parquet", info, split, "webp", image_column)
    write_shard(folder / "test-00000-of-00001.parquet", info, content.test, "png", image_column)


def write_shard(
    path: Path, info: DatasetFacts, split: SplitArrays, image_format: str = "png", image_column: str = "img"
) -> None:
    write_rows(path, info, [encode(image, image_format) for image in split.images], split.labels, image_column)


def write_rows(
    path: Path,
    info: DatasetFacts,
    encoded: list[bytes | None],
    labels: np.ndarray | list[int],
    image_column: str = "img",
) -> None:
    rows = [{"bytes": data, "path": f"{index}.png"} for index, data in enumerate(encoded)]
    image_type = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    columns = {
        image_column: pyarrow.array(rows, image_type),
        LABEL_COLUMNS[info.name]: pyarrow.array(list(labels), pyarrow.int64()),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def write_class_folders(
    root: Path, info: DatasetFacts, content: Content, test_name: str = "test", names: list[str] | None = None
) -> None:
    names = names or list(info.class_names)
    for split_name, split in (("train", content.train), (test_name, content.test)):
        for index, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
            folder = root / split_name / names[label]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{index:04d}.png").write_bytes(encode(image, "png"))


def encode(image: np.ndarray, image_format: str) -> bytes:
    buffer = io.BytesIO()
    options = {"lossless": True} if image_format == "webp" else {}
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, image_format, **options)
    return buffer.getvalue()


def python2_batch(split: SplitArrays, label_key: str) -> bytes:
    """The pickle that `cPickle.dump({...}, file, 2)` of Python 2 makes of a batch."""
    labels = b"](" + b"".join(b"K" + bytes([label]) for label in split.labels) + b"e"
    pixels = split.images.reshape(len(split.images), -1)
    return _pickle(_string(b"data") + _python2_array(pixels) + _string(label_key.encode()) + labels)


def _python2_array(pixels: np.ndarray) -> bytes:
    rows, columns = pixels.shape
    dtype = b"cnumpy\ndtype\n" + _string(b"u1") + b"K\x00K\x01\x87R(K\x03" + _string(b"|")
    dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + _string(b"b") + b"\x87R"
    shape = struct.pack("<BiBi", ord("J"), rows, ord("J"), columns) + b"\x86"
    return empty + b"(K\x01" + shape + dtype + b"\x89" + _string(pixels.tobytes()) + b"tb"


def _pickle(items: bytes) -> bytes:
    return b"\x80\x02}(" + items + b"u."


def _string(text: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(text)) + text


def _write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return hashlib.md5(data).hexdigest()
