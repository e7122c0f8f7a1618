"""The result of one run, built from its events (`events.update`) or from the tracking store."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from resnet_bench.base.throughput import settled
from resnet_bench.judging.planned import parse_seeds
from resnet_bench.judging.run_times import RunTimes
from resnet_bench.tracking.vocabulary import ENERGY, EVALUATION_SECONDS, current_metrics, tag

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


@dataclass
class Outcome:
    """The result of one run. Accuracies are fractions, on the test split; times are in seconds."""

    run_id: str | None = None
    url: str = ""
    folder: str = ""
    """The run's folder; only its name where the outcome was read from the store."""
    device: str = ""
    """Where it ran, for a person."""
    generated: bool = False
    """Whether its images were generated."""
    official: bool = True
    """Whether its images were the dataset's published ones."""
    epochs: int = 0
    accuracy_by_epoch: dict[int, float] = field(default_factory=dict)
    """By the source's protocol."""
    accuracy_standard: float | None = None
    """In eval mode, per image, without test-time augmentation."""
    accuracy_tta: float | None = None
    """With test-time augmentation, where the recipe has it."""
    setup_seconds: float = 0.0
    """From images in host memory to the first step."""
    train_seconds: float | None = None
    tta_seconds: float = 0.0
    evaluation_seconds_by_epoch: dict[int, float] = field(default_factory=dict)
    """Of all evaluations after an epoch, without test-time augmentation."""
    warm_up_seconds: float = 0.0
    """Spent on steps that no clock of the run covers."""
    joules: float | None = None
    """Consumed by the training steps; None where no counter can be read."""
    throughput_by_epoch: list[float] = field(default_factory=list)
    """Images/s."""
    planned: frozenset[int] = frozenset()
    """Seeds that were planned with it, where it was read from the store."""
    sharing: int = 1
    """How many runs shared the device, and the times of this one with it."""
    failure: str | None = None
    """Why the run could not be trained to its end, in one sentence."""
    interrupted: bool = False
    not_uploaded: str | None = None
    """What the tracking store has not taken yet, in one sentence."""
    cached: bool = False
    """Finished before, and not trained again."""

    @property
    def accuracy(self) -> float | None:
        """The last test accuracy by the source's protocol."""
        return self.accuracy_by_epoch[max(self.accuracy_by_epoch)] if self.accuracy_by_epoch else None

    @property
    def is_finished(self) -> bool:
        """Whether the run was trained to its end."""
        return self.failure is None and not self.interrupted

    @property
    def times(self) -> RunTimes | None:
        """What its parts took; None before the first epoch has ended."""
        if self.train_seconds is None:
            return None
        evaluated = {epoch: seconds for epoch, seconds in self.evaluation_seconds_by_epoch.items() if epoch > 0}
        is_known = bool(evaluated) and {epoch for epoch in self.accuracy_by_epoch if epoch > 0} <= evaluated.keys()
        return RunTimes(
            self.train_seconds,
            setup=self.setup_seconds or None,
            evaluation=sum(evaluated.values()) if is_known else None,
            tta=self.tta_seconds,
        )

    @property
    def images_per_second(self) -> float | None:
        """The run's throughput."""
        return settled(self.throughput_by_epoch)

    def accuracies(self, metric: str) -> Mapping[int, float]:
        """Return what a claim of this metric is compared with: fractions by epoch."""
        if metric == "accuracy":
            return self.accuracy_by_epoch
        return {} if self.accuracy_tta is None else {self.epochs: self.accuracy_tta}

    @classmethod
    def from_store(cls, run: "Run", client: "MlflowClient", url: str) -> Self:
        """Read the result of a run that was trained to its end.

        Args:
            run: As MLflow has it.
            client: MLflow's client, for what the run has a value per epoch of.
            url: Where the run can be seen.
        """

        def history(key: str) -> dict[int, float]:
            return {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, key)}

        metrics: Mapping[str, float] = current_metrics(run.data.metrics)
        throughput = history("time/images_per_second")
        return cls(
            run_id=run.info.run_id,
            url=url,
            folder=run.data.tags.get(tag("folder"), ""),
            epochs=max(throughput, default=0),
            accuracy_by_epoch=history("test/accuracy"),
            accuracy_standard=metrics.get("final/test_accuracy_standard"),
            accuracy_tta=metrics.get("final/test_accuracy_tta"),
            setup_seconds=metrics.get("time/setup_seconds", 0.0),
            train_seconds=metrics.get("final/train_seconds"),
            tta_seconds=metrics.get("final/tta_seconds", 0.0),
            evaluation_seconds_by_epoch=history(EVALUATION_SECONDS),
            joules=metrics.get(ENERGY),
            throughput_by_epoch=[throughput[epoch] for epoch in sorted(throughput)],
            planned=parse_seeds(run.data.tags.get(tag("planned_seeds"), "")),
            sharing=int(run.data.tags.get("resnet_bench.seeds_per_device", "1")),
            cached=True,
        )
