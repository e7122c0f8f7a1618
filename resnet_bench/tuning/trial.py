"""One trial: an ordinary run per seed, scored on the validation split and pruned where it lags."""

import contextlib
import json
import math
import random
import statistics
import time
import warnings
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import optuna

from resnet_bench.base.describe_error import describe_error
from resnet_bench.base.errors import UserError
from resnet_bench.execution.devices import device_problem
from resnet_bench.models.of_recipe import check_model
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.running.context import Context
from resnet_bench.running.events import Event, Opened
from resnet_bench.running.prepare import prepare
from resnet_bench.running.request import RunRequest
from resnet_bench.running.run import run
from resnet_bench.running.stopping import Stopped
from resnet_bench.tracking.vocabulary import STUDIES_EXPERIMENT
from resnet_bench.training.errors import Diverged, TrainingError
from resnet_bench.training.events import EpochEnded, Evaluated, Steps
from resnet_bench.tuning.events import TrialEnded, TrialProgressed, TrialReported, TrialStarted
from resnet_bench.tuning.mlflow_sync import MlflowSync, trial_name
from resnet_bench.tuning.space import trial_recipe
from resnet_bench.tuning.storage import StudyStorage
from resnet_bench.tuning.stored_study import LATEST_SCORE
from resnet_bench.tuning.study import Study
from resnet_bench.tuning.trial_queue import AcquiredTrial, TrialEnd, TrialQueue

HYPERPARAMETER_FAILURES = (TrainingError, MemoryError, RuntimeError, ValueError)
"""What hyperparameters can bring about in training: a batch too large for the memory, a combination that torch refuses.

An error that the user can put right is not among them: images, run folders and devices are the place's."""

POLL_SECONDS = 1.0
"""Interval at which a process that waits for another looks whether that has ended, or died."""
SERVER_POLL_SECONDS = 5.0
"""Likewise where many hosts ask one server."""
PROGRESS_SECONDS = 1.0
"""Shortest interval between two reports of a run's progress."""

TrialEvent = TrialStarted | TrialProgressed | TrialReported | TrialEnded
_Progress = TrialProgressed | TrialReported


@dataclass(frozen=True)
class _Result:
    state: TrialEnd
    values: list[float] | None = None
    reason: str | None = None


class _DivergedAt(Exception):
    """The loss is no longer finite; has the epoch, counted over all seeds."""

    def __init__(self, epoch: int, reason: str) -> None:
        super().__init__(reason)
        self.epoch = epoch


def run_trial(
    acquired: AcquiredTrial, queue: TrialQueue, sync: MlflowSync, context: Context
) -> Generator[TrialEvent, None, None]:
    """Run one trial and store how it ended, in Optuna and in MLflow.

    Hyperparameters that cannot be trained end the trial and not the study: a diverged loss prunes it, because a
    sampler learns from what was pruned and not from what failed; too little memory and an impossible combination
    fail it. Hyperparameters that were tried before would give the same bits again: their result is repeated.

    Raises:
        Stopped: ``context.stop`` was set; the trial is queued to be run again.
        UserError: This place cannot train, such as for lack of images or disk space, or with a broken GPU; likewise.
    """
    trial, number = acquired.trial, acquired.trial.number
    yield TrialStarted(number, acquired.params, acquired.is_source)
    try:
        with queue.stored.storage.beating(trial._trial_id, queue.notice_silence), _quiet():
            result = _repeat(acquired, queue, context)
            if result is None:
                result = yield from _result(acquired, queue, sync, context)
            if trial.user_attrs.get("mlflow_run_id") is None:
                trial.set_user_attr("mlflow_run_id", sync.bare_run(number, acquired.params))
            queue.end(trial, result.state, result.values, result.reason)
    except optuna.exceptions.UpdateFinishedTrialError:
        # This process was paused, or its heartbeat lost: Optuna has the trial as failed, and another has its slot.
        pass
    except BaseException:
        # A signal, a consumer that goes away, or a mistake of ours: the slot waits for another attempt.
        queue.interrupt(number)
        sync.sync_trial(number)
        raise
    sync.sync_trial(number)
    sync.show_progress()
    yield TrialEnded.of(queue.stored.trial(number))


def _repeat(acquired: AcquiredTrial, queue: TrialQueue, context: Context) -> _Result | None:
    """Return the result of an earlier trial with the same hyperparameters, once it has one; None where none is."""
    while (twin := queue.find_twin(acquired)) is not None:
        if twin.state.is_finished():
            reason = f"the same hyperparameters as trial {twin.number}, so not trained again"
            if "reason" in twin.user_attrs:
                reason += f" ({twin.user_attrs['reason']})"
            complete = twin.state == optuna.trial.TrialState.COMPLETE
            return _Result(twin.state.name, twin.values if complete else None, reason)  # type: ignore[arg-type]  # one of TrialEnd
        stop_if_asked(context)
        time.sleep(poll_seconds(queue.stored.storage.address))
        queue.recover()
    return None


def _result(
    acquired: AcquiredTrial, queue: TrialQueue, sync: MlflowSync, context: Context
) -> Generator[_Progress, None, _Result]:
    plan = queue.stored.plan
    try:
        recipe = trial_recipe(plan.study, plan.base, acquired.params)
        check_model(recipe)
    except UserError as error:
        return _Result("FAIL", reason=describe_error(error))
    try:
        values = yield from _train_seeds(acquired, recipe, queue, sync, context)
    except Stopped as stopped:
        if stopped.end != "pruned":
            raise
        return _Result("PRUNED", reason=stopped.reason)
    except _DivergedAt as diverged:
        if len(plan.study.objectives) > 1 or acquired.is_source:
            return _Result("FAIL", reason=str(diverged))
        # Optuna's samplers rank NaN last.
        acquired.trial.report(math.nan, diverged.epoch)
        return _Result("PRUNED", reason=str(diverged))
    except HYPERPARAMETER_FAILURES as error:
        # A GPU that breaks raises the same errors, and says nothing of the hyperparameters.
        free_device(context)
        return _Result("FAIL", reason=describe_error(error))
    return _Result("COMPLETE", values=values)


def _train_seeds(
    acquired: AcquiredTrial, recipe: Recipe, queue: TrialQueue, sync: MlflowSync, context: Context
) -> Generator[_Progress, None, list[float]]:
    """Train once per seed; the objectives are means over the seeds."""
    study = queue.stored.definition
    accuracies, seconds = [], []
    for seed in range(study.seeds):
        request = _request(acquired, recipe, seed, queue, sync)
        accuracy, spent = yield from _train_once(acquired, request, study, context)
        accuracies.append(accuracy)
        seconds.append(spent)
    objectives = {"validation_accuracy": statistics.fmean(accuracies), "training_seconds": statistics.fmean(seconds)}
    return [objectives[name] for name in study.objectives]


def _train_once(
    acquired: AcquiredTrial, request: RunRequest, study: Study, context: Context
) -> Generator[_Progress, None, tuple[float, float]]:
    """Train with one seed; return its validation accuracy at the end and its training seconds."""
    trial, epochs = acquired.trial, request.recipe.training.epochs
    before = request.seed * epochs
    accuracy, seconds = math.nan, 0.0
    clock = ProgressClock(request.recipe)
    try:
        with contextlib.closing(run(prepare(request, context), context)) as events:
            for event in events:
                trained = clock.due(event)
                if trained is not None:
                    yield TrialProgressed(trial.number, before + trained)
                match event:
                    case Opened() if request.seed == 0:
                        trial.set_user_attr("mlflow_run_id", event.run_id)
                    case EpochEnded():
                        seconds = event.train_seconds
                    case Evaluated(split="validation"):
                        accuracy, epoch = event.accuracy, before + event.epoch
                        reported = _is_reported(study, request.seed, event.epoch, epochs)
                        if reported:
                            trial.report(accuracy, epoch)
                        else:
                            trial.set_user_attr(LATEST_SCORE, [epoch, accuracy])
                        yield TrialReported(trial.number, epoch, accuracy)
                        may_stop = reported and epoch < epochs * study.seeds and not acquired.is_source
                        if may_stop and trial.should_prune():
                            events.throw(Stopped("pruned", _why_pruned(study, accuracy, epoch)))
    except Diverged as error:
        epoch = -(-error.step // request.recipe.steps_per_epoch)
        raise _DivergedAt(before + epoch, str(error)) from None
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


def _request(acquired: AcquiredTrial, recipe: Recipe, seed: int, queue: TrialQueue, sync: MlflowSync) -> RunRequest:
    number, name, plan = acquired.trial.number, queue.stored.name, queue.stored.plan
    first_run: str | None = acquired.trial.user_attrs.get("mlflow_run_id")
    return RunRequest(
        benchmark=plan.benchmark,
        recipe=recipe,
        profile=plan.profile,
        seed=seed,
        role="trial" if seed == 0 else "repeat",
        name=trial_name(name, number, seed),
        experiment=STUDIES_EXPERIMENT,
        parent=sync.run_id if seed == 0 else first_run or sync.run_id,
        tags={
            "study": name,
            "trial_number": str(number),
            "trial_state": "RUNNING",
            "trial_params": json.dumps(acquired.params, sort_keys=True),
        },
        # A run that was finished before has no score of each epoch to report.
        force=True,
        keep_model=False,
    )


class ProgressClock:
    """Decides when a run's progress within an epoch is worth an event."""

    def __init__(self, recipe: Recipe) -> None:
        """Follow a run of this recipe."""
        self._steps_per_epoch = recipe.steps_per_epoch
        self._due_at = 0.0

    def due(self, event: Event) -> float | None:
        """Return the epochs trained so far, or None where it is too early to tell again."""
        now = time.monotonic()
        if not isinstance(event, Steps) or now < self._due_at:
            return None
        self._due_at = now + PROGRESS_SECONDS
        return event.last_step / self._steps_per_epoch


def poll_seconds(storage: StudyStorage) -> float:
    """Return how long a process waits until it looks again; those of a server spread out."""
    if storage.file is not None:
        return POLL_SECONDS
    return SERVER_POLL_SECONDS * random.uniform(0.5, 1.5)  # a delay, not a secret  # nosec B311


def free_device(context: Context) -> None:
    """Give the device's memory back, so that the next run has all of it.

    Raises:
        UserError: The device takes no more work from this process.
    """
    if problem := device_problem(context.options.resolve()):
        raise UserError(f"{problem}; run the same command again to resume the study")


def stop_if_asked(context: Context) -> None:
    """Stop here where somebody asked for it.

    Raises:
        Stopped: ``context.stop`` is set.
    """
    if context.stop:
        raise Stopped("killed", context.stop.reason or "stopped")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
