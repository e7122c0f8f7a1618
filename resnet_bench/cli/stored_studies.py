"""Studies by the name that a user types, and what is said of them to programs."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_bench.base.errors import UserError
from resnet_bench.base.text import plural
from resnet_bench.cli.screen import echo
from resnet_bench.recipe.benchmark import PROFILES, ProfileName

if TYPE_CHECKING:
    from resnet_bench.tuning.plan import Plan
    from resnet_bench.tuning.results import StudyResult
    from resnet_bench.tuning.storage import StudyStorage
    from resnet_bench.tuning.stored_study import StoredStudy
    from resnet_bench.tuning.study import Study


def definition_document(study: "Study") -> dict[str, Any]:
    """What a study's file says, for a program."""
    return study.model_dump(mode="json", exclude={"profiles"})


def stored_document(stored: "StoredStudy") -> dict[str, Any]:
    """How far a study has come, for a program."""
    best = stored.best_trial()
    return {
        "name": stored.name,
        "profile": stored.plan.profile,
        "benchmark": stored.plan.benchmark.name,
        "generated_images": bool(stored.get_attr("generated_images")),
        "counts": stored.counts(),
        "best_trial": None if best is None else best.number,
        "best_validation_accuracy": None if best is None else best.values[0],
        "best_params": None if best is None else dict(best.params),
        "mlflow_run_id": stored.get_attr("mlflow_run_id"),
    }


def storage_of(url: str | None, tracking: str | None) -> "StudyStorage":
    from resnet_bench.tracking.store import Store
    from resnet_bench.tuning.storage import StudyStorage

    return StudyStorage.resolve(url, Path.cwd(), tracking_uri=Store.resolve(tracking, Path.cwd()).uri)


def find_study(name: str, profile: ProfileName | None, address: "StudyStorage") -> "StoredStudy":
    """Return the study of a name, that of the full profile before that of the smoke one."""
    from resnet_bench.tuning.stored_study import StoredStudy, study_names

    storage = address.read()
    names = study_names(storage)
    found = next((candidate for candidate in candidates(name, profile) if candidate in names), name)
    return StoredStudy.read(found, storage)


def with_stored_budget(plan: "Plan", name: str, address: "StudyStorage") -> "Plan":
    """Return a plan with as many trials as the study of a name has, if it was begun: only ``--trials`` changes that."""
    from resnet_bench.tuning.stored_study import StoredStudy, study_names

    if not address.exists:
        return plan
    # A server's database may have no tables yet.
    storage = address.open()
    with address.errors_in_words():
        if name not in study_names(storage):
            return plan
        budget = StoredStudy.read(name, storage).definition.budget
    if budget.trials == plan.study.budget.trials:
        return plan
    echo(
        f"study {name} has {plural(budget.trials, 'trial')}, as it was last run; its file says "
        f"{plan.study.budget.trials}: study run --trials N runs more"
    )
    return plan.with_trials(budget.trials)


def result_of(stored: "StoredStudy") -> "StudyResult":
    from resnet_bench.tuning.results import study_result

    stored.check_source()
    result = study_result(stored)
    if result is None:
        name, profile = stored.definition.name, stored.plan.profile
        given = [] if stored.name == storage_name(name, profile) else ["--study-name", stored.name]
        resume = command_text("study", "run", name, "--profile", profile, *given, *stored.storage.address.option)
        raise UserError(
            f"study {stored.name}: the source hyperparameters are not trained yet; resume it with: {resume}"
        )
    return result


def storage_name(name: str, profile: ProfileName) -> str:
    return name if profile == "full" else f"{name}-{profile}"


def candidates(name: str, profile: ProfileName | None) -> list[str]:
    stem = Path(name).stem if name.endswith(".toml") else name
    return [storage_name(stem, wanted) for wanted in ([profile] if profile else PROFILES)]


def command_text(*words: str) -> str:
    """Return a command that can be pasted into a shell."""
    return shlex.join(["resnet-bench", *words])
