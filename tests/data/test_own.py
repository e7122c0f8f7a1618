"""Your own datasets, in each of the formats that they come in, and the official files of SVHN and CIFAR-10.1."""

import io
import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from scipy.io import savemat

from resnet_bench.base.errors import UserError
from resnet_bench.data.dataset import Dataset, dataset_status, generate_dataset, load_dataset
from resnet_bench.data.describe import describe, statistics
from resnet_bench.recipe.dataset_files import DatasetFile, dataset_facts, dataset_files, load_dataset_file
from resnet_bench.recipe.schema import parse
from resnet_bench.recipe.writing import dataset_to_toml

CLASSES = ("daisy", "rose")
Pixels = npt.NDArray[np.uint8]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a folder for datasets."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets").mkdir()
    return tmp_path


def noise(count: int, height: int = 32, width: int = 32, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def write_folder(folder: Path, images: dict[str, Pixels], suffix: str = "png") -> None:
    for name, pixels in images.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index, image in enumerate(pixels):
            Image.fromarray(image).save(folder / name / f"{index}.{suffix}")


def photos(height: int = 32, width: int = 32) -> None:
    """Two classes, three training images and two test images each."""
    for split, count in (("train", 3), ("test", 2)):
        for seed, name in enumerate(CLASSES):
            pixels = noise(count, height, width, seed + 10 * count)
            write_folder(Path("photos") / split, {name: pixels})


def save_description(file: DatasetFile, name: str = "photos") -> None:
    Path("datasets", f"{name}.toml").write_text(dataset_to_toml(file))


def described(**changes: object) -> DatasetFile:
    table = {
        "train": "photos/train",
        "test": "photos/test",
        "classes": CLASSES,
        "train_images": 6,
        "test_images": 4,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
    }
    file = parse(DatasetFile, {**table, **changes}, where="photos")
    save_description(file)
    return file


def loaded(name: str = "photos", folder: Path = Path("data")) -> Dataset:
    return load_dataset(name, folder)


def in_source_order(images: "npt.NDArray[np.uint8]", rows: "npt.NDArray[np.int64]") -> Pixels:
    return images[np.argsort(rows)].transpose(0, 2, 3, 1)


def pixels_of(dataset: Dataset, split: str = "test") -> Pixels:
    chosen = dataset.test if split == "test" else dataset.train
    assert chosen.rows is not None
    return in_source_order(chosen.images.numpy(), chosen.rows.numpy())


# --- class folders ---------------------------------------------------------------------------------


def test_folders_are_read_as_described() -> None:
    photos()
    described()
    dataset = loaded()
    assert (dataset.name, dataset.class_names, dataset.source, dataset.official) == (
        "photos",
        CLASSES,
        "image folder",
        False,
    )
    assert np.array_equal(pixels_of(dataset)[:2], noise(2, seed=20))
    assert sorted(dataset.train.labels.tolist()) == [0, 0, 0, 1, 1, 1]
    assert {dataset.place("test", index) for index in range(4)} == {
        f"test/{name}/{index}.png" for name in CLASSES for index in range(2)
    }


@pytest.mark.parametrize("fit", ["crop", "resize"])
@pytest.mark.parametrize(("height", "width"), [(40, 64), (64, 40), (20, 24)])
def test_images_of_other_sizes_are_cropped_or_resized_as_pillow_does(fit: str, height: int, width: int) -> None:
    photos(height, width)
    described(fit=fit)
    image = Image.fromarray(noise(2, height, width, seed=20)[0])
    box = None
    if fit == "crop":
        side = min(height, width)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    expected = image.resize((32, 32), Image.Resampling.BILINEAR, box=box)
    assert np.array_equal(pixels_of(loaded())[0], np.asarray(expected))


def test_exact_refuses_other_sizes() -> None:
    photos(32, 40)
    described(fit="exact")
    with pytest.raises(UserError, match=r"0\.png is an image of 40x32 pixels, and 32x32 are expected"):
        loaded()


def test_photos_are_turned_upright() -> None:
    photos()
    described()
    dark_left = np.zeros((32, 32, 3), dtype=np.uint8)
    dark_left[:, 16:] = 200
    image = Image.fromarray(dark_left)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    image.save("photos/test/daisy/0.png", exif=exif)
    top, bottom = pixels_of(loaded())[0][[2, -3], 16, 0]
    assert (top, bottom) == (0, 200)


def test_decoded_images_are_kept_until_files_or_description_change() -> None:
    photos()
    described()
    Path("data").mkdir()
    first = loaded()
    assert status("photos").cache == "ready"
    described(image_size=16)
    assert status("photos").cache == "outdated"
    assert loaded().test.images.shape == (4, 3, 16, 16)
    described(classes=CLASSES[::-1])
    assert loaded().test.labels.sum() == 2
    described()
    again = loaded()
    assert again.fingerprint == first.fingerprint
    Image.fromarray(noise(1, seed=99)[0]).save("photos/test/daisy/0.png")
    assert loaded().fingerprint != first.fingerprint


def status(name: str) -> "object":
    return next(found for found in dataset_status(Path("data")) if found.name == name)


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda: Path("photos/test/daisy/0.png").write_bytes(b"no image"), "0.png is not a readable image"),
        (lambda: Image.new("RGBA", (32, 32)).save("photos/test/daisy/0.png"), "0.png has transparent pixels"),
        (lambda: Path("photos/test/daisy/0.png").unlink(), "has 3 test images, and the description of photos says 4"),
        (
            lambda: Path("photos/test/daisy").rename("photos/test/tulip"),
            "has the class 'tulip', which is not described",
        ),
        (lambda: Path("photos/test").rename("photos/tests"), r"photos/test is neither in .*/data nor in "),
        (lambda: [path.unlink() for path in Path("photos/train/rose").iterdir()], "train/rose has no images"),
    ],
)
def test_images_that_cannot_be_used_are_one_sentence(break_it: Callable[[], object], sentence: str) -> None:
    photos()
    described()
    break_it()
    with pytest.raises(UserError, match=sentence) as error:
        loaded()
    assert "\n" not in str(error.value)


def test_files_below_the_data_folder_come_first() -> None:
    photos()
    described()
    elsewhere = Path("elsewhere")
    Path("photos").rename(elsewhere)
    Path("mine").mkdir()
    elsewhere.rename("mine/photos")
    assert loaded(folder=Path("mine")).location == str(Path("mine/photos").resolve())


def test_missing_images_are_never_replaced_by_generated_ones() -> None:
    described()
    with pytest.raises(UserError, match="photos/train is neither in"):
        load_dataset("photos", Path("data"), allow_generated=True)


# --- Parquet ---------------------------------------------------------------------------------------


def write_parquet(path: Path, pixels: Pixels, labels: list[int], names: list[str] | None = None) -> None:
    rows = []
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="PNG")
        rows.append({"bytes": file.getvalue(), "path": None})
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = pyarrow.table({"image": pyarrow.array(rows, image), "label": pyarrow.array(labels, pyarrow.int64())})
    if names is not None:
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path)


def parquet(count: int, names: list[str]) -> None:
    """Photos of the first class, as many in each split."""
    for split in ("train", "test"):
        write_parquet(Path(f"photos/{split}.parquet"), noise(count), count * [0], names)


@pytest.mark.parametrize("names", [None, ["cat", "dog"]])
def test_parquet_is_described_and_read(names: list[str] | None) -> None:
    for shard in range(2):
        write_parquet(Path(f"pets/train-{shard}.parquet"), noise(3, 24, 24, seed=shard), [0, 1, 0], names)
    write_parquet(Path("pets/test-0.parquet"), noise(2, 24, 24, seed=5), [1, 0], names)
    file = describe(Path("pets"))
    assert file.classes == tuple(names or ["0", "1"])
    assert (file.train, file.image_size, file.train_images, file.test_images) == ("pets/train-*.parquet", 24, 6, 2)
    save_description(file, "pets")
    dataset = loaded("pets")
    assert dataset.source == "parquet"
    assert np.array_equal(pixels_of(dataset), noise(2, 24, 24, seed=5))
    assert dataset.place("test", 0) in {"row 0 of test-0.parquet", "row 1 of test-0.parquet"}


# --- published files -------------------------------------------------------------------------------


def write_svhn() -> Pixels:
    # As in its train_32x32.mat: X is [32, 32, 3, N] of uint8, y is [N, 1] of uint8, and the digit 0 has the label 10.
    digits = np.arange(20, dtype=np.uint8) % 10 + 1
    folder = Path("data/svhn")
    folder.mkdir(parents=True)
    pixels = noise(20)
    for name, count in (("train", 20), ("test", 10)):
        arrays = {"X": pixels[:count].transpose(1, 2, 3, 0), "y": digits[:count, None]}
        savemat(folder / f"{name}_32x32.mat", arrays, do_compression=True)
    return pixels


@pytest.fixture
def small_svhn() -> None:
    """The shipped description, with the size of the test's files."""
    text = dataset_files()["svhn"].read_text().replace("73257", "20").replace("26032", "10")
    Path("datasets/svhn.toml").write_text(text)


@pytest.mark.usefixtures("small_svhn")
def test_svhn_is_read_from_its_official_files(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = write_svhn()
    assert status("svhn").cache == "missing"
    dataset = loaded("svhn")
    assert status("svhn").cache == "ready"
    assert dataset.source == "matlab"
    assert np.array_equal(pixels_of(dataset, "train"), pixels)
    assert dataset.test.rows is not None
    in_order = dataset.test.labels[dataset.test.rows.argsort()]
    assert [dataset.class_names[label] for label in in_order] == ["1", "2", "3", "4", "5", "6", "7", "8", "9", "0"]
    monkeypatch.chdir("data")
    assert dataset_facts("svhn").train_size == 73_257


def write_cifar10_1(count: int = 20) -> tuple[Pixels, npt.NDArray[np.int32]]:
    # As in its repository: uint8 [N, 32, 32, 3] and int32 [N].
    folder = Path("data/cifar10.1")
    folder.mkdir(parents=True, exist_ok=True)
    pixels, labels = noise(count), np.arange(count, dtype=np.int32) % 10
    np.save(folder / "cifar10.1_v6_data.npy", pixels)
    np.save(folder / "cifar10.1_v6_labels.npy", labels)
    return pixels, labels


@pytest.fixture
def small_cifar10_1() -> None:
    """The shipped description, with the size of the test's files."""
    text = dataset_files()["cifar10-1"].read_text().replace("test_images = 2000", "test_images = 20")
    Path("datasets/cifar10-1.toml").write_text(text)


@pytest.mark.usefixtures("small_cifar10_1")
def test_cifar10_1_is_read_from_its_official_files() -> None:
    pixels, labels = write_cifar10_1()
    for _ in range(2):  # decoded, then from the cache
        dataset = loaded("cifar10-1")
        assert dataset.source == "numpy"
        assert np.array_equal(pixels_of(dataset), pixels)
        assert dataset.test.rows is not None
        assert dataset.test.labels[dataset.test.rows.argsort()].tolist() == labels.tolist()
        assert len(dataset.train) == 0
        assert dataset.class_names == dataset_facts("cifar10").class_names


@pytest.mark.usefixtures("small_cifar10_1")
@pytest.mark.parametrize(
    ("name", "array", "sentence"),
    [
        ("data", noise(20).astype(np.int16), r"must be uint8 \[images, height, width, 3\], got int16"),
        ("data", noise(20, 32, 30), "has images of 30x32 pixels, and 32x32 are expected"),
        ("data", np.array([{}], dtype=object), "is not a readable NumPy array"),
        ("labels", np.arange(19), "must have a whole number per image, got int64"),
        ("labels", np.arange(20), "image 10 has label 10, and there are 10 classes"),
        ("labels", np.zeros(20, dtype=int), "has no image of the class 'automobile'"),
    ],
)
def test_damaged_arrays_are_one_sentence(name: str, array: npt.NDArray[np.generic], sentence: str) -> None:
    write_cifar10_1()
    np.save(f"data/cifar10.1/cifar10.1_v6_{name}.npy", array, allow_pickle=True)
    with pytest.raises(UserError, match=sentence):
        loaded("cifar10-1")


@pytest.mark.usefixtures("small_svhn")
def test_a_download_that_broke_off_is_one_sentence() -> None:
    write_svhn()
    for name in ("svhn/train_32x32.mat", "svhn/test_32x32.mat"):
        whole = Path("data", name).read_bytes()
        for kept in (0, 60, 128, 140, len(whole) // 2, len(whole) - 1):
            Path("data", name).write_bytes(whole[:kept])
            with pytest.raises(UserError, match=name) as error:
                loaded("svhn")
            assert "\n" not in str(error.value)
            assert len(str(error.value)) < 600
        Path("data", name).write_bytes(whole)
    assert len(loaded("svhn").train) == 20


@pytest.mark.usefixtures("small_svhn", "small_cifar10_1")
def test_official_files_are_described() -> None:
    write_svhn()
    file = describe(Path("data/svhn"))
    shipped = load_dataset_file(Path("datasets/svhn.toml"))
    assert file.description.model_dump() == {**shipped.description.model_dump(), "fit": "crop"}
    assert (file.train, file.test) == ("data/svhn/train_32x32.mat", "data/svhn/test_32x32.mat")
    assert file.mean == pytest.approx([0.5] * 3, abs=0.01)
    write_cifar10_1()
    file = describe(Path("data/cifar10.1"), fit="exact")
    shipped = load_dataset_file(Path("datasets/cifar10-1.toml"))
    assert file.description.model_dump() == {**shipped.description.model_dump(), "classes": tuple("0123456789")}
    assert (file.train, file.mean, file.test) == (None, None, "data/cifar10.1/cifar10.1_v6_data.npy")
    save_description(file, "new")
    assert len(loaded("new").test) == 20
    for kind in ("data", "labels"):
        old = Path(f"data/cifar10.1/cifar10.1_v6_{kind}.npy")
        old.with_name(f"cifar10.1_v4_{kind}.npy").write_bytes(old.read_bytes())
    with pytest.raises(UserError, match=r"has several arrays of images \(cifar10.1_v4_data.npy, cifar10.1_v6_data.npy"):
        describe(Path("data/cifar10.1"))


def test_arrays_of_several_sizes_are_described_at_32_pixels() -> None:
    Path("pets").mkdir()
    for split, side in (("train", 40), ("test", 36)):
        np.save(f"pets/{split}_data.npy", noise(4, side, side))
        np.save(f"pets/{split}_labels.npy", np.array([0, 1, 1, 0]))
    assert describe(Path("pets")).image_size == 32
    assert describe(Path("pets"), image_size=20).classes == ("0", "1")
    Path("pets/test_data.npy").unlink()
    with pytest.raises(UserError, match=r"pets has no train/<class> and test/<class>, .* or NAME_data.npy with its"):
        describe(Path("pets"))


def test_missing_published_files_say_where_they_are_published() -> None:
    with pytest.raises(UserError, match=r"cifar10.1_v6_data.npy is neither in .* published at https://github.com/"):
        loaded("cifar10-1")


def test_damaged_matlab_file_is_one_sentence() -> None:
    described(train="x.mat", test="x.mat")
    Path("x.mat").write_bytes(b"no MATLAB file" * 100)
    with pytest.raises(UserError, match=r"x\.mat is not a readable MATLAB file"):
        loaded()
    savemat("x.mat", {"X": noise(2)})
    with pytest.raises(UserError, match=r"x\.mat needs X, uint8"):
        loaded()


@pytest.mark.parametrize("labels", [[0, 1, 2], [2, 0, 0]])
def test_matlab_labels_that_count_from_0_are_refused(labels: list[int]) -> None:
    Path("digits").mkdir()
    for split in ("train", "test"):
        savemat(f"digits/{split}.mat", {"X": noise(3).transpose(1, 2, 3, 0), "y": np.array(labels, np.uint8)})
    with pytest.raises(UserError, match=r"train\.mat: y has both 0 and 2, .* labels count from 1"):
        describe(Path("digits"))


def test_a_matlab_file_may_have_0_instead_of_the_number_of_classes() -> None:
    described(train="x.mat", test="x.mat", train_images=3, test_images=3)
    savemat("x.mat", {"X": noise(3).transpose(1, 2, 3, 0), "y": np.array([0, 1, 0], np.uint8)})
    assert sorted(loaded().test.labels.tolist()) == [0, 0, 1]


# --- describing ------------------------------------------------------------------------------------


def test_description_can_be_saved_and_read() -> None:
    photos(32, 32)
    file = describe(Path("photos"))
    assert tomllib.loads(dataset_to_toml(file))["classes"] == list(CLASSES)
    assert (file.image_size, file.train_images, file.test_images) == (32, 6, 4)
    save_description(file)
    images = loaded().train.images.numpy() / 255
    assert file.mean == pytest.approx(images.mean(axis=(0, 2, 3)), abs=1e-4)
    assert file.std == pytest.approx(images.std(axis=(0, 2, 3)), abs=1e-4)


def test_statistics_do_not_depend_on_how_images_are_chunked() -> None:
    images = noise(5000, 8, 8).transpose(0, 3, 1, 2)
    mean, std = statistics(images)
    assert mean == pytest.approx(images.mean(axis=(0, 2, 3)) / 255, abs=1e-4)
    assert std == pytest.approx(images.std(axis=(0, 2, 3)) / 255, abs=1e-4)


def test_images_that_differ_in_size_are_described_at_32_pixels() -> None:
    photos(40, 50)
    assert describe(Path("photos")).image_size == 32
    assert describe(Path("photos"), image_size=24, fit="resize").fit == "resize"


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (lambda: None, "photos does not exist"),
        (lambda: Path("photos").write_text("x"), "photos is not a folder"),
        (
            lambda: write_folder(Path("photos"), {"daisy": noise(1)}),
            "sort the images of photos/daisy into train and test",
        ),
        (
            lambda: write_folder(Path("photos/flowers/train"), {"daisy": noise(1)}),
            "name photos/flowers, which has",
        ),
        (lambda: write_folder(Path("photos/train"), {"a": noise(1), "b": noise(1)}), "photos/test is not a folder"),
        (lambda: (photos(), Path("photos/test/lily").mkdir()), "photos/test has the class 'lily', which"),
        (lambda: (photos(), Path("photos/train/rose/x.jpg").write_text("")), "x.jpg is not a readable image"),
        (
            lambda: [
                write_folder(Path("photos") / split, {name: np.zeros((2, 8, 8, 3), np.uint8) for name in CLASSES})
                for split in ("train", "test")
            ],
            "a color channel is the same in all training images",
        ),
        (
            lambda: [write_folder(Path("photos") / split, {"daisy": noise(2)}) for split in ("train", "test")],
            "photos has one class, 'daisy'; there must be two",
        ),
        (
            lambda: [
                write_folder(Path("photos") / split, {"daisy": noise(2), 101 * "x": noise(2)})
                for split in ("train", "test")
            ],
            "photos: classes",
        ),
        (lambda: parquet(2, ["daisy"]), "photos has one class, 'daisy'"),
        (lambda: parquet(2, ["daisy", "daisy"]), "photos: classes"),
        (lambda: parquet(0, list(CLASSES)), "has no image of the class 'daisy'"),
    ],
)
def test_folder_that_cannot_be_described_is_one_sentence(prepare: Callable[[], object], sentence: str) -> None:
    prepare()
    with pytest.raises(UserError, match=sentence):
        describe(Path("photos"))


def test_generated_images_have_any_size() -> None:
    described(image_size=21)
    dataset = generate_dataset(dataset_facts("photos"), train_size=5, test_size=3)
    assert dataset.train.images.shape == (5, 3, 21, 21)
    assert dataset.class_names == CLASSES
