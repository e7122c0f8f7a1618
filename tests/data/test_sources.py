import dataclasses
import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, ImageFolder

from resnet_bench.base.errors import UserError
from resnet_bench.data.archive import find_archive
from resnet_bench.data.class_folders import find_class_folders
from resnet_bench.data.content import Content, SplitArrays
from resnet_bench.data.dataset import Dataset, dataset_status, load_dataset
from resnet_bench.data.decode import decode_image, strict_decoding
from resnet_bench.data.parquet import find_parquet
from resnet_bench.data.sources import find_sources
from resnet_bench.recipe.datasets import DatasetFacts
from tests.data import builders

Load = Callable[..., Dataset]


def multiset(images: np.ndarray | torch.Tensor, labels: np.ndarray | torch.Tensor) -> list[tuple[bytes, int]]:
    """A split without its order."""
    return sorted((np.asarray(image).tobytes(), int(label)) for image, label in zip(images, labels, strict=True))


def assert_holds(dataset: Dataset, content: Content) -> None:
    assert multiset(dataset.train.images, dataset.train.labels) == multiset(content.train.images, content.train.labels)
    assert multiset(dataset.test.images, dataset.test.labels) == multiset(content.test.images, content.test.labels)


# --- the same whatever the source -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_every_source_gives_the_same_tensors_and_fingerprint(name: str, tmp_path: Path, load_small: Load) -> None:
    info = builders.small_info(name)
    if name == "cifar100":
        # All 100 classes must be seen in both splits for class folders.
        info = dataclasses.replace(info, train_size=200, test_size=100)
    content = builders.random_content(info)
    archive = builders.write_extracted_archive(tmp_path / "extracted", info, content)
    builders.write_extracted_archive(tmp_path / "packed", info, content)
    archive = builders.pack_archive(tmp_path / "packed", archive)
    for file in (tmp_path / "packed" / archive.folder).iterdir():
        file.unlink()
    (tmp_path / "packed" / archive.folder).rmdir()
    builders.write_parquet(tmp_path / "parquet" / name, info, content)
    builders.write_class_folders(tmp_path / "folders" / name, info, content)

    sources = {"extracted": "torchvision archive", "packed": "torchvision archive"}
    sources |= {"parquet": "parquet", "folders": "image folder"}
    datasets = {folder: load_small(info, tmp_path / folder, archive=archive) for folder in sources}
    assert {folder: dataset.source for folder, dataset in datasets.items()} == sources
    reference = datasets["packed"]
    assert_holds(reference, content)
    for dataset in datasets.values():
        assert dataset.fingerprint == reference.fingerprint
        assert dataset.class_names == info.class_names
        for split, expected in ((dataset.train, reference.train), (dataset.test, reference.test)):
            assert split.images.dtype == torch.uint8
            assert split.labels.dtype == torch.int64
            assert torch.equal(split.images, expected.images)
            assert torch.equal(split.labels, expected.labels)


def test_fingerprint_changes_with_a_pixel_a_label_and_the_name(
    info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load
) -> None:
    brighter = content.train.images.copy()
    brighter[7, 1, 2, 3] ^= 1
    relabelled = content.test.labels.copy()
    relabelled[3] = (relabelled[3] + 1) % 10
    variants = {
        "same": (info, content),
        "pixel": (info, Content(SplitArrays(brighter, content.train.labels), content.test)),
        "label": (info, Content(content.train, SplitArrays(content.test.images, relabelled))),
        "name": (dataclasses.replace(info, name="other"), content),
    }
    fingerprints = set()
    for folder, (variant_info, variant) in variants.items():
        builders.write_parquet(tmp_path / folder / variant_info.name, variant_info, variant)
        fingerprints.add(load_small(variant_info, tmp_path / folder).fingerprint)
    assert len(fingerprints) == len(variants)


def test_archive_equals_what_torchvision_reads(info: DatasetFacts, content: Content, tmp_path: Path) -> None:
    archive = builders.write_extracted_archive(tmp_path, info, content)

    class Small(CIFAR10):
        train_list = [list(batch) for batch in archive.train_batches]  # noqa: RUF012
        test_list = [list(batch) for batch in archive.test_batches]  # noqa: RUF012
        meta = {"filename": archive.meta_batch[0], "key": archive.meta_key, "md5": archive.meta_batch[1]}  # noqa: RUF012

    source = find_archive(info, tmp_path, archive)
    assert source is not None
    for split, train in zip(source.read(lambda _: None), (True, False), strict=True):
        reference = Small(tmp_path, train=train)
        assert np.array_equal(split.images.transpose(0, 2, 3, 1), reference.data)
        assert split.labels.tolist() == reference.targets


def test_class_folders_equal_what_torchvision_reads(info: DatasetFacts, content: Content, tmp_path: Path) -> None:
    builders.write_class_folders(tmp_path, info, content)
    source = find_class_folders(info, tmp_path)
    assert source is not None
    for split, name in zip(source.read(lambda _: None), ("train", "test"), strict=True):
        reference = ImageFolder(tmp_path / name)
        assert split.labels.tolist() == reference.targets
        assert all(
            np.array_equal(image.transpose(1, 2, 0), np.asarray(other))
            for image, (other, _) in zip(split.images, reference, strict=True)
        )


# --- discovery ------------------------------------------------------------------------------------------------------


def test_sources_are_preferred_in_the_documented_order(info: DatasetFacts, content: Content, tmp_path: Path) -> None:
    builders.write_class_folders(tmp_path / "cifar10", info, content)
    kinds = [source.kind for source in find_sources(info, tmp_path)]
    assert kinds == ["image folder"]
    builders.write_parquet(tmp_path / "cifar10", info, content)
    kinds = [source.kind for source in find_sources(info, tmp_path)]
    assert kinds == ["parquet", "image folder"]
    archive = builders.write_extracted_archive(tmp_path, info, content)
    kinds = [source.kind for source in find_sources(info, tmp_path, archive)]
    assert kinds == ["torchvision archive", "parquet", "image folder"]


@pytest.mark.parametrize("layout", ["cifar10", "cifar10/data", "cifar10/plain_text", "cifar10/cifar10", "."])
@pytest.mark.parametrize("image_column", ["img", "image"])
def test_parquet_layouts(
    layout: str, image_column: str, info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load
) -> None:
    builders.write_parquet(tmp_path / layout, info, content, image_column)
    dataset = load_small(info, tmp_path)
    assert_holds(dataset, content)
    assert Path(dataset.location) == (tmp_path / layout).resolve()


@pytest.mark.parametrize("layout", ["cifar10", "."])
@pytest.mark.parametrize("test_name", ["test", "valid", "val"])
def test_class_folder_layouts(
    layout: str, test_name: str, info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load
) -> None:
    builders.write_class_folders(tmp_path / layout, info, content, test_name)
    (tmp_path / layout / "train" / "notes.txt").write_text("not an image")
    (tmp_path / layout / "train" / info.class_names[0] / "._0000.png").write_text("not an image either")
    assert_holds(load_small(info, tmp_path), content)


def test_class_folders_below_superclasses(
    info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load
) -> None:
    names = [f"{'animals' if label in (2, 3, 4, 5, 6, 7) else 'vehicles'}/{name}" for label, name in
             enumerate(info.class_names)]  # fmt: skip
    builders.write_class_folders(tmp_path, info, content, names=names)
    assert_holds(load_small(info, tmp_path), content)


def test_class_folders_map_by_number(tmp_path: Path, load_small: Load) -> None:
    info = dataclasses.replace(builders.small_info("cifar100"), train_size=100, test_size=100)
    content = builders.random_content(info)
    builders.write_class_folders(tmp_path, info, content, names=[str(number) for number in range(100)])
    assert_holds(load_small(info, tmp_path), content)


def test_a_folder_of_another_dataset_is_not_taken(info: DatasetFacts, content: Content, tmp_path: Path) -> None:
    hundred = builders.small_info("cifar100")
    builders.write_parquet(tmp_path / "parquet", info, content)
    builders.write_class_folders(tmp_path / "folders", info, content)
    assert list(find_sources(hundred, tmp_path / "parquet")) == []
    assert list(find_sources(hundred, tmp_path / "folders")) == []


def test_partly_extracted_folder_gives_way_to_the_archive(
    info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load
) -> None:
    archive = builders.write_extracted_archive(tmp_path, info, content)
    archive = builders.pack_archive(tmp_path, archive)
    (tmp_path / archive.folder / "test_batch").unlink()
    dataset = load_small(info, tmp_path, archive=archive)
    assert Path(dataset.location) == (tmp_path / archive.filename).resolve()
    (tmp_path / archive.filename).unlink()
    with pytest.raises(UserError, match=r"test_batch is missing"):
        load_small(info, tmp_path, archive=archive)


def test_status_says_what_is_there_without_decoding(content: Content, tmp_path: Path) -> None:
    nothing = [(entry.name, entry.sources, entry.cache) for entry in dataset_status(tmp_path / "nowhere")]
    assert nothing[:2] == [("cifar10", (), "missing"), ("cifar100", (), "missing")]
    assert {(sources, cache) for _, sources, cache in nothing} == {((), "missing")}
    builders.write_parquet(tmp_path / "cifar10", builders.small_info(), content)
    builders.write_class_folders(tmp_path / "cifar10", builders.small_info(), content)
    entry = dataset_status(tmp_path)[0]
    folder = str((tmp_path / "cifar10").resolve())
    assert entry.sources == (("parquet", folder), ("image folder", folder))
    assert (entry.cache, entry.fingerprint) == ("missing", None)
    assert not (tmp_path / ".resnet-bench-cache").exists()


# --- what is refused ------------------------------------------------------------------------------------------------


def test_unknown_name_gets_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'cifar100'"):
        load_dataset("cifar-100", tmp_path)


def test_nothing_there_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_dataset("cifar10", tmp_path)
    for hint in (
        "cifar-10-python.tar.gz",
        "cifar10/train-*.parquet",
        "cifar10/train/<class>",
        "--data",
        "data prepare",
    ):
        assert hint in str(caught.value)


@pytest.mark.parametrize("split_name", ["train", "test"])
def test_missing_parquet_rows_are_counted(
    split_name: str, info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load
) -> None:
    builders.write_parquet(tmp_path / "cifar10", info, content)
    sorted((tmp_path / "cifar10").glob(f"{split_name}-*"))[0].unlink()
    with pytest.raises(UserError, match=rf"has {'30 train' if split_name == 'train' else '0 test'} images"):
        load_small(info, tmp_path)


def test_archive_with_too_few_images_is_refused(
    info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load
) -> None:
    archive = builders.write_extracted_archive(tmp_path, info, content)
    with pytest.raises(UserError, match=r"has 60 train images of cifar10 and 61 are expected"):
        load_small(dataclasses.replace(info, train_size=61), tmp_path, archive=archive)


def truncated_png() -> bytes:
    return builders.encode(np.zeros((3, 32, 32), np.uint8), "png")[:60]


def large_png() -> bytes:
    return builders.encode(np.zeros((3, 33, 32), np.uint8), "png")


def png_of(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


BAD_IMAGES = {
    "text": (b"this is not an image", "not a readable image"),
    "empty": (b"", "not a readable image"),
    "truncated": (truncated_png(), "not a readable image"),
    "large": (large_png(), "32x33 pixels, and 32x32"),
    "transparent": (png_of(Image.new("RGBA", (32, 32))), "has transparent pixels"),
    "deep": (png_of(Image.new("I;16", (32, 32))), "has mode I;16"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "Git LFS pointer"),
    "null": (None, "has no image"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_corrupt_parquet_row_is_named(
    kind: str, info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load
) -> None:
    data, reason = BAD_IMAGES[kind]
    builders.write_parquet(tmp_path / "cifar10", info, content)
    encoded: list[bytes | None] = [builders.encode(image, "png") for image in content.train.images[30:]]
    encoded[17] = data
    shard = tmp_path / "cifar10" / "train-00001-of-00002.parquet"
    builders.write_rows(shard, info, encoded, content.train.labels[30:])
    with pytest.raises(UserError, match=rf"row 17 of .*{shard.name}.*{reason}"):
        load_small(info, tmp_path)


@pytest.mark.parametrize("label", [-1, 10])
def test_parquet_label_out_of_range_is_named(
    label: int, info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load
) -> None:
    builders.write_parquet(tmp_path / "cifar10", info, content)
    labels = content.test.labels.copy()
    labels[4] = label
    shard = tmp_path / "cifar10" / "test-00000-of-00001.parquet"
    builders.write_shard(shard, info, SplitArrays(content.test.images, labels))
    with pytest.raises(UserError, match=rf"row 4 of .*{shard.name} has label {label}"):
        load_small(info, tmp_path)


def test_parquet_with_other_columns_is_named(
    info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load
) -> None:
    builders.write_parquet(tmp_path / "cifar10", info, content, image_column="picture")
    with pytest.raises(UserError, match=r"train-00000-of-00002\.parquet has the columns picture, label"):
        load_small(info, tmp_path)


def test_damaged_parquet_file_is_named(info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load) -> None:
    builders.write_parquet(tmp_path / "cifar10", info, content)
    shard = tmp_path / "cifar10" / "train-00000-of-00002.parquet"
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=shard.name):
        load_small(info, tmp_path)


def test_corrupt_image_file_is_named(info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load) -> None:
    builders.write_class_folders(tmp_path, info, content)
    path = min((tmp_path / "train" / "cat").iterdir())
    path.write_bytes(truncated_png())
    with pytest.raises(UserError, match=rf"{path.name} is not a readable image"):
        load_small(info, tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cat": "cats"}, r"class folders that cifar10 does not have; rename them .*\(cats → cat; .*folders: cat\)"),
        ({"cat": "dog"}, r"9 class folders and cifar10 has 10"),
    ],
)
def test_misnamed_class_folders_are_explained(
    change: dict[str, str], reason: str, info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load
) -> None:
    names = [change.get(name, name) for name in info.class_names]
    builders.write_class_folders(tmp_path / "cifar10", info, content, names=names)
    with pytest.raises(UserError, match=reason):
        load_small(info, tmp_path)


def test_class_folders_without_test_images_are_refused(
    info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load
) -> None:
    builders.write_class_folders(tmp_path / "cifar10", info, content, test_name="held-out")
    with pytest.raises(UserError, match="no test images"):
        load_small(info, tmp_path)


# --- what attacks ---------------------------------------------------------------------------------------------------


class Bomb:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_tampered_batch_is_refused_before_it_is_unpickled(
    info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = builders.write_extracted_archive(tmp_path, info, content)
    builders.replace_test_batch(tmp_path, archive, pickle.dumps({"data": Bomb(tmp_path / "executed")}))
    monkeypatch.setattr("resnet_bench.data.archive.unpickle_batch", lambda *_: pytest.fail("unpickled"))
    with pytest.raises(UserError, match=r"test_batch is not the published file"):
        load_small(info, tmp_path, archive=archive)


def test_tampered_archive_is_refused_before_it_is_opened(
    info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = builders.write_extracted_archive(tmp_path / "extracted", info, content)
    archive = builders.pack_archive(tmp_path / "extracted", archive)
    path = tmp_path / archive.filename
    data = bytearray((tmp_path / "extracted" / archive.filename).read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    monkeypatch.setattr(tarfile, "open", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(UserError, match=r"tar\.gz is not the published archive"):
        load_small(info, tmp_path, archive=archive)


def test_pickle_that_would_run_code_does_not(
    info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load
) -> None:
    archive = builders.write_extracted_archive(tmp_path, info, content)
    archive = builders.replace_test_batch(tmp_path, archive, pickle.dumps({"data": Bomb(tmp_path / "executed")}))
    with pytest.raises(UserError, match="was not loaded"):
        load_small(info, tmp_path, archive=archive)
    assert not (tmp_path / "executed").exists()


def test_batches_of_another_layout_are_refused(
    info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load
) -> None:
    archive = builders.write_extracted_archive(tmp_path, info, content)
    pixels = np.zeros((20, 3072), np.uint8)
    for batch, reason in (
        ([1, 2], "contains a list"),
        ({"data": pixels}, "not laid out"),
        ({"data": pixels[:, :100], "labels": [0] * 20}, "not laid out"),
        ({"data": pixels.astype(np.float32), "labels": [0] * 20}, "not laid out"),
        ({"data": pixels, "labels": [0] * 19}, "not laid out"),
        ({"data": pixels, "labels": [0] * 19 + [10]}, "label 10 in row 19"),
    ):
        changed = builders.replace_test_batch(tmp_path, archive, pickle.dumps(batch, protocol=4))
        with pytest.raises(UserError, match=reason):
            load_small(info, tmp_path, archive=changed)


@pytest.mark.parametrize("kind", ["parent", "absolute", "link"])
def test_archive_that_escapes_its_folder_is_refused(
    kind: str, info: DatasetFacts, content: Content, tmp_path: Path, load_small: Load
) -> None:
    archive = builders.write_extracted_archive(tmp_path / "extracted", info, content)
    member = tarfile.TarInfo({"parent": "../escaped", "absolute": str(tmp_path / "escaped"), "link": "link"}[kind])
    if kind == "link":
        member.type, member.linkname = tarfile.SYMTYPE, "/"
    data = tmp_path / "data"
    data.mkdir()
    path = data / archive.filename
    with tarfile.open(path, "w:gz") as file:
        file.addfile(member, io.BytesIO())
        file.add(tmp_path / "extracted" / archive.folder, arcname=archive.folder)
    archive = builders.with_checksums_of(path, archive)
    with pytest.raises(UserError, match="which no archive of CIFAR does"):
        load_small(info, data, archive=archive)
    assert not (tmp_path / "escaped").exists()


def test_decompression_bomb_is_refused_before_it_is_decompressed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = builders.encode(np.zeros((3, 12, 12), np.uint8), "png")
    with strict_decoding(), pytest.raises(UserError, match="decompression bomb"):
        decode_image(data, 12, "it")


def test_mutated_images_are_decoded_or_refused() -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (3, 32, 32), dtype=np.uint8)
    refused = 0
    for image_format in ("png", "webp", "jpeg", "bmp", "ppm"):
        original = builders.encode(image, image_format)
        for _ in range(200):
            data = bytearray(original[: random.integers(1, len(original) + 1)])
            for position in random.integers(0, len(data), 3):
                data[position] = random.integers(0, 256)
            try:
                with strict_decoding():
                    assert decode_image(bytes(data), 32, "it").shape == (32, 32, 3)
            except UserError:
                refused += 1
    assert refused > 500


def test_finders_find_nothing_where_there_is_nothing(info: DatasetFacts, tmp_path: Path) -> None:
    for find in (find_archive, find_parquet, find_class_folders):
        assert find(info, tmp_path / "nowhere") is None
