"""What a task tells its consumer. Children's events carry no snapshot."""

import copy
from dataclasses import dataclass
from pathlib import Path

from resnet_bench.running.outcome import Outcome
from resnet_bench.tracking.delivery import UploadReport
from resnet_bench.training.events import EpochEnded, Evaluated, Finished, Started
from resnet_bench.training.events import Event as TrainingEvent


class TaskEvent:
    """Base of the events of tasks that are not runs, such as those of a study's workers."""


@dataclass(frozen=True)
class JobStarted:
    """The first event of a task: it has a place."""


@dataclass(frozen=True)
class Opened:
    """The first event of a run: where it is tracked and kept.

    Attributes:
        run_id: MLflow's id; None while the store is unreachable.
        url: Where the run can be seen.
        folder: The run's folder; None for a run that was finished before.
        step: Steps that are done already, where the run is resumed.
        outcome: The result of a run that was finished before and is not trained again; no event of the run follows.
        earlier: What a run that is resumed has told before.
        warm_up_seconds: Spent on steps that no clock of the run covers.
        device: Where it runs, for a person.
        generated: Whether its images are generated.
        official: Whether its images are the dataset's published ones.
    """

    run_id: str | None
    url: str
    folder: Path | None
    step: int = 0
    outcome: Outcome | None = None
    earlier: Outcome | None = None
    warm_up_seconds: float = 0.0
    device: str = ""
    generated: bool = False
    official: bool = True


@dataclass(frozen=True)
class Closed:
    """The last event of a run that was trained to its end.

    Attributes:
        upload: What reached the tracking store.
        joules: Consumed by its training steps; None where no counter can be read or the run was resumed.
    """

    upload: UploadReport
    joules: float | None = None


@dataclass(frozen=True)
class JobFinished:
    """The last event of a task, however it ended.

    Attributes:
        failure: Why it could not be done, in one sentence.
        interrupted: Whether it was asked to stop.
        device_problem: Why the device takes no more work, so that no task will follow.
    """

    failure: str | None = None
    interrupted: bool = False
    device_problem: str | None = None


Event = JobStarted | Opened | TrainingEvent | Closed | JobFinished | TaskEvent


def update(outcome: Outcome, event: Event) -> None:
    """Add to an outcome what an event of its run tells."""
    match event:
        case Opened(outcome=Outcome() as finished):
            vars(outcome).update(copy.deepcopy(vars(finished)))
            outcome.device, outcome.generated, outcome.official = event.device, event.generated, event.official
        case Opened():
            if event.earlier is not None:
                vars(outcome).update(copy.deepcopy(vars(event.earlier)))
            outcome.run_id, outcome.url, outcome.folder = event.run_id, event.url, str(event.folder or "")
            outcome.warm_up_seconds = event.warm_up_seconds
            outcome.device, outcome.generated, outcome.official = event.device, event.generated, event.official
        case Started() if event.step == 0:
            outcome.setup_seconds = event.setup_seconds
        case Evaluated():
            seconds = outcome.evaluation_seconds_by_epoch
            seconds[event.epoch] = seconds.get(event.epoch, 0.0) + event.seconds
            if event.split != "test":
                return
            outcome.accuracy_by_epoch[event.epoch] = event.accuracy
            outcome.accuracy_standard = event.accuracy_standard
            outcome.accuracy_tta = event.accuracy_tta
        case EpochEnded():
            outcome.epochs, outcome.train_seconds = event.epoch, event.train_seconds
            outcome.throughput_by_epoch.append(event.images_per_second)
        case Finished():
            # A run resumed behind its last evaluation or epoch has no event that tells these but this one.
            outcome.epochs, outcome.train_seconds = event.epoch, event.train_seconds
            outcome.tta_seconds = event.tta_seconds
            outcome.accuracy_standard = event.metrics.get("test/accuracy_standard", outcome.accuracy_standard)
            outcome.accuracy_tta = event.metrics.get("test/accuracy_tta", outcome.accuracy_tta)
        case Closed():
            outcome.not_uploaded = None if event.upload.complete else event.upload.sentence
            outcome.joules = event.joules
        case JobFinished():
            outcome.failure = event.failure
            outcome.interrupted = event.interrupted and event.failure is None
        case _:
            pass
