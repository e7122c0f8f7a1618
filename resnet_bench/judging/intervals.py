"""Compute intervals and tests of one or two sets of runs.

Pure functions over plain numbers. Accuracies are in percent, and their differences in percentage points; times are
in seconds. ``docs/statistics.md`` explains each rule and its error rates. Nothing here imports scipy before it needs
a quantile, so importing this module is cheap.
"""

import math
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

Outcome = Literal["different", "same", "unclear"]

MIN_TIMING_RUNS = 6
"""Runs per side from which two sets of times are tested; with fewer only their ratio is shown."""
TIMING_THRESHOLD = 0.05
"""Ratios of times closer to 1 than this are never flagged."""
SIGNIFICANCE = 0.05
_RESAMPLED_VALUES = 4_000_000
"""Values that the bootstrap holds in memory at a time."""


class Interval(NamedTuple):
    """A range of numbers, both ends included."""

    low: float
    high: float

    def within(self, other: "Interval") -> bool:
        """Return whether this interval lies inside another."""
        return other.low <= self.low and self.high <= other.high


# --- one set of runs -----------------------------------------------------------------------------


def standard_deviation(values: Sequence[float]) -> float:
    """Return the sample standard deviation (n − 1 in the denominator); NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan
    mean = statistics.fmean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def standard_deviation_interval(values: Sequence[float]) -> Interval:
    """Return the 95% interval of a normal distribution's standard deviation, by the chi-squared distribution.

    Args:
        values: One number per run, at least two.
    """
    from scipy import special

    freedom = len(values) - 1
    scatter = standard_deviation(values) ** 2 * freedom
    low, high = (float(special.chdtri(freedom, tail)) for tail in (0.025, 0.975))
    return Interval(math.sqrt(scatter / low), math.sqrt(scatter / high))


def image_variance(accuracy: float, images: int) -> float:
    """Return the binomial variance of the difference between an accuracy on some images and on as many others.

    Args:
        accuracy: In percent.
        images: How many images there are on each side.

    Returns:
        In squared percentage points.
    """
    return 2 * accuracy * (100 - accuracy) / images


def mean_interval(values: Sequence[float], confidence: float = 0.95, *, known_variance: float = 0.0) -> Interval | None:
    """Return Student's t interval of the mean; None for fewer than two values.

    Args:
        values: One number per run.
        confidence: How often the interval is right.
        known_variance: Added to the squared standard error, as :func:`image_variance`.
    """
    return _t_interval(values, confidence, 1 / len(values), known_variance) if len(values) > 1 else None


def prediction_interval(
    values: Sequence[float], future_runs: int = 1, *, known_variance: float = 0.0
) -> Interval | None:
    """Return the 95% interval in which the mean of further runs of the same experiment would fall.

    Args:
        values: One number per run.
        future_runs: How many further runs are averaged.
        known_variance: Added to the squared standard error, as :func:`image_variance` where these runs would be
            measured on other images.

    Returns:
        The interval; None for fewer than two values.
    """
    if len(values) < 2:
        return None
    return _t_interval(values, 0.95, 1 / future_runs + 1 / len(values), known_variance)


def proportion_interval(hits: int, total: int) -> tuple[float, float]:
    """Return Wilson's 95% interval of a proportion, such as an accuracy over some images.

    Args:
        hits: How many of them count.
        total: How many there are, at least one.
    """
    z = 1.959964
    share = hits / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap_interval(values: Sequence[float]) -> Interval | None:
    """Return the 95% percentile bootstrap interval of the mean; None for fewer than two values.

    It assumes no normal distribution, but with few runs it is too short: nominal 95% intervals of 3, 5 and
    10 runs cover the true mean in 75%, 83% and 90% of cases. It is shown beside the t interval and decides
    nothing.
    """
    import numpy as np
    from scipy import stats

    if len(values) < 2:
        return None
    if min(values) == max(values):
        return Interval(values[0], values[0])
    found = stats.bootstrap(
        (np.asarray(values, dtype=float),),
        np.mean,
        vectorized=True,
        confidence_level=0.95,
        n_resamples=9_999,
        batch=max(1, _RESAMPLED_VALUES // len(values)),
        method="percentile",
        rng=0,
    ).confidence_interval
    return Interval(float(found.low), float(found.high))


def _t_interval(values: Sequence[float], confidence: float, factor: float, known_variance: float) -> Interval:
    mean = statistics.fmean(values)
    quantile = _t_quantile((1 + confidence) / 2, len(values) - 1)
    of_seeds = quantile * standard_deviation(values) * math.sqrt(factor)
    half_width = math.hypot(of_seeds, quantile * math.sqrt(known_variance))
    return Interval(mean - half_width, mean + half_width)


@lru_cache(maxsize=512)
def _t_quantile(probability: float, degrees_of_freedom: int) -> float:
    # scipy.stats has the same number, but takes seconds to import, and a run's closing table needs it.
    from scipy import special

    return float(special.stdtrit(degrees_of_freedom, probability))


# --- two sets of runs ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """The mean of a second set minus that of a first."""

    value: float
    interval: Interval | None = None
    """95% Welch interval; None where either side has one run or neither side varies."""
    equivalence_interval: Interval | None = None
    """90% Welch interval: inside ± margin, the two sets are the same for all purposes (two one-sided tests)."""
    p: float | None = None
    """Two-sided p of Welch's t test."""


def welch(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare the means of two sets of independent runs without assuming equal variances.

    Runs are never paired by seed: after a few steps equal seeds on different software share nothing.

    Args:
        first: One number per run.
        second: One number per run.
    """
    value = statistics.fmean(second) - statistics.fmean(first)
    if min(len(first), len(second)) < 2 or (_constant(first) and _constant(second)):
        return Difference(value)
    test = _welch_test(first, second)
    return Difference(
        value,
        interval=Interval(*(float(end) for end in test.confidence_interval(0.95))),
        equivalence_interval=Interval(*(float(end) for end in test.confidence_interval(0.90))),
        p=float(test.pvalue),
    )


def welch_interval(first: Sequence[float], second: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Return Welch's interval of a difference of means.

    Args:
        first: One number per run.
        second: One number per run.
        confidence: How often the interval is right.

    Returns:
        None where either side has one run or neither side varies.
    """
    if min(len(first), len(second)) < 2 or (_constant(first) and _constant(second)):
        return None
    ends = _welch_test(first, second).confidence_interval(confidence)
    return Interval(*(float(end) for end in ends))


def _welch_test(first: Sequence[float], second: Sequence[float]) -> Any:
    from scipy import stats

    with warnings.catch_warnings():
        # One side may not vary, which scipy reports as a loss of precision.
        warnings.simplefilter("ignore", RuntimeWarning)
        return stats.ttest_ind(list(second), list(first), equal_var=False)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values by Holm's step-down method, so that each can be compared with the level of all together.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def holm_levels(p_values: Sequence[float]) -> list[float]:
    """Return the level below which Holm's method sees each comparison, given the p values of the others.

    It is 0.05 over the number of comparisons of which none of the others is seen before.
    """
    count = len(p_values)
    levels = []
    for place in range(count):
        others = sorted(p for other, p in enumerate(p_values) if other != place)
        seen = next((rank for rank, p in enumerate(others) if (count - rank) * p >= SIGNIFICANCE), len(others))
        levels.append(SIGNIFICANCE / (count - seen))
    return levels


def outcome(difference: Difference, adjusted_p: float | None, margin: float) -> Outcome:
    """Return whether two sets differ, are the same to within a margin, or neither is certain."""
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
    """Two-sided p of the Mann–Whitney test; None with fewer than six runs per side."""


def time_ratio(first: Sequence[float], second: Sequence[float]) -> Ratio:
    """Compare times, each run counted once (see :func:`resnet_bench.base.throughput.settled`).

    Args:
        first: Seconds of each run, all above 0.
        second: Seconds of each run, all above 0.
    """
    logs = _log_ratios(first, second)
    p = None
    if min(len(first), len(second)) >= MIN_TIMING_RUNS:
        from resnet_bench.judging.ranks import two_sided_p

        p = two_sided_p(first, second)
    return Ratio(math.exp(statistics.median(logs)), Interval(math.exp(logs[0]), math.exp(logs[-1])), p)


def _log_ratios(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Return the logarithm of every pair's ratio, in order."""
    before, after = ([math.log(value) for value in values] for values in (first, second))
    return sorted(b - a for a in before for b in after)


def ratio_interval(first: Sequence[float], second: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Return the interval of the ratio of times that the Mann–Whitney test does not reject.

    Source: J. L. Hodges, E. L. Lehmann, "Estimates of location based on rank tests", 1963.

    Args:
        first: Seconds of each run, all above 0.
        second: Seconds of each run, all above 0.
        confidence: How often the interval is right, at least.

    Returns:
        None with fewer than six runs per side, or where so few runs cannot be that confident.
    """
    if min(len(first), len(second)) < MIN_TIMING_RUNS:
        return None
    from resnet_bench.judging.ranks import rank_bound

    bound = rank_bound(len(first), len(second), (1 - confidence) / 2)
    if bound is None:
        return None
    logs = _log_ratios(first, second)
    return Interval(math.exp(logs[bound]), math.exp(logs[-1 - bound]))


def timing_differs(ratio: Ratio, adjusted_p: float | None) -> bool:
    """Return whether two sets of times differ by more than noise and by more than 5%."""
    beyond = abs(math.log(ratio.ratio)) > math.log1p(TIMING_THRESHOLD)
    return beyond and adjusted_p is not None and adjusted_p < SIGNIFICANCE


def _constant(values: Sequence[float]) -> bool:
    return min(values) == max(values)
