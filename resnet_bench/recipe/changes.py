"""Changed recipes: overrides, merged tables, scaled schedules, and recipes cut short for measurements."""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from resnet_bench.base.errors import UserError
from resnet_bench.base.names import unknown_name
from resnet_bench.recipe.dataset_files import FOLDER, dataset_facts
from resnet_bench.recipe.datasets import DATASETS
from resnet_bench.recipe.recipe import Recipe, recipe_keys
from resnet_bench.recipe.schema import NOT_GIVEN, parse
from resnet_bench.recipe.settings import MultiStep, Phases, Plateau

OPTIONS_PREFIX = "model.options."
"""Only ``resnet_bench.models`` knows the names of a model's options."""

_STEPS_OF_A_SMALL_SET = 8
"""Steps per epoch on a training set that is smaller than the batch of a recipe that is moved to it."""
_BUILT_IN = tuple(DATASETS)
_OF_THE_DATASET = ("description", "path", "mean", "std")
_NUMBER = re.compile(r"[+-]?(\d+\.?|\d*\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_WORDS: Mapping[str, Any] = {"true": True, "false": False, "none": NOT_GIVEN, "null": NOT_GIVEN}


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge a nested table into another.

    A table with another ``name``, such as another optimizer, replaces the old one, whose keys mean nothing to it. Your
    own dataset brings its description, mean and standard deviation.
    """
    merged = _without_old_dataset(base, changes)
    for key, value in changes.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping) and not is_renamed(below, value):
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


def _without_old_dataset(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    before, after = base.get("dataset"), changes.get("dataset", base.get("dataset"))
    moved = before == after == FOLDER and changes.get("path", base.get("path")) != base.get("path")
    if moved or (before != after and not (before in _BUILT_IN and after in _BUILT_IN)):
        return {key: value for key, value in base.items() if key not in _OF_THE_DATASET}
    return dict(base)


def is_renamed(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Check whether a table is given another ``name``."""
    return "name" in after and after["name"] != before.get("name")


def parse_assignments(texts: Iterable[str]) -> dict[str, Any]:
    """Read ``KEY=VALUE`` texts of ``--set``.

    A value is read as TOML, with the spellings of Python for numbers (``.05``), ``True``, ``False`` and ``None``;
    anything else is a string.

    Raises:
        UserError: A text has no key or no equals sign.
    """
    assignments: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {text}: write a key and a value, such as --set optimizer.lr=0.02")
        assignments[key.strip()] = _value(value.strip())
    return assignments


def _value(text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # ValueError: not TOML, or a number with too many digits
        table = {}
    if table.keys() == {"value"}:
        return table["value"]
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    return float(text) if _NUMBER.fullmatch(text) and not text.lstrip("+-").isdigit() else text


def override(recipe: Recipe, changes: Mapping[str, Any], *, where: str = "override") -> Recipe:
    """Change some dotted keys of a recipe.

    If the number of epochs changes and the schedule is not given, the milestones or phases of the schedule are
    scaled to the new length; resize stages and freezing likewise.

    Args:
        recipe: The recipe to start from; it is not modified.
        changes: Values by dotted key, such as ``{"optimizer.lr": 0.02}``.
        where: Name of the origin of the changes in errors.

    Raises:
        UserError: An unknown key, a value of the wrong type, or an impossible combination.
    """
    valid = recipe_keys()
    nested: dict[str, Any] = {}
    for key, value in changes.items():
        if key not in valid and not key.startswith(OPTIONS_PREFIX):
            raise UserError(f"{where}: {unknown_name('recipe key', key, valid)}")
        *parents, leaf = key.split(".")
        above = next(
            (".".join(parents[:i]) for i in range(1, len(parents) + 1) if ".".join(parents[:i]) in changes), None
        )
        if above is not None:
            raise UserError(f"{where}: {above} and {key}, which is a part of it, are both given; give one")
        table = nested
        for parent in parents:
            table = table.setdefault(parent, {})
        table[leaf] = value
    return override_nested(recipe, nested, where=where)


def override_nested(recipe: Recipe, changes: Mapping[str, Any], *, where: str) -> Recipe:
    """Change a recipe as :func:`override` does, with the changes as nested tables."""
    table = merge(recipe.model_dump(exclude_none=True), changes)
    training = changes.get("training")
    epochs = training.get("epochs") if isinstance(training, Mapping) else None
    if isinstance(epochs, int) and 0 < epochs <= 1_000_000_000:
        if "schedule" not in changes:
            table["schedule"] = _scaled_schedule(recipe, epochs)
        _scale_stages(recipe, epochs, table, changes)
    return parse(Recipe, table, where=where)


def on_dataset(recipe: Recipe, name: str) -> Recipe:
    """Move a recipe to another dataset; what does not fit its number and size of images is brought down to it.

    Args:
        recipe: The recipe to start from; it is not modified.
        name: A dataset that is built in, or your own.

    Raises:
        UserError: There is no such dataset, or something else does not fit.
    """
    facts = dataset_facts(name)
    data, training = recipe.data, recipe.training
    changes: dict[str, Any] = {"data": {"dataset": name}, "model": {"num_classes": NOT_GIVEN}, "training": {}}
    if facts.mean is not None:
        changes["data"] |= {"mean": facts.mean, "std": facts.std}
    available = min(data.train_images or facts.train_size, facts.train_size)
    for key, size in (("train_images", facts.train_size), ("test_images", facts.test_size)):
        if (getattr(data, key) or 0) > size:
            changes["data"][key] = NOT_GIVEN
    num_train = available
    if data.validation is not None:
        images = min(data.validation.images, max(1, available // 5))
        changes["data"]["validation"] = {"images": images}
        num_train -= images
    batch = training.batch_size if training.batch_size <= num_train else max(2, num_train // _STEPS_OF_A_SMALL_SET)
    while training.last_batch == "keep" and num_train % batch == 1 and batch > 2:
        # BatchNorm cannot train on a last batch of one image.
        batch -= 1
    if batch != training.batch_size:
        changes["training"]["batch_size"] = batch
    if recipe.model.whitening is not None:
        changes["model"]["whitening"] = {"images": min(recipe.model.whitening.images, facts.train_size)}
    if recipe.augmentation.sizes is not None:
        ratio = facts.image_size / data.facts.image_size
        stages = [(max(8, round(stage.pixels * ratio)), stage.epochs) for stage in recipe.augmentation.sizes]
        sizes = [{"pixels": pixels, "epochs": epochs} for pixels, epochs in stages]
        changes["augmentation"] = {"sizes": sizes}
    return override_nested(recipe, changes, where=f"dataset {name}")


def cut_short(recipe: Recipe, steps: int, *, epochs: int | None = None, image_size: int | None = None) -> Recipe:
    """Cut a recipe's epochs down to some steps and drop its evaluations, to time its training or to warm it up.

    One evaluation, of two test images, is left at the end of the run: a recipe has to measure something.

    Args:
        recipe: The recipe to start from; it is not modified.
        steps: Steps per epoch; the recipe's own number if it is smaller.
        epochs: Epochs of the run, at a constant learning rate; the recipe's own number by default.
        image_size: Side in pixels of all images, instead of the recipe's.
    """
    changes: dict[str, Any] = {
        "data": {
            "train_images": min(steps * recipe.training.batch_size, recipe.data.num_train),
            "test_images": 2,
            "validation": NOT_GIVEN,
        },
        "training": {"train_accuracy": "running"},
        "evaluation": {"splits": [], "test_at_end": True, "before_training": False, "every": 1},
    }
    if epochs is not None:
        changes["training"]["epochs"] = epochs
    # A plateau watches an evaluation, and one cycle has no step to rise in within a short run.
    if epochs is not None or isinstance(recipe.schedule, Plateau):
        changes["schedule"] = {"name": "constant"}
    if image_size is not None:
        changes["augmentation"] = {"resize": image_size, "sizes": NOT_GIVEN}
    return override_nested(recipe, changes, where="cut short")


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Abbreviate dotted keys to the fewest last parts that differ: ``lr``, or ``optimizer.lr`` and ``head.lr``."""

    def ending(key: str, parts: int) -> str:
        return ".".join(key.split(".")[-parts:])

    def shortest(key: str) -> str:
        lengths = range(1, key.count(".") + 2)
        others = [other for other in keys if other != key]
        return next(
            (ending(key, n) for n in lengths if ending(key, n) not in {ending(other, n) for other in others}), key
        )

    return {key: shortest(key) for key in keys}


def _scaled_schedule(recipe: Recipe, epochs: int) -> dict[str, Any]:
    schedule = recipe.schedule
    ratio = epochs / recipe.training.epochs
    if isinstance(schedule, MultiStep):
        milestones = sorted({round(milestone * ratio) for milestone in schedule.milestones})
        kept = [milestone for milestone in milestones if 0 < milestone < epochs]
        return {**schedule.model_dump(), "milestones": kept} if kept else {"name": "constant"}
    if isinstance(schedule, Phases):
        ends = [round(sum(p.epochs for p in schedule.phases[: i + 1]) * ratio) for i in range(len(schedule.phases))]
        lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        kept_phases = [
            {"epochs": length, "factor": phase.factor}
            for length, phase in zip(lengths, schedule.phases, strict=True)
            if length > 0
        ]
        return {**schedule.model_dump(), "phases": kept_phases}
    return schedule.model_dump()


def _scale_stages(recipe: Recipe, epochs: int, table: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Scale resize stages and freezing, unless the changes give them, to their share of the run."""
    ratio = epochs / recipe.training.epochs

    def named(section: str, key: str) -> bool:
        below = changes.get(section)
        return isinstance(below, Mapping) and key in below

    if recipe.augmentation.sizes is not None and not named("augmentation", "sizes"):
        scaled = [{"pixels": size.pixels, "epochs": size.epochs * ratio} for size in recipe.augmentation.sizes]
        if isinstance(table["augmentation"], dict):
            table["augmentation"] = {**table["augmentation"], "sizes": scaled}
    if recipe.training.freeze is not None and not named("training", "freeze"):
        frozen = [
            {"parameters": freeze.parameters, "after_epochs": freeze.after_epochs * ratio}
            for freeze in recipe.training.freeze
        ]
        table["training"] = {**table["training"], "freeze": frozen}
