"""Optuna's samplers and pruners, built from the name and options that a study gives."""

import importlib.util
import math
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from resnet_bench.base.describe_error import describe_error
from resnet_bench.base.errors import UserError
from resnet_bench.base.names import unknown_name
from resnet_bench.tuning.space import MAX_LISTED_POINTS, Params, combine
from resnet_bench.tuning.study import Key, Parameter, Study, Value

Options = Mapping[str, type[bool] | type[int] | type[float]]

_SAMPLER_OPTIONS: Mapping[str, Options] = {
    "tpe": {
        "n_startup_trials": int,
        "n_ei_candidates": int,
        "multivariate": bool,
        "group": bool,
        "constant_liar": bool,
    },
    "gp": {"n_startup_trials": int, "deterministic_objective": bool},
    "cma_es": {
        "n_startup_trials": int,
        "sigma0": float,
        "popsize": int,
        "consider_pruned_trials": bool,
        "use_separable_cma": bool,
        "with_margin": bool,
        "lr_adapt": bool,
    },
    "random": {},
    "grid": {"points": int},
}
_PRUNER_OPTIONS: Mapping[str, Options] = {
    "none": {},
    "median": {"n_startup_trials": int, "n_warmup_steps": int, "interval_steps": int, "n_min_trials": int},
    "successive_halving": {
        "min_resource": int,
        "reduction_factor": int,
        "min_early_stopping_rate": int,
        "bootstrap_count": int,
    },
    "hyperband": {"min_resource": int, "max_resource": int, "reduction_factor": int, "bootstrap_count": int},
    "wilcoxon": {"p_threshold": float, "n_startup_steps": int},
}
_OPTIONAL_PACKAGES = {"cma_es": "cmaes"}
_KINDS = {bool: "true or false", int: "a whole number", float: "a number"}
GRID_POINTS = 4
"""Values that a grid takes from a continuous or logarithmic range, unless ``sampler.options.points`` is given."""


def check(study: Study) -> None:
    """Try the sampler and the pruner of a study.

    Raises:
        UserError: An unknown option, a value that it does not take, a missing package, or a grid with more points
            than anybody can run.
    """
    build_sampler(study, seed=0)
    build_pruner(study, epochs=study.budget.epochs or 1)
    if study.sampler.name == "grid":
        grid_values(study)


def build_sampler(study: Study, *, seed: int) -> BaseSampler:
    """Build Optuna's sampler of a study.

    Args:
        study: Names the sampler and its options.
        seed: Must differ between processes that work on one study, or they would draw the same values.

    Raises:
        UserError: An unknown option, a value that it does not take, or a missing package.
    """
    name = study.sampler.name
    options: dict[str, Any] = dict(study.sampler.options)
    where = f"study {study.name}: sampler"
    _check_options(name, options, _SAMPLER_OPTIONS[name], where)
    _check_package(name, where)
    with _explained(where):
        match name:
            case "tpe":
                return optuna.samplers.TPESampler(seed=seed, **options)
            case "gp":
                return optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False, **options)
            case "cma_es":
                return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False, **options)
            case "random" | "grid":
                # The points of a grid are queued beforehand, so that its sampler has nothing to choose.
                return optuna.samplers.RandomSampler(seed=seed)


def build_pruner(study: Study, *, epochs: int) -> BasePruner:
    """Build Optuna's pruner of a study.

    Args:
        study: Names the pruner and its options.
        epochs: Epochs of a trial; Hyperband plans its brackets with them.

    Raises:
        UserError: An unknown option, or a value that it does not take.
    """
    name = study.pruner.name
    options: dict[str, Any] = dict(study.pruner.options)
    where = f"study {study.name}: pruner"
    _check_options(name, options, _PRUNER_OPTIONS[name], where)
    with _explained(where):
        match name:
            case "none":
                return optuna.pruners.NopPruner()
            case "median":
                return optuna.pruners.MedianPruner(**options)
            case "successive_halving":
                return optuna.pruners.SuccessiveHalvingPruner(**options)
            case "hyperband":
                return optuna.pruners.HyperbandPruner(**{"max_resource": epochs, **options})
            case "wilcoxon":
                return optuna.pruners.WilcoxonPruner(**options)


def grid_values(study: Study) -> dict[Key, list[Value]]:
    """List the values that a grid takes from each parameter.

    Raises:
        UserError: The option ``points`` is too small, or the grid has more than ``MAX_LISTED_POINTS`` points.
    """
    where = f"study {study.name}: sampler"
    points = study.sampler.options.get("points", GRID_POINTS)
    if not isinstance(points, int) or points < 2:
        raise UserError(f"{where}.options.points must be a whole number from 2 on, got {points}")
    # Counted before they are listed, which may take more memory than there is.
    count = math.prod(_grid_count(parameter, points) for parameter in study.space.values())
    if count > MAX_LISTED_POINTS:
        raise UserError(
            f"{where}: a grid of {count:,} points is too large (at most {MAX_LISTED_POINTS:,}); "
            'give fewer values, or write name = "random"'
        )
    return {key: _grid_values(parameter, points) for key, parameter in study.space.items()}


def grid_points(study: Study) -> list[Params]:
    """List the points of a grid in the order in which they are tried, which the study's seed decides.

    Raises:
        UserError: As for :func:`grid_values`.
    """
    points = combine(study.space, grid_values(study))
    random.Random(study.seed).shuffle(points)  # an order, not a secret  # nosec B311
    return points


def _grid_count(parameter: Parameter, points: int) -> int:
    count = points if parameter.count is None else parameter.count
    return min(count, points) if parameter.log else count


def _grid_values(parameter: Parameter, points: int) -> list[Value]:
    if parameter.count is not None and not parameter.log:
        return parameter.values()
    low, high = parameter.ends
    if parameter.type == "log-float":
        return [min(max(float(value), low), high) for value in np.geomspace(low, high, points)]
    if parameter.log:
        return sorted({round(float(value)) for value in np.geomspace(low, high, points)})
    return [float(value) for value in np.linspace(low, high, points)]


def _check_options(name: str, options: Mapping[str, Any], known: Options, where: str) -> None:
    for option, value in options.items():
        if option not in known:
            if not known:
                raise UserError(f"{where}.options: {name} takes none, got {option!r}")
            raise UserError(f"{where}.options: {unknown_name('option', option, known)}")
        kind = known[option]
        fits = (
            isinstance(value, bool) if kind is bool else isinstance(value, int | kind) and not isinstance(value, bool)
        )
        if not fits:
            raise UserError(f"{where}.options.{option}: must be {_KINDS[kind]}, got {value!r}")


def _check_package(name: str, where: str) -> None:
    package = _OPTIONAL_PACKAGES.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        raise UserError(f"{where}: {name} needs the package {package}; install it with: pip install {package}")


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """What Optuna refuses, as one sentence; that a class of it may still change is not news to a user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            yield
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}.options: {describe_error(error)}") from None
