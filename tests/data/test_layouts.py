"""Folders as users have them: links, other names and modes, what browsers, pandas and the hub's clients leave."""

import dataclasses
import gzip
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from resnet_bench.base.errors import UserError
from resnet_bench.data.content import Content, SplitArrays
from resnet_bench.data.dataset import Dataset, ImageLocation, dataset_status, load, load_dataset
from resnet_bench.data.decode import decode_image
from resnet_bench.recipe.datasets import DatasetFacts
from tests.data import builders

Load = Callable[..., Dataset]

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
GERMAN = ["Flugzeug", "Auto", "Vogel", "Katze", "Hirsch", "Hund", "Frosch", "Pferd", "Schiff", "LKW"]


@pytest.fixture
def folders(info: DatasetFacts, content: Content, tmp_path: Path) -> Path:
    """Class folders in the folder of a dataset."""
    builders.write_class_folders(tmp_path / "data" / "cifar10", info, content)
    return tmp_path / "data"


@pytest.fixture
def fingerprint(info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load, messages: list[str]) -> str:
    """The fingerprint of the content, whatever its layout."""
    builders.write_parquet(tmp_path / "reference" / "cifar10", info, content)
    found = load_small(info, tmp_path / "reference").fingerprint
    messages.clear()
    return found


# --- class folders --------------------------------------------------------------------------------


@pytest.mark.parametrize("linked", ["one", "all", "split", "image"])
def test_links_are_followed(
    linked: str, info: DatasetFacts, folders: Path, tmp_path: Path, load_small: Load, fingerprint: str
) -> None:
    train = folders / "cifar10" / "train"
    moved = {
        "one": [train / "cat"],
        "all": sorted(train.iterdir()),
        "split": [train],
        "image": [min((train / "cat").iterdir())],
    }[linked]
    (tmp_path / "elsewhere").mkdir()
    for path in moved:
        target = tmp_path / "elsewhere" / path.name
        path.rename(target)
        path.symlink_to(target)
    assert load_small(info, folders).fingerprint == fingerprint


def test_links_that_lead_back_end(info: DatasetFacts, folders: Path, load_small: Load, fingerprint: str) -> None:
    (folders / "cifar10" / "train" / "cat" / "loop").symlink_to(folders / "cifar10" / "train")
    (folders / "cifar10" / "train" / "dog" / "loop").symlink_to(".")
    assert load_small(info, folders).fingerprint == fingerprint


def test_names_of_other_classes_are_refused_with_the_names_that_are_needed(
    info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load
) -> None:
    builders.write_class_folders(tmp_path / "cifar10", info, content, names=GERMAN)
    with pytest.raises(UserError, match=r"rename them to its classes, or to their numbers, 0 to 9") as error:
        load_small(info, tmp_path)
    assert all(f"{name} → " in str(error.value) for name in GERMAN)
    assert all(name in str(error.value) for name in info.class_names)


def test_names_may_be_spelled_otherwise(
    info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load, fingerprint: str
) -> None:
    names = [name.upper() if len(name) > 4 else name.capitalize() for name in info.class_names]
    builders.write_class_folders(tmp_path / "data" / "cifar10", info, content, names=names)
    (tmp_path / "data" / "cifar10" / "train").rename(tmp_path / "data" / "cifar10" / "Train")
    assert load_small(info, tmp_path / "data").fingerprint == fingerprint


def test_images_of_another_dataset_are_said_loudly_and_are_not_official(
    info: DatasetFacts, folders: Path, load_small: Load, messages: list[str]
) -> None:
    dataset = load_small(info, folders)
    assert not dataset.official
    assert any(message.startswith("ANOTHER DATASET") and "compared with a claim" in message for message in messages)


def test_test_images_that_were_trained_on_are_counted(
    info: DatasetFacts, folders: Path, load_small: Load, messages: list[str]
) -> None:
    for split, name in (("test", "cat"), ("train", "dog")):
        first = next((folders / "cifar10" / "train" / "cat").iterdir())
        target = next((folders / "cifar10" / split / name).iterdir())
        target.write_bytes(first.read_bytes())
    load_small(info, folders)
    (message,) = (message for message in messages if "among the training images" in message)
    assert f": 1 of {info.test_size} test images is among the training images too" in message


def test_hidden_folders_are_not_classes(
    info: DatasetFacts, folders: Path, load_small: Load, fingerprint: str, messages: list[str]
) -> None:
    for name in (".cache", "__MACOSX", ".ipynb_checkpoints"):
        hidden = folders / "cifar10" / "train" / name / "cat"
        hidden.mkdir(parents=True)
        (hidden / "0000.png").write_bytes(b"not an image")
    (folders / "cifar10" / "train" / "cat" / "Thumbs.db").write_bytes(b"a system's")
    assert load_small(info, folders).fingerprint == fingerprint
    assert not any("left out" in message for message in messages)


def test_what_is_not_an_image_is_counted_and_named(
    info: DatasetFacts, folders: Path, load_small: Load, fingerprint: str, messages: list[str]
) -> None:
    for name in ("a.npy", "b.npy", "c.txt", "d.zip"):
        (folders / "cifar10" / "train" / "cat" / name).write_bytes(b"?")
    assert load_small(info, folders).fingerprint == fingerprint
    (message,) = (message for message in messages if "left out" in message)
    found = "train/cat/a.npy, train/cat/b.npy, train/cat/c.txt, …"
    assert f"4 files are not read as images and left out: {found}" in message


@pytest.mark.parametrize("suffix", ["tif", "TIFF", "gif", "bmp"])
def test_images_in_other_formats_are_read(
    suffix: str, info: DatasetFacts, folders: Path, load_small: Load, fingerprint: str
) -> None:
    path = min((folders / "cifar10" / "train" / "cat").iterdir())
    with Image.open(path) as image:
        image.load()
    if suffix == "gif":
        image = Image.new("RGB", (32, 32), (10, 20, 30))
    image.save(path.with_suffix(f".{suffix}"))
    path.unlink()
    dataset = load_small(info, folders)
    assert len(dataset.train) == 60
    assert (dataset.fingerprint == fingerprint) == (suffix != "gif")


# --- modes of images ------------------------------------------------------------------------------


def encoded(image: Image.Image, image_format: str = "png") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format)
    return buffer.getvalue()


GRAY = Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32))


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA"])
def test_images_without_loss_in_rgb_are_read(mode: str) -> None:
    image = (GRAY.point(lambda value: 255 * (value > 99)) if mode == "1" else GRAY).convert(mode)
    pixels = decode_image(encoded(image), 32, "it")
    assert np.array_equal(pixels, np.asarray(image.convert("RGB")))
    assert pixels.dtype == np.uint8


def test_images_with_transparent_pixels_are_refused() -> None:
    image = GRAY.convert("RGBA")
    image.putpixel((3, 4), (1, 2, 3, 254))
    with pytest.raises(UserError, match="has transparent pixels"):
        decode_image(encoded(image), 32, "it")
    palette = GRAY.convert("P")
    buffer = io.BytesIO()
    palette.save(buffer, "png", transparency=7)
    with pytest.raises(UserError, match="has transparent pixels"):
        decode_image(buffer.getvalue(), 32, "it")


# --- what was typed, and what is almost there -----------------------------------------------------


def test_the_extracted_folder_itself_is_read(
    info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load, fingerprint: str
) -> None:
    archive = builders.write_extracted_archive(tmp_path, info, content)
    assert load_small(info, tmp_path / archive.folder, archive=archive).fingerprint == fingerprint


@pytest.mark.parametrize("typed", ["folder", "file"])
@pytest.mark.parametrize("kind", ["packed", "unpacked by a browser"])
def test_archives_are_read(
    kind: str, typed: str, info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load, fingerprint: str
) -> None:
    archive = builders.write_extracted_archive(tmp_path, info, content)
    archive = builders.pack_archive(tmp_path, archive)
    shutil.rmtree(tmp_path / archive.folder)
    path = tmp_path / archive.filename
    if kind != "packed":
        data = gzip.decompress(path.read_bytes())
        path.unlink()
        path = path.with_suffix("")
        path.write_bytes(data)
    dataset = load_small(info, path if typed == "file" else tmp_path, archive=archive)
    assert dataset.fingerprint == fingerprint
    assert Path(dataset.location) == path.resolve()


def test_an_unpacked_archive_is_verified(
    info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load
) -> None:
    archive = builders.write_extracted_archive(tmp_path, info, content)
    archive = builders.pack_archive(tmp_path, archive)
    shutil.rmtree(tmp_path / archive.folder)
    path = tmp_path / archive.filename
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[data.index(content.test.images.tobytes()[:64])] ^= 1
    path.unlink()
    path.with_suffix("").write_bytes(data)
    with pytest.raises(UserError, match="its MD5 differs"):
        load_small(info, tmp_path, archive=archive)


@pytest.mark.parametrize("column", ["struct", "bytes"])
def test_parquet_files_of_pandas_are_read(
    column: str, info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load, fingerprint: str
) -> None:
    (tmp_path / "data").mkdir()
    for name, split in content._asdict().items():
        images = [builders.encode(image, "png") for image in split.images]
        rows = [{"bytes": data, "path": None} for data in images] if column == "struct" else images
        frame = pd.DataFrame({"img": rows, "label": split.labels})
        frame.sample(frac=1, random_state=0).to_parquet(tmp_path / "data" / f"{name}.parquet")
    assert load_small(info, tmp_path / "data").fingerprint == fingerprint


def test_generated_images_never_replace_a_folder_that_was_typed(info: DatasetFacts, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert load(info, ImageLocation(folder, allow_generated=True)).generated
        with pytest.raises(UserError, match="there is no cifar10 in"):
            load(info, ImageLocation(folder, allow_generated=True, typed=True))


@pytest.mark.parametrize(
    ("names", "typed", "hint"),
    [
        (["cifar-10-binary.tar.gz"], ".", "cifar-10-binary.tar.gz is the C version, which is not read"),
        (["cifar-10-matlab.tar.gz"], ".", "cifar-10-matlab.tar.gz is the MATLAB version, which is not read"),
        (["cifar-10-python (1).tar.gz"], ".", "another name: call it cifar-10-python.tar.gz"),
        (["CIFAR-10-images-master.zip"], ".", "is packed: unpack it"),
        (["cifar10.npz"], ".", "cifar10.npz is not laid out as any of these"),
        (["sets/cifar10/train.parquet"], ".", "/sets has it, try --data"),
        (["cifar10/train.parquet", "cifar10/notes/x"], "cifar10/notes", "has it, try --data"),
    ],
)
def test_near_misses_are_named_with_what_to_type(
    names: list[str], typed: str, hint: str, info: DatasetFacts, content: Content, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            builders.write_shard(tmp_path / name, info, content.train)
        else:
            (tmp_path / name).write_bytes(b"?")
    with pytest.raises(UserError) as error:
        load(info, ImageLocation(tmp_path / typed))
    assert hint in str(error.value)


def test_files_of_the_other_dataset_are_not_near_misses(tmp_path: Path, info: DatasetFacts) -> None:
    (tmp_path / "cifar-100-binary.tar.gz").write_bytes(b"?")
    (tmp_path / "cifar10.1").mkdir()
    with pytest.raises(UserError, match=r"there is no cifar10 in [^:]*: put cifar-10-python"):
        load(info, ImageLocation(tmp_path))


# --- what clients of the hub write ----------------------------------------------------------------


HUB = "datasets--uoft-cs--cifar10/snapshots/0b2714987fa478483af9968de7c934580d0bb9a2"


@pytest.mark.parametrize(
    ("layout", "typed"),
    [
        ("plain_text", "."),
        ("cifar10/plain_text", "."),
        ("default", "."),
        (f"{HUB}/plain_text", "."),
        (f"{HUB}/plain_text", HUB),
        (f"{HUB}/plain_text", HUB.partition("/")[0]),
    ],
)
def test_downloads_of_the_hub_are_found(
    layout: str, typed: str, info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load, fingerprint: str
) -> None:
    root = tmp_path / "data"
    # Beside the data, clients keep what they know of it in hidden folders.
    (root / ".cache" / "huggingface").mkdir(parents=True)
    builders.write_parquet(root / layout, info, content)
    assert load_small(info, root / typed).fingerprint == fingerprint


def test_snapshots_are_links_to_blobs(
    info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load, fingerprint: str
) -> None:
    builders.write_parquet(tmp_path / "data" / HUB, info, content)
    blobs = tmp_path / "data" / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted((tmp_path / "data" / HUB).iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    assert load_small(info, tmp_path / "data").fingerprint == fingerprint


def test_the_converted_branch_is_found(
    info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load, fingerprint: str
) -> None:
    for name, split in content._asdict().items():
        builders.write_shard(tmp_path / "data" / "plain_text" / name / "0000.parquet", info, split)
    assert load_small(info, tmp_path / "data").fingerprint == fingerprint


def test_an_lfs_pointer_is_named_as_one(
    info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load, folders: Path
) -> None:
    builders.write_parquet(tmp_path / "parquet" / "cifar10", info, content)
    shard = tmp_path / "parquet" / "cifar10" / "test-00000-of-00001.parquet"
    shard.write_bytes(POINTER)
    archive = builders.pack_archive(tmp_path, builders.write_extracted_archive(tmp_path, info, content))
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / archive.filename).write_bytes(POINTER)
    image = min((folders / "cifar10" / "train" / "cat").iterdir())
    image.write_bytes(POINTER)
    for folder, path in ((tmp_path / "parquet", shard), (tmp_path / "packed", None), (folders, image)):
        with pytest.raises(UserError, match=r"is a Git LFS pointer.*git lfs pull") as error:
            load_small(info, folder, archive=archive)
        assert path is None or str(path) in str(error.value)


# --- one sentence ---------------------------------------------------------------------------------


def test_a_column_that_is_there_twice_is_named(
    info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load
) -> None:
    import pyarrow
    import pyarrow.parquet

    builders.write_parquet(tmp_path / "cifar10", info, content)
    shard = tmp_path / "cifar10" / "test-00000-of-00001.parquet"
    table = pyarrow.parquet.read_table(shard)
    pyarrow.parquet.write_table(table.append_column("label", table.column("label")), shard)
    with pytest.raises(UserError, match="has the column label 2 times"):
        load_small(info, tmp_path)


def test_labels_that_are_true_or_false_are_refused(
    info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load
) -> None:
    import pyarrow
    import pyarrow.parquet

    builders.write_parquet(tmp_path / "cifar10", info, content)
    shard = tmp_path / "cifar10" / "test-00000-of-00001.parquet"
    table = pyarrow.parquet.read_table(shard)
    pyarrow.parquet.write_table(table.set_column(1, "label", pyarrow.array([True] * len(table))), shard)
    with pytest.raises(UserError, match="has label True"):
        load_small(info, tmp_path)


@pytest.mark.parametrize("look", [lambda path: load_dataset("cifar10", path), dataset_status])
@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("~nosuchuser/x", r"^~nosuchuser/x: there is no user ~nosuchuser; write the whole path$"),
        ("x" * 300, r"^\S+: cannot be read \(File name too long\)$"),
    ],
)
def test_paths_that_cannot_be_are_refused(typed: str, sentence: str, look: Callable[[Path], object]) -> None:
    with pytest.raises(UserError, match=sentence):
        look(Path(typed))


@pytest.fixture
def as_nobody() -> Iterator[None]:
    """Have files be read as a user who may enter no folder of another."""
    if os.geteuid() != 0:
        pytest.skip("only the superuser may become another user")
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.mark.parametrize("look", [lambda path: load_dataset("cifar10", path), dataset_status])
def test_a_folder_that_may_not_be_entered_is_named(
    look: Callable[[Path], object], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "closed" / "data").mkdir(parents=True)
    (tmp_path / "closed").chmod(0o000)
    if os.geteuid() == 0:
        request.getfixturevalue("as_nobody")
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
        look(tmp_path / "closed" / "data")


def test_a_class_folder_that_may_not_be_read_is_named(
    info: DatasetFacts, folders: Path, load_small: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = folders / "cifar10" / "train" / "cat"
    iterdir = Path.iterdir

    def refuse(path: Path) -> Iterator[Path]:
        if path.name == closed.name:
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError, match=r"train/cat: cannot be read \(Permission denied\)"):
        load_small(info, folders)


def test_more_images_than_published_are_another_dataset(
    info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load
) -> None:
    twice = SplitArrays(np.concatenate([content.train.images] * 2), np.concatenate([content.train.labels] * 2))
    builders.write_class_folders(tmp_path / "cifar10", info, Content(twice, content.test))
    dataset = load_small(dataclasses.replace(info), tmp_path)
    assert len(dataset.train) == 120
    assert not dataset.official
