"""Your own datasets, as files and recipes describe them."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from resnet_bench.base.errors import UserError
from resnet_bench.recipe.changes import on_dataset, override
from resnet_bench.recipe.dataset_files import DatasetFile, dataset_facts, dataset_files, load_dataset_file
from resnet_bench.recipe.files import load_benchmark, load_benchmark_file
from resnet_bench.recipe.schema import parse
from resnet_bench.recipe.writing import copy_benchmark, dataset_to_toml

FLOWERS = """
train = "photos/train"
test = "photos/test"
classes = ["daisy", "rose", "tulip"]
image_size = 48
train_images = 90
test_images = 30
mean = [0.8, 0.5, 0.4]
std = [0.1, 0.3, 0.2]
"""


@pytest.fixture
def flowers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a description of flowers."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets").mkdir()
    path = tmp_path / "datasets" / "flowers.toml"
    path.write_text(FLOWERS)
    return path


def on_flowers(extra: str = "") -> Path:
    """A benchmark that extends a shipped one."""
    path = Path("benchmarks/my.toml")
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        'extends = "resnet9-onecycle-adam"\n[source]\ntitle = "Flowers"\n'
        f'[recipe.data]\ndataset = "flowers"\n{extra}\n[recipe.training]\nbatch_size = 9\n'
        "[profiles.smoke.data]\ntrain_images = 60\ntest_images = 30\n[profiles.smoke.training]\nbatch_size = 9\n"
    )
    return path


def written(path: Path, before: str, after: str) -> None:
    assert before in FLOWERS
    path.write_text(FLOWERS.replace(before, after))


def test_shipped_datasets_are_valid() -> None:
    files = {name: load_dataset_file(path) for name, path in dataset_files().items()}
    assert {"svhn", "cifar10-1"} <= files.keys()
    assert (files["svhn"].train_images, files["svhn"].test_images) == (73_257, 26_032)
    assert files["cifar10-1"].classes == dataset_facts("cifar10").class_names
    assert files["cifar10-1"].train is None


@pytest.mark.usefixtures("flowers")
def test_recipe_takes_description_mean_and_std_of_its_dataset() -> None:
    recipe = load_benchmark_file(on_flowers()).recipe
    facts = recipe.data.facts
    assert (facts.name, facts.class_names, facts.image_size, facts.fit) == (
        "flowers",
        ("daisy", "rose", "tulip"),
        48,
        "crop",
    )
    assert (recipe.data.mean, recipe.data.std) == ((0.8, 0.5, 0.4), (0.1, 0.3, 0.2))
    assert (recipe.data.num_train, recipe.data.num_test, recipe.num_outputs, recipe.image_size) == (90, 30, 3, 48)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"tulip"', '"lily"'),
        ("image_size = 48", "image_size = 40"),
        ("image_size = 48", 'image_size = 48\nfit = "resize"'),
        ("train_images = 90", "train_images = 92"),
        ("test_images = 30", "test_images = 31"),
        ("mean = [0.8", "mean = [0.7"),
        ("0.2]", "0.25]"),
    ],
)
def test_fingerprint_depends_on_what_the_images_are(flowers: Path, before: str, after: str) -> None:
    original = load_benchmark_file(on_flowers()).recipe
    written(flowers, before, after)
    assert load_benchmark_file(on_flowers()).recipe.fingerprint != original.fingerprint


def test_fingerprint_does_not_depend_on_where_the_images_are(flowers: Path) -> None:
    original = load_benchmark_file(on_flowers()).recipe
    written(flowers, '"photos/train"', '"/elsewhere/train"')
    assert load_benchmark_file(on_flowers()).recipe == original


def test_described_recipe_needs_no_file(flowers: Path) -> None:
    recipe = load_benchmark_file(on_flowers()).recipe
    flowers.unlink()
    assert parse(type(recipe), recipe.model_dump(exclude_none=True), where="a store") == recipe
    assert override(recipe, {"optimizer.lr": 0.02}).data == recipe.data


@pytest.mark.usefixtures("flowers")
def test_another_dataset_leaves_nothing_of_the_old_one() -> None:
    flowers = load_benchmark_file(on_flowers()).recipe
    cifar = override(flowers, {"data.dataset": "cifar10"})
    assert cifar.data.description is None
    assert (cifar.data.facts.name, cifar.data.mean) == ("cifar10", (0.4914, 0.4822, 0.4465))
    assert override(flowers, {"data.description.image_size": 64}).data.facts.image_size == 64


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("classes", "clases", "unknown key 'clases'; did you mean 'classes'?"),
        ("0.4]", "0.4, 0.1]", "mean: must be three numbers, for red, green and blue, got [0.8, 0.5, 0.4, 0.1]"),
        ("0.2]", "0.0]", "std: must be positive, got [0.1, 0.3, 0.0]"),
        ('"tulip"', '"rose"', "classes: names 'rose' twice"),
        ('["daisy", "rose", "tulip"]', '["daisy"]', "classes: has too few values"),
        ("image_size = 48", "image_size = 4", "image_size: should be greater than or equal to 8"),
        ("image_size = 48", 'image_size = 48\nfit = "croop"', "fit: unknown value 'croop'; did you mean 'crop'?"),
        ("std = [0.1, 0.3, 0.2]", "", "train is given and std is missing"),
        ("test_images = 30", "", "test_images is missing"),
    ],
)
def test_wrong_description_is_one_sentence(flowers: Path, before: str, after: str, sentence: str) -> None:
    written(flowers, before, after)
    with pytest.raises(UserError) as error:
        load_dataset_file(flowers)
    assert str(error.value).startswith(f"{flowers}: {sentence}")
    with pytest.raises(UserError, match=r"recipe\.data: "):
        load_benchmark_file(on_flowers())


@pytest.mark.usefixtures("flowers")
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data.dataset": "flower"}, "data.dataset: unknown value 'flower'; did you mean 'flowers'?"),
        ({"data.dataset": "cifar10-1"}, "data: cifar10-1 has no training images; test a trained run on it"),
        ({"data.path": "photos"}, 'data: path: only dataset = "folder" takes one, and this is flowers'),
        ({"data.train_images": 91}, "data: train_images = 91 is more than the 90 of flowers"),
        ({"data.std": [0.1, 0.1, 0]}, "data: std must be positive"),
        ({"model.num_classes": 2}, "model.num_classes = 2 is fewer than the 3 classes of flowers"),
        ({"model.num_classes": 4}, "model.num_classes = 4 on the 3 classes of flowers"),
        ({"augmentation.crop_padding": 48}, "augmentation.crop_padding = 48 must be smaller than the 48 pixels"),
    ],
)
def test_recipe_that_does_not_fit_its_dataset_is_refused(changes: dict[str, Any], sentence: str) -> None:
    recipe = load_benchmark_file(on_flowers()).recipe
    with pytest.raises(UserError) as error:
        override(recipe, changes, where="--set")
    assert str(error.value).startswith(f"--set: {sentence}")


def test_built_in_names_are_refused(flowers: Path) -> None:
    path = flowers.rename(flowers.with_name("cifar10.toml"))
    with pytest.raises(UserError, match=r"cifar10.toml: the name cifar10 is built in"):
        load_dataset_file(path)


# --- a folder by its path --------------------------------------------------------------------------


def fill(folder: Path, *files: str) -> None:
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)


FOLDER = {
    "data.dataset": "folder",
    "data.path": "photos",
    "data.mean": [0.5, 0.5, 0.5],
    "data.std": [0.2, 0.2, 0.2],
    "training.batch_size": 2,
}


def test_folder_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = load_benchmark("resnet9-onecycle-adam").recipe
    for place in ("photos", "elsewhere"):
        fill(tmp_path / place, *(f"train/{image}.png" for image in ("a/1", "b/1", "b/2", "b/3")))
        fill(tmp_path / place, "test/a/1.png", "test/b/deeper/1.jpg")
    recipe = override(base, FOLDER)
    facts = recipe.data.facts
    assert (facts.class_names, facts.train_size, facts.test_size, facts.image_size) == (("a", "b"), 4, 2, 32)
    moved = override(base, {**FOLDER, "data.path": "elsewhere"})
    assert moved.fingerprint == recipe.fingerprint
    assert moved != recipe


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ([], "path: photos does not exist; name a folder that has train/<class> and test/<class>"),
        (["daisy/1.png", "rose/1.png"], "photos/train is not a folder; put images into photos/train/<class>"),
        (["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png"], "photos/test has the class 'c', which"),
        (["train/a/1.png", "train/b/1.png", "test/a/1.png"], "photos/test/b has no images; each class needs some"),
        (["train/a/1.png", "train/b/.hidden.png", "test/a/1.png"], "photos/train/b has no images"),
    ],
)
def test_folder_that_cannot_be_trained_on_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "photos", *files)
    with pytest.raises(UserError) as error:
        override(load_benchmark("resnet9-onecycle-adam").recipe, FOLDER)
    assert str(error.value).startswith(f"override: data: {sentence}")


def test_folder_without_mean_says_where_it_comes_from() -> None:
    with pytest.raises(UserError, match="data: mean is missing; resnet-bench data describe photos prints it"):
        override(load_benchmark("resnet9-onecycle-adam").recipe, {"data.dataset": "folder", "data.path": "photos"})


# --- recipes that are moved to another dataset -----------------------------------------------------


@pytest.mark.usefixtures("flowers")
@pytest.mark.parametrize("name", ["resnet9-onecycle-adam", "resnet34-sgd-224", "speedrun-94", "resnet18-step-decay"])
def test_copy_fits_a_benchmark_to_a_dataset(name: str) -> None:
    changed = copy_benchmark(name, Path("benchmarks/my.toml"), dataset="flowers")
    assert "data.dataset = flowers" in changed
    assert ("training.batch_size = 11" in changed) == (load_benchmark(name).recipe.training.batch_size > 90)
    copied = load_benchmark_file(Path("benchmarks/my.toml"))
    assert copied.claims == ()
    assert "description" not in Path("benchmarks/my.toml").read_text()
    for recipe in (copied.recipe, copied.profiles["smoke"]):
        assert recipe.data.facts == dataset_facts("flowers")
        assert recipe.num_outputs == 3
        assert max(recipe.image_sizes) in (48, 224)


def test_recipe_that_fits_keeps_everything_else(flowers: Path) -> None:
    del flowers
    recipe = load_benchmark("resnet9-onecycle-adam").recipe
    moved = on_dataset(recipe, "cifar100")
    differing = {key for key, value in moved.flat().items() if recipe.flat().get(key) != value}
    assert differing == {"data.dataset", "data.mean", "data.std"}


# --- the parser ------------------------------------------------------------------------------------

NUMBERS = st.one_of(st.floats(), st.integers(-(2**40), 2**40))
VALUES = st.one_of(
    NUMBERS,
    st.booleans(),
    st.text(max_size=8),
    st.lists(st.one_of(NUMBERS, st.text(max_size=8)), max_size=5),
    st.sampled_from([["a", "b"], [0.5, 0.5, 0.5], "photos/train", 10, 32, "crop"]),
)


@given(
    table=st.dictionaries(st.sampled_from([*DatasetFile.model_fields, "tran", "size"]), VALUES, max_size=6),
    keep=st.sets(st.sampled_from(sorted(tomllib.loads(FLOWERS)))),
)
@settings(max_examples=80)
def test_any_table_is_a_dataset_or_one_sentence(table: dict[str, Any], keep: set[str]) -> None:
    whole = {key: value for key, value in tomllib.loads(FLOWERS).items() if key in keep} | table
    said = ""
    try:
        file = parse(DatasetFile, whole, where="datasets/x.toml")
    except UserError as error:
        said = str(error)
    if said:
        assert said.startswith("datasets/x.toml: ")
        assert "\n" not in said
        assert len(said) < 400
        return
    assert len(set(file.classes)) == len(file.classes) >= 2
    assert file.std is None or min(file.std) > 0
    assert (file.train is None) == (file.train_images is None) == (file.mean is None)
    assert parse(DatasetFile, tomllib.loads(dataset_to_toml(file)), where="again") == file


@given(text=st.one_of(st.text(max_size=200), st.binary(max_size=200)))
@settings(max_examples=30)
def test_any_file_is_a_dataset_or_one_sentence(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "any.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    with pytest.raises(UserError) as error:
        load_dataset_file(path)
    assert str(error.value).startswith(str(path))
