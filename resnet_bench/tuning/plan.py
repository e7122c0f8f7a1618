"""Find and load the files of ``studies/``, and plan a study in one of its profiles."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from resnet_bench.base.errors import UserError
from resnet_bench.base.names import unknown_name
from resnet_bench.recipe.benchmark import PROFILES, Benchmark, ProfileName
from resnet_bench.recipe.changes import merge
from resnet_bench.recipe.files import load_benchmark, locate, scan
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.recipe.schema import parse
from resnet_bench.recipe.toml_files import read_toml
from resnet_bench.tuning import space
from resnet_bench.tuning.study import Parameter, Study


@dataclass(frozen=True)
class Plan:
    """A study in one profile, with the recipe that it searches."""

    study: Study
    profile: ProfileName
    benchmark: Benchmark
    base: Recipe
    """With the source hyperparameters in it."""

    @property
    def source_params(self) -> space.Params:
        """The source's value of each parameter that is searched."""
        return space.source_params(self.study, self.base)

    @property
    def epochs(self) -> int:
        """Epochs of a trial per seed."""
        return self.study.budget.epochs or self.base.training.epochs

    def with_trials(self, trials: int) -> "Plan":
        """Return the same plan with another number of trials."""
        budget = self.study.budget.model_copy(update={"trials": trials})
        return replace(self, study=self.study.model_copy(update={"budget": budget}))


def load_study(name: str, folder: Path | None = None) -> Study:
    """Load a study by its name, or by the path of its file, which ends in ``.toml``.

    Args:
        name: Such as ``resnet9-onecycle-adam`` or ``mine/wider.toml``.
        folder: Folder of studies to look through first.

    Raises:
        UserError: There is no such study (with the nearest name), or its file is wrong.
    """
    return load_study_file(locate("studies", name, folder))


def load_study_file(path: Path) -> Study:
    """Load one study file; the study is named after it.

    Raises:
        UserError: What is wrong, in which file and where.
    """
    table = read_toml(path)
    if "name" in table:
        raise UserError(f"{path}: unknown key 'name'; a study is named after its file")
    differences = table.pop("profiles", {})
    if not isinstance(differences, Mapping) or not all(isinstance(below, Mapping) for below in differences.values()):
        raise UserError(f"{path}: profiles must be tables, such as [profiles.smoke]")
    table = {**_with_dotted_space(table), "name": path.stem}
    profiles = {}
    for name, changes in differences.items():
        where = f"{path}: profiles.{name}"
        if name not in PROFILES or name == "full":
            raise UserError(f"{path}: {unknown_name('profile', name, ['smoke'])}")
        profiles[name] = parse(Study, merge(table, _with_dotted_space(changes)), where=where)
    return parse(Study, {**table, "profiles": profiles}, where=str(path))


def scan_studies(folder: Path | None = None) -> tuple[dict[str, Study], dict[str, str]]:
    """Load every study that can be loaded.

    Returns:
        The studies by name, and for each file that is wrong, by its stem, the sentence that says why.
    """
    return scan("studies", load_study_file, folder)


def benchmark_of(study: Study, folder: Path | None = None) -> Benchmark:
    """Load the benchmark that a study tunes.

    Raises:
        UserError: There is none of that name, or its file is wrong.
    """
    try:
        return load_benchmark(study.benchmark, folder)
    except UserError as error:
        raise UserError(f"study {study.name}: benchmark: {error}") from None


def plan_study(
    study: Study, profile: ProfileName, *, benchmarks: Path | None = None, trials: int | None = None
) -> Plan:
    """Check a study against its benchmark and everything it names.

    Args:
        study: The study, as its file gives it.
        profile: Which of its profiles.
        benchmarks: Folder of benchmarks to look through first.
        trials: Another number of trials than the study's.

    Raises:
        UserError: What does not fit: the benchmark, the space, the sampler, the pruner.
    """
    # Optuna takes half a second to import, which listing studies need not.
    from resnet_bench.tuning import samplers

    chosen = study.for_profile(profile)
    benchmark = benchmark_of(chosen, benchmarks)
    base = space.base_recipe(chosen, benchmark, profile)
    space.check(chosen, base)
    samplers.check(chosen)
    plan = Plan(chosen, profile, benchmark, base)
    return plan if trials is None else plan.with_trials(trials)


def _with_dotted_space(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table with the parameters of its space under dotted keys.

    TOML reads ``optimizer.lr = {…}`` as nested tables.
    """
    parameters = table.get("space")
    if not isinstance(parameters, Mapping):
        return dict(table)
    return {**table, "space": dict(_dotted(parameters))}


def _dotted(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in table.items():
        if isinstance(value, Mapping) and value and not value.keys() & Parameter.model_fields.keys():
            found += _dotted(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found
