"""The search space of a study, held against the recipe that it searches."""

from collections.abc import Mapping
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
"""Values of the parameters that are searched, by recipe key."""

_JUDGES = ("data.", "evaluation.")
"""Keys that say what is measured and on which images: searching them would move the goal."""


# --- recipes ---------------------------------------------------------------------------------------


def base_recipe(study: Study, benchmark: Benchmark, profile: ProfileName) -> Recipe:
    """The recipe that a study starts from: the benchmark's, with the study's own changes.

    Raises:
        UserError: The benchmark has no such profile, or the changes do not fit its recipe.
    """
    return override_nested(benchmark.recipe_for(profile), study.recipe, where=f"study {study.name}: recipe")


def tuned_recipe(base: Recipe, settings: Mapping[Key, Any]) -> Recipe:
    """A recipe with searched values put in.

    Raises:
        UserError: The values do not go together.
    """
    return override(base, settings, where="settings")


def trial_recipe(study: Study, base: Recipe, settings: Mapping[Key, Any]) -> Recipe:
    """What a trial trains: scored on the validation split after each epoch, blind to the test set.

    Raises:
        UserError: The values do not go together.
    """
    recipe = tuned_recipe(base, settings)
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


def retraining_recipe(study: Study, base: Recipe, settings: Mapping[Key, Any]) -> Recipe:
    """What is trained again at the end: all images that the recipe trains on, the test set judged once.

    Raises:
        UserError: The values do not go together.
    """
    recipe = tuned_recipe(base, settings)
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


# --- the source's own settings ---------------------------------------------------------------------


def source_settings(study: Study, base: Recipe) -> Params:
    """What the source says for each parameter that is searched.

    Raises:
        UserError: The space does not hold it; the sentence says what to widen.
    """
    flat = base.flat()
    settings: Params = {}
    for key, parameter in study.space.items():
        if parameter.when is not None and not parameter.when.holds(settings):
            continue
        value = flat.get(key, NOT_GIVEN)
        if not parameter.contains(value):
            raise UserError(f"study {study.name}: space.{key}: {_too_narrow(parameter, value)}")
        settings[key] = float(value) if parameter.type in ("float", "log-float") else value
    return settings


def _too_narrow(parameter: Parameter, value: Value) -> str:
    if value == NOT_GIVEN and parameter.choices is None:
        return f'the recipe does not give this key, so only a categorical with "{NOT_GIVEN}" among its choices fits'
    shown = f'"{value}"' if isinstance(value, str) else str(value)
    if parameter.choices is not None:
        return f"the source's own setting {shown} is not among the choices; add it"
    return (
        f"the source's own setting {shown} is not among {parameter.describe()}; "
        "choose low, high and step so that it is, because trial 0 runs it"
    )


# --- checking --------------------------------------------------------------------------------------


def check(study: Study, base: Recipe) -> None:
    """Hold a study against the recipe that it searches, every end of every range included.

    Raises:
        UserError: A key that is unknown or not to be searched, a value of the wrong type, a space without
            the source's own settings, or no validation split.
    """
    where = f"study {study.name}"
    if study.validation is None and base.data.validation is None:
        raise UserError(f"{where}: the recipe holds no validation split; add [validation] with images and seed")
    if study.validation is not None and base.data.validation is not None:
        raise UserError(f"{where}: the recipe has a validation split of its own; leave [validation] out")
    for key in study.space:
        _check_key(key, f"{where}: space")
    source = source_settings(study, base)
    for key, parameter in study.space.items():
        for value in parameter.extremes:
            settings = _settings_with(study, source, key, value)
            try:
                trial_recipe(study, base, settings)
            except UserError as error:
                raise UserError(f"{where}: space.{key} = {value}: {_cause(error)}") from None
    retraining_recipe(study, base, source)


def _check_key(key: Key, where: str) -> None:
    if key == "training.epochs":
        raise UserError(f"{where}.{key}: how long a trial trains is its budget; write budget.epochs")
    if key.startswith(_JUDGES):
        raise UserError(f"{where}.{key}: it decides how a run is judged, not how it is trained, and is not searched")
    if key not in recipe_keys() and not key.startswith(OPTIONS_PREFIX):
        raise UserError(f"{where}: {unknown_name('recipe key', key, recipe_keys())}")


def _settings_with(study: Study, source: Params, key: Key, value: Value) -> Params:
    """Params in which one parameter has one value, and the others the source's where it says one."""
    wanted: Params = {key: value}
    condition = study.space[key].when
    while condition is not None:
        wanted[condition.key] = condition.equals[0] if isinstance(condition.equals, tuple) else condition.equals
        condition = study.space[condition.key].when
    settings: Params = {}
    for name, parameter in study.space.items():
        if parameter.when is None or parameter.when.holds(settings):
            settings[name] = wanted.get(name, source.get(name, parameter.representative))
    return settings


def _cause(error: UserError) -> str:
    return str(error).partition(": ")[2] or str(error)


# --- drawing ---------------------------------------------------------------------------------------


def suggest(trial: "optuna.Trial", space: Mapping[Key, Parameter]) -> Params:
    """Let the sampler choose a value for each parameter whose condition holds."""
    settings: Params = {}
    for key, parameter in space.items():
        if parameter.when is None or parameter.when.holds(settings):
            settings[key] = _suggest_one(trial, key, parameter)
    return settings


def _suggest_one(trial: "optuna.Trial", key: Key, parameter: Parameter) -> Value:
    if parameter.choices is not None:
        choice: Any = trial.suggest_categorical(key, list(parameter.choices))
        return cast(Value, choice)
    low, high, step = parameter.low, parameter.high, parameter.step
    assert low is not None
    assert high is not None
    if parameter.type == "int":
        return trial.suggest_int(key, int(low), int(high), step=int(step or 1), log=parameter.log)
    return trial.suggest_float(key, float(low), float(high), step=step, log=parameter.type == "log-float")


def differences(base: Recipe, settings: Mapping[Key, Value]) -> Params:
    """The settings that are not the recipe's own."""
    flat = base.flat()
    return {key: value for key, value in settings.items() if not same_value(flat.get(key, NOT_GIVEN), value)}
