"""A study from its first trial to its result, as a generator of events. To stop it, stop iterating."""

import contextlib
import logging
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from resnet_bench.base.describe_error import describe_error
from resnet_bench.base.errors import UserError
from resnet_bench.running.context import Context
from resnet_bench.running.events import JobFinished, TaskEvent
from resnet_bench.running.launchers.launcher import find_launcher
from resnet_bench.running.launchers.places import find_places
from resnet_bench.running.stopping import Stopped
from resnet_bench.tracking.sharing_rule import check_local
from resnet_bench.tracking.uploader import flush_all
from resnet_bench.tracking.watching import watching
from resnet_bench.tuning.artifacts import write_artifacts
from resnet_bench.tuning.events import (
    Retrained,
    RetrainingStarted,
    SpaceExhausted,
    StudyEvent,
    StudyFinished,
    StudyOpened,
    TrialEnded,
    TrialReported,
    TrialStarted,
)
from resnet_bench.tuning.mlflow_sync import MlflowSync
from resnet_bench.tuning.plan import Plan
from resnet_bench.tuning.results import StudyResult, comparison, study_result
from resnet_bench.tuning.retraining import retrainings
from resnet_bench.tuning.space import is_drawn
from resnet_bench.tuning.storage import StudyStorage
from resnet_bench.tuning.stored_study import StoredStudy, is_counted, is_source, scores, trained_epochs
from resnet_bench.tuning.trial_queue import TrialQueue
from resnet_bench.tuning.turns import take_turn
from resnet_bench.tuning.worker import StudyWorker

_log = logging.getLogger(__name__)


def run_study(
    name: str,
    plan: Plan,
    storage: StudyStorage,
    context: Context,
    *,
    workers: int = 1,
    progress: Callable[[str], None] | None = None,
) -> Generator[StudyEvent, None, None]:
    """Run a study, or resume it, to its budget's number of finished trials and the comparison at its end.

    Args:
        name: Its name in the storage; a study of that name is resumed.
        plan: The study in its profile. Its recipe decides on which images it runs.
        storage: Where Optuna keeps the trials.
        context: Where images, files and MLflow's runs are, and what stops the study: the trial in progress is then
            queued again.
        workers: Processes that share the work; 1 works in this one.
        progress: Called with a line of text now and then while images are loaded.

    Raises:
        Stopped: ``context.stop`` was set.
        UserError: The study does not fit the one of its name in the storage, a store does not work, or the source
            hyperparameters cannot be trained.
    """
    queue, sync, context = _open(name, plan, storage, context, workers, progress)
    with storage.errors_in_words():
        status, reason = "FAILED", None
        try:
            _tidy_up(queue, sync, context)
            watch = Watch(queue.stored)
            yield StudyOpened(name, sync.url, queue.stored.counts().wanted, watch.earlier)
            yield from watch.joined(_work(queue, sync, context, workers))
            _tidy_up(queue, sync, context)
            result = _conclude(queue.stored, sync, context)
            status = "FINISHED"
        except (GeneratorExit, KeyboardInterrupt, Stopped) as error:
            status, reason = "KILLED", str(error) or "stopped before its end"
            raise
        except Exception as error:
            reason = describe_error(error)
            raise
        finally:
            # Each is done although the one before it fails, as on a full disk.
            with contextlib.ExitStack() as ending:
                ending.callback(sync.close, status, reason)
                ending.callback(sync.reconcile)
                ending.callback(queue.interrupt_own)
    yield StudyFinished(result)


def work_on_study(
    name: str,
    plan: Plan,
    storage: StudyStorage,
    context: Context,
    *,
    workers: int = 1,
    progress: Callable[[str], None] | None = None,
) -> Generator[StudyEvent, None, None]:
    """Do one worker's share of a study, which is laid out where nobody has done that yet.

    Any number of these may run at a time, on any hosts, started by whatever scheduler; the arguments are those of
    :func:`run_study`, where ``workers`` counts those that are started together. The one that finds everything done logs
    the result.

    Raises:
        Stopped: ``context.stop`` was set; the trial in progress is queued again.
        UserError: As in :func:`run_study`; or a store is a file on a network file system.
    """
    check_local(tracking=context.store.uri, storage=storage.url, what=f"study {name}")
    queue, sync, context = _open(name, plan, storage, context, workers, progress)
    with storage.errors_in_words():
        _tidy_up(queue, sync, context)
        watch = Watch(queue.stored)
        yield StudyOpened(name, sync.url, queue.stored.counts().wanted, watch.earlier)
        try:
            with watching(context.store):
                worker = StudyWorker(name, storage, sync.run_id, deadline=_deadline(queue.stored))
                yield from worker.events(context)
        except (GeneratorExit, KeyboardInterrupt, Stopped) as error:
            if queue.stored.counts().running == 0:
                sync.close("KILLED", str(error) or "stopped before its end")
            raise
        result = _conclude_once(queue, sync, context)
    if result is not None:
        yield StudyFinished(result)


def _open(
    name: str,
    plan: Plan,
    storage: StudyStorage,
    context: Context,
    workers: int,
    progress: Callable[[str], None] | None,
) -> tuple[TrialQueue, MlflowSync, Context]:
    """Lay a study out, or open it, with its run in MLflow and its folder of runs."""
    dataset = context.open_images(plan.base.data.facts, progress)
    context.store.prepare()
    with storage.errors_in_words():
        queue = TrialQueue.begin(name, plan, storage.open(), dataset, workers=workers)
        execution = context.options.resolve()
        sync = MlflowSync.open(context.store, queue.stored, dataset, execution, is_maker=queue.is_maker)
    return queue, sync, replace(context, run_dir=context.run_dir / "studies" / name)


def _work(queue: TrialQueue, sync: MlflowSync, context: Context, workers: int) -> Generator[StudyEvent, None, None]:
    """Have workers do what is left.

    Raises:
        Stopped: ``context.stop`` was set.
        UserError: What a worker could not do, where something is left undone.
    """
    stored = queue.stored
    deadline = _deadline(stored)
    tasks = [StudyWorker(stored.name, stored.storage.address, sync.run_id, i, deadline) for i in range(workers)]
    places = find_places(context.options, per_device=workers, jobs=workers)
    launcher = find_launcher("inline" if workers == 1 else "processes", places)
    failures = []
    with contextlib.closing(launcher.run(tasks, context)) as events:
        for _, event in events:
            match event:
                case JobFinished(interrupted=True):
                    raise Stopped("killed", context.stop.reason or "stopped")
                case JobFinished():
                    failures += [event.failure] if event.failure else []
                case TaskEvent():
                    yield event  # type: ignore[misc]  # a StudyWorker's
    if context.stop:
        raise Stopped("killed", context.stop.reason or "stopped")
    queue.recover()
    stored.check_source()
    in_time = deadline is None or time.monotonic() < deadline
    if failures and ((stored.counts().waiting and in_time) or retrainings(stored)):
        raise UserError(f"study {stored.name} has work left to do: {failures[0]}; run the same command again to resume")


def _deadline(stored: StoredStudy) -> float | None:
    """Return when the time of a command that starts now is up, on the clock of ``time.monotonic``; None for never."""
    seconds = stored.definition.budget.wall_seconds
    return None if seconds is None else time.monotonic() + seconds


def _tidy_up(queue: TrialQueue, sync: MlflowSync, context: Context) -> None:
    """Notice trials whose process is gone, upload what is not uploaded yet, and update MLflow from Optuna."""
    queue.recover()
    if context.run_dir.is_dir():
        flush_all(context.store, context.run_dir, say=_log.debug)
    sync.reconcile()
    sync.show_progress()


def _conclude_once(queue: TrialQueue, sync: MlflowSync, context: Context) -> StudyResult | None:
    """Conclude a study of several workers; None where another one has done that, or does it now.

    Should that one fail, the next worker that is started finds the study not concluded.
    """
    with take_turn("conclusion", queue.stored, context.run_dir) as turn:
        if turn is None:
            return None
        result = None
        if queue.stored.get_attr("concluded") != _evidence(queue.stored):
            _tidy_up(queue, sync, context)
            evidence = _evidence(queue.stored)
            result = _conclude(queue.stored, sync, context)
            queue.stored.set_attr("concluded", evidence)
        sync.close("FINISHED")
    return result


def _evidence(stored: StoredStudy) -> list[Any]:
    """Return what the result rests on: the number of finished trials, and the test accuracies of both arms."""
    compared = comparison(stored)
    arms = [] if compared is None else [list(compared.source), list(compared.tuned)]
    return [stored.counts().finished, arms]


def _conclude(stored: StoredStudy, sync: MlflowSync, context: Context) -> StudyResult:
    """Read the result and log it."""
    result = study_result(stored, url=sync.url)
    if result is None:
        raise UserError(
            f"study {stored.name}: the time was up before the source hyperparameters were trained; "
            "run the same command again to resume"
        )
    metrics = {
        "study/best_validation_accuracy": result.best_validation,
        "study/source_validation_accuracy": result.source_validation,
    }
    difference = result.comparison.difference if result.comparison is not None else None
    if difference is not None:
        metrics["study/test_difference"] = difference.value
        if difference.interval is not None:
            metrics["study/test_difference_low"] = difference.interval.low
            metrics["study/test_difference_high"] = difference.interval.high
    sync.log(metrics, step=result.counts.finished)
    sync.tag({"best_trial": str(result.best_number)})
    folder = context.run_dir / "artifacts"
    write_artifacts(stored, result, folder)
    sync.log_folder(folder)
    return result


class Watch:
    """Adds to the events of this command's workers what other commands do to the same study meanwhile."""

    def __init__(self, stored: StoredStudy) -> None:
        """Begin with what is there: only what happens from now on is told."""
        ended = [trial for trial in stored.trials() if trial.state.is_finished()]
        self.earlier = tuple(TrialEnded.of(trial) for trial in ended if is_counted(trial))
        """The trials of the budget that were finished before."""
        self._stored = stored
        self._epochs = {trial.number: trained_epochs(trial) for trial in ended}
        """The last epoch that was told of each trial that was told to begin."""
        self._ended = {trial.number for trial in ended}
        self._retraining = False
        self._retrained = {(run.arm, run.seed) for run in self._retraining_runs()}
        self._wanted = stored.counts().wanted

    def joined(self, events: Generator[StudyEvent, None, None]) -> Generator[StudyEvent, None, None]:
        """Yield what our workers do, and between their trials what others did."""
        with contextlib.closing(events):
            for event in events:
                yield from self.told(event)
        yield from self.look()

    def told(self, event: StudyEvent) -> Iterator[StudyEvent]:
        """Yield what one of our workers does, and what others did where a trial or a run has ended."""
        if self._is_news(event):
            yield event
        if isinstance(event, TrialEnded | Retrained):
            yield from self.look()

    def look(self) -> Iterator[StudyEvent]:
        """Yield what happened since the last look."""
        return (event for event in self._stored_events() if self._is_news(event))

    def _is_news(self, event: StudyEvent) -> bool:
        """Whether this was not told before, by a worker or by the storage."""
        match event:
            case TrialStarted():
                news = event.number not in self._epochs
                self._epochs.setdefault(event.number, 0)
            case TrialReported():
                news = event.epoch > self._epochs.get(event.number, 0)
                self._epochs[event.number] = max(event.epoch, self._epochs.get(event.number, 0))
            case TrialEnded():
                news = event.number not in self._ended
                self._ended.add(event.number)
            case SpaceExhausted():
                news, self._wanted = event.wanted != self._wanted, event.wanted
            case RetrainingStarted():
                news, self._retraining = not self._retraining, True
            case Retrained():
                news = (event.arm, event.seed) not in self._retrained
                self._retrained.add((event.arm, event.seed))
            case _:
                news = True
        return news

    def _stored_events(self) -> Iterator[StudyEvent]:
        """Yield what the storage has, as if it happened now."""
        for trial in self._stored.trials():
            if trial.number not in self._ended and "surplus" not in trial.user_attrs:
                yield from self._events_of(trial)
        best, counts = self._stored.best_trial(), self._stored.counts()
        yield SpaceExhausted(counts.wanted)
        runs = self._retraining_runs()
        new = [run for run in runs if (run.arm, run.seed) not in self._retrained]
        if best is not None and (new or counts.finished >= counts.wanted):
            yield RetrainingStarted(best.number, len(retrainings(self._stored)) + len(new))
        yield from runs

    def _events_of(self, trial: FrozenTrial) -> Iterator[StudyEvent]:
        finished = trial.state.is_finished()
        if finished or (trial.state == TrialState.RUNNING and is_drawn(self._stored.definition, trial.params)):
            yield TrialStarted(trial.number, trial.params, is_source(trial))
            for epoch, accuracy in sorted(scores(trial).items()):
                yield TrialReported(trial.number, epoch, accuracy)
        if finished:
            yield TrialEnded.of(trial)

    def _retraining_runs(self) -> list[Retrained]:
        """List those whose result is stored."""
        return [
            Retrained(run["arm"], run["seed"], run["accuracy"], run["reason"])
            for key, run in self._stored.study.user_attrs.items()
            if key.startswith("retrained/")
        ]
