"""What came of a study: the best settings, and how they fare against the source's on the test set."""

from dataclasses import dataclass
from typing import Any

from resnet_bench.judging.intervals import Difference, Interval, welch
from resnet_bench.reporting.study_plots import importances
from resnet_bench.tuning.space import Params, differences, retraining_recipe
from resnet_bench.tuning.trial_queue import Arm, Counts, TrialQueue

FIRST_RETRAINING_SEED = 1000
"""Trials run seeds 0, 1, …; what was chosen on those is judged on others."""


@dataclass(frozen=True)
class StudyComparison:
    """The runs trained again with fresh seeds, judged once on the test set.

    Attributes:
        source: Test accuracies of the source's settings, as fractions.
        tuned: Likewise of the best settings; the same runs where these are the source's own.
        same_settings: Whether no trial was better than the source's settings.
        failures: Why runs are missing.
    """

    source: tuple[float, ...]
    tuned: tuple[float, ...]
    same_settings: bool = False
    failures: tuple[str, ...] = ()

    @property
    def difference(self) -> Difference | None:
        """Tuned minus source, as a fraction; None where a side has no run."""
        if not self.source or not self.tuned:
            return None
        if self.same_settings:
            return Difference(0.0, Interval(0.0, 0.0))
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
    """The best settings that are not the source's."""
    source_validation: float
    best_validation: float
    comparison: StudyComparison | None
    """None before the runs with fresh seeds."""
    importances: dict[str, float]
    url: str | None = None


def retraining_key(fingerprint: str, seed: int) -> str:
    """Under which a study remembers a final run."""
    return f"retrained/{fingerprint}/{seed}"


def retraining_seeds(ledger: TrialQueue) -> list[int]:
    """The fresh seeds that both arms are trained with."""
    return [FIRST_RETRAINING_SEED + i for i in range(ledger.definition.retrain.seeds)]


def arms(ledger: TrialQueue) -> dict[Arm, Params]:
    """The settings that are trained again; the source's alone where nothing was better."""
    best, source = ledger.best_trial(), ledger.source_trial()
    if best is None or source is None:
        return {}
    found: dict[Arm, Params] = {"source": source.params}
    if differences(ledger.base, best.params):
        found["tuned"] = best.params
    return found


def comparison(ledger: TrialQueue) -> StudyComparison | None:
    """The comparison as far as its runs are done; None where none is."""
    remembered: dict[Arm, list[dict[str, Any]]] = {}
    for arm, settings in arms(ledger).items():
        fingerprint = retraining_recipe(ledger.definition, ledger.base, settings).fingerprint
        runs = [ledger.recall(retraining_key(fingerprint, seed)) for seed in retraining_seeds(ledger)]
        remembered[arm] = [run for run in runs if run is not None]
    if not any(remembered.values()):
        return None
    accuracies = {
        arm: tuple(run["accuracy"] for run in runs if run["accuracy"] is not None) for arm, runs in remembered.items()
    }
    return StudyComparison(
        source=accuracies["source"],
        tuned=accuracies.get("tuned", accuracies["source"]),
        same_settings="tuned" not in accuracies,
        failures=tuple(
            f"{arm} seed {run['seed']}: {run['reason']}"
            for arm, runs in remembered.items()
            for run in runs
            if run["accuracy"] is None
        ),
    )


def study_result(ledger: TrialQueue, *, url: str | None = None) -> StudyResult | None:
    """The result of a study so far; None before the source's own settings are through."""
    best, source = ledger.best_trial(), ledger.source_trial()
    if best is None or source is None:
        return None
    return StudyResult(
        name=ledger.name,
        counts=ledger.counts(),
        best_number=best.number,
        best_settings=best.params,
        source_settings=source.params,
        changed=differences(ledger.base, best.params),
        source_validation=source.values[0],
        best_validation=best.values[0],
        comparison=comparison(ledger),
        importances=importances(ledger.study),
        url=url,
    )
