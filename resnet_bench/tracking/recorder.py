"""What the events of a run measure, as records for its journal."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from resnet_bench.judging.target import TargetMonitor
from resnet_bench.tracking import vocabulary as names
from resnet_bench.tracking.facts import RunFacts
from resnet_bench.tracking.journal import Axis, Entry, Record, last_steps, metrics_record

if TYPE_CHECKING:
    from resnet_bench.training.events import EpochEnded, Evaluated, Event, Finished, Started


MAX_STEP_VALUES = 2500
"""Values per step that a server gets of a run's metric: as many as MLflow's pages draw. The journal has all."""


class Recorder:
    """Turns events into records; values that a store may have already are left out."""

    def __init__(self, description: RunFacts) -> None:
        """Begin a run at its beginning."""
        self._last_steps: dict[str, int] = {}
        self._evaluation_seconds: dict[int, float] = {}
        self._claims = _claim_watches(description)
        recipe = description.recipe
        self._every = max(1, -(-recipe.steps_per_epoch * recipe.training.epochs // MAX_STEP_VALUES))

    def catch_up(self, entries: Sequence[Entry], epoch: int) -> None:
        """Take note of what a resumed run's journal holds.

        Args:
            entries: The journal's records.
            epoch: The last epoch that was finished at the checkpoint.
        """
        # What the store has cannot be taken back, and a second value for a step would be a lie: the first stays.
        self._last_steps = last_steps(entries)
        self._claims = {key: watch for key, watch in self._claims.items() if key not in self._last_steps}
        for entry in entries:
            record = entry.record
            if record["kind"] == "metrics" and record["axis"] == "epoch" and record["first_step"] <= epoch:
                for key, values in record["values"].items():
                    split, _, metric = names.current_metric(key).partition("/")
                    if metric in ("accuracy", "accuracy_tta"):
                        self._watch_claims(split, values[0], metric)

    def records(self, event: "Event") -> Iterator[Record]:
        """Yield what an event measured."""
        # Importing it above would import torch, which the verbs that only look at runs do without.
        from resnet_bench.training.events import EpochEnded, Evaluated, Started, Steps

        now = now_ms()
        if isinstance(event, Steps):
            values = {names.STEP_LOSS: event.losses, names.LEARNING_RATE: event.learning_rates}
            for record in self.metrics("step", event.first_step, values, timestamp=now, seconds=event.seconds):
                yield {**record, "every": self._every} if self._every > 1 else record
        elif isinstance(event, Evaluated):
            yield from self._evaluation(event, now)
        elif isinstance(event, EpochEnded):
            yield from self._epoch(event, now)
        elif isinstance(event, Started):
            yield from self._start(event, now)
        else:
            yield from self._end(event, now)

    def sample(self, values: Mapping[str, float]) -> Iterator[Record]:
        """Yield a sample of the machine's state, behind those before it."""
        step = 1 + max((self._last_steps.get(key, -1) for key in values), default=-1)
        yield from self.metrics("sample", step, _single(values), timestamp=now_ms())

    def metrics(
        self,
        axis: Axis,
        first_step: int,
        values: Mapping[str, Sequence[float]],
        *,
        timestamp: int,
        seconds: float = 0.0,
    ) -> Iterator[Record]:
        """Yield metrics at consecutive steps, without those that were measured before a run was resumed.

        Args:
            axis: What the steps count.
            first_step: The step of the first value.
            values: A list of values per metric.
            timestamp: When the last value was measured, milliseconds since 1970.
            seconds: How long the steps took together.
        """
        known = {key: max(0, self._last_steps.get(key, -1) - first_step + 1) for key in values}
        for skip in sorted(set(known.values())):
            fresh = {key: list(series[skip:]) for key, series in values.items() if known[key] == skip < len(series)}
            for key, series in fresh.items():
                self._last_steps[key] = first_step + skip + len(series) - 1
            if fresh:
                share = 1 - skip / len(next(iter(values.values())))
                yield metrics_record(axis, first_step + skip, fresh, timestamp=timestamp, seconds=seconds * share)

    def final(self, values: Mapping[str, float], *, timestamp: int) -> Iterator[Record]:
        """Yield values of the whole run, at step 0: there MLflow draws bars, elsewhere a curve of one point."""
        shown = {key: names.rounded(key, value) for key, value in values.items()}
        yield from self.metrics("epoch", 0, _single(shown), timestamp=timestamp)

    def rest(self) -> Iterator[Record]:
        """Yield what waits for the end of an epoch that will not come."""
        for epoch, seconds in self._evaluation_seconds.items():
            yield from self.metrics("epoch", epoch, {names.EVALUATION_SECONDS: [float(seconds)]}, timestamp=now_ms())
        self._evaluation_seconds.clear()

    # --- events ------------------------------------------------------------------------------------

    def _start(self, event: "Started", now: int) -> Iterator[Record]:
        tags = {"parameters": str(event.parameters), "macs": str(event.macs)}
        if event.captures:
            tags["cuda_graphs"] = str(event.captures)
        yield tags_record(tags)
        yield from self.metrics("sample", 0, {names.SETUP_SECONDS: [event.setup_seconds]}, timestamp=now)

    def _evaluation(self, event: "Evaluated", now: int) -> Iterator[Record]:
        measured = {
            "accuracy": event.accuracy,
            "accuracy_standard": event.accuracy_standard,
            "loss": event.loss,
            "loss_standard": event.loss_standard,
        }
        if event.accuracy_tta is not None:
            measured["accuracy_tta"] = event.accuracy_tta
        values = {names.split_metric(event.split, name): value for name, value in measured.items()}
        yield from self.metrics("epoch", event.epoch, _single(values), timestamp=now)
        self._evaluation_seconds[event.epoch] = self._evaluation_seconds.get(event.epoch, 0.0) + event.seconds
        for name in ("accuracy", "accuracy_tta"):
            if name in measured:
                self._watch_claims(event.split, measured[name], name)

    def _epoch(self, event: "EpochEnded", now: int) -> Iterator[Record]:
        values = {
            names.TRAIN_LOSS: event.loss,
            names.TRAIN_LOSS_MEAN: event.loss_mean,
            names.TRAIN_ACCURACY: event.accuracy,
            names.EPOCH_SECONDS: event.seconds,
            names.TRAIN_SECONDS: event.train_seconds,
            names.THROUGHPUT: event.images_per_second,
        }
        if event.peak_memory_bytes is not None:
            values[names.PEAK_MEMORY] = event.peak_memory_bytes
        yield from self.metrics("epoch", event.epoch, _single(values), timestamp=now)
        yield from self.rest()
        self._watch_claims("train", event.accuracy)
        yield from self._reached_claims(event.epoch, event.train_seconds, now)

    def _end(self, event: "Finished", now: int) -> Iterator[Record]:
        values = {}
        for key, value in event.metrics.items():
            split, _, name = key.partition("/")
            values[names.final_metric(split, name)] = value
        values[names.FINAL_TRAIN_SECONDS] = event.train_seconds
        values[names.FINAL_EVALUATION_SECONDS] = event.evaluation_seconds
        if event.tta_seconds:
            values[names.FINAL_TTA_SECONDS] = event.tta_seconds
        yield from self.final(values, timestamp=now)
        yield from self.rest()
        yield from self._reached_claims(event.epoch, event.train_seconds, now)

    def _watch_claims(self, split: str, accuracy: float, metric: str = "accuracy") -> None:
        for watch in self._claims.values():
            watch.evaluated(split, accuracy, metric)

    def _reached_claims(self, epoch: int, train_seconds: float, now: int) -> Iterator[Record]:
        reached = [key for key, watch in self._claims.items() if watch.held]
        for key in reached:
            del self._claims[key]
        if reached:
            yield from self.metrics("epoch", epoch, _single(dict.fromkeys(reached, train_seconds)), timestamp=now)


def tags_record(tags: Mapping[str, str]) -> Record:
    """Return a record of tags; a name without a dot gets our prefix."""
    return {"kind": "tags", "values": names.stored_tags(tags)}


def now_ms() -> int:
    """Return milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def _single(values: Mapping[str, float]) -> dict[str, list[float]]:
    return {key: [float(value)] for key, value in values.items()}


def _claim_watches(description: RunFacts) -> dict[str, TargetMonitor]:
    """For each claim the metric that will say when it was reached."""
    if not description.judges_claims:
        return {}
    return {
        names.to_claim_seconds(number): TargetMonitor(claim, description.recipe)
        for number, claim in enumerate(description.benchmark.claims, start=1)
    }
