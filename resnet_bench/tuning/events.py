"""What a study tells whoever iterates over it.

Accuracies are fractions between 0 and 1, times are in seconds, trials are counted from 0 as Optuna does. An epoch
counts over all seeds of a trial.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from resnet_bench.tuning.results import StudyResult
from resnet_bench.tuning.space import Params
from resnet_bench.tuning.trial_queue import Arm, TrialEnd, is_interrupted

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class TrialStarted:
    """A trial begins to train."""

    number: int
    settings: Params
    is_source: bool


@dataclass(frozen=True)
class TrialReported:
    """A trial was scored on the validation split."""

    number: int
    epoch: int
    accuracy: float


@dataclass(frozen=True)
class TrialEnded:
    """A trial is over."""

    number: int
    settings: Params
    is_source: bool
    state: TrialEnd | Literal["INTERRUPTED"]
    values: tuple[float, ...] = ()
    epoch: int = 0
    reason: str | None = None
    seconds: float = 0.0

    @classmethod
    def of(cls, trial: "FrozenTrial") -> "TrialEnded":
        """What Optuna says of a finished trial."""
        interrupted = is_interrupted(trial)
        duration = trial.duration
        return cls(
            number=trial.number,
            settings=trial.params,
            is_source="source" in trial.user_attrs,
            state="INTERRUPTED" if interrupted else trial.state.name,  # type: ignore[arg-type]  # one of TrialEnd
            values=tuple(trial.values or ()),
            epoch=trial.last_step or 0,
            reason="it is run again" if interrupted else trial.user_attrs.get("reason"),
            seconds=duration.total_seconds() if duration else 0.0,
        )


@dataclass(frozen=True)
class StudyOpened:
    """Sent once, before the first trial."""

    name: str
    url: str
    """The parent run's page in MLflow."""
    wanted: int
    """Trials of the budget."""
    earlier: tuple[TrialEnded, ...]
    """Those of them that an earlier run of the study has finished."""


@dataclass(frozen=True)
class RetrainingStarted:
    """The best and the source's settings are about to be trained again."""

    best: int
    """The trial whose settings were the best."""
    runs: int
    """Runs that are left to do."""


@dataclass(frozen=True)
class Retrained:
    """One of the final runs is over."""

    arm: Arm
    seed: int
    accuracy: float | None
    """On the test set; None where the run failed."""
    reason: str | None = None


@dataclass(frozen=True)
class StudyFinished:
    """The last event."""

    result: StudyResult


StudyEvent = StudyOpened | TrialStarted | TrialReported | TrialEnded | RetrainingStarted | Retrained | StudyFinished
