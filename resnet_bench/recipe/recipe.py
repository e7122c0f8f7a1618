"""The recipe: everything that decides the result of a training run, its rules and its fingerprint."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, Self

from pydantic import (
    model_validator,
)

from resnet_bench.base.names import shown
from resnet_bench.recipe.schema import Schema, dotted_keys
from resnet_bench.recipe.settings import (
    IMAGE_SIZE,
    Augmentation,
    Cosine,
    Data,
    Evaluation,
    ModelConfig,
    MultiStep,
    MuonConfig,
    OneCycle,
    Optimizer,
    Phases,
    Plateau,
    Schedule,
    Training,
    relative_pixels,
)

FINGERPRINT_VERSION = 1


class Recipe(Schema):
    """Everything that decides the result of a training run."""

    data: Data
    augmentation: Augmentation = Augmentation()
    model: ModelConfig
    optimizer: Optimizer
    schedule: Schedule
    training: Training
    evaluation: Evaluation

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for problem in _inconsistencies(self):
            raise ValueError(problem)
        return self

    @property
    def num_outputs(self) -> int:
        """Outputs of the network's last layer."""
        return self.model.num_classes or self.data.num_classes

    @property
    def image_size(self) -> int:
        """Side, in pixels, of the images that the network sees."""
        return self.augmentation.resize or IMAGE_SIZE

    @property
    def relative_pixels(self) -> float:
        """Pixels of a training image, on average over the run, as a part of those of a test image."""
        sizes = [(size.pixels, size.epochs) for size in self.augmentation.sizes or ()]
        return relative_pixels(sizes, full_size=self.image_size, epochs=self.training.epochs)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        whole, rest = divmod(self.data.num_train, self.training.batch_size)
        return whole + (1 if rest and self.training.last_batch == "keep" else 0)

    @property
    def canonical(self) -> str:
        """The recipe as text in one spelling, whatever the order of keys or the way its numbers are written.

        Optional fields that are not given are left out, so that a field added later with no effect by
        default changes no fingerprint.
        """
        return json.dumps(_canonical(self.model_dump(exclude_none=True)), sort_keys=True, separators=(",", ":"))

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that two recipes share exactly when all their fields agree."""
        text = f"resnet-bench recipe {FINGERPRINT_VERSION}\n{self.canonical}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def flat(self) -> dict[str, Any]:
        """Every field under its dotted key, such as ``optimizer.lr``; what is not given is left out."""
        return dict(_flatten(self.model_dump(exclude_none=True, mode="json")))


def recipe_keys() -> list[str]:
    """Every dotted key that a recipe may have, over all optimizers and schedules, in the order of the schema."""
    return list(dict.fromkeys(dotted_keys(Recipe)))


def _inconsistencies(recipe: Recipe) -> Iterable[str]:
    data, training, evaluation, schedule = recipe.data, recipe.training, recipe.evaluation, recipe.schedule
    if training.batch_size > data.num_train:
        yield f"training.batch_size = {training.batch_size} is larger than the {data.num_train} images to train on"
    if training.batch_size == 1:
        yield "training.batch_size = 1 is too small: BatchNorm cannot train on a single image"
    if training.last_batch == "keep" and data.num_train % training.batch_size == 1:
        yield (
            f"training.batch_size = {training.batch_size} leaves a last batch of one image of {data.num_train}, "
            'which BatchNorm cannot train on; take another size or training.last_batch = "drop"'
        )
    if "validation" in evaluation.splits and data.validation is None:
        yield 'evaluation.splits has "validation", which needs data.validation = {images = …, seed = …}'
    if evaluation.mode == "batch_statistics":
        for split, images in _evaluated(recipe).items():
            if min(images, evaluation.batch_size) == 1 or images % evaluation.batch_size == 1:
                yield (
                    f"evaluation.batch_size = {evaluation.batch_size} leaves a batch of one image of the {images} of "
                    f'the {split} split, which has no batch statistics; take another size or evaluation.mode = "eval"'
                )
    if not evaluation.splits and not evaluation.test_at_end:
        yield "evaluation.splits is empty and evaluation.test_at_end is false: nothing would be measured"
    if len(set(evaluation.splits)) != len(evaluation.splits):
        yield f"evaluation.splits names a split twice: {list(evaluation.splits)}"
    if evaluation.every > training.epochs:
        yield f"evaluation.every = {evaluation.every} is longer than the run, training.epochs = {training.epochs}"
    if isinstance(schedule, OneCycle):
        steps = recipe.steps_per_epoch * training.epochs
        if schedule.rising_fraction * steps <= 1:
            yield (
                f'schedule.name = "one_cycle" has no step to rise in: schedule.rising_fraction = '
                f"{schedule.rising_fraction} of {steps} steps; train for more steps"
            )
    if isinstance(schedule, MultiStep) and schedule.milestones[-1] >= training.epochs:
        yield (
            f"schedule.milestones = {shown(list(schedule.milestones))} run past the last epoch, "
            f"training.epochs = {training.epochs}"
        )
    if isinstance(schedule, Phases) and (total := sum(p.epochs for p in schedule.phases)) != training.epochs:
        longer = "longer" if total > training.epochs else "shorter"
        yield (f"schedule.phases add up to {total} epochs, {longer} than the run, training.epochs = {training.epochs}")
    sizes = recipe.augmentation.sizes
    if sizes is not None and not math.isclose(total_sizes := sum(size.epochs for size in sizes), training.epochs):
        longer = "longer" if total_sizes > training.epochs else "shorter"
        yield (
            f"augmentation.sizes add up to {total_sizes:g} epochs, {longer} than the run, "
            f"training.epochs = {training.epochs}"
        )
    for freeze in training.freeze or ():
        if freeze.after_epochs >= training.epochs:
            yield (
                f"training.freeze: after_epochs = {freeze.after_epochs:g} of {freeze.parameters!r} is no shorter than "
                f"the run, training.epochs = {training.epochs}"
            )
    if isinstance(recipe.optimizer, MuonConfig) and isinstance(schedule, Cosine | Plateau | OneCycle):
        yield (
            f'schedule.name = "{schedule.name}" sets one learning rate, and optimizer.name = "muon" has several; '
            "take constant, linear, multi_step or phases"
        )
    if isinstance(schedule, Plateau) and not evaluation.splits:
        yield 'schedule.name = "plateau" needs a split in evaluation.splits to watch'
    if recipe.num_outputs < data.num_classes:
        yield (
            f"model.num_classes = {recipe.num_outputs} is fewer than the {data.num_classes} classes of {data.dataset}"
        )
    if recipe.num_outputs > data.num_classes and not recipe.model.allow_unused_classes:
        yield (
            f"model.num_classes = {recipe.num_outputs} on the {data.num_classes} classes of {data.dataset}; "
            "if that is meant, say model.allow_unused_classes = true"
        )


def _evaluated(recipe: Recipe) -> dict[str, int]:
    """The number of images of every split that is measured the way of the evaluation."""
    data, evaluation = recipe.data, recipe.evaluation
    images = {"test": data.num_test, "validation": data.validation.images if data.validation else 0}
    splits = {*evaluation.splits, *(["test"] if evaluation.test_at_end else [])}
    train = {"train": data.num_train} if recipe.training.train_accuracy == "separate_pass" else {}
    return {split: images[split] for split in sorted(splits)} | train


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _canonical(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(below) for below in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        # 1 and 1.0 are one number, and so are -0.0 and 0.0; an integer beyond a float's digits stays one.
        return float(value) + 0.0 if float(value) == value else value
    return value


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
