"""A study from its first trial to its result, as a generator of events. To stop it, stop iterating."""

import logging
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

from resnet_bench.base.describe_error import describe_error
from resnet_bench.base.errors import UserError
from resnet_bench.data.dataset import Dataset, generate_dataset, load_dataset
from resnet_bench.execution.choices import PrecisionChoice
from resnet_bench.execution.execution import Execution
from resnet_bench.recipe.settings import DatasetName
from resnet_bench.running.stopping import Stop, Stopped
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.uploader import flush_all
from resnet_bench.tuning.artifacts import write_artifacts
from resnet_bench.tuning.events import StudyEvent, StudyFinished, StudyOpened
from resnet_bench.tuning.mlflow_sync import MlflowSync
from resnet_bench.tuning.plan import Plan
from resnet_bench.tuning.results import StudyResult, study_result
from resnet_bench.tuning.storage import StudyStorage
from resnet_bench.tuning.trial import WorkerContext
from resnet_bench.tuning.trial_queue import TrialQueue
from resnet_bench.tuning.watch import Watch
from resnet_bench.tuning.worker import work

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Images:
    """How each process of a study finds its images.

    Attributes:
        dataset: ``cifar10`` or ``cifar100``.
        folder: The data folder.
        allow_generated: Make images up where there are none.
        generated: Make this many training and test images up, whatever there is.
    """

    dataset: DatasetName
    folder: Path
    allow_generated: bool = False
    generated: tuple[int, int] | None = None

    def load(self, progress: Callable[[str], None] | None = None) -> Dataset:
        """The images.

        Raises:
            UserError: There are none.
        """
        if self.generated is not None:
            train, test = self.generated
            return generate_dataset(self.dataset, train_size=train, test_size=test, seed=0)
        return load_dataset(self.dataset, self.folder, allow_generated=self.allow_generated, progress=progress)


@dataclass(frozen=True)
class StudyRequest:
    """One study, and where and how it is run.

    Attributes:
        plan: The study in its profile.
        name: Its name in the storage; a study of that name is taken up where it stopped.
        storage: Where Optuna keeps the trials.
        store: Where MLflow keeps the runs.
        images: How to find the images.
        runs_folder: Folder of the runs' journals; the study has one of its own in it.
        device: As on the command line.
        precision: As on the command line.
        deterministic: Whether the same seed must give the same bits.
        workers: Processes that share the work; 1 works in this one.
    """

    plan: Plan
    name: str
    storage: StudyStorage
    store: Store
    images: Images
    runs_folder: Path
    device: str = "auto"
    precision: PrecisionChoice = "auto"
    deterministic: bool = False
    workers: int = 1

    def execution(self, threads: int | None = None) -> Execution:
        """How runs are executed in this process."""
        return Execution.resolve(self.device, self.precision, deterministic=self.deterministic, threads=threads)

    @property
    def study_folder(self) -> Path:
        """The folder of the study's runs."""
        return self.runs_folder / "studies" / self.name


def run_study(request: StudyRequest, dataset: Dataset, stop: Stop | None = None) -> Generator[StudyEvent, None, None]:
    """Run a study, or go on with it, to its budget's number of finished trials and the comparison at its end.

    Args:
        request: What to run.
        dataset: The images, loaded.
        stop: Set by whoever wants the study to stop; the trial in progress is then queued again.

    Raises:
        Stopped: ``stop`` was set.
        UserError: The study does not fit the one of its name in the storage, its tracking store is away, or
            the source's own settings cannot be trained.
    """
    from resnet_bench.tuning.workers import supervise

    # A request that nothing is asked of yet is false.
    stop = Stop() if stop is None else stop
    execution = request.execution()
    request.store.prepare()
    storage = request.storage.open()
    ledger = TrialQueue.begin(request.name, request.plan, storage, dataset)
    mirror = MlflowSync.open(request.store, ledger, request.plan, dataset, execution)
    workplace = WorkerContext(
        plan=request.plan,
        ledger=ledger,
        mirror=mirror,
        dataset=dataset,
        store=request.store,
        execution=execution,
        runs_folder=request.study_folder,
        stop=stop,
    )
    status, reason = "FAILED", None
    try:
        _tidy_up(workplace)
        watch = Watch(ledger)
        yield StudyOpened(ledger.name, mirror.url, request.plan.study.budget.trials, watch.earlier)
        deadline = _deadline(request.plan)
        if request.workers > 1:
            yield from supervise(request, ledger, watch, stop, deadline)
        else:
            yield from watch.joined(work(workplace, deadline))
        _tidy_up(workplace)
        result = _conclude(workplace)
        status = "FINISHED"
    except (GeneratorExit, KeyboardInterrupt, Stopped) as error:
        status, reason = "KILLED", str(error) or "stopped before its end"
        raise
    except Exception as error:
        reason = describe_error(error)
        raise
    finally:
        ledger.interrupt_own()
        mirror.reconcile()
        mirror.close(status, reason)
    yield StudyFinished(result)


def _deadline(plan: Plan) -> float | None:
    seconds = plan.study.budget.wall_seconds
    return None if seconds is None else time.monotonic() + seconds


def _tidy_up(workplace: WorkerContext) -> None:
    """Notice trials whose process is gone, deliver what is undelivered, and let MLflow say what Optuna says."""
    workplace.ledger.recover()
    if workplace.runs_folder.is_dir():
        flush_all(workplace.store, workplace.runs_folder, say=_log.debug)
    workplace.mirror.reconcile()
    workplace.mirror.show_progress()


def _conclude(workplace: WorkerContext) -> StudyResult:
    """Take the result from the ledger and log it."""
    result = study_result(workplace.ledger, url=workplace.mirror.url)
    if result is None:
        raise UserError(f"study {workplace.ledger.name}: the time was up before the source's own settings were through")
    metrics = {
        "study/best_validation_accuracy": result.best_validation,
        "study/source_validation_accuracy": result.source_validation,
    }
    tags = {"best_trial": str(result.best_number)}
    difference = result.comparison.difference if result.comparison is not None else None
    if difference is not None:
        metrics["study/test_difference"] = difference.value
        if difference.interval is not None:
            metrics["study/test_difference_low"] = difference.interval.low
            metrics["study/test_difference_high"] = difference.interval.high
    workplace.mirror.log(metrics, step=result.counts.finished)
    workplace.mirror.tag(tags)
    folder = workplace.runs_folder / "artifacts"
    write_artifacts(workplace.ledger, result, folder)
    workplace.mirror.log_folder(folder)
    return result
