"""Export the tuned recipe: whole, or as a benchmark file that extends the one that was tuned."""

import json
import statistics
from pathlib import Path
from typing import Any

import tomli_w

from resnet_bench.base.errors import UserError
from resnet_bench.base.files import write_new
from resnet_bench.base.names import MAX_NAME_LENGTH, is_file_name
from resnet_bench.base.text import percent, plural
from resnet_bench.models.of_recipe import check_benchmark
from resnet_bench.recipe.benchmark import Benchmark, Tuned
from resnet_bench.recipe.changes import override, override_nested
from resnet_bench.recipe.files import load_benchmark_file
from resnet_bench.recipe.recipe import Recipe, flatten, unequal_keys
from resnet_bench.recipe.schema import NOT_GIVEN
from resnet_bench.tuning.results import StudyComparison, StudyResult
from resnet_bench.tuning.space import Params, differences, tuned_recipe
from resnet_bench.tuning.stored_study import StoredStudy

_DIGITS = 3
_BUDGET = (
    "data.dataset",
    "data.description",
    "data.path",
    "data.train_images",
    "data.test_images",
    "data.validation",
    "training.epochs",
    "training.train_accuracy",
    "evaluation.splits",
    "evaluation.every",
    "evaluation.before_training",
    "evaluation.test_at_end",
)
"""What a study's recipe says of its budget, and what trials and retraining runs set themselves."""
_FOLLOWS_EPOCHS = ("schedule.", "augmentation.sizes", "training.freeze")
"""What is scaled to a profile's epochs when the file is loaded."""


def recipe_text(stored: StoredStudy, result: StudyResult) -> str:
    """Format the whole tuned recipe as TOML."""
    recipe = tuned_recipe(stored.plan.base, result.best_settings)
    return tomli_w.dumps({"recipe": recipe.model_dump(exclude_none=True, mode="json")})


def export(stored: StoredStudy, result: StudyResult, path: Path, benchmarks: Path | None = None) -> None:
    """Write the tuned recipe as a benchmark file that extends the original, and load it to be sure.

    Args:
        stored: The study.
        result: Its result.
        path: The file to write; the benchmark is named after it.
        benchmarks: Folder of benchmarks to look through first for the original.

    Raises:
        UserError: No hyperparameters are better than the source's, no benchmark may have the file's name, the file
            exists, it cannot be written, or the benchmark that it extends is not as it was when the study was begun.
    """
    if not result.changed:
        raise UserError(
            f"study {stored.name}: no hyperparameters were better than the source's, so there is nothing to export"
        )
    if path.suffix != ".toml" or not is_file_name(path.stem):
        raise UserError(
            f"{path}: name the file after the new benchmark, in at most {MAX_NAME_LENGTH} lower-case letters, digits "
            f"and hyphens, such as {stored.plan.benchmark.name}-tuned.toml"
        )
    try:
        write_new(path, tuned_benchmark_text(stored, result).encode())
    except FileExistsError:
        raise UserError(f"{path} exists and is left as it is; name another file with --output") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
    try:
        loaded = load_benchmark_file(path, benchmarks)
        check_benchmark(loaded)
        _check_extends_what_was_tuned(stored, result, loaded, path)
    except UserError:
        path.unlink()
        raise


def tuned_benchmark_text(stored: StoredStudy, result: StudyResult) -> str:
    """Format a benchmark file that extends the tuned one: only what differs, and what the study measured.

    The recipe is the one that was tuned, with the study's changes in it, on the images and for the epochs of the
    original.
    """
    original, changed = stored.plan.benchmark, _changed(stored, result)
    table: dict[str, Any] = {
        "extends": original.name,
        "source": {"title": f"{original.source.title}, tuned", "kind": "tuned", "notes": _notes(stored, result)},
        "recipe": _nested(changed),
    }
    if smoke := smoke_repairs(original, changed):
        table["profiles"] = {"smoke": _nested(smoke)}
    table["tuned"] = tuned_table(stored, result).model_dump(exclude_none=True, mode="json")
    return tomli_w.dumps(table)


def _changed(stored: StoredStudy, result: StudyResult) -> Params:
    """Return what the exported recipe changes of the benchmark's."""
    renamed = _renamed_tables(stored.plan.base, result.best_settings)
    kept = {key: value for key, value in _study_changes(stored).items() if not key.startswith(renamed)}
    return _needed(stored.plan.benchmark.recipe, {**kept, **result.best_settings})


def _check_extends_what_was_tuned(stored: StoredStudy, result: StudyResult, loaded: Benchmark, path: Path) -> None:
    """The benchmark's file may have been edited since, or another folder may have another one of its name."""
    original = stored.plan.benchmark
    tuned = override(original.recipe, _changed(stored, result))
    if differing := unequal_keys(loaded.recipe.flat(), tuned.flat()):
        raise UserError(
            f"{path}: is not written, because the benchmark {original.name} is not the one that was tuned (it differs "
            f"in {', '.join(differing)}); put that back, or name the folder of the other one with --benchmark-dir"
        )


def _study_changes(stored: StoredStudy) -> dict[str, Any]:
    """Return what the study's recipe changes of the benchmark's, less its budget, by dotted key.

    Schedules, resize stages and freezing have the lengths that belong to the benchmark's epochs.
    """
    full, base = stored.plan.benchmark.recipe, stored.plan.base
    whole = {"training": {"epochs": full.training.epochs}, "evaluation": {"every": 1}}
    at_length = override_nested(base, whole, where=f"study {stored.name}: recipe").flat()
    changes = flatten(stored.definition.recipe)
    # Other images have other constants.
    left_out = _BUDGET if base.data.dataset == full.data.dataset else (*_BUDGET, "data.")
    return {key: at_length.get(key, value) for key, value in changes if not key.startswith(left_out)}


def _needed(recipe: Recipe, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that a recipe does not have; of a table with another name all of them."""
    differing, renamed = differences(recipe, settings), _renamed_tables(recipe, settings)
    return {key: value for key, value in settings.items() if key in differing or key.startswith(renamed)}


def _renamed_tables(recipe: Recipe, settings: dict[str, Any]) -> tuple[str, ...]:
    """Return the prefixes of the tables, such as ``optimizer.``, that are given another name and lose what they had."""
    return tuple(key.removesuffix("name") for key in differences(recipe, settings) if key.endswith(".name"))


def tuned_table(stored: StoredStudy, result: StudyResult) -> Tuned:
    """Return what the study measured, in percent."""
    measured: dict[str, Any] = {}
    comparison = result.comparison
    difference = comparison.difference if comparison is not None else None
    if comparison is not None and difference is not None:
        measured["test_source"] = _percent(statistics.fmean(comparison.source))
        measured["test_tuned"] = _percent(statistics.fmean(comparison.tuned))
        measured["test_difference"] = _percent(difference.value)
        measured["seeds"] = min(len(comparison.source), len(comparison.tuned))
        if difference.interval is not None:
            low, high = difference.interval
            measured["test_interval"] = (_percent(low), _percent(high))
    return Tuned(
        study=stored.name,
        trials=result.counts.finished,
        validation_source=_percent(result.source_validation),
        validation_tuned=_percent(result.best_validation),
        **measured,
    )


def _notes(stored: StoredStudy, result: StudyResult) -> str:
    definition = stored.definition
    searched = ", ".join(definition.space)
    notes = [f"Found by the study {stored.name}: {result.counts.finished} trials over {searched}."]
    changes = differences(stored.plan.benchmark.recipe, _study_changes(stored))
    if fixed := [f"{key} = {json.dumps(value)}" for key, value in changes.items() if key not in definition.space]:
        notes.append(f"All its runs, the source's included, have {', '.join(fixed)}, as this recipe has.")
    if reduced := _budget(stored):
        notes.append(f"All its numbers, the source's included, are at a reduced budget: {reduced}.")
    if stored.plan.profile != "full":
        notes.append("The smoke profile only tries the software: these hyperparameters are not a result.")
    if stored.get_attr("generated_images"):
        notes.append("It ran on generated images: these hyperparameters say nothing about CIFAR.")
    return " ".join(notes)


def budget_text(stored: StoredStudy) -> str:
    """Say with how many epochs and images trials and retraining runs were trained."""
    definition, base = stored.definition, stored.plan.base
    trial = definition.budget.epochs or base.training.epochs
    final = definition.retrain.epochs or base.training.epochs
    return (
        f"trials of {plural(trial, 'epoch')}, retraining runs of {plural(final, 'epoch')} on "
        f"{plural(base.data.num_train, 'image')}"
    )


def _budget(stored: StoredStudy) -> str:
    """Say how the study's retraining runs fall short of the benchmark's recipe."""
    full, base = stored.plan.benchmark.recipe, stored.plan.base
    epochs = stored.definition.retrain.epochs or base.training.epochs
    parts = []
    if base.data.dataset != full.data.dataset:
        parts.append(f"{base.data.dataset} in place of {full.data.dataset}")
    if epochs != full.training.epochs:
        parts.append(f"{plural(epochs, 'epoch')} of {full.training.epochs}")
    if base.data.num_train != full.data.num_train:
        parts.append(f"{base.data.num_train:,} training images of {full.data.num_train:,}")
    return ", ".join(parts)


def smoke_repairs(original: Benchmark, changed: Params) -> Params:
    """Return what the smoke profile must take back, because a tuned value does not fit its few images."""
    smoke = original.profiles.get("smoke")
    if smoke is None:
        return {}
    in_full, in_smoke = original.recipe.flat(), smoke.flat()
    own = {
        key: value
        for key, value in in_smoke.items()
        if in_full.get(key) != value and not key.startswith(_FOLLOWS_EPOCHS)
    }
    try:
        override(override(original.recipe, changed), own)
    except UserError:
        return {key: in_full.get(key, NOT_GIVEN) for key in changed if in_smoke.get(key) == in_full.get(key)}
    return {}


def _nested(settings: Params) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        *parents, leaf = key.split(".")
        table = nested
        for parent in parents:
            table = table.setdefault(parent, {})
        table[leaf] = value
    return nested


def _percent(fraction: float) -> float:
    return round(100 * fraction, _DIGITS)


def comparison_text(comparison: StudyComparison | None) -> str:
    """Format the study's result as one sentence."""
    if comparison is not None and comparison.same_settings:
        return "no hyperparameters were better than the source's"
    difference = comparison.difference if comparison is not None else None
    if comparison is None or difference is None:
        return "not compared on the test set"
    means = f"{percent(statistics.fmean(comparison.tuned))} against {percent(statistics.fmean(comparison.source))}"
    gain = f"{means} on the test set: {100 * difference.value:+.2f} pp"
    if difference.interval is None:
        return f"{gain}, too few seeds for an interval"
    return f"{gain}, 95% CI {100 * difference.interval.low:+.2f} to {100 * difference.interval.high:+.2f}"
