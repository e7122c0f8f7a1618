"""Read studies from their runs: source hyperparameters and tuned ones, and how the tuning went."""

import contextlib
import json
import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from resnet_bench.base.describe_error import describe_error
from resnet_bench.judging.intervals import Difference, Interval, welch
from resnet_bench.judging.verdict import apart
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.schema import NOT_GIVEN
from resnet_bench.reporting.runs import LENGTH, Run, claimed_metric, comparable, differing_keys
from resnet_bench.reporting.study_plots import PlottedStudy, PlottedTrial, importances, is_number, quiet

WATCHED = (
    "evaluation.before_training",
    "evaluation.every",
    "evaluation.splits",
    "evaluation.test_at_end",
    "training.train_accuracy",
)
"""Recipe keys of what is measured along the way, which retraining runs leave out; no result depends on them."""


@dataclass(frozen=True, eq=False)
class StudyReport:
    """One study according to its runs. Accuracies are in percent, differences in percentage points."""

    parent: Run
    trials: tuple[Run, ...]
    source: tuple[Run, ...]
    """Retraining runs with the source hyperparameters and new seeds."""
    tuned: tuple[Run, ...]
    """Retraining runs with the best hyperparameters and new seeds."""
    definition: Benchmark | None = None
    """The benchmark that is tuned; None where it is unknown."""

    @property
    def name(self) -> str:
        """The study's name."""
        return self.parent.study or self.parent.name

    @property
    def apart(self) -> bool:
        """Whether it was made to try the software: in the smoke profile or on generated images."""
        return apart(self.parent.profile, generated=self.parent.generated)

    @cached_property
    def budget(self) -> Mapping[str, str]:
        """Recipe keys by which its runs are shorter than the benchmark says, with their values; trials are so, too."""
        latest = next(iter((*self.source, *self.tuned, *self.trials)), None)
        if self.definition is None or latest is None or self.apart:
            return {}
        whole = self.definition.recipe.flat()
        values = {key: (latest.recipe.get(key), whole.get(key)) for key in LENGTH}
        return {key: str(ours) for key, (ours, theirs) in values.items() if comparable(ours) != comparable(theirs)}

    @cached_property
    def of_benchmark(self) -> bool:
        """Whether it retrained the benchmark's recipe, so that its accuracies can stand beside the claim."""
        if self.definition is None or self.apart or not (self.source or self.tuned):
            return False
        run, searched = (self.source[0], set()) if self.source else (self.tuned[0], set(self.best_params))
        return set(differing_keys(run, self.definition.recipe)) <= {*WATCHED, *searched}

    @cached_property
    def counted(self) -> tuple[Run, ...]:
        """The trials of the budget: complete, pruned, or failed by themselves.

        A trial whose process ended, or was told to, does not count: it was run again as another trial.
        """
        return tuple(trial for trial in self.trials if not _is_interrupted(trial))

    def count(self, state: str) -> int:
        """Return the number of trials in a state: ``COMPLETE``, ``PRUNED`` or ``FAIL``."""
        return sum(trial.trial_state == state for trial in self.counted)

    @cached_property
    def source_params(self) -> Mapping[str, Any]:
        """The source hyperparameters of what is searched, which are always tried first."""
        return next((trial.trial_params for trial in self.trials if trial.trial_number == 0), {})

    @cached_property
    def best_params(self) -> Mapping[str, Any]:
        """Hyperparameters of the best completed trial."""
        complete = [(value, trial) for trial in self.trials if (value := _objective(trial)) is not None]
        return max(complete, key=lambda pair: pair[0])[1].trial_params if complete else {}

    @property
    def source_won(self) -> bool:
        """Whether no hyperparameters were better than the source's."""
        return bool(self.best_params) and self.best_params == self.source_params

    @cached_property
    def validation_best(self) -> float | None:
        """Validation accuracy of the best trial."""
        found = [value for trial in self.trials if (value := _objective(trial)) is not None]
        return max(found) if found else _percent(self.parent.number("study/best_validation_accuracy"))

    @cached_property
    def validation_source(self) -> float | None:
        """Validation accuracy of the source hyperparameters, which are always trial 0, at the same budget."""
        tried = (trial for trial in self.trials if trial.trial_params == self.source_params)
        found = [value for trial in tried if (value := _objective(trial)) is not None]
        return found[0] if found else _percent(self.parent.number("study/source_validation_accuracy"))

    @cached_property
    def difference(self) -> Difference | None:
        """Tuned minus source on the test set, from the retraining runs or, without them, as the study logged it."""
        source, tuned = accuracies(self.source), accuracies(self.tuned)
        if source and tuned:
            return welch(source, tuned)
        if self.source or self.tuned:
            # What was logged is of an earlier retraining.
            return None
        logged, low, high = (
            _percent(self.parent.number(f"study/test_difference{end}")) for end in ("", "_low", "_high")
        )
        if logged is None:
            return None
        return Difference(logged, None if low is None or high is None else Interval(low, high))

    @cached_property
    def rebuilt(self) -> optuna.Study:
        """The same study in Optuna's memory, from what MLflow holds."""
        distributions = _distributions(self)
        with quiet():
            study = optuna.create_study(direction="maximize", study_name=self.name)
            for trial in self.trials:
                with contextlib.suppress(ValueError):  # a value outside the space that was logged
                    study.add_trial(_frozen_trial(trial, distributions))
        return study

    @cached_property
    def plotted(self) -> PlottedStudy:
        """What is drawn of the study."""
        return PlottedStudy(
            id=self.parent.id[:12],
            trials=tuple(_plotted(trial) for trial in self.trials),
            source_params=self.source_params,
            source_value=self.validation_source,
            log_keys=frozenset(key for key, described in self.parent.search_space.items() if _is_log(described)),
            importances=importances(self.rebuilt),
        )


def find(runs: Sequence[Run], known: Mapping[str, Benchmark] | None = None) -> list[StudyReport]:
    """Return every study among the runs, with its trials in order and its retraining runs.

    Args:
        runs: Runs of any kind.
        known: Benchmarks by name; of others it is not known whether a study's runs are shorter than they say.
    """
    children: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        children[run.parent_run_id].append(run)
    return [
        _report(parent, children[parent.id], (known or {}).get(parent.benchmark))
        for parent in runs
        if parent.role == "study"
    ]


def usable(found: Sequence[StudyReport]) -> tuple[list[StudyReport], list[str]]:
    """Return the studies that can be reported, and one sentence per study that cannot."""
    studies, problems = [], []
    for study in found:
        try:
            # Whatever is computed from a study's own values is computed here, so that it fails here or nowhere.
            _ = study.plotted, study.difference, study.source_won, study.budget, study.of_benchmark
        except Exception as error:  # whatever Optuna makes of a forged or damaged value
            reason = describe_error(error, limit=160)
            problems.append(f"study {study.name} is left out: {type(error).__name__}: {reason}")
        else:
            studies.append(study)
    return studies, problems


def accuracies(arm: Sequence[Run], metric: str = "accuracy") -> list[float]:
    """Return the test accuracy of each retraining run that finished."""
    found = (run.last_accuracy("test", metric) for run in arm if run.finished)
    return [value for value in found if value is not None]


def tuned_accuracies(studies: Sequence[StudyReport]) -> dict[str, list[float]]:
    """Return test accuracies of tuned hyperparameters on new seeds, by benchmark, from its latest full study.

    They are measured as the benchmark's first claim is. A study that retrained another recipe than the benchmark's,
    such as a shorter one, has nothing to set beside its claim.
    """
    return {
        study.parent.benchmark: values
        for study in studies
        if study.of_benchmark and (values := accuracies(study.tuned, claimed_metric(study.definition)))
    }


def named(text: str) -> str:
    """Return the name in a sampler's or pruner's JSON; the text itself where it has none."""
    try:
        return str(json.loads(text)["name"])
    except (ValueError, TypeError, KeyError):
        return text


def _report(parent: Run, children: Sequence[Run], definition: Benchmark | None) -> StudyReport:
    """Return one study, with the runs of both arms that its last retraining compares.

    A study that was resumed, with more trials or longer retraining runs, has runs of earlier hyperparameters and
    recipes beside those of the last retraining, which may have been stopped before both arms were trained.
    """
    trials = (run for run in children if run.role == "trial")
    ordered = sorted(trials, key=lambda run: (run.trial_number is None, run.trial_number or 0))
    study = StudyReport(parent, tuple(ordered), (), (), definition)
    retrained = (run for run in children if run.role == "retrain")
    runs = sorted(retrained, key=lambda run: (run.finished, run.started))
    searched = {*parent.search_space, *(key for trial in study.trials for key in trial.trial_params)}
    fixed = [_fixed(run, searched) for run in runs]
    last = [run for run, own in zip(runs, fixed, strict=True) if own == fixed[-1]]
    return replace(
        study, source=_arm(last, "source", study.source_params), tuned=_arm(last, "tuned", study.best_params)
    )


def _fixed(run: Run, searched: Collection[str]) -> dict[str, Any]:
    """Return what a retraining run's recipe has in common with the other arm's.

    Another optimizer, for one, has other options.
    """
    tables = tuple(key.removesuffix("name") for key in searched if key.endswith(".name"))
    free = {*searched, *WATCHED}
    fixed = {key: value for key, value in run.recipe.items() if key not in free}
    return {key: comparable(value) for key, value in fixed.items() if not key.startswith(tables)}


def _arm(last: Sequence[Run], arm: str, params: Mapping[str, Any]) -> tuple[Run, ...]:
    """Return the runs of one arm of the last retraining, each seed once: a run that failed may have been made again."""
    runs = [run for run in last if run.arm == arm and _has(run, params)]
    latest = {run.seed: run for run in runs if run.fingerprint == runs[-1].fingerprint}
    return tuple(latest[seed] for seed in sorted(latest, key=lambda seed: -1 if seed is None else seed))


def _has(run: Run, params: Mapping[str, Any]) -> bool:
    """Whether a run has these hyperparameters; a database may round their last digits."""
    pairs = [(comparable(run.recipe.get(key, NOT_GIVEN)), comparable(value)) for key, value in params.items()]
    return all(
        math.isclose(ours, theirs, rel_tol=1e-11) if is_number(ours) and is_number(theirs) else ours == theirs
        for ours, theirs in pairs
    )


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction


def _objective(trial: Run) -> float | None:
    """Return a completed trial's validation accuracy in percent."""
    if trial.trial_state != "COMPLETE":
        return None
    value = _percent(trial.number("study/value"))
    return value if value is not None else trial.last_accuracy("validation")


def _is_interrupted(trial: Run) -> bool:
    """Return whether a trial ended because its process did: one that failed by itself is FAILED in MLflow too."""
    return trial.trial_state == "FAIL" and trial.status == "KILLED"


def _plotted(trial: Run) -> PlottedTrial:
    return PlottedTrial(
        number=trial.trial_number,
        state=trial.trial_state,
        value=_objective(trial),
        params=trial.trial_params,
        curve=trial.accuracy("validation"),
        seconds=trial.number("study/training_seconds"),
    )


# --- rebuilding a study --------------------------------------------------------------------------


def _frozen_trial(trial: Run, distributions: Mapping[str, BaseDistribution]) -> optuna.trial.FrozenTrial:
    params = {key: value for key, value in trial.trial_params.items() if key in distributions}
    state = getattr(optuna.trial.TrialState, trial.trial_state, optuna.trial.TrialState.FAIL)
    value = _objective(trial)
    if state == optuna.trial.TrialState.COMPLETE and value is None:
        state = optuna.trial.TrialState.FAIL
    return optuna.trial.create_trial(
        state=state,
        value=value if state == optuna.trial.TrialState.COMPLETE else None,
        params=params,
        distributions={key: distributions[key] for key in params},
        intermediate_values=trial.accuracy("validation"),
    )


def _distributions(study: StudyReport) -> dict[str, BaseDistribution]:
    keys = sorted({key for trial in study.trials for key in trial.trial_params})
    found = {}
    for key in keys:
        values = [trial.trial_params[key] for trial in study.trials if key in trial.trial_params]
        found[key] = _distribution(study.parent.search_space.get(key), values)
    return found


def _distribution(described: Any, values: Sequence[Any]) -> BaseDistribution:
    """Return the range of a searched key as it was logged, else one that holds the values that were tried."""
    numbers = [value for value in values if is_number(value)]
    if isinstance(described, Mapping) and isinstance(described.get("choices"), list):
        return CategoricalDistribution([*dict.fromkeys([*described["choices"], *values])])
    if len(numbers) < len(values):
        return CategoricalDistribution([*dict.fromkeys(values)])
    ends = [*numbers]
    if isinstance(described, Mapping):
        ends += [end for end in (described.get("low"), described.get("high")) if is_number(end)]
    log = _is_log(described) and min(ends) > 0
    if all(isinstance(end, int) for end in ends):
        return IntDistribution(min(ends), max(ends), log=log and min(ends) >= 1)
    return FloatDistribution(min(ends), max(ends), log=log)


def _is_log(described: Any) -> bool:
    if not isinstance(described, Mapping):
        return False
    return described.get("type") == "log-float" or described.get("log") is True
