"""One trial: an ordinary run (or one a seed), scored on the validation split and stopped early where it lags."""

import contextlib
import json
import math
import statistics
import warnings
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna

from resnet_bench.base.describe_error import describe_error
from resnet_bench.base.errors import UserError
from resnet_bench.data.dataset import Dataset, ImageLocation
from resnet_bench.execution.execution import Execution
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.running.context import Context
from resnet_bench.running.events import Event, Opened
from resnet_bench.running.job import Job
from resnet_bench.running.prepare import look_up
from resnet_bench.running.run import run
from resnet_bench.running.stopping import Stop, Stopped
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.vocabulary import STUDIES_EXPERIMENT
from resnet_bench.training.errors import Diverged, TrainingError
from resnet_bench.training.events import EpochEnded, Evaluated
from resnet_bench.training.memory import free_what_is_unused
from resnet_bench.tuning.events import TrialEnded, TrialReported, TrialStarted
from resnet_bench.tuning.mlflow_sync import MlflowSync
from resnet_bench.tuning.plan import Plan
from resnet_bench.tuning.space import trial_recipe
from resnet_bench.tuning.study import Study
from resnet_bench.tuning.trial_queue import AcquiredTrial, TrialEnd, TrialQueue

SETTING_FAILURES = (TrainingError, UserError, MemoryError, RuntimeError, ValueError)
"""What settings can bring about: a batch too large for the memory, a combination that torch refuses."""


@dataclass(frozen=True)
class WorkerContext:
    """What a process needs to run the trials of a study."""

    plan: Plan
    ledger: TrialQueue
    mirror: MlflowSync
    dataset: Dataset
    store: Store
    execution: Execution
    runs_folder: Path
    stop: Stop


@dataclass(frozen=True)
class _Outcome:
    state: TrialEnd
    values: list[float] | None = None
    reason: str | None = None


class _Lost(Exception):
    """The trial was given to another process, because this one's heartbeat was missed."""


class _DivergedAt(Exception):
    """The loss is no longer finite; knows the epoch, counted over all seeds."""

    def __init__(self, epoch: int, reason: str) -> None:
        super().__init__(reason)
        self.epoch = epoch


def run_trial(
    workplace: WorkerContext, claimed: AcquiredTrial
) -> Generator[TrialStarted | TrialReported | TrialEnded, None, None]:
    """Run one trial and write down how it ended, in Optuna and in MLflow.

    What settings bring about ends the trial and not the study: a diverged loss prunes it, because a sampler
    learns to keep away from what was pruned and nothing from what failed; memory that is too small and a
    combination that cannot be trained fail it.

    Raises:
        Stopped: ``workplace.stop`` was set; the trial is queued to be run again.
    """
    trial, ledger = claimed.trial, workplace.ledger
    yield TrialStarted(trial.number, claimed.settings, claimed.is_source)
    try:
        with ledger.storage.beating(trial._trial_id), _quiet():
            outcome = yield from _outcome(workplace, claimed)
            ledger.end(trial, outcome.state, outcome.values, outcome.reason)
    except _Lost:
        # The storage says that it failed, and another trial has its slot.
        pass
    except BaseException:
        # A signal, a consumer that goes away, or a mistake of ours: the slot waits for another attempt.
        ledger.interrupt(trial)
        workplace.mirror.settle(ledger.trial(trial.number), ledger.retries().get(trial.number))
        raise
    finally:
        free_memory(workplace.execution)
    frozen = ledger.trial(trial.number)
    workplace.mirror.settle(frozen, ledger.retries().get(trial.number))
    workplace.mirror.show_progress()
    yield TrialEnded.of(frozen)


def _outcome(workplace: WorkerContext, claimed: AcquiredTrial) -> Generator[TrialReported, None, _Outcome]:
    trial = claimed.trial
    several = len(workplace.plan.study.objectives) > 1
    try:
        recipe = trial_recipe(workplace.plan.study, workplace.plan.base, claimed.settings)
        values = yield from _train_seeds(workplace, claimed, recipe)
    except Stopped as stopped:
        if stopped.end != "pruned":
            raise
        return _Outcome("PRUNED", reason=stopped.reason)
    except _DivergedAt as diverged:
        if several or claimed.is_source:
            return _Outcome("FAIL", reason=str(diverged))
        # Not a number is what Optuna's samplers rank last.
        _report(trial, math.nan, diverged.epoch)
        return _Outcome("PRUNED", reason=str(diverged))
    except SETTING_FAILURES as error:
        if trial.user_attrs.get("mlflow_run_id") is None:
            trial.set_user_attr("mlflow_run_id", workplace.mirror.bare_run(trial.number, claimed.settings))
        reason = describe_error(error)
        return _Outcome("FAIL", reason=reason)
    return _Outcome("COMPLETE", values=values)


def _train_seeds(
    workplace: WorkerContext, claimed: AcquiredTrial, recipe: Recipe
) -> Generator[TrialReported, None, list[float]]:
    """Train once a seed; the objectives are means over the seeds."""
    study = workplace.plan.study
    accuracies, seconds = [], []
    for seed in range(study.seeds):
        accuracy, spent = yield from _train_once(workplace, claimed, recipe, seed)
        accuracies.append(accuracy)
        seconds.append(spent)
    objectives = {"validation_accuracy": statistics.fmean(accuracies), "training_seconds": statistics.fmean(seconds)}
    return [objectives[name] for name in study.objectives]


def _train_once(
    workplace: WorkerContext, claimed: AcquiredTrial, recipe: Recipe, seed: int
) -> Generator[TrialReported, None, tuple[float, float]]:
    """Train with one seed: its validation accuracy at the end, and its training seconds."""
    trial, study = claimed.trial, workplace.plan.study
    epochs = recipe.training.epochs
    before = seed * epochs
    accuracy, seconds = math.nan, 0.0
    events = run_job(workplace, _job(workplace, claimed, recipe, seed))
    try:
        with contextlib.closing(events):
            for event in events:
                match event:
                    case Opened() if seed == 0:
                        trial.set_user_attr("mlflow_run_id", event.run_id)
                    case EpochEnded():
                        seconds = event.train_seconds
                    case Evaluated(split="validation"):
                        accuracy, epoch = event.accuracy, before + event.epoch
                        reported = _is_reported(study, seed, event.epoch, epochs)
                        if reported:
                            _report(trial, accuracy, epoch)
                        yield TrialReported(trial.number, epoch, accuracy)
                        may_stop = reported and epoch < epochs * study.seeds and not claimed.is_source
                        if may_stop and trial.should_prune():
                            events.throw(Stopped("pruned", _why_pruned(study, accuracy, epoch)))
    except Diverged as error:
        raise _DivergedAt(before + _epoch_of(error.step, recipe), str(error)) from None
    return accuracy, seconds


def _is_reported(study: Study, seed: int, epoch: int, epochs: int) -> bool:
    """Whether the pruner sees this score.

    Wilcoxon's test compares trials seed by seed. The other pruners compare them epoch by epoch, which only the
    first seed's curve is fit for: a later seed's begins at the bottom again.
    """
    if len(study.objectives) > 1:
        return False
    return epoch == epochs if study.pruner.name == "wilcoxon" else seed == 0


def _why_pruned(study: Study, accuracy: float, epoch: int) -> str:
    return f"pruned by {study.pruner.name} at {accuracy:.2%} validation accuracy after epoch {epoch}"


def _report(trial: optuna.Trial, accuracy: float, epoch: int) -> None:
    try:
        trial.report(accuracy, epoch)
    except optuna.exceptions.UpdateFinishedTrialError:
        raise _Lost from None


def _job(workplace: WorkerContext, claimed: AcquiredTrial, recipe: Recipe, seed: int) -> Job:
    number, name = claimed.trial.number, workplace.ledger.name
    first_run: str | None = claimed.trial.user_attrs.get("mlflow_run_id")
    return Job(
        benchmark=workplace.plan.benchmark,
        recipe=recipe,
        profile=workplace.plan.profile,
        seed=seed,
        role="trial" if seed == 0 else "repeat",
        name=f"{name} trial {number}" + (f" seed {seed}" if seed else ""),
        experiment=STUDIES_EXPERIMENT,
        parent=workplace.mirror.run_id if seed == 0 else first_run or workplace.mirror.run_id,
        tags={
            "study": name,
            "trial_number": str(number),
            "trial_state": "RUNNING",
            "trial_params": json.dumps(claimed.settings, sort_keys=True),
        },
        force=True,
        keep_model=False,
    )


def run_job(workplace: WorkerContext, job: Job) -> Generator[Event, None, None]:
    """Run a job of the study with what this process has at hand."""
    context = Context(workplace.store, workplace.runs_folder, ImageLocation(Path()), stop=workplace.stop)
    return run(look_up(job, workplace.execution, workplace.dataset, workplace.store), context)


def _epoch_of(step: int, recipe: Recipe) -> int:
    return -(-step // recipe.steps_per_epoch)


def free_memory(execution: Execution) -> None:
    """Give a GPU's memory back between two runs, so that the next one has all of it."""
    if execution.device_type == "cuda":
        # What a failed run's traceback held is free only once its cycles are collected.
        free_what_is_unused()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
