"""How many seeds it takes to see an effect, and the smallest effect that some seeds can show.

The test is the one that comparisons use: Welch's t, two-sided. Its power is computed, not approximated: given both
sample variances, the test rejects where a normal variable exceeds a known bound, and the variances follow scaled
chi-squared distributions (B. L. Welch, Biometrika 34, 1947). The usual noncentral t (J. Cohen, Statistical Power
Analysis, 1988) assumes one pooled variance and promises too much for 3 to 5 seeds.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from resnet_bench.judging.intervals import MIN_TIMING_RUNS, TIMING_THRESHOLD, standard_deviation
from resnet_bench.judging.ranks import rank_bound

ALPHA = 0.05
"""Two-sided level of a comparison that is alone; among several, Holm's method leaves each a smaller one."""
FEWEST_SEEDS = 2
MOST_SEEDS = 100_000
_NODES = 48
"""Quantiles per sample variance. With 48 the power is within 0.002 of its value with 400, from 2 seeds on."""
_GAP_NODES = 400
_SIMULATED = 10_000
"""Simulated comparisons of times: their quantile is known to within a point of power (two standard errors)."""
_SIMULATED_RUNS = 30
"""Runs per side that are simulated, or as many pairs: with more the distribution narrows and keeps its shape."""
_SIMULATED_AT_ONCE = 500


def power(
    effect: float,
    sd: float,
    seeds: int,
    other_seeds: int | None = None,
    *,
    alpha: float = ALPHA,
    margin: float = 0.0,
) -> float:
    """Return the probability that Welch's test sees an effect.

    Args:
        effect: Difference between the true means, in the unit of ``sd``; its sign does not matter.
        sd: Standard deviation across seeds, the same on both sides.
        seeds: Runs on one side, at least 2.
        other_seeds: Runs on the other side; as many by default.
        alpha: Two-sided level of the test.
        margin: The difference of the sample means must be larger than this, too.

    Returns:
        A probability; ``alpha`` or less where the effect is 0.
    """
    if sd == 0:
        return float(abs(effect) > margin)
    return _standard_power(abs(effect) / sd, seeds, other_seeds or seeds, alpha, margin / sd)


def seeds_needed(effect: float, sd: float, *, wanted: float = 0.8, alpha: float = ALPHA) -> int | None:
    """Return the seeds per side that see an effect with some power.

    Args:
        effect: Difference between the true means.
        sd: Standard deviation across seeds.
        wanted: The power, between ``alpha`` and 1.
        alpha: Two-sided level of the test.

    Returns:
        At least 2; None where 100,000 seeds per side do not suffice.
    """
    if effect == 0:
        return None
    high = FEWEST_SEEDS
    while power(effect, sd, high, alpha=alpha) < wanted:
        if high >= MOST_SEEDS:
            return None
        high = min(2 * high, MOST_SEEDS)
    low = max(FEWEST_SEEDS, high // 2)
    while low < high:
        middle = (low + high) // 2
        if power(effect, sd, middle, alpha=alpha) < wanted:
            low = middle + 1
        else:
            high = middle
    return high


def smallest_effect(
    sd: float,
    seeds: int,
    other_seeds: int | None = None,
    *,
    wanted: float = 0.8,
    alpha: float = ALPHA,
    margin: float = 0.0,
) -> float | None:
    """Return the smallest effect that some seeds show with some power.

    Args:
        sd: Standard deviation across seeds.
        seeds: Runs on one side.
        other_seeds: Runs on the other side; as many by default.
        wanted: The power, between ``alpha`` and 1.
        alpha: Two-sided level of the test.
        margin: The difference of the sample means must be larger than this, too.

    Returns:
        In the unit of ``sd``; None where a side has fewer than 2 runs, which no test can use.
    """
    from scipy.optimize import brentq

    if min(seeds, other_seeds or seeds) < FEWEST_SEEDS:
        return None
    if sd == 0:
        return margin

    def missed(effect: float) -> float:
        return power(effect, 1.0, seeds, other_seeds, alpha=alpha, margin=margin / sd) - wanted

    high = 1.0
    while missed(high) < 0:
        high *= 2
    return sd * float(brentq(missed, 0.0, high, xtol=1e-4))


def smallest_difference(
    first: Sequence[float], second: Sequence[float], *, wanted: float = 0.8, alpha: float = ALPHA, margin: float = 0.0
) -> float | None:
    """Return the smallest difference of means that two sets of runs could have shown, at their pooled spread.

    Args:
        first: One number per run.
        second: One number per run.
        wanted: The power.
        alpha: Two-sided level of the test.
        margin: The difference of the sample means must be larger than this, too.

    Returns:
        None where a side has fewer than 2 runs.
    """
    if min(len(first), len(second)) < FEWEST_SEEDS:
        return None
    sd = _pooled(first, second)
    return smallest_effect(sd, len(first), len(second), wanted=wanted, alpha=alpha, margin=margin)


def _pooled(first: Sequence[float], second: Sequence[float]) -> float:
    freedoms = len(first) - 1, len(second) - 1
    variances = (standard_deviation(values) ** 2 for values in (first, second))
    return math.sqrt(sum(n * variance for n, variance in zip(freedoms, variances, strict=True)) / sum(freedoms))


def smallest_ratio(
    first: Sequence[float], second: Sequence[float], *, wanted: float = 0.8, alpha: float = ALPHA
) -> float | None:
    """Return the smallest ratio of times, above 1, that two sets of runs could have shown.

    By simulation of the rule of :func:`~resnet_bench.judging.intervals.timing_differs`, with normal logarithms at the
    pooled spread: the Mann–Whitney test, and more than 5% apart.

    Args:
        first: Seconds of each run, all above 0.
        second: Seconds of each run, all above 0.
        wanted: The power.
        alpha: Two-sided level of the test.

    Returns:
        None with fewer than six runs per side, which are not tested, or with too few for the level.
    """
    simulated = _simulated(first, second, alpha)
    if simulated is None:
        return None
    needed, medians = simulated
    # The effect from which each simulated comparison is flagged.
    flagged = np.maximum(needed, math.log1p(TIMING_THRESHOLD) - medians)
    return float(np.exp(np.quantile(flagged, wanted)))


def smallest_excess(
    first: Sequence[float], second: Sequence[float], *, wanted: float = 0.8, alpha: float = ALPHA
) -> float | None:
    """Return the smallest ratio of times whose exact interval two sets of runs could have shown to be above 1.

    Args:
        first: Seconds of each run, all above 0.
        second: Seconds of each run, all above 0.
        wanted: The power.
        alpha: The interval is right with probability 1 − alpha.

    Returns:
        None where so few runs have no such interval.
    """
    simulated = _simulated(first, second, alpha)
    return None if simulated is None else float(np.exp(np.quantile(simulated[0], wanted)))


Simulated = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


def _simulated(first: Sequence[float], second: Sequence[float], alpha: float) -> Simulated | None:
    """Simulate comparisons of times without an effect: the effect (a logarithm) that each lacks, and its median."""
    if min(len(first), len(second)) < MIN_TIMING_RUNS or rank_bound(len(first), len(second), alpha / 2) is None:
        return None
    few, many = sorted((len(first), len(second)))
    runs = min(few, _SIMULATED_RUNS)
    other_runs = min(many, _SIMULATED_RUNS**2 // runs)
    bound = rank_bound(runs, other_runs, alpha / 2)
    if bound is None:
        return None
    sd = _pooled([math.log(value) for value in first], [math.log(value) for value in second])
    # The standard error of a difference of means, as much smaller as there are more runs than are simulated.
    narrowed = math.sqrt((1 / few + 1 / many) / (1 / runs + 1 / other_runs))
    needed, medians = standard_times(runs, other_runs, bound)
    return narrowed * sd * needed, narrowed * sd * medians


@functools.lru_cache(maxsize=64)
def standard_times(runs: int, other_runs: int, bound: int) -> Simulated:
    """Simulate comparisons of times without an effect, in standard deviations of one run's logarithm.

    Args:
        runs: Runs on one side.
        other_runs: Runs on the other side.
        bound: The largest Mann–Whitney count that is rejected.

    Returns:
        For each comparison the effect that it needs to be rejected, and the median of all pairwise differences.
    """
    random = np.random.default_rng(0)
    middle = (runs * other_runs - 1) // 2, runs * other_runs // 2
    needed, medians = [], []
    for _ in range(_SIMULATED // _SIMULATED_AT_ONCE):
        first = random.standard_normal((_SIMULATED_AT_ONCE, 1, runs))
        second = random.standard_normal((_SIMULATED_AT_ONCE, other_runs, 1))
        pairs = (second - first).reshape(_SIMULATED_AT_ONCE, -1)
        pairs.partition(sorted({bound, *middle}), axis=1)
        needed.append(-pairs[:, bound])
        medians.append(pairs[:, list(middle)].mean(axis=1))
    return np.concatenate(needed), np.concatenate(medians)


def smallest_gap(
    sd: float, seeds: int, claim_runs: int = 1, *, wanted: float = 0.8, image_variance: float = 0.0
) -> float:
    """Return the smallest gap to a claim that some seeds call "not reproduced" or "exceeded" with some power.

    Args:
        sd: Standard deviation across seeds.
        seeds: Our runs, at least 2.
        claim_runs: Runs behind the claim.
        wanted: The power.
        image_variance: What the prediction interval allows for other images than the claim's, in the unit of ``sd``
            squared (see :func:`~resnet_bench.judging.intervals.image_variance`).

    Returns:
        From the end of the claim's interval to our true mean on our images, in the unit of ``sd``.
    """
    from scipy import special

    if sd == 0:
        return float(special.stdtrit(seeds - 1, 0.975)) * math.sqrt(image_variance)
    return sd * _standard_gap(seeds, claim_runs, wanted, image_variance / sd**2)


@functools.lru_cache(maxsize=4096)
def _standard_gap(seeds: int, claim_runs: int, wanted: float, image_variance: float) -> float:
    """The smallest gap in standard deviations; the variance is in their square."""
    from scipy import special
    from scipy.optimize import brentq

    freedom = seeds - 1
    # The claim lies outside of the 95% prediction interval, whose width follows the sample's variance.
    quantiles = (np.arange(_GAP_NODES) + 0.5) / _GAP_NODES
    spread = np.sqrt(special.chdtri(freedom, 1 - quantiles) / freedom)
    variance = spread**2 * (1 / claim_runs + 1 / seeds) + image_variance
    half_width = special.stdtrit(freedom, 0.975) * np.sqrt(variance)

    def missed(gap: float) -> float:
        return float(special.ndtr((gap - half_width) * math.sqrt(seeds)).mean()) - wanted

    high = 1.0
    while missed(high) < 0:
        high *= 2
    return float(brentq(missed, 0.0, high, xtol=1e-4))


@functools.lru_cache(maxsize=4096)
def _standard_power(effect: float, seeds: int, other_seeds: int, alpha: float, margin: float) -> float:
    """The power for an effect and a margin in standard deviations: the mean over both sample variances."""
    from scipy import stats

    quantiles = (np.arange(_NODES) + 0.5) / _NODES
    of_mean = stats.chi2.ppf(quantiles, seeds - 1)[:, None] / ((seeds - 1) * seeds)
    of_other = stats.chi2.ppf(quantiles, other_seeds - 1)[None, :] / ((other_seeds - 1) * other_seeds)
    variance = of_mean + of_other
    freedom = variance**2 / (of_mean**2 / (seeds - 1) + of_other**2 / (other_seeds - 1))
    bound = np.maximum(stats.t.ppf(1 - alpha / 2, freedom) * np.sqrt(variance), margin)
    true_error = math.sqrt(1 / seeds + 1 / other_seeds)
    rejected = stats.norm.sf((bound - effect) / true_error) + stats.norm.cdf((-bound - effect) / true_error)
    return float(rejected.mean())
