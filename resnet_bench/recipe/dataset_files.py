"""Your own datasets: ``datasets/NAME.toml``, and a folder of images that a recipe names by its path."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from resnet_bench.base.errors import UserError
from resnet_bench.base.files import expanded
from resnet_bench.base.image_folders import check_classes, find_test_files, find_train_files
from resnet_bench.base.names import shown, unknown_name
from resnet_bench.recipe.datasets import DATASETS, DatasetFacts, Fit
from resnet_bench.recipe.schema import ADDRESS_PATTERN, RGB, Count, Schema, parse
from resnet_bench.recipe.toml_files import find_file, read_toml, search_folders, toml_files

FOLDER = "folder"
"""What a recipe names as its dataset to train on the folder at ``data.path``."""

DEFAULT_IMAGE_SIZE = 32
"""Of images that do not all have one square size."""

ImageSize = Annotated[int, Field(ge=8, le=512)]


def check_std(std: RGB) -> RGB:
    """Reject a standard deviation that cannot be divided by."""
    if min(std) <= 0:
        raise ValueError(f"must be positive, got {list(std)}")
    return std


def _check_class_names(names: tuple[str, ...]) -> tuple[str, ...]:
    if twice := [name for index, name in enumerate(names) if name in names[:index]]:
        raise ValueError(f"names {shown(twice[0])} twice")
    return names


class DatasetDescription(Schema):
    """What your own dataset is, wherever its files are: a recipe that uses it has this in its fingerprint."""

    classes: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=100)], ...],
        Field(strict=False, min_length=2),
        AfterValidator(_check_class_names),
    ]
    """Names; a class's label is its index here."""
    image_size: ImageSize = DEFAULT_IMAGE_SIZE
    """Height and width in pixels that every image is brought to."""
    fit: Fit = "crop"
    """How: ``crop`` resizes the shorter side and cuts the center out, ``resize`` resizes both sides, and ``exact``
    refuses images of another size."""
    train_images: Annotated[int, Field(ge=2, le=1_000_000_000)] | None = None
    """Number of training images; none in a dataset that only tests."""
    test_images: Count
    """Number of test images."""


class DatasetFile(DatasetDescription):
    """One file of ``datasets/``: a description, and where the images are."""

    train: Annotated[str, Field(min_length=1)] | None = None
    """The training images, below the data folder or by an absolute path: a folder with a folder per class, Parquet
    (``*`` stands for any part of a name), a ``.mat`` file with X and y, or a ``_data.npy`` file beside its
    ``_labels.npy``."""
    test: Annotated[str, Field(min_length=1)]
    """The test images, named in the same way."""
    mean: RGB | None = None
    """Mean of each channel over the training images, of pixels between 0 and 1."""
    std: Annotated[RGB, AfterValidator(check_std)] | None = None
    """Standard deviation of each channel, likewise."""
    url: Annotated[str, Field(pattern=ADDRESS_PATTERN)] | None = None
    """Where the files come from."""
    notes: str | None = None
    """Whatever else readers should know."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        training = {"train": self.train, "train_images": self.train_images, "mean": self.mean, "std": self.std}
        missing = [key for key, value in training.items() if value is None]
        if missing and len(missing) < len(training):
            given = next(key for key in training if key not in missing)
            raise ValueError(
                f"{given} is given and {missing[0]} is missing; resnet-bench data describe DIR prints all of them"
            )
        return self

    @property
    def description(self) -> DatasetDescription:
        """What the dataset is, without where it is."""
        fields = DatasetDescription.model_fields
        return DatasetDescription.model_construct(**{name: getattr(self, name) for name in fields})


def facts_of(name: str, description: DatasetDescription, path: str | None = None) -> DatasetFacts:
    """Return the facts of a user's dataset.

    Args:
        name: Its name, or ``folder``.
        description: What it is.
        path: The folder, where the name is ``folder``.
    """
    return DatasetFacts(
        name=name,
        class_names=description.classes,
        train_size=description.train_images or 0,
        test_size=description.test_images,
        image_size=description.image_size,
        mean=None,
        std=None,
        fingerprint=None,
        fit=description.fit,
        path=path,
    )


def dataset_files() -> dict[str, Path]:
    """List the files of datasets by name: those in ./datasets, and the shipped ones."""
    return toml_files(search_folders("datasets"))


def find_dataset_file(name: str) -> Path | None:
    """Find the file of a dataset."""
    return find_file(name, search_folders("datasets"))


def load_dataset_file(path: Path) -> DatasetFile:
    """Load one file of ``datasets/``.

    Raises:
        UserError: The file is missing or wrong, or its name belongs to a dataset that is built in.
    """
    if path.stem in (*DATASETS, FOLDER):
        raise UserError(f"{path}: the name {path.stem} is built in; choose another name for the file")
    return parse(DatasetFile, read_toml(path), where=str(path))


def own_dataset(name: str) -> DatasetFile:
    """Load the description of a user's dataset by its name.

    Raises:
        UserError: There is no such dataset (with the nearest name), or its file is wrong.
    """
    path = find_dataset_file(name)
    if path is None:
        raise UserError(unknown_name("dataset", name, known_datasets()))
    return load_dataset_file(path)


def dataset_facts(name: str) -> DatasetFacts:
    """Return the facts of a dataset that is built in, or described in a file of ``datasets/``.

    Raises:
        UserError: There is no such dataset (with the nearest name), or its file is wrong.
    """
    if name in DATASETS:
        return DATASETS[name]
    return facts_of(name, own_dataset(name).description)


def known_datasets() -> list[str]:
    """List every name that a recipe may give: the datasets that are built in first."""
    return [*DATASETS, *(name for name in dataset_files() if name not in DATASETS)]


def describe_folder(path: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """List a folder's classes and images, without opening an image.

    Args:
        path: A folder with ``train/<class>`` and ``test/<class>``.
        given: Keys of the description that the recipe gives; they are kept.

    Raises:
        UserError: It is not such a folder.
    """
    folder = expanded(path)
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(f"path: {path} {what}; name a folder that has train/<class> and test/<class>")
    try:
        train, test = find_train_files(folder), find_test_files(folder)
    except OSError as error:
        raise UserError(f"path: {error.filename or path}: cannot be read: {error.strerror or error}") from None
    classes = check_classes(None, train, test)
    return {"classes": classes, "train_images": len(train.images), "test_images": len(test.images), **given}
