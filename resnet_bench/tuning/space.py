"""The search space of a study over the recipe that it searches: checked, listed, drawn from."""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from resnet_bench.base.errors import UserError
from resnet_bench.base.names import unknown_name
from resnet_bench.recipe.benchmark import Benchmark, ProfileName
from resnet_bench.recipe.changes import OPTIONS_PREFIX, override, override_nested
from resnet_bench.recipe.recipe import Recipe, recipe_keys
from resnet_bench.recipe.schema import NOT_GIVEN
from resnet_bench.tuning.study import Key, Parameter, Study, Value, same_value

if TYPE_CHECKING:
    import optuna

Params = dict[Key, Value]
"""Hyperparameters: values of what is searched, by recipe key."""

MAX_LISTED_POINTS = 100_000
"""The largest space whose points are listed."""

_JUDGES = ("data.", "evaluation.")
"""Keys that decide what is measured and on which images: searching them would move the goal."""


# --- recipes ---------------------------------------------------------------------------------------


def base_recipe(study: Study, benchmark: Benchmark, profile: ProfileName) -> Recipe:
    """Return the recipe that a study starts from: the benchmark's, with the study's changes.

    Raises:
        UserError: The benchmark has no such profile, or the changes do not fit its recipe.
    """
    return override_nested(benchmark.recipe_for(profile), study.recipe, where=f"study {study.name}: recipe")


def tuned_recipe(base: Recipe, params: Mapping[Key, Any]) -> Recipe:
    """Return a recipe with hyperparameters put in.

    Raises:
        UserError: The values do not go together.
    """
    return override(base, params, where="hyperparameters")


def trial_recipe(study: Study, base: Recipe, params: Mapping[Key, Any]) -> Recipe:
    """Return what a trial trains: scored on the validation split after each epoch, blind to the test set.

    Raises:
        UserError: The values do not go together.
    """
    recipe = tuned_recipe(base, params)
    changes: dict[str, Any] = {
        "evaluation": {"splits": ["validation"], "test_at_end": False, "before_training": False, "every": 1},
        # A separate pass over the training images costs much and decides nothing.
        "training": {"train_accuracy": "running"},
    }
    if study.validation is not None:
        changes["data"] = {"validation": study.validation.model_dump()}
    if study.budget.epochs is not None:
        changes["training"]["epochs"] = study.budget.epochs
    return override_nested(recipe, changes, where=f"study {study.name}")


def retraining_recipe(study: Study, base: Recipe, params: Mapping[Key, Any]) -> Recipe:
    """Return what is retrained at the end: on all training images, evaluated once on the test set.

    Raises:
        UserError: The values do not go together.
    """
    recipe = tuned_recipe(base, params)
    changes: dict[str, Any] = {
        "evaluation": {"test_at_end": True, "before_training": False},
        "training": {"train_accuracy": "running"},
    }
    if recipe.schedule.name != "plateau":
        # A plateau schedule cannot do without the split that it watches.
        changes["evaluation"]["splits"] = []
    if study.retrain.epochs is not None:
        changes["training"]["epochs"] = study.retrain.epochs
    return override_nested(recipe, changes, where=f"study {study.name}: retrain")


# --- the source hyperparameters --------------------------------------------------------------------


def source_params(study: Study, base: Recipe) -> Params:
    """Return the source's value of each parameter that is searched.

    Raises:
        UserError: The space does not contain one; the sentence says what to write.
    """
    flat = base.flat()
    params: Params = {}
    for key, parameter in study.space.items():
        if parameter.when is not None and not parameter.when.holds(params):
            continue
        value = flat.get(key, NOT_GIVEN)
        if not parameter.contains(value):
            raise UserError(f"study {study.name}: space.{key}: {_too_narrow(key, parameter, value)}")
        params[key] = float(value) if parameter.type in ("float", "log-float") else value
    return params


def _too_narrow(key: Key, parameter: Parameter, value: Value) -> str:
    if value == NOT_GIVEN and parameter.choices is None:
        return f'the recipe does not give this key, so only a categorical with "{NOT_GIVEN}" among its choices fits'
    shown = f'"{value}"' if isinstance(value, str) else str(value)
    if parameter.choices is not None:
        return f"the source's value {shown} is not among the choices; add it"
    if parameter.searches_logarithm and isinstance(value, int | float) and value <= 0:
        return (
            f"the source's value {shown} has no logarithm, and trial 0 runs it; "
            f'write {key} = {{ type = "categorical", choices = {_with_decades(value, parameter)} }}'
        )
    return (
        f"the source's value {shown} is not among {parameter.describe()}; "
        "choose low, high and step so that it is, because trial 0 runs it"
    )


def _with_decades(value: Value, parameter: Parameter) -> str:
    """Format a list of choices: a value, and the powers of ten of a range."""
    low, high = parameter.ends
    exponents = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    decades = [10.0**exponent for exponent in exponents] or [low, high]
    numbers: Iterable[int | float] = map(int, decades) if parameter.type == "int" else decades
    return f"[{', '.join([str(value), *(f'{number:g}' for number in numbers)])}]"


# --- checking --------------------------------------------------------------------------------------


def check(study: Study, base: Recipe) -> None:
    """Check a study against the recipe that it searches, every end of every range included.

    Raises:
        UserError: A key that is unknown or must not be searched, a value of the wrong type, a space without
            the source hyperparameters, or no validation split.
    """
    where = f"study {study.name}"
    if study.validation is None and base.data.validation is None:
        raise UserError(f"{where}: the recipe has no validation split; add [validation] with images and seed")
    if study.validation is not None and base.data.validation is not None:
        raise UserError(f"{where}: the recipe has a validation split; leave [validation] out")
    for key in study.space:
        _check_key(key, f"{where}: space")
    source = source_params(study, base)
    for key, parameter in study.space.items():
        for value in parameter.extremes:
            try:
                trial_recipe(study, base, _params_with(study, source, key, value))
            except UserError as error:
                raise UserError(f"{where}: space.{key} = {value}: {_cause(error)}") from None
    retraining_recipe(study, base, source)


def _check_key(key: Key, where: str) -> None:
    if key == "training.epochs":
        raise UserError(f"{where}.{key}: the budget decides how long a trial trains; write budget.epochs")
    if key.startswith(_JUDGES):
        raise UserError(f"{where}.{key}: it decides how a run is judged, not how it is trained; do not search it")
    if key not in recipe_keys() and not key.startswith(OPTIONS_PREFIX):
        raise UserError(f"{where}: {unknown_name('recipe key', key, recipe_keys())}")


def _params_with(study: Study, source: Params, key: Key, value: Value) -> Params:
    """Return hyperparameters with one value given, and the others the source's where it has one."""
    wanted: Params = {key: value}
    condition = study.space[key].when
    while condition is not None:
        wanted[condition.key] = condition.wanted[0]
        condition = study.space[condition.key].when
    params: Params = {}
    for name, parameter in study.space.items():
        if parameter.when is None or parameter.when.holds(params):
            params[name] = wanted.get(name, source.get(name, parameter.extremes[0]))
    return params


def _cause(error: UserError) -> str:
    return str(error).partition(": ")[2] or str(error)


# --- points ----------------------------------------------------------------------------------------


def list_points(study: Study) -> list[Params] | None:
    """List every point of a space.

    Returns:
        The points; None where the space is continuous or has more than ``MAX_LISTED_POINTS``.
    """
    counts = [parameter.count for parameter in study.space.values()]
    if any(count is None for count in counts) or math.prod(filter(None, counts)) > MAX_LISTED_POINTS:
        return None
    return combine(study.space, {key: parameter.values() for key, parameter in study.space.items()})


def combine(space: Mapping[Key, Parameter], values: Mapping[Key, list[Value]]) -> list[Params]:
    """List each combination of values once; a parameter whose condition does not hold is left out of it."""
    points: list[Params] = [{}]
    for key, parameter in space.items():
        points = [
            extended
            for point in points
            for extended in (
                [{**point, key: value} for value in values[key]]
                if parameter.when is None or parameter.when.holds(point)
                else [point]
            )
        ]
    return points


def identity(params: Mapping[Key, Value]) -> frozenset[tuple[Key, str]]:
    """Return what equal hyperparameters share and others do not; rounding of the last digits is not a difference."""
    return frozenset((key, _spelled(value)) for key, value in params.items())


def _spelled(value: Value) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:.12g}" if is_number else repr(value)


def is_drawn(study: Study, params: Mapping[Key, Value]) -> bool:
    """Whether every parameter whose condition holds has a value."""
    needed = (key for key, parameter in study.space.items() if parameter.when is None or parameter.when.holds(params))
    return all(key in params for key in needed)


def suggest(trial: "optuna.Trial", space: Mapping[Key, Parameter]) -> Params:
    """Let the sampler choose a value for each parameter whose condition holds."""
    params: Params = {}
    for key, parameter in space.items():
        if parameter.when is None or parameter.when.holds(params):
            params[key] = _suggest_one(trial, key, parameter)
    return params


def _suggest_one(trial: "optuna.Trial", key: Key, parameter: Parameter) -> Value:
    if parameter.choices is not None:
        choice: Any = trial.suggest_categorical(key, list(parameter.choices))
        return cast(Value, choice)
    (low, high), step = parameter.ends, parameter.step
    if parameter.type == "int":
        return trial.suggest_int(key, int(low), int(high), step=int(step or 1), log=parameter.log)
    return trial.suggest_float(key, float(low), float(high), step=step, log=parameter.type == "log-float")


def differences(base: Recipe, params: Mapping[Key, Value]) -> Params:
    """Return the hyperparameters that differ from the recipe's."""
    flat = base.flat()
    return {key: value for key, value in params.items() if not same_value(flat.get(key, NOT_GIVEN), value)}
