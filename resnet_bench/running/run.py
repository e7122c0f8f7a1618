"""One run in this process: training, watched by the tracker and written to checkpoints."""

import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from resnet_bench.data.dataset import Dataset
from resnet_bench.execution.execution import Execution
from resnet_bench.measure.energy import EnergyMeter
from resnet_bench.measure.peaks import peak_flops
from resnet_bench.recipe.benchmark import Benchmark, ProfileName
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.running.artifacts import log_outcome, log_recipe
from resnet_bench.running.run_folder import RunFolder, RunIdentity
from resnet_bench.running.stopping import Stop, Stopped
from resnet_bench.tracking.delivery import UploadReport
from resnet_bench.tracking.environment import code_fingerprint
from resnet_bench.tracking.facts import RunDescription
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.tracker import Tracker
from resnet_bench.training import checkpoint
from resnet_bench.training.events import EndReason, EpochEnded, Evaluated, Event, Finished, State, Steps
from resnet_bench.training.loop import train

CHECKPOINT_INTERVAL_FACTOR = 20.0
"""As many times as a checkpoint took to write, none is written that need not be: a GPU may be done with an epoch before
the disk is. A run that is killed loses that much, and an epoch if that is longer."""


@dataclass(frozen=True)
class RunRequest:
    """One recipe × one seed × one execution."""

    benchmark: Benchmark
    recipe: Recipe
    profile: ProfileName
    seed: int
    execution: Execution
    role: str = "run"
    """``run``, ``trial`` or ``retrain``."""
    run_name: str | None = None
    experiment: str = "resnet-bench"
    parent_run_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    resume: bool = False
    """Go on with an unfinished run of the same experiment, where there is one."""
    again: bool = False
    """With ``resume``: runs that are finished do not count, because who asks has looked for them elsewhere."""
    keep_model: bool = True
    """Write checkpoints and log the model; a study's trials do without."""
    seeds_per_device: int = 1
    """As many runs share the device at a time, so that the times of each say nothing about it alone."""


@dataclass(frozen=True)
class RunOpened:
    """The first event of a run: where it is tracked and kept."""

    run_id: str | None
    """None while the tracking store is away."""
    url: str
    folder: Path
    resumed_at_step: int = 0
    already_finished: bool = False


@dataclass(frozen=True)
class RunClosed:
    """The last event of a run that was trained to its end: what tracking did with it."""

    shipping: UploadReport


def run(
    request: RunRequest,
    dataset: Dataset,
    store: Store,
    *,
    runs_folder: Path,
    stop: Stop | None = None,
) -> Generator[Event | RunOpened | RunClosed, None, None]:
    """Train, track and keep one run.

    To stop it, close the generator, throw :class:`Stopped` into it, or set ``stop``: the position is
    checkpointed, and the run is marked in the tracking store.

    Yields:
        ``RunOpened``, the events of :func:`resnet_bench.training.loop.train`, and ``RunClosed``. A run that is
        resumed and turns out to be finished yields ``RunOpened`` alone.

    Raises:
        Stopped: ``stop`` was set; the checkpoint is written.
        TrainingError: Training cannot go on; the run is marked failed, with the reason.
        UserError: The checkpoint or the images do not fit the recipe.
    """
    identity = RunIdentity(
        benchmark=request.benchmark.name,
        profile=request.profile,
        seed=request.seed,
        fingerprint=request.recipe.fingerprint,
        data_fingerprint=dataset.fingerprint,
        role=request.role,
        execution=request.execution.rounding,
        code=f"{code_fingerprint()} torch {torch.__version__}",
    )
    found = RunFolder.find(runs_folder, identity, finished=not request.again) if request.resume else None
    folder = found or RunFolder.create(runs_folder, identity)
    try:
        if folder.is_finished:
            url = store.run_url(folder.run_id) if folder.run_id else ""
            yield RunOpened(folder.run_id, url, folder.path, already_finished=True)
            return
        yield from _tracked(request, dataset, store, folder, Stop() if stop is None else stop)
    finally:
        folder.release()


def _tracked(
    request: RunRequest, dataset: Dataset, store: Store, folder: RunFolder, stop: Stop
) -> Generator[Event | RunOpened | RunClosed, None, None]:
    resume_from = checkpoint.load(folder.last_checkpoint) if folder.last_checkpoint.is_file() else None
    resumed_at_step = int(resume_from["position"]["step"]) if resume_from else 0
    tracker = Tracker.open(
        store,
        describe(request, dataset, folder=folder.path.name),
        folder.path,
        resume_run_id=folder.run_id,
        resume_step=resumed_at_step if resume_from else None,
    )
    checkpoints = _Checkpoints(request, folder, resume_from)
    end: EndReason = "failed"
    reason: str | None = None
    try:
        folder.update(status="running", run_id=tracker.run_id)
        if resume_from is None:
            log_recipe(request.benchmark, request.recipe, tracker)
        yield RunOpened(tracker.run_id, tracker.url, folder.path, resumed_at_step=resumed_at_step)
        has_device_alone = request.seeds_per_device == 1
        if has_device_alone:
            tracker.metrics({"device/peak_flops": peak_flops(request.execution)}, epoch=0)
        meter = EnergyMeter.of(request.execution) if has_device_alone and not resume_from else None
        events = train(request.recipe, request.execution, request.seed, dataset, resume=resume_from)
        for event in meter.watch(events, Steps) if meter else events:
            tracker.record(event)
            checkpoints.keep(event)
            yield event
            if stop and not isinstance(event, Finished):
                raise Stopped("killed", stop.reason or "stopped")  # noqa: TRY301 - as if the consumer had thrown it
            if isinstance(event, Finished):
                if meter:
                    tracker.metrics({"energy/joules": meter.joules}, epoch=event.epoch)
                log_outcome(
                    request.recipe, dataset, event, tracker, folder, seed=request.seed, model=request.keep_model
                )
        end = "finished"
    except GeneratorExit:
        end, reason = "killed", "stopped before its end"
        checkpoints.keep_position()
        raise
    except KeyboardInterrupt:
        # It may have come in the middle of a step, and half a step is no position to go on from.
        end, reason = "killed", "stopped before its end"
        raise
    except Stopped as stopped:
        end, reason = stopped.end, stopped.reason
        checkpoints.keep_position()
        raise
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise
    finally:
        report = tracker.close(end, reason)
        folder.note_end(end, tracker.run_id)
    yield RunClosed(report)


class _Checkpoints:
    """Keeps the position to go on from, and the weights of the best epoch."""

    def __init__(self, request: RunRequest, folder: RunFolder, resume_from: State | None) -> None:
        self._folder = folder
        self._wanted = request.keep_model
        self._watched = next(iter(request.recipe.evaluation.splits), None)
        self._last_epoch = request.recipe.training.epochs
        self._best: float = resume_from["best_accuracy"] if resume_from else -1.0
        self._best_weights: State | None = None
        self._position: Callable[[], State] | None = None
        self._due_at = 0.0

    def keep(self, event: Event) -> None:
        """Hold on to what the event brings, and write it where that is due."""
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

    def keep_position(self) -> None:
        """Write the position after the last event."""
        if not self._wanted or self._position is None:
            return
        began = time.perf_counter()
        # The position knows how good the best epoch was, so that its weights have to be there first.
        if self._best_weights is not None:
            checkpoint.save(self._best_weights, self._folder.best_checkpoint)
            self._best_weights = None
        checkpoint.save({**self._position(), "best_accuracy": self._best}, self._folder.last_checkpoint)
        ended = time.perf_counter()
        self._due_at = ended + CHECKPOINT_INTERVAL_FACTOR * (ended - began)


def describe(request: RunRequest, dataset: Dataset, *, folder: str | None = None) -> RunDescription:
    """A request as the tracking store will hold it.

    Args:
        request: The run.
        dataset: Its images.
        folder: Name of the run's folder, once it has one.
    """
    return RunDescription(
        benchmark=request.benchmark,
        recipe=request.recipe,
        profile=request.profile,
        seed=request.seed,
        execution=request.execution.asdict(),
        device_name=request.execution.device_name,
        dataset_name=dataset.name,
        data_source=dataset.source,
        data_fingerprint=dataset.fingerprint,
        generated=dataset.generated,
        role=request.role,
        run_name=request.run_name or f"{request.benchmark.name} seed {request.seed}",
        experiment=request.experiment,
        parent_run_id=request.parent_run_id,
        seeds_per_device=request.seeds_per_device,
        tags={**request.tags, **({"resnet_bench.folder": folder} if folder else {})},
    )
