"""The recipe: everything that decides the result of a training run, its rules and its fingerprint."""

import functools
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, Self

from pydantic import model_validator

from resnet_bench.base.names import shown
from resnet_bench.recipe.schema import BrokenRules, Schema, dotted_keys
from resnet_bench.recipe.settings import (
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
    SplitName,
    Training,
    relative_pixels,
)

FINGERPRINT_VERSION = 1


class Recipe(Schema):
    """Everything that decides the result of a training run."""

    data: Data
    # Nothing is validated before there is a recipe: it would cost every start.
    augmentation: Augmentation = Augmentation.model_construct()
    model: ModelConfig
    optimizer: Optimizer
    schedule: Schedule
    training: Training
    evaluation: Evaluation

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if broken := list(_broken_rules(self)):
            raise BrokenRules(broken)
        return self

    @property
    def num_outputs(self) -> int:
        """Outputs of the model's last layer."""
        return self.model.num_classes or self.data.facts.num_classes

    @property
    def image_size(self) -> int:
        """Side, in pixels, of the images that the model evaluates."""
        return self.augmentation.resize or self.data.facts.image_size

    @property
    def image_sizes(self) -> tuple[int, ...]:
        """Sides, in pixels, of the images that the model trains on, in the order of the run."""
        stages = self.augmentation.sizes
        return tuple(dict.fromkeys(stage.pixels for stage in stages)) if stages else (self.image_size,)

    @property
    def relative_pixels(self) -> float:
        """Relative pixel count: pixels of a training image, averaged over the run, per pixel of a test image."""
        sizes = [(size.pixels, size.epochs) for size in self.augmentation.sizes or ()]
        return relative_pixels(sizes, full_size=self.image_size, epochs=self.training.epochs)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        whole, rest = divmod(self.data.num_train, self.training.batch_size)
        return whole + (1 if rest and self.training.last_batch == "keep" else 0)

    def evaluations(self, split: SplitName) -> tuple[int, ...]:
        """The epochs after which a run measures the accuracy of a split, in order; 0 is before the first step."""
        evaluation, epochs = self.evaluation, self.training.epochs
        if split == "train":
            return tuple(range(1, epochs + 1))
        if split in evaluation.splits:
            regular = range(evaluation.every, epochs, evaluation.every)
            return (*([0] if evaluation.before_training else []), *regular, epochs)
        return (epochs,) if split == "test" and evaluation.test_at_end else ()

    def num_images(self, split: SplitName) -> int:
        """Images of a split that the recipe uses."""
        validation = self.data.validation
        sizes = {
            "train": self.data.num_train,
            "validation": validation.images if validation is not None else 0,
            "test": self.data.num_test,
        }
        return sizes[split]

    @property
    def canonical(self) -> str:
        """The recipe as text, independent of the order of keys and the spelling of numbers.

        Optional fields that are not given are omitted, so that a new optional field changes no fingerprint. Where
        images lie is omitted, too: the tracking store has the fingerprint of their pixels.
        """
        fields = self.model_dump(exclude_none=True, exclude={"data": {"path"}})
        return json.dumps(_canonical(fields), sort_keys=True, separators=(",", ":"))

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits, equal exactly for recipes whose fields are all equal."""
        text = f"resnet-bench recipe {FINGERPRINT_VERSION}\n{self.canonical}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def flat(self) -> dict[str, Any]:
        """Return every given field by its dotted key, such as ``optimizer.lr``."""
        return dict(flatten(self.model_dump(exclude_none=True, mode="json")))


@functools.cache
def recipe_keys() -> tuple[str, ...]:
    """List every dotted key that a recipe may have, over all optimizers and schedules, in the order of the schema."""
    return tuple(dict.fromkeys(dotted_keys(Recipe)))


def _broken_rules(recipe: Recipe) -> Iterable[str]:
    yield from _broken_image_rules(recipe)
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
        for split in _measured_by_protocol(recipe):
            images = recipe.num_images(split)
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
                f"training.freeze: after_epochs = {freeze.after_epochs:g} of {freeze.parameters!r} is not shorter than "
                f"the run, training.epochs = {training.epochs}"
            )
    if isinstance(recipe.optimizer, MuonConfig) and isinstance(schedule, Cosine | Plateau | OneCycle):
        yield (
            f'schedule.name = "{schedule.name}" sets one learning rate, and optimizer.name = "muon" has several; '
            "take constant, linear, multi_step or phases"
        )
    if isinstance(schedule, Plateau) and not evaluation.splits:
        yield 'schedule.name = "plateau" needs a split in evaluation.splits to watch'
    classes = data.facts.num_classes
    if recipe.num_outputs < classes:
        yield f"model.num_classes = {recipe.num_outputs} is fewer than the {classes} classes of {data.dataset}"
    if recipe.num_outputs > classes and not recipe.model.allow_unused_classes:
        yield (
            f"model.num_classes = {recipe.num_outputs} on the {classes} classes of {data.dataset}; "
            "if that is meant, say model.allow_unused_classes = true"
        )


def _broken_image_rules(recipe: Recipe) -> Iterable[str]:
    facts, augmentation, whitening = recipe.data.facts, recipe.augmentation, recipe.model.whitening
    if augmentation.crop_padding >= facts.image_size:
        yield (
            f"augmentation.crop_padding = {shown(augmentation.crop_padding)} must be smaller than the "
            f"{facts.image_size} pixels of an image of {facts.name}"
        )
    largest = max((stage.pixels for stage in augmentation.sizes or ()), default=0)
    if largest > facts.image_size:
        yield (
            f"augmentation.sizes: pixels = {shown(largest)} is larger than the {facts.image_size} pixels of an image "
            f"of {facts.name}"
        )
    if whitening is not None and whitening.images > facts.train_size:
        yield (
            f"model.whitening.images = {whitening.images} is more than the {facts.train_size} training images of "
            f"{facts.name}"
        )


def _measured_by_protocol(recipe: Recipe) -> list[SplitName]:
    """The splits that are evaluated by the source's protocol."""
    splits: list[SplitName] = [split for split in ("test", "validation") if recipe.evaluations(split)]
    return [*splits, "train"] if recipe.training.train_accuracy == "separate_pass" else splits


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _canonical(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(below) for below in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        # 1 and 1.0 are one number, and so are -0.0 and 0.0; an integer beyond a float's digits stays one.
        return float(value) + 0.0 if float(value) == value else value
    return value


def unequal_keys(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """List the keys in which two flat tables differ, in the alphabet's order."""
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield the values of a nested table with their dotted keys."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
