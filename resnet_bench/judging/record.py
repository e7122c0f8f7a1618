"""Decide whether a recipe holds the accuracy that it claims: the protocol of docs/records.md, over plain numbers."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from resnet_bench.base.errors import UserError
from resnet_bench.base.text import plural
from resnet_bench.judging.intervals import Interval, mean_interval, outcome, prediction_interval, welch
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.claims import Claim
from resnet_bench.recipe.recipe import Recipe

MIN_SEEDS = {"cpu": 10, "cuda": 200, "mps": 10}
"""Fewer seeds cannot resolve tenths of a percentage point."""
MAX_SEEDS = 4096
MARGIN = 0.1
"""Percentage points within which a repeat is the same as the record: records are told apart in tenths."""
TIME_FACTOR = 1.25
"""By how much a repeat's speedup may fall short: another machine has other caches, cores and neighbors."""


@dataclass(frozen=True)
class RecordVerdict:
    """Whether a record holds.

    Attributes:
        target: What the lower confidence bound has to reach, in percent.
        accuracies: Of every seed that was named beforehand, in percent; None where its run failed.
        min_seeds: Seeds that the protocol asks for.
    """

    target: float
    accuracies: tuple[float | None, ...]
    min_seeds: int

    @property
    def finished(self) -> list[float]:
        """Accuracies of the runs that were trained to their end."""
        return [accuracy for accuracy in self.accuracies if accuracy is not None]

    @property
    def failed(self) -> int:
        """Runs that failed. They count: there is no record with one."""
        return len(self.accuracies) - len(self.finished)

    @property
    def interval(self) -> Interval | None:
        """90% CI of the mean, whose lower end is that of the one-sided 95% CI."""
        return mean_interval(self.finished, confidence=0.90)

    @property
    def is_enough(self) -> bool:
        """Whether there are as many seeds as the protocol asks for."""
        return len(self.accuracies) >= self.min_seeds

    @property
    def holds(self) -> bool:
        """Whether the claim holds by the protocol."""
        interval = self.interval
        return self.is_enough and not self.failed and interval is not None and interval.low >= self.target

    @property
    def sentence(self) -> str:
        """The verdict, for a person."""
        if self.failed:
            return f"no record: {self.failed} of {len(self.accuracies)} runs failed"
        interval = self.interval
        if interval is None:
            return "no record: one seed has no interval"
        found = (
            f"mean {statistics.fmean(self.finished):.3f}% over {len(self.finished)} seeds, the lower end of the "
            f"one-sided 95% interval is {interval.low:.3f}%, the target {self.target:g}%"
        )
        if not self.is_enough:
            return f"not judged, {self.min_seeds} seeds are the least: {found}"
        return f"{'the record holds' if self.holds else 'no record'}: {found}"


def judge_record(claim: Claim, accuracies: Sequence[float | None], device_type: str) -> RecordVerdict:
    """Judge a record.

    Args:
        claim: What the recipe claims, a lower bound.
        accuracies: Of every seed that was named beforehand, in percent; None where its run failed.
        device_type: Where it was trained: ``cpu``, ``cuda`` or ``mps``.

    Raises:
        UserError: The claim is not a lower bound.
    """
    if claim.at_least is None:
        raise UserError(f"a record is judged by a claim with at_least = …; {claim.text} is not a lower bound")
    return RecordVerdict(claim.at_least, tuple(accuracies), MIN_SEEDS[device_type])


def whole_training_seconds(recipe: Recipe, seconds: Sequence[float]) -> float:
    """Estimate how long the whole training of a recipe takes, from the median of some steps; the first are warm-up.

    Args:
        recipe: The recipe.
        seconds: Of each of its first steps, at least one.
    """
    warm = seconds[len(seconds) // 4 :]
    return statistics.median(warm) * recipe.steps_per_epoch * recipe.training.epochs


def claim_of(benchmark: Benchmark) -> Claim:
    """Return the claim that a record is about.

    Raises:
        UserError: The benchmark claims no bound on the test set, or its recipe breaks the protocol.
    """
    claim = next((claim for claim in benchmark.claims if claim.split == "test" and claim.at_least is not None), None)
    if claim is None:
        raise UserError(
            f"benchmark {benchmark.name} has no record to check: it needs a claim such as "
            '[[claims]] at_least = 90.0, metric = "accuracy_tta"'
        )
    for problem in _breaches(benchmark.recipe, claim):
        raise UserError(f"benchmark {benchmark.name} cannot hold a record: {problem}")
    return claim


def _breaches(recipe: Recipe, claim: Claim) -> Iterator[str]:
    data, evaluation = recipe.data, recipe.evaluation
    if claim.selection != "last":
        yield f'selection = "{claim.selection}"; the protocol takes the last epoch, not a better one'
    if evaluation.mode != "eval":
        yield 'evaluation.mode = "batch_statistics" uses statistics of the test images; write "eval"'
    if data.test_images is not None:
        yield "data.test_images leaves test images out; all 10,000 count"
    if not evaluation.test_at_end and "test" not in evaluation.splits:
        yield "the test set is never evaluated; write evaluation.test_at_end = true"
    if recipe.model.options.get("pretrained"):
        yield "model.options.pretrained brings weights that were trained elsewhere"


# --- a repeat by somebody else --------------------------------------------------------------------


@dataclass(frozen=True)
class Repeat:
    """A record, and some of its seeds trained again elsewhere.

    Attributes:
        stated: Accuracies of the record's finished runs, in percent.
        repeated: Accuracies of the repeat, in percent; None where a run failed.
        stated_speedup: How many times as long the record's baseline took; None without a baseline.
        repeated_speedup: Likewise where it was repeated; None where it was not timed.
    """

    stated: tuple[float, ...]
    repeated: tuple[float | None, ...]
    stated_speedup: float | None = None
    repeated_speedup: float | None = None

    @property
    def finished(self) -> list[float]:
        """Accuracies of the repeat's finished runs."""
        return [accuracy for accuracy in self.repeated if accuracy is not None]

    @property
    def prediction(self) -> Interval | None:
        """95% prediction interval of the mean of as many further runs as the repeat has."""
        return prediction_interval(self.stated, future_runs=max(1, len(self.repeated)))

    @property
    def accuracy_agrees(self) -> bool:
        """Whether the repeat's mean lies in the prediction interval, or is the same to within ``MARGIN``."""
        if len(self.finished) < len(self.repeated) or self.prediction is None:
            return False
        same = outcome(welch(self.stated, self.finished), None, MARGIN) == "same"
        return same or self.prediction.low <= statistics.fmean(self.finished) <= self.prediction.high

    @property
    def time_agrees(self) -> bool | None:
        """Whether the speedup holds to within ``TIME_FACTOR``; None where it cannot be compared."""
        if self.stated_speedup is None or self.repeated_speedup is None:
            return None
        return self.repeated_speedup >= self.stated_speedup / TIME_FACTOR

    @property
    def agrees(self) -> bool:
        """Whether nothing of the repeat contradicts the record."""
        return self.accuracy_agrees and self.time_agrees is not False

    @property
    def sentences(self) -> list[str]:
        """What was found, for a person."""
        return [self._accuracy_sentence, self._time_sentence]

    @property
    def _accuracy_sentence(self) -> str:
        failed = len(self.repeated) - len(self.finished)
        if failed:
            return f"accuracy does not agree: {failed} of {len(self.repeated)} repeated runs failed"
        if self.prediction is None:
            return "accuracy cannot be compared: a prediction needs two finished runs of the record"
        low, high = self.prediction
        word = "agrees" if self.accuracy_agrees else "does not agree"
        return (
            f"accuracy {word}: mean {statistics.fmean(self.finished):.3f}% of "
            f"{plural(len(self.finished), 'repeated seed')}; by the record's seeds {low:.3f} to {high:.3f}% was "
            "expected (95% prediction interval)"
        )

    @property
    def _time_sentence(self) -> str:
        if self.stated_speedup is None:
            return "time is not compared: the record has no baseline, and seconds do not cross machines"
        if self.repeated_speedup is None:
            return "time is not compared: no speedup was measured here on the same kind of device"
        word = "agrees" if self.time_agrees else "does not agree"
        return (
            f"time {word}: {self.repeated_speedup:.2f}× the baseline's speed here, {self.stated_speedup:.2f}× in the "
            f"record; a factor of {TIME_FACTOR:g} less is tolerated"
        )
