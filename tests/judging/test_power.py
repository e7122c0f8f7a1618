"""Power of the tests: what the formulae promise is what simulated comparisons do."""

import math

import numpy as np
import pytest
from scipy import stats

from resnet_bench.judging.intervals import time_ratio, timing_differs
from resnet_bench.judging.power import (
    power,
    seeds_needed,
    smallest_difference,
    smallest_effect,
    smallest_gap,
    smallest_ratio,
)


def simulated_power(effect: float, seeds: int, other_seeds: int, repetitions: int) -> float:
    """The share of simulated pairs of result sets that Welch's test tells apart."""
    random = np.random.default_rng(0)
    a = random.normal(0.0, 1.0, (repetitions, seeds))
    b = random.normal(effect, 1.0, (repetitions, other_seeds))
    return float((stats.ttest_ind(a, b, axis=1, equal_var=False).pvalue < 0.05).mean())


@pytest.mark.parametrize(("seeds", "other_seeds", "effect"), [(3, 3, 3.0), (5, 10, 1.5), (10, 10, 1.3)])
def test_power_matches_simulation(seeds: int, other_seeds: int, effect: float) -> None:
    assert power(effect, 1.0, seeds, other_seeds) == pytest.approx(
        simulated_power(effect, seeds, other_seeds, 20_000), abs=0.02
    )


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 4, 5, 7, 10, 15, 20, 30])
@pytest.mark.parametrize("wanted", [0.8, 0.95])
def test_smallest_effect_is_seen_with_the_stated_power(seeds: int, wanted: float) -> None:
    effect = smallest_effect(1.0, seeds, wanted=wanted)
    assert effect is not None
    assert simulated_power(effect, seeds, seeds, 100_000) == pytest.approx(wanted, abs=0.02)


def test_no_effect_is_seen_no_more_often_than_the_level() -> None:
    assert power(0.0, 1.0, 10) == pytest.approx(0.05, abs=0.005)
    assert power(0.0, 1.0, 3) < 0.05


@pytest.mark.parametrize("wanted", [0.8, 0.95])
@pytest.mark.parametrize("effect", [0.3, 1.0, 4.0])
def test_seeds_needed_is_the_smallest_number_that_suffices(effect: float, wanted: float) -> None:
    seeds = seeds_needed(effect, 0.5, wanted=wanted)
    assert seeds is not None
    assert power(effect, 0.5, seeds) >= wanted
    assert seeds == 2 or power(effect, 0.5, seeds - 1) < wanted


def test_power_scales_with_the_spread_and_ignores_the_sign() -> None:
    assert power(0.6, 0.3, 5) == pytest.approx(power(-2.0, 1.0, 5))


def test_impossible_questions_have_no_answer() -> None:
    assert seeds_needed(0.0, 0.5) is None
    assert seeds_needed(1e-6, 1.0) is None
    assert smallest_effect(0.3, 1) is None
    assert smallest_effect(0.0, 5) == 0.0
    assert power(0.1, 0.0, 3) == 1.0


def test_smallest_difference_pools_the_spread_of_both_sides() -> None:
    first, second = [90.0, 90.2, 90.4], [90.0, 90.5, 91.0, 91.5]
    # The pooled variance: (2 * 0.04 + 3 * 0.41667) / 5.
    assert smallest_difference(first, second) == pytest.approx(smallest_effect(0.266**0.5, 3, 4), rel=1e-3)
    assert smallest_difference([90.0], second) is None


def test_smallest_ratio_grows_with_the_spread_and_is_never_below_what_is_flagged() -> None:
    steady, noisy = ([math.exp(spread * place) for place in range(-3, 4)] for spread in (0.001, 0.1))
    found = smallest_ratio(steady, steady)
    assert found is not None
    assert found == pytest.approx(1.05, abs=0.002)
    assert (smallest_ratio(noisy, noisy) or 0.0) > 1.3
    assert smallest_ratio(noisy[:5], noisy) is None


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "other_seeds", "sd"), [(6, 6, 0.05), (10, 7, 0.02), (30, 30, 0.1)])
def test_smallest_ratio_is_seen_with_the_stated_power(seeds: int, other_seeds: int, sd: float) -> None:
    random = np.random.default_rng(1)
    template = random.normal(0.0, sd, seeds), random.normal(0.0, sd, other_seeds)
    # Scaled to have exactly this spread, which the promise is about.
    first, second = (np.exp(sd * (part - part.mean()) / part.std(ddof=1)) for part in template)
    ratio = smallest_ratio(first, second)
    assert ratio is not None
    flagged = 0
    for _ in range(2_000):
        found = time_ratio(np.exp(random.normal(0, sd, seeds)), ratio * np.exp(random.normal(0, sd, other_seeds)))
        flagged += timing_differs(found, found.p)
    assert flagged / 2_000 == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("claim_runs", [1, 5])
@pytest.mark.parametrize("seeds", [3, 5, 10, 30])
def test_smallest_gap_is_called_not_reproduced_with_the_stated_power(seeds: int, claim_runs: int) -> None:
    gap = smallest_gap(0.5, seeds, claim_runs)
    ours = np.random.default_rng(2).normal(-gap, 0.5, (20_000, seeds))
    reach = stats.t.ppf(0.975, seeds - 1) * ours.std(axis=1, ddof=1) * math.sqrt(1 / claim_runs + 1 / seeds)
    assert (ours.mean(axis=1) + reach < 0).mean() == pytest.approx(0.8, abs=0.02)
