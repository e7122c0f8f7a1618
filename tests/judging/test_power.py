"""Power of the tests: what the formulae promise is what simulated comparisons do."""

import math

import numpy as np
import pytest
from scipy import stats

from resnet_bench.judging.intervals import holm
from resnet_bench.judging.power import (
    power,
    seeds_needed,
    smallest_difference,
    smallest_effect,
    smallest_gap,
    smallest_ratio,
)


def simulated_power(
    effect: float, seeds: int, other_seeds: int, repetitions: int, *, alpha: float = 0.05, margin: float = 0.0
) -> float:
    """The share of simulated pairs of result sets that Welch's test tells apart, and that differ by a margin."""
    random = np.random.default_rng(0)
    a = random.normal(0.0, 1.0, (repetitions, seeds))
    b = random.normal(effect, 1.0, (repetitions, other_seeds))
    beyond = np.abs(b.mean(axis=1) - a.mean(axis=1)) > margin
    return float(((stats.ttest_ind(a, b, axis=1, equal_var=False).pvalue < alpha) & beyond).mean())


@pytest.mark.parametrize(("seeds", "other_seeds", "effect"), [(3, 3, 3.0), (5, 10, 1.5), (10, 10, 1.3)])
def test_power_matches_simulation(seeds: int, other_seeds: int, effect: float) -> None:
    assert power(effect, 1.0, seeds, other_seeds) == pytest.approx(
        simulated_power(effect, seeds, other_seeds, 20_000), abs=0.02
    )


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 4, 5, 7, 10, 15, 20, 30])
@pytest.mark.parametrize("wanted", [0.8, 0.95])
def test_smallest_effect_is_seen_with_the_stated_power(seeds: int, wanted: float) -> None:
    # A comparison that is alone, and the first of eight by Holm's method.
    for alpha in (0.05, 0.05 / 8):
        effect = smallest_effect(1.0, seeds, wanted=wanted, alpha=alpha)
        assert effect is not None
        assert simulated_power(effect, seeds, seeds, 50_000, alpha=alpha) == pytest.approx(wanted, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 10, 30])
@pytest.mark.parametrize("margin", [0.05, 0.7, 2.0, 30.0])
def test_smallest_effect_beyond_a_margin_is_seen_with_the_stated_power(seeds: int, margin: float) -> None:
    """A margin that decides nothing, one that decides beside the test, and one that decides alone."""
    effect = smallest_effect(1.0, seeds, margin=margin)
    assert effect is not None
    assert simulated_power(effect, seeds, seeds, 50_000, margin=margin) == pytest.approx(0.8, abs=0.02)


def test_an_effect_of_exactly_the_margin_is_seen_half_of_the_time() -> None:
    assert power(30.0, 1.0, 10, margin=30.0) == pytest.approx(0.5, abs=1e-6)
    found = smallest_effect(1.0, 10, margin=30.0)
    # The difference of two means of 10 has a standard deviation of 0.447.
    assert found == pytest.approx(30 + 0.8416 * 0.4472, abs=1e-3)
    assert smallest_effect(1.0, 10, margin=0.0) == smallest_effect(1.0, 10)
    assert smallest_effect(0.0, 10, margin=2.0) == 2.0


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 6, 30])
def test_the_level_that_holms_method_leaves_gives_the_stated_power(seeds: int) -> None:
    """Of five comparisons one has an effect: the smallest that is stated where none of the others is seen."""
    effect = smallest_effect(1.0, seeds, alpha=0.05 / 5)
    assert effect is not None
    random = np.random.default_rng(4)
    a, b = (random.normal(0.0, 1.0, (20_000, 5, seeds)) for _ in range(2))
    b[:, 0] += effect
    p_values = stats.ttest_ind(a, b, axis=2, equal_var=False).pvalue
    alone = [row for row in p_values if 5 * min(row[1:]) >= 0.05]
    assert len(alone) > 15_000
    seen = sum(holm(list(row))[0] < 0.05 for row in alone) / len(alone)
    assert seen == pytest.approx(0.8, abs=0.02)


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
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 6])
@pytest.mark.parametrize(
    ("seeds", "other_seeds", "sd"),
    [(6, 6, 0.05), (6, 200, 0.05), (10, 7, 0.02), (30, 30, 0.1), (60, 90, 0.1), (8, 100, 0.06)],
)
def test_smallest_ratio_is_seen_with_the_stated_power(seeds: int, other_seeds: int, sd: float, alpha: float) -> None:
    random = np.random.default_rng(1)
    template = random.normal(0.0, sd, seeds), random.normal(0.0, sd, other_seeds)
    # Scaled to have exactly this spread, which the promise is about.
    first, second = (np.exp(sd * (part - part.mean()) / part.std(ddof=1)) for part in template)
    ratio = smallest_ratio(first, second, alpha=alpha)
    assert ratio is not None
    # Two standard errors of so many comparisons are 0.8 points, as are those of the promise.
    before = random.normal(0.0, sd, (10_000, seeds))
    after = math.log(ratio) + random.normal(0.0, sd, (10_000, other_seeds))
    method = "exact" if seeds * other_seeds <= 3_000 else "asymptotic"
    rejected = stats.mannwhitneyu(after, before, axis=1, method=method).pvalue < alpha
    medians = [np.median(np.subtract.outer(b, a)) for a, b in zip(before, after, strict=True)]
    assert (rejected & (np.abs(medians) > math.log(1.05))).mean() == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("image_variance", [0.0, 0.55])
@pytest.mark.parametrize("claim_runs", [1, 5])
@pytest.mark.parametrize("seeds", [3, 5, 10, 30])
def test_smallest_gap_is_called_not_reproduced_with_the_stated_power(
    seeds: int, claim_runs: int, image_variance: float
) -> None:
    gap = smallest_gap(0.5, seeds, claim_runs, image_variance=image_variance)
    ours = np.random.default_rng(2).normal(-gap, 0.5, (20_000, seeds))
    variance = ours.var(axis=1, ddof=1) * (1 / claim_runs + 1 / seeds) + image_variance
    reach = stats.t.ppf(0.975, seeds - 1) * np.sqrt(variance)
    assert (ours.mean(axis=1) + reach < 0).mean() == pytest.approx(0.8, abs=0.02)


def test_smallest_gap_of_seeds_without_spread_is_the_reach_of_the_images() -> None:
    assert smallest_gap(0.0, 5) == 0.0
    assert smallest_gap(0.0, 5, image_variance=0.55) == pytest.approx(stats.t.ppf(0.975, 4) * math.sqrt(0.55))
