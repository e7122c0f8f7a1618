"""The result of a study: the best hyperparameters, and how they compare with the source's on the test set."""

from dataclasses import dataclass
from typing import Any

from resnet_bench.judging.intervals import Difference, welch
from resnet_bench.reporting.study_plots import importances
from resnet_bench.tuning.space import Params, differences, retraining_recipe
from resnet_bench.tuning.stored_study import Arm, Counts, StoredStudy

FIRST_RETRAINING_SEED = 1000
"""Trials run seeds 0, 1, …; what was chosen on those is judged on others."""


@dataclass(frozen=True)
class StudyComparison:
    """The retraining runs with new seeds, evaluated once on the test set.

    Attributes:
        source: Test accuracies of the source hyperparameters, as fractions.
        tuned: Likewise of the best hyperparameters; the same runs where these are the source's.
        same_settings: Whether no trial was better than the source's.
        failures: Why runs are missing.
    """

    source: tuple[float, ...]
    tuned: tuple[float, ...]
    same_settings: bool = False
    failures: tuple[str, ...] = ()

    @property
    def difference(self) -> Difference | None:
        """Tuned minus source, as a fraction; None where there is nothing to compare."""
        if self.same_settings or not self.source or not self.tuned:
            return None
        return welch(self.source, self.tuned)


@dataclass(frozen=True)
class StudyResult:
    """The end of a study."""

    name: str
    counts: Counts
    best_number: int
    best_settings: Params
    source_settings: Params
    changed: Params
    """The best hyperparameters that differ from the source's."""
    source_validation: float
    best_validation: float
    comparison: StudyComparison | None
    """None before the retraining runs."""
    importances: dict[str, float]
    url: str | None = None


def retraining_key(fingerprint: str, seed: int) -> str:
    """Name the attribute of a study that holds the result of a retraining run."""
    return f"retrained/{fingerprint}/{seed}"


def retraining_seeds(stored: StoredStudy) -> list[int]:
    """List the new seeds that both arms are trained with."""
    return [FIRST_RETRAINING_SEED + i for i in range(stored.definition.retrain.seeds)]


def arms(stored: StoredStudy) -> dict[Arm, Params]:
    """Return the hyperparameters to retrain; the source's alone where nothing was better."""
    best, source = stored.best_trial(), stored.source_trial()
    if best is None or source is None:
        return {}
    found: dict[Arm, Params] = {"source": source.params}
    if differences(stored.plan.base, best.params):
        found["tuned"] = best.params
    return found


def comparison(stored: StoredStudy) -> StudyComparison | None:
    """Compare the arms as far as their runs are done; None where none is."""
    done: dict[Arm, list[dict[str, Any]]] = {}
    for arm, params in arms(stored).items():
        fingerprint = retraining_recipe(stored.definition, stored.plan.base, params).fingerprint
        runs = [stored.get_attr(retraining_key(fingerprint, seed)) for seed in retraining_seeds(stored)]
        done[arm] = [run for run in runs if run is not None]
    if not any(done.values()):
        return None
    accuracies = {
        arm: tuple(run["accuracy"] for run in runs if run["accuracy"] is not None) for arm, runs in done.items()
    }
    return StudyComparison(
        source=accuracies["source"],
        tuned=accuracies.get("tuned", accuracies["source"]),
        same_settings="tuned" not in accuracies,
        failures=tuple(
            f"{arm} seed {run['seed']}: {run['reason']}"
            for arm, runs in done.items()
            for run in runs
            if run["accuracy"] is None
        ),
    )


def study_result(stored: StoredStudy, *, url: str | None = None) -> StudyResult | None:
    """Return the result of a study so far; None before the source hyperparameters are trained."""
    best, source = stored.best_trial(), stored.source_trial()
    if best is None or source is None:
        return None
    return StudyResult(
        name=stored.name,
        counts=stored.counts(),
        best_number=best.number,
        best_settings=best.params,
        source_settings=source.params,
        changed=differences(stored.plan.base, best.params),
        source_validation=source.values[0],
        best_validation=best.values[0],
        comparison=comparison(stored),
        importances=importances(stored.study),
        url=url,
    )
