"""The images that a recipe asks for: its splits, and a loader for each use of one."""

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from resnet_bench.base.errors import UserError
from resnet_bench.data.dataset import Dataset, Split
from resnet_bench.data.loader import Augmentation, ResidentLoader
from resnet_bench.data.split import split_train_validation
from resnet_bench.execution.execution import Execution
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.recipe.settings import ResizeStage, SplitName


def splits_of(recipe: Recipe, dataset: Dataset) -> dict[SplitName, Split]:
    """The images of each split that the recipe uses.

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
    available = _first(dataset.train, recipe.data.available_images)
    splits: dict[SplitName, Split] = {"train": available, "test": _first(dataset.test, recipe.data.num_test)}
    held_out = recipe.data.validation
    if held_out is not None:
        train, validation = split_train_validation(
            recipe.data.available_images, validation_size=held_out.images, seed=held_out.seed
        )
        splits["train"] = available.take(train)
        splits["validation"] = available.take(validation)
    return splits


def train_loader(recipe: Recipe, split: Split, execution: Execution, seed: int) -> ResidentLoader:
    """Augmented images in a random order, in the batches that are trained on."""
    augmentation = recipe.augmentation
    return ResidentLoader(
        split,
        batch_size=recipe.training.batch_size,
        mean=recipe.data.mean,
        std=recipe.data.std,
        device=torch.device(execution.device),
        augmentation=Augmentation(
            crop_padding=augmentation.crop_padding,
            padding_mode=augmentation.padding_mode,
            flip=augmentation.flip,
            alternate=augmentation.flip_mode == "alternating",
            resize=augmentation.resize,
            sizes=_ends(augmentation.sizes or ()),
            brightness=augmentation.jitter.brightness if augmentation.jitter else 0.0,
            contrast=augmentation.jitter.contrast if augmentation.jitter else 0.0,
        ),
        shuffle=True,
        seed=seed,
        stream="train",
        drop_last=recipe.training.last_batch == "drop",
        memory_format=execution.memory_format,
    )


def _ends(sizes: Sequence[ResizeStage]) -> tuple[tuple[float, int], ...]:
    """The epoch that each stretch ends at, and its size."""
    ends = itertools.accumulate(size.epochs for size in sizes)
    return tuple((end, size.pixels) for end, size in zip(ends, sizes, strict=True))


def whitening_images(recipe: Recipe, split: Split, count: int) -> torch.Tensor:
    """The first training images, normalised, float32 [count or fewer, 3, 32, 32]."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (recipe.data.mean, recipe.data.std))
    return (split.images[:count].float() / 255 - mean) / std


def evaluation_loader(
    recipe: Recipe, split: Split, execution: Execution, *, batch_size: int, shuffled_by: tuple[int, str] | None = None
) -> ResidentLoader:
    """Images as they are, resized where the recipe says so.

    Args:
        recipe: Normalisation and size.
        split: The images.
        execution: Device and memory layout.
        batch_size: Images a batch; the last one may be smaller.
        shuffled_by: Seed and stream of a random order; the split's own order without it.
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
    """The first training images of a run's first epoch as the network sees them, before normalisation.

    Returns:
        RGB images, shape [count or fewer, 3, H, W].
    """
    split = splits_of(recipe, dataset)["train"]
    on_cpu = Execution("cpu", "fp32", channels_last=False, compile=False, deterministic=False, threads=1)
    batch_size = min(count, len(split))
    one_batch = recipe.model_copy(update={"training": recipe.training.model_copy(update={"batch_size": batch_size})})
    images, _ = train_loader(one_batch, split, on_cpu, seed).raw_batch(1, 0)
    return images.numpy()


def _first(split: Split, count: int) -> Split:
    return Split(images=split.images[:count], labels=split.labels[:count])
