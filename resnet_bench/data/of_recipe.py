"""The images that a recipe asks for: its splits, and a loader for each use of one."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from resnet_bench.base.errors import UserError
from resnet_bench.data.dataset import Dataset, Split
from resnet_bench.data.loader import ResidentLoader
from resnet_bench.execution.choices import Precision
from resnet_bench.execution.execution import Execution
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.recipe.settings import Augmentation, SplitName, ValidationSplit


def splits_of(recipe: Recipe, dataset: Dataset) -> dict[SplitName, Split]:
    """Return the images of each split that the recipe uses.

    A validation split of the whole training set counts images in the order of the published dataset, if the source has
    kept it: it is the source's own split then. Otherwise it counts them in canonical order.

    Raises:
        UserError: The dataset has fewer images than the recipe needs.
    """
    wanted = {"training": recipe.data.available_images, "test": recipe.data.num_test}
    present = {"training": len(dataset.train), "test": len(dataset.test)}
    for name, count in wanted.items():
        if present[name] < count:
            raise UserError(
                f"the recipe needs {count} {name} images of {recipe.data.dataset}, "
                f"{dataset.location} has {present[name]}"
            )
    available = dataset.train.first(recipe.data.available_images)
    splits: dict[SplitName, Split] = {"train": available, "test": dataset.test.first(recipe.data.num_test)}
    if recipe.data.validation is not None:
        train, validation = split_train_validation(len(available), recipe.data.validation)
        if uses_official_split(recipe, dataset) and dataset.train.rows is not None:
            place = np.argsort(dataset.train.rows.numpy())
            train, validation = place[train], place[validation]
        splits["train"] = available.take(train)
        splits["validation"] = available.take(validation)
    return splits


def uses_official_split(recipe: Recipe, dataset: Dataset) -> bool:
    """Check whether the validation split counts images in the order of the published dataset."""
    takes_all = recipe.data.available_images == len(dataset.train)
    return recipe.data.validation is not None and dataset.official_order and takes_all


def as_batched(recipe: Recipe, dataset: Dataset, splits: Mapping[SplitName, Split]) -> dict[SplitName, Split]:
    """Return the splits in the order in which the source's protocol batches them.

    Only the test set's differs, and only where :func:`uses_official_batches` says so: predictions and everything else
    that names an image count in the order of the splits.

    Args:
        recipe: What is evaluated.
        dataset: Where the splits are from.
        splits: What :func:`splits_of` returned.
    """
    batched = dict(splits)
    rows = splits["test"].rows
    if rows is not None and uses_official_batches(recipe, dataset):
        batched["test"] = splits["test"].take(np.argsort(rows.numpy()))
    return batched


def uses_official_batches(recipe: Recipe, dataset: Dataset) -> bool:
    """Check whether the batches of the test set, whose statistics decide the accuracy, are the source's own."""
    takes_all = recipe.data.num_test == len(dataset.test)
    return recipe.evaluation.depends_on_order and dataset.official_order and takes_all


def split_train_validation(
    size: int, validation: ValidationSplit
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Shuffle `range(size)` as `np.random.seed(seed); np.random.shuffle(indices)` does and cut it in two.

    The first shuffled indices validate and the others train, as in the article on ResNet-34.

    Args:
        size: Number of images.
        validation: How many of them validate, and the seed of NumPy's legacy generator.

    Returns:
        Indices that train, int64 `[size - images]`, and indices that validate, int64 `[images]`.
        No global random state is touched.
    """
    indices = np.arange(size, dtype=np.int64)
    np.random.RandomState(validation.seed).shuffle(indices)
    return indices[validation.images :], indices[: validation.images]


def train_loader(recipe: Recipe, split: Split, execution: Execution, seed: int) -> ResidentLoader:
    """Build the loader of augmented images in a random order, in the batches that are trained on."""
    return ResidentLoader(
        split,
        batch_size=recipe.training.batch_size,
        mean=recipe.data.mean,
        std=recipe.data.std,
        device=torch.device(execution.device),
        augmentation=recipe.augmentation,
        shuffle=True,
        seed=seed,
        stream="train",
        drop_last=recipe.training.last_batch == "drop",
        memory_format=execution.memory_format,
    )


def whitening_images(recipe: Recipe, split: Split, count: int) -> torch.Tensor:
    """Normalize the first training images: float32 [count or fewer, 3, 32, 32]."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (recipe.data.mean, recipe.data.std))
    return (split.images[:count].float() / 255 - mean) / std


def evaluation_loader(
    recipe: Recipe, split: Split, execution: Execution, *, batch_size: int, shuffled_by: tuple[int, str] | None = None
) -> ResidentLoader:
    """Build the loader of images as they are, resized if the recipe says so.

    Args:
        recipe: Normalization and size.
        split: The images.
        execution: Device and memory layout.
        batch_size: Images per batch; the last one may be smaller.
        shuffled_by: Seed and stream of a random order; the split's order without it.
    """
    seed, stream = shuffled_by or (0, "in order")
    return ResidentLoader(
        split,
        batch_size=batch_size,
        mean=recipe.data.mean,
        std=recipe.data.std,
        device=torch.device(execution.device),
        augmentation=Augmentation(resize=recipe.augmentation.resize),
        shuffle=shuffled_by is not None,
        seed=seed,
        stream=stream,
        memory_format=execution.memory_format,
    )


def augmented_examples(recipe: Recipe, dataset: Dataset, seed: int, *, count: int) -> npt.NDArray[np.uint8]:
    """Make the first training images of a run's first epoch as the model sees them, before normalization.

    Returns:
        RGB images, shape [count or fewer, 3, H, W].
    """
    split = splits_of(recipe, dataset)["train"]
    on_cpu = Execution("cpu", Precision.FP32, channels_last=False, compile=False, deterministic=False, threads=1)
    batch_size = min(count, len(split))
    one_batch = recipe.model_copy(update={"training": recipe.training.model_copy(update={"batch_size": batch_size})})
    images, _ = train_loader(one_batch, split, on_cpu, seed).raw_batch(1, 0)
    return images.numpy()
