"""The rules by which results are judged.

Pure functions over plain numbers. Accuracies are in percent and differences of them in points; times are in
seconds. ``docs/statistics.md`` says why each rule is what it is and what it costs. scipy is imported when
a quantile is first needed, so that importing this module costs nothing.
"""

import math
import statistics
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple

from resnet_bench.recipe.claims import Claim

Word = Literal["reproduced", "not reproduced", "exceeded", "inconclusive", "not judged"]
Outcome = Literal["different", "same", "unclear"]

MIN_SEEDS = 3
"""Fewer seeds than this never judge a claim."""
RECOMMENDED_SEEDS = 5
MIN_TIMING_RUNS = 6
"""Runs a side from which two sets of times are tested; with fewer only their ratio is shown."""
TIMING_THRESHOLD = 0.05
"""Ratios of times closer to 1 than this are never flagged."""
SIGNIFICANCE = 0.05
REACHED_WINDOW = 3
"""Evaluations in a row whose mean must hold a target."""


class Interval(NamedTuple):
    """A range of numbers, both ends included."""

    low: float
    high: float

    def within(self, other: "Interval") -> bool:
        """Whether this interval lies inside another."""
        return other.low <= self.low and self.high <= other.high


# --- intervals -----------------------------------------------------------------------------------


def standard_deviation(values: Sequence[float]) -> float:
    """Sample standard deviation (n − 1 in the denominator); NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan
    mean = statistics.fmean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Student's t interval of the mean; None for fewer than two values."""
    return _t_interval(values, confidence, 1 / len(values)) if len(values) > 1 else None


def prediction_interval(values: Sequence[float], future_runs: int = 1, confidence: float = 0.95) -> Interval | None:
    """Where the mean of further runs of the same experiment would fall; None for fewer than two values.

    Args:
        values: One number a run.
        future_runs: How many further runs are averaged.
        confidence: How often the interval is right.
    """
    if len(values) < 2:
        return None
    return _t_interval(values, confidence, 1 / future_runs + 1 / len(values))


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, resamples: int = 9_999, seed: int = 0
) -> Interval | None:
    """Percentile bootstrap interval of the mean; None for fewer than two values.

    It assumes no normal distribution, but with few runs it is too short: nominal 95% intervals of 3, 5 and
    10 runs hold the true mean in 75%, 83% and 89% of cases. It is shown beside the t interval and decides
    nothing.
    """
    from scipy import stats

    if len(values) < 2:
        return None
    if min(values) == max(values):
        return Interval(values[0], values[0])
    found = stats.bootstrap(
        (values,),
        statistics.fmean,
        vectorized=False,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        rng=seed,
    ).confidence_interval
    return Interval(float(found.low), float(found.high))


def _t_interval(values: Sequence[float], confidence: float, variance_factor: float) -> Interval:
    mean = statistics.fmean(values)
    quantile = _t_quantile((1 + confidence) / 2, len(values) - 1)
    half_width = quantile * standard_deviation(values) * math.sqrt(variance_factor)
    return Interval(mean - half_width, mean + half_width)


@lru_cache(maxsize=512)
def _t_quantile(probability: float, degrees_of_freedom: int) -> float:
    # scipy.stats has the same number, but takes seconds to import, and a run's closing table needs it.
    from scipy import special

    return float(special.stdtrit(degrees_of_freedom, probability))


# --- a claim's verdict ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What our runs say of a claim. Every number is in percent or, for the gap, in points."""

    word: Word
    reason: str
    """Why, in one sentence that can stand beside the word."""
    n: int
    """Seeds behind it."""
    mean: float | None = None
    sd: float | None = None
    interval: Interval | None = None
    """95% t interval of our mean: what a table prints."""
    decision_interval: Interval | None = None
    """90% t interval of our mean, two one-sided tests at 5%: what is held against the claim."""
    prediction: Interval | None = None
    """95% interval for as many further runs of ours as stand behind the claim."""
    gap: float | None = None
    """Our mean minus the claim; 0 inside a claimed range. None where the two cannot be compared."""
    reached: int | None = None
    """Seeds at or above an "at least" claim."""


def last_evaluation(accuracies: Mapping[int, float]) -> float | None:
    """Accuracy at the last epoch; None where nothing was evaluated."""
    return accuracies[max(accuracies)] if accuracies else None


def best_evaluation(accuracies: Mapping[int, float]) -> float | None:
    """The highest accuracy of any epoch; None where nothing was evaluated."""
    return max(accuracies.values(), default=None)


def selected(claim: Claim, accuracies: Mapping[int, float]) -> float | None:
    """A run's accuracy by the statistic that the claim states.

    Args:
        claim: The claim; its ``selection`` names the epoch. ``unknown`` counts as ``last`` here.
        accuracies: Accuracy under the epoch after which it was measured, on the claim's split.

    Returns:
        The accuracy, or None where the run was not evaluated at that epoch.
    """
    if claim.selection == "best":
        return best_evaluation(accuracies)
    if claim.selection == "epoch":
        assert claim.epoch is not None
        return accuracies.get(claim.epoch)
    return last_evaluation(accuracies)


def verdict(
    claim: Claim,
    runs: Sequence[Mapping[int, float]],
    *,
    full_profile: bool,
    generated: bool,
    same_dataset: bool = True,
    changed: Sequence[str] = (),
) -> Verdict:
    """Hold our runs against a claim, by the statistic that the claim states.

    Where the source does not say which epoch its number is from, both the last and the best are judged, and
    the verdict is inconclusive when they lead to different words.

    Args:
        claim: What the source says.
        runs: For each seed, its accuracy in percent on the claim's split, under the epoch it was measured after.
        full_profile: The runs followed the recipe in full.
        generated: The runs were made from generated images.
        same_dataset: The runs used the dataset that the claim is about.
        changed: Recipe keys in which the runs differ from the benchmark.

    Returns:
        The verdict, with the numbers that it rests on.
    """
    values = _finite(selected(claim, run) for run in runs)
    comparable = full_profile and not generated and same_dataset and not changed
    described = _describe(claim, values, with_gap=comparable)
    obstacles = _obstacles(claim, values, full_profile, generated, same_dataset, changed)
    if obstacles:
        return replace(described, reason="; ".join(obstacles))
    word, reason = _judge(claim, values)
    if claim.selection == "unknown":
        best_word, best_reason = _judge(claim, _finite(best_evaluation(run) for run in runs))
        if best_word != word:
            reason = (
                "the source does not say which epoch its number is from: "
                f"the last would be {word} ({reason}), the best {best_word} ({best_reason})"
            )
            word = "inconclusive"
    return replace(described, word=word, reason=reason)


def describe(values: Sequence[float]) -> Verdict:
    """The numbers of runs whose source claims nothing."""
    return Verdict(
        word="not judged",
        reason="the source claims no number",
        n=len(values),
        mean=statistics.fmean(values) if values else None,
        sd=standard_deviation(values) if len(values) > 1 else None,
        interval=mean_interval(values),
        decision_interval=mean_interval(values, confidence=0.90),
        prediction=prediction_interval(values),
    )


def claimed_number(claim: Claim, mean: float) -> float:
    """The number of a claim that a mean is measured from: its value, its bound, or its nearest end."""
    low, high = claim.interval
    if claim.value is not None:
        return float(claim.value)
    return min(max(mean, low), high) if claim.range is not None else low


def _finite(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _describe(claim: Claim, values: Sequence[float], *, with_gap: bool) -> Verdict:
    described = replace(describe(values), prediction=prediction_interval(values, claim.runs))
    if described.mean is None:
        return described
    return replace(
        described,
        gap=described.mean - claimed_number(claim, described.mean) if with_gap else None,
        reached=_reached(claim, values),
    )


def _reached(claim: Claim, values: Sequence[float]) -> int | None:
    return None if claim.at_least is None else sum(value >= claim.at_least for value in values)


def _obstacles(
    claim: Claim,
    values: Sequence[float],
    full_profile: bool,
    generated: bool,
    same_dataset: bool,
    changed: Sequence[str],
) -> list[str]:
    obstacles = []
    if not full_profile:
        obstacles.append("smoke profile")
    if generated:
        obstacles.append("generated images")
    if not same_dataset:
        obstacles.append("another dataset")
    if changed:
        obstacles.append(f"changed recipe: {', '.join(changed)}")
    if not values:
        at = f" at epoch {claim.epoch}" if claim.selection == "epoch" else ""
        obstacles.append(f"no finished run with {claim.split} accuracy{at}")
    elif len(values) < MIN_SEEDS:
        seeds = "1 seed" if len(values) == 1 else f"{len(values)} seeds"
        obstacles.append(f"{seeds}: {', '.join(f'{value:.2f}' for value in values)}")
    return obstacles


def _judge(claim: Claim, values: Sequence[float]) -> tuple[Word, str]:
    claimed = Interval(*claim.interval)
    allowed = Interval(claimed.low - claim.margin, claimed.high + claim.margin)
    ours = mean_interval(values, confidence=0.90)
    further = prediction_interval(values, claim.runs)
    assert ours is not None
    assert further is not None
    reached = _reached(claim, values)
    seeds = "" if reached is None else f"; {reached} of {len(values)} seeds reached {claim.at_least:g}%"
    runs = "one more run of ours" if claim.runs == 1 else f"the mean of {claim.runs} more runs of ours"
    would_fall = f"{runs} would fall in {_shown(further)}"
    if ours.within(allowed):
        return "reproduced", f"the 90% interval of our mean, {_shown(ours)}, lies in {_shown(allowed)}{seeds}"
    if further.high < claimed.low:
        return "not reproduced", f"{would_fall}, below {claim.text}{seeds}"
    if further.low > claimed.high:
        return "exceeded", f"{would_fall}, above {claim.text}{seeds}"
    return "inconclusive", f"{would_fall}, which leaves {claim.text} open{seeds}; add seeds"


def _shown(interval: Interval) -> str:
    if math.isinf(interval.high):
        return f"{interval.low:.2f} and above"
    return f"{interval.low:.2f} to {interval.high:.2f}"


# --- two sets of results -------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """The mean of a second set minus that of a first."""

    difference: float
    interval: Interval | None = None
    """95% Welch interval."""
    equivalence_interval: Interval | None = None
    """90% Welch interval: inside ± margin, the two sets are the same for all purposes (two one-sided tests)."""
    p: float | None = None
    """Two-sided p of Welch's t test; None where either side has one run or neither side has any spread."""


def welch(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare the means of two sets of independent runs without assuming equal spread.

    Runs are never paired by seed: after a few steps equal seeds on different software share nothing.

    Args:
        first: One number a run.
        second: One number a run.
    """
    difference = statistics.fmean(second) - statistics.fmean(first)
    if min(len(first), len(second)) < 2 or (_constant(first) and _constant(second)):
        return Difference(difference)
    from scipy import stats

    with warnings.catch_warnings():
        # One side may be without spread, which scipy takes for a loss of precision.
        warnings.simplefilter("ignore", RuntimeWarning)
        test = stats.ttest_ind(list(second), list(first), equal_var=False)
    return Difference(
        difference,
        interval=Interval(*(float(end) for end in test.confidence_interval(0.95))),
        equivalence_interval=Interval(*(float(end) for end in test.confidence_interval(0.90))),
        p=float(test.pvalue),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: p values that can each be held against the level of all together.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def outcome(difference: Difference, adjusted_p: float | None, margin: float) -> Outcome:
    """Whether two sets differ, are the same to within a margin, or neither can be said."""
    if adjusted_p is not None and adjusted_p < SIGNIFICANCE:
        return "different"
    interval = difference.equivalence_interval
    if interval is not None and interval.within(Interval(-margin, margin)):
        return "same"
    return "unclear"


@dataclass(frozen=True)
class Ratio:
    """How many times as long a second set of runs takes as a first."""

    ratio: float
    """The exponential of the median of all pairwise differences of logarithms (Hodges and Lehmann)."""
    range: Interval
    """The smallest and the largest ratio of any pair."""
    p: float | None = None
    """Two-sided p of the exact Mann–Whitney test; None with fewer than six runs a side."""


def time_ratio(first: Sequence[float], second: Sequence[float]) -> Ratio:
    """Compare times, each run counted once (see :func:`typical_epoch`).

    Args:
        first: Seconds of each run, all above 0.
        second: Seconds of each run, all above 0.
    """
    logs = [math.log(b) - math.log(a) for a in first for b in second]
    p = None
    if min(len(first), len(second)) >= MIN_TIMING_RUNS:
        from scipy import stats

        p = float(stats.mannwhitneyu(list(second), list(first), method="exact").pvalue)
    return Ratio(math.exp(statistics.median(logs)), Interval(math.exp(min(logs)), math.exp(max(logs))), p)


def timing_differs(ratio: Ratio, adjusted_p: float | None) -> bool:
    """Whether two sets of times differ by more than noise and by more than 5%."""
    beyond = abs(math.log(ratio.ratio)) > math.log1p(TIMING_THRESHOLD)
    return beyond and adjusted_p is not None and adjusted_p < SIGNIFICANCE


def typical_epoch(values: Sequence[float]) -> float:
    """What an epoch of one run measured: the median over its epochs, the first dropped where there are more.

    A run counts once: three runs of ten epochs taken as thirty samples raise 53% false alarms.
    """
    return statistics.median(values[1:] if len(values) > 1 else values)


def _constant(values: Sequence[float]) -> bool:
    return min(values) == max(values)


# --- time to an accuracy -------------------------------------------------------------------------


@dataclass(frozen=True)
class TimesToAccuracy:
    """Training times at which runs reached a target; a run that missed it counts as infinity."""

    target: float
    times: tuple[float, ...]
    total_seconds: float
    """Training time of all runs, those that missed included."""

    @property
    def reached(self) -> int:
        """Runs that reached the target."""
        return sum(math.isfinite(time) for time in self.times)

    @property
    def median(self) -> float:
        """Median over all runs; infinite when half of them or more missed."""
        return statistics.median(self.times)

    @property
    def range(self) -> Interval:
        """The fastest and the slowest run."""
        return Interval(min(self.times), max(self.times))

    @property
    def seconds_per_success(self) -> float:
        """Training time spent in total for each run that reached the target."""
        return self.total_seconds / self.reached if self.reached else math.inf


def time_to_accuracy(evaluations: Sequence[tuple[float, float]], target: float) -> float:
    """When a run reached a target: the mean of its last three evaluations is at or above it.

    The first single crossing would fire early, on noise. Where a run has fewer than three evaluations, its
    last one counts.

    Args:
        evaluations: Training seconds so far and accuracy of each evaluation, in order.
        target: Accuracy to reach, in the same unit.

    Returns:
        Training seconds, infinite where the run never reached the target.
    """
    if not evaluations:
        return math.inf
    if len(evaluations) < REACHED_WINDOW:
        seconds, accuracy = evaluations[-1]
        return seconds if accuracy >= target else math.inf
    for end in range(REACHED_WINDOW, len(evaluations) + 1):
        window = evaluations[end - REACHED_WINDOW : end]
        if statistics.fmean(accuracy for _, accuracy in window) >= target:
            return window[-1][0]
    return math.inf
