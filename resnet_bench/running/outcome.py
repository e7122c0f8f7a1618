"""The result of one run, built from its events or from the tracking store."""

from dataclasses import dataclass, field

from resnet_bench.running.run import RunClosed, RunOpened, RunRequest
from resnet_bench.running.run_cache import FinishedRun
from resnet_bench.running.series import JobFinished, SeriesEvent
from resnet_bench.training.events import EpochEnded, Evaluated


@dataclass
class RunResult:
    """What came of one run, for the closing table."""

    request: RunRequest
    url: str = ""
    folder: str = ""
    epochs: int = 0
    accuracy: float | None = None
    """Test accuracy the source's way, a fraction."""
    accuracy_plain: float | None = None
    images_per_second: float | None = None
    train_seconds: float | None = None
    failure: str | None = None
    """Why the run could not be trained to its end, a sentence."""
    interrupted: bool = False
    undelivered: str | None = None
    cached: bool = False
    """Finished before, and not trained again."""
    accuracy_by_epoch: dict[int, float] = field(default_factory=dict)
    accuracy_augmented: float | None = None
    """Test accuracy with test-time augmentation, where the recipe has it."""
    seeds_per_device: int = field(init=False)
    """How many runs shared the device, and the times of this one with it."""

    def __post_init__(self) -> None:
        self.seeds_per_device = self.request.seeds_per_device

    def accuracies(self, metric: str) -> dict[int, float]:
        """What a claim of this metric is held against: fractions by epoch."""
        if metric == "accuracy":
            return self.accuracy_by_epoch
        return {} if self.accuracy_augmented is None else {self.epochs: self.accuracy_augmented}

    def remember(self, finished: FinishedRun) -> None:
        """Take the numbers of a run that was finished before."""
        self.cached, self.url, self.epochs = True, finished.url, finished.epochs
        self.accuracy, self.accuracy_plain = finished.accuracy, finished.accuracy_plain
        self.images_per_second, self.train_seconds = finished.images_per_second, finished.train_seconds
        self.accuracy_by_epoch = dict(finished.accuracy_by_epoch)
        self.accuracy_augmented = finished.accuracy_augmented
        self.seeds_per_device = finished.seeds_per_device

    def take(self, event: SeriesEvent) -> None:
        """Remember what the table will show."""
        match event:
            case RunOpened():
                self.url, self.folder = event.url, str(event.folder)
            case Evaluated(split="test"):
                self.accuracy, self.accuracy_plain = event.accuracy, event.accuracy_plain
                self.accuracy_by_epoch[event.epoch] = event.accuracy
                self.accuracy_augmented = event.accuracy_augmented
            case EpochEnded():
                self.epochs, self.images_per_second = event.epoch, event.images_per_second
                self.train_seconds = event.train_seconds
            case RunClosed():
                self.undelivered = None if event.shipping.complete else event.shipping.sentence
            case JobFinished():
                self.failure = event.failure
                self.interrupted = event.interrupted and event.failure is None
