"""Decide whether a recipe holds the accuracy that it claims: the protocol of docs/records.md, over plain numbers."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from resnet_bench.base.errors import UserError
from resnet_bench.judging.intervals import Interval, mean_interval
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.claims import Claim
from resnet_bench.recipe.recipe import Recipe

MIN_SEEDS = {"cpu": 10, "cuda": 200, "mps": 10}
"""Fewer seeds cannot resolve tenths of a percentage point."""


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
