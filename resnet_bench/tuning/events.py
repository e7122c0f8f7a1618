"""What a study tells its consumer.

Accuracies are fractions between 0 and 1, times are in seconds, trials are counted from 0 as Optuna does. An epoch
counts over all seeds of a trial.
"""

from dataclasses import dataclass
from typing import Literal

from optuna.trial import FrozenTrial

from resnet_bench.running.events import TaskEvent
from resnet_bench.tuning.results import StudyResult
from resnet_bench.tuning.space import Params
from resnet_bench.tuning.stored_study import Arm, is_interrupted, is_source, trained_epochs
from resnet_bench.tuning.trial_queue import TrialEnd


@dataclass(frozen=True)
class TrialStarted(TaskEvent):
    """A trial begins to train."""

    number: int
    params: Params
    is_source: bool


@dataclass(frozen=True)
class TrialProgressed(TaskEvent):
    """A trial trains; sent now and then within an epoch."""

    number: int
    epochs: float
    """Epochs trained so far, with the fraction of the one in progress."""


@dataclass(frozen=True)
class TrialReported(TaskEvent):
    """A trial was scored on the validation split."""

    number: int
    epoch: int
    accuracy: float


@dataclass(frozen=True)
class TrialEnded(TaskEvent):
    """A trial is over."""

    number: int
    params: Params
    is_source: bool
    state: TrialEnd | Literal["INTERRUPTED"]
    values: tuple[float, ...] = ()
    epoch: int = 0
    """Epochs trained."""
    reason: str | None = None
    seconds: float = 0.0

    @classmethod
    def of(cls, trial: FrozenTrial) -> "TrialEnded":
        """Describe a finished trial of Optuna."""
        interrupted = is_interrupted(trial)
        duration = trial.duration
        return cls(
            number=trial.number,
            params=trial.params,
            is_source=is_source(trial),
            state="INTERRUPTED" if interrupted else trial.state.name,  # type: ignore[arg-type]  # one of TrialEnd
            values=tuple(trial.values or ()),
            epoch=trained_epochs(trial),
            reason="it is run again" if interrupted else trial.user_attrs.get("reason"),
            seconds=duration.total_seconds() if duration else 0.0,
        )


@dataclass(frozen=True)
class SpaceExhausted(TaskEvent):
    """Every point of the search space was tried, so that the study ends before its budget."""

    wanted: int
    """Trials that the study has in place of its budget."""


@dataclass(frozen=True)
class StudyOpened(TaskEvent):
    """Sent once, before the first trial."""

    name: str
    url: str
    """The parent run's page in MLflow."""
    wanted: int
    """Trials of the budget."""
    earlier: tuple[TrialEnded, ...]
    """Those of them that were finished before."""


@dataclass(frozen=True)
class RetrainingStarted(TaskEvent):
    """The best and the source hyperparameters are about to be retrained."""

    best: int
    """The trial with the best hyperparameters."""
    runs: int
    """Runs that are left to do."""


@dataclass(frozen=True)
class RetrainingProgressed(TaskEvent):
    """A retraining run trains; sent now and then within an epoch."""

    arm: Arm
    seed: int
    epochs: float
    """Epochs trained so far, with the fraction of the one in progress."""


@dataclass(frozen=True)
class Retrained(TaskEvent):
    """A retraining run is over."""

    arm: Arm
    seed: int
    accuracy: float | None
    """On the test set; None where the run failed."""
    reason: str | None = None


@dataclass(frozen=True)
class StudyFinished(TaskEvent):
    """The last event."""

    result: StudyResult


WorkEvent = (
    TrialStarted | TrialProgressed | TrialReported | TrialEnded | RetrainingStarted | RetrainingProgressed | Retrained
)
"""What a worker tells."""
StudyEvent = StudyOpened | WorkEvent | SpaceExhausted | StudyFinished
