"""The Mann–Whitney test of two sets of times: exact as far as its work is bounded, and approximate beyond.

The count of two sets is the number of pairs in which the second run comes first, a tie counting half. Without an effect
its distribution depends on the numbers of runs alone.
"""

import bisect
import functools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

EXACT_ADDITIONS = 2_000_000
"""Additions that an exact distribution may take: some 10 ms, enough for 125 runs per side or 6 beside 55,000."""


def two_sided_p(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p of the Mann–Whitney test.

    Args:
        first: One number per run.
        second: One number per run.
    """
    ordered, others = np.sort(np.asarray(first, dtype=float)), np.asarray(second, dtype=float)
    before, up_to = (int(np.searchsorted(ordered, others, side).sum()) for side in ("left", "right"))
    larger = (before + up_to) / 2
    smaller = math.ceil(min(larger, len(first) * len(second) - larger))
    return min(1.0, 2 * lower_tail(smaller, len(first), len(second)))


def lower_tail(count: int, first: int, second: int) -> float:
    """Return the probability of a count, or a smaller one, without an effect.

    Beyond :data:`EXACT_ADDITIONS` it is the normal approximation with the term of the fourth cumulant (E. Fix,
    J. L. Hodges, "Significance probabilities of the Wilcoxon test", 1955).

    Args:
        count: At most half of the pairs, rounded up.
        first: Runs on one side.
        second: Runs on the other side.
    """
    few, many = sorted((first, second))
    if few * few * many <= EXACT_ADDITIONS:
        return float(_exact_tails(few, many)[count])
    pairs, runs = few * many, few + many + 1
    z = (count + 0.5 - pairs / 2) / math.sqrt(pairs * runs / 12)
    excess = -1.2 * (few * few + many * many + pairs + few + many) / (pairs * runs)
    density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return max(0.0, math.erfc(-z / math.sqrt(2)) / 2 - density * excess / 24 * (z**3 - 3 * z))


@functools.lru_cache(maxsize=512)
def rank_bound(first: int, second: int, level: float) -> int | None:
    """Return the largest count that is seen with a probability of at most ``level`` without an effect.

    Args:
        first: Runs on one side.
        second: Runs on the other side.
        level: One-sided.

    Returns:
        None where even a count of 0 is likelier than that.
    """
    # The tails are sums of rounded numbers, and a level may be exactly one of them.
    allowed = level * (1 + 1e-9)
    counts = range(first * second // 2 + 1)
    bound = bisect.bisect_right(counts, allowed, key=lambda count: lower_tail(count, first, second)) - 1
    return None if bound < 0 else bound


@functools.lru_cache(maxsize=64)
def _exact_tails(few: int, many: int) -> npt.NDArray[np.float64]:
    """Return the probability of each count or a smaller one, up to half of the pairs, rounded up.

    The number of orders of the runs with each count is a coefficient of the Gaussian binomial coefficient, a product of
    (1 − x^(many + k)) / (1 − x^k) for k from 1 to few (H. B. Mann, D. R. Whitney, 1947).
    """
    size = (few * many + 1) // 2 + 1
    shares = np.zeros(size)
    shares[0] = 1.0
    for part in range(1, few + 1):
        if many + part < size:
            shares[many + part :] = shares[many + part :] - shares[: -(many + part)]
        # Over (1 − x^part): each coefficient plus the one that is `part` places before it.
        padded = np.zeros(-(-size // part) * part)
        padded[:size] = shares
        shares = padded.reshape(-1, part).cumsum(axis=0).ravel()[:size] * (part / (many + part))
    return shares.cumsum()
