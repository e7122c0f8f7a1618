"""One run in this process: training, watched by the tracker and written to checkpoints."""

import copy
import logging
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

from resnet_bench.base.errors import UserError
from resnet_bench.measure.energy import EnergyMeter
from resnet_bench.measure.peaks import peak_flops
from resnet_bench.measure.record_clock import warm_up
from resnet_bench.running.artifacts import log_best_weights, log_outcome, log_recipe
from resnet_bench.running.context import Context
from resnet_bench.running.events import Closed, Event, Opened, update
from resnet_bench.running.outcome import Outcome
from resnet_bench.running.prepare import Prepared, look_again
from resnet_bench.running.run_folder import RunFolder, settle
from resnet_bench.running.stopping import Stop, Stopped
from resnet_bench.running.stored_position import (
    PositionUploads,
    fetch_position,
    was_resumed_elsewhere,
)
from resnet_bench.tracking.cursor import JOURNAL
from resnet_bench.tracking.leases import Holding, wait_for_decision
from resnet_bench.tracking.run_files import TAKEN_OVER, remove_delivered
from resnet_bench.tracking.tracker import Tracker
from resnet_bench.tracking.vocabulary import ENERGY, FINAL_THROUGHPUT, TRAIN_JOULES
from resnet_bench.training import checkpoint
from resnet_bench.training.events import EndReason, EpochEnded, Evaluated, Finished, State, Steps
from resnet_bench.training.events import Event as TrainingEvent
from resnet_bench.training.loop import train

CHECKPOINT_INTERVAL_FACTOR = 20.0
"""Minimum time between checkpoints, as a multiple of the last write's duration: at most about 5% of a run. A killed run
loses this or one epoch, whichever is longer."""

_TOLD = ("accuracy_by_epoch", "evaluation_seconds_by_epoch", "throughput_by_epoch", "setup_seconds", "sharing")
"""What of an outcome an earlier process has told."""

_log = logging.getLogger(__name__)


def run(prepared: Prepared, context: Context) -> Generator[Event, None, None]:
    """Train, track and keep one run, unless it was finished before.

    To stop it, close the generator, throw :class:`Stopped` into it, or set ``context.stop``: the position is
    checkpointed, and the run is marked in the tracking store.

    Yields:
        ``Opened``, the events of :func:`resnet_bench.training.loop.train`, and ``Closed``. A run that was finished
        before yields ``Opened`` with its outcome alone.

    Raises:
        Stopped: ``context.stop`` was set; the checkpoint is written.
        TrainingError: Training cannot continue; the run is marked failed, with the reason.
        UserError: The checkpoint or the images do not fit the recipe, or another process is training this run.
    """
    request = prepared.request
    if prepared.outcome is not None:
        yield _opened_before(prepared, prepared.outcome, context)
        return
    if prepared.dataset.name != request.recipe.data.dataset:
        raise UserError(
            f"{request.label} trains on {request.recipe.data.dataset}; "
            f"the images at hand are of {prepared.dataset.name}"
        )
    warm_up_seconds = warm_up(request.recipe, prepared.execution) if request.warm_up else 0.0
    folder = _folder(prepared, context)
    try:
        # Before this process had the folder, another one may have finished the run in it.
        if folder.run_id is None and (finished := look_again(prepared, context.store).outcome) is not None:
            folder.discard()
            yield _opened_before(prepared, finished, context)
            return
        if request.resume and request.keep_model:
            folder = _resume_from_store(prepared, context, folder)
        yield from _tracked(prepared, context, folder, warm_up_seconds)
    finally:
        folder.release()


def _folder(prepared: Prepared, context: Context) -> RunFolder:
    if not prepared.request.resume:
        return RunFolder.create(context.run_dir, prepared.facts)
    if not context.store.is_shared:
        return RunFolder.acquire(context.run_dir, prepared.facts)

    def watch(run_id: str) -> Holding:
        return wait_for_decision(context.store, run_id)

    return RunFolder.acquire(context.run_dir, prepared.facts, watch=watch)


def _resume_from_store(prepared: Prepared, context: Context, folder: RunFolder) -> RunFolder:
    """Return the folder to train in: where it is new, or another machine has trained on, filled from the store."""
    # Where the journal alone was lost, there is a position to resume from.
    if (folder.path / JOURNAL).exists() or folder.last_checkpoint.is_file():
        if not was_resumed_elsewhere(folder, context.store):
            return folder
        (folder.path / TAKEN_OVER).touch()
        folder.release()
        folder = RunFolder.create(context.run_dir, prepared.facts)
    try:
        fetch_position(folder, prepared.facts, context.store)
    except BaseException:
        folder.release()
        folder.discard()
        raise
    return folder


def _opened_before(prepared: Prepared, outcome: Outcome, context: Context) -> Opened:
    settle(context.run_dir, outcome.folder, outcome.run_id, context.store)
    return Opened(outcome.run_id, outcome.url, None, outcome=outcome, **_found(prepared))


def _found(prepared: Prepared) -> dict[str, Any]:
    """What of a run's place decides how its result is judged."""
    dataset = prepared.dataset
    return {
        "device": prepared.facts.device_name,
        "generated": dataset.generated,
        "official": dataset.official,
    }


def _tracked(
    prepared: Prepared, context: Context, folder: RunFolder, warm_up_seconds: float
) -> Generator[Event, None, None]:
    request, execution, dataset, stop = prepared.request, prepared.execution, prepared.dataset, context.stop
    resume_from = checkpoint.load(folder.last_checkpoint) if folder.last_checkpoint.is_file() else None
    resumed_at_step = int(resume_from["position"]["step"]) if resume_from else 0
    tracker = Tracker.open(
        context.store,
        replace(prepared.facts, more_tags={**prepared.facts.more_tags, "folder": folder.path.name}),
        folder.path,
        resume_run_id=folder.run_id,
        resume_step=resumed_at_step if resume_from else None,
    )
    uploads = PositionUploads(folder, tracker) if context.upload_checkpoints else None
    checkpoints = _Checkpoints(prepared, folder, resume_from, stop, uploads)
    end: EndReason = "failed"
    reason: str | None = None
    try:
        folder.update(status="running", run_id=tracker.run_id)
        if resume_from is None:
            log_recipe(request.benchmark, request.recipe, tracker)
        yield Opened(
            tracker.run_id,
            tracker.url,
            folder.path,
            step=resumed_at_step,
            # A copy, because what is told from here on is added to the original.
            earlier=copy.deepcopy(checkpoints.outcome) if resume_from else None,
            warm_up_seconds=warm_up_seconds,
            **_found(prepared),
        )
        has_device_alone = request.sharing == 1
        if has_device_alone:
            tracker.tags({"peak_flops": f"{peak_flops(execution):.6g}"})
        meter = EnergyMeter.of(execution) if has_device_alone and not resume_from else None
        events = train(request.recipe, execution, request.seed, dataset, resume=resume_from)
        for event in meter.watch(events, Steps) if meter else events:
            tracker.record(event)
            checkpoints.keep(event)
            yield event
            if other := tracker.uploader.taken_over:
                raise Stopped("killed", other)  # noqa: TRY301 - likewise
            if stop and not isinstance(event, Finished):
                raise Stopped("killed", stop.reason or "stopped")  # noqa: TRY301 - as if the consumer had thrown it
            if meter and isinstance(event, EpochEnded):
                tracker.metrics({TRAIN_JOULES: meter.joules}, epoch=event.epoch)
            if isinstance(event, Finished):
                last = {FINAL_THROUGHPUT: checkpoints.outcome.images_per_second or 0.0}
                if meter:
                    last[ENERGY] = meter.joules
                tracker.metrics(last)
                log_outcome(
                    request.recipe, dataset, event, tracker, folder, seed=request.seed, model=request.keep_model
                )
                if request.profile == "full":
                    log_best_weights(event, tracker, folder)
        end = "finished"
    except GeneratorExit:
        end, reason = "killed", "stopped before its end"
        checkpoints.keep_position(is_last=True)
        raise
    except KeyboardInterrupt:
        # It may have come in the middle of a step, and half a step is not a position to resume from.
        end, reason = "killed", "stopped before its end"
        raise
    except Stopped as stopped:
        end, reason = stopped.end, stopped.reason
        checkpoints.keep_position(is_last=True)
        raise
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise
    finally:
        report = tracker.close(end, reason)
        folder.note_end(end, tracker.run_id)
        # Of a run that is not finished nobody gets the report; another process may deliver what it has taken over.
        if end != "finished" and not report.complete and tracker.uploader.taken_over is None:
            _log.warning("%s: %s", folder.path, report.sentence)
    remove_delivered(folder.path, context.store)
    yield Closed(report, meter.joules if meter else None)


class _Checkpoints:
    """Keeps the position to resume from, what the run has told so far, and the weights of the best epoch."""

    def __init__(
        self,
        prepared: Prepared,
        folder: RunFolder,
        resume_from: State | None,
        stop: Stop,
        uploads: PositionUploads | None,
    ) -> None:
        self._folder, self._stop, self._uploads = folder, stop, uploads
        self._wanted = prepared.request.keep_model
        self._watched = next(iter(prepared.request.recipe.evaluation.splits), None)
        self._last_epoch = prepared.request.recipe.training.epochs
        self._best: float = resume_from["best_accuracy"] if resume_from else -1.0
        told = resume_from.get("told", {}) if resume_from else {}
        self.outcome = Outcome(**{name: told[name] for name in _TOLD if name in told})
        # Times of a run that shared its device once are not those of a run that had it alone.
        self.outcome.sharing = max(self.outcome.sharing, prepared.request.sharing)
        self._best_weights: State | None = None
        self._position: Callable[[], State] | None = None
        self._due_at = 0.0

    def keep(self, event: TrainingEvent) -> None:
        """Hold on to what the event brings, and write it where that is due."""
        update(self.outcome, event)
        self._position = event.snapshot
        if not self._wanted:
            return
        if isinstance(event, Evaluated) and event.split == self._watched and event.accuracy > self._best:
            self._best = event.accuracy
            if event.epoch > 0:
                network = {name: tensor.clone() for name, tensor in event.snapshot()["network"].items()}
                self._best_weights = {"network": network, "epoch": event.epoch, "accuracy": self._best}
        is_due = time.perf_counter() >= self._due_at
        if isinstance(event, EpochEnded) and (is_due or event.epoch == self._last_epoch):
            self.keep_position()

    def keep_position(self, *, is_last: bool = False) -> None:
        """Write the position after the last event, and send it to the artifact store where that is wanted and due."""
        if not self._wanted or self._position is None:
            return
        began = time.perf_counter()
        with self._stop.held_back():
            # The position knows how good the best epoch was, so that its weights have to be there first.
            if self._best_weights is not None:
                checkpoint.save(self._best_weights, self._folder.best_checkpoint)
                self._best_weights = None
            told = {name: getattr(self.outcome, name) for name in _TOLD}
            state = {**self._position(), "best_accuracy": self._best, "told": told}
            checkpoint.save(state, self._folder.last_checkpoint)
        ended = time.perf_counter()
        self._due_at = ended + CHECKPOINT_INTERVAL_FACTOR * (ended - began)
        if self._uploads:
            self._uploads.offer(is_last=is_last)
