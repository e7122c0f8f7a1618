"""Changed recipes: overrides, merged tables, and schedules scaled to another number of epochs."""

from collections.abc import Mapping, Sequence
from typing import Any

from resnet_bench.base.errors import UserError
from resnet_bench.base.names import unknown_name
from resnet_bench.recipe.recipe import Recipe, recipe_keys
from resnet_bench.recipe.schema import parse
from resnet_bench.recipe.settings import MultiStep, Phases

OPTIONS_PREFIX = "model.options."
"""The options of a network are its own affair: ``resnet_bench.models`` knows their names."""


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one nested table over another.

    A table that is given another ``name`` (another optimizer, say) replaces the old one, because the old
    one's keys mean nothing to it.
    """
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        renamed = (
            isinstance(below, Mapping)
            and isinstance(value, Mapping)
            and "name" in value
            and value["name"] != below.get("name")
        )
        if isinstance(below, Mapping) and isinstance(value, Mapping) and not renamed:
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


def override(recipe: Recipe, changes: Mapping[str, Any], *, where: str = "override") -> Recipe:
    """A recipe with some dotted keys changed.

    Where the number of epochs changes and the schedule is not named, the milestones or phases of the
    schedule are scaled to the new length; image sizes and freezing likewise.

    Args:
        recipe: The recipe to start from; it stays as it is.
        changes: Values under dotted keys, such as ``{"optimizer.lr": 0.02}``.
        where: What to call the origin of the changes in an error.

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
    """Like :func:`override`, with the changes as nested tables."""
    base = recipe.model_dump(exclude_none=True)
    table = merge(base, changes)
    epochs = changes.get("training", {}).get("epochs") if isinstance(changes.get("training"), Mapping) else None
    if isinstance(epochs, int) and 0 < epochs <= 1_000_000_000 and "schedule" not in changes:
        table["schedule"] = _scaled_schedule(recipe, epochs)
    if isinstance(epochs, int) and 0 < epochs <= 1_000_000_000:
        _scale_stretches(recipe, epochs, table, changes)
    return parse(Recipe, table, where=where)


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Dotted keys by as few of their last parts as tell them apart: ``lr``, or ``optimizer.lr`` and ``head.lr``."""

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


def _scale_stretches(recipe: Recipe, epochs: int, table: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Let image sizes and freezing, where the changes do not name them, keep their shares of the run."""
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
