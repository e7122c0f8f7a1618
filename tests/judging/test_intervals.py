"""Intervals and tests against scipy, worked examples and simulation."""

import math
import random
import statistics
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from resnet_bench.judging import intervals
from resnet_bench.judging.intervals import Difference, Interval

VALUES = [90.31, 90.62, 90.48, 90.12, 90.55]


# --- intervals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("confidence", [0.80, 0.90, 0.95, 0.99])
def test_mean_interval_is_scipys_t_interval(confidence: float) -> None:
    expected = stats.t.interval(confidence, 4, statistics.fmean(VALUES), stats.sem(VALUES))
    assert intervals.mean_interval(VALUES, confidence) == pytest.approx(expected)


@pytest.mark.parametrize("runs", [1, 5])
def test_prediction_interval_follows_its_formula(runs: int) -> None:
    half = stats.t.ppf(0.975, 4) * statistics.stdev(VALUES) * math.sqrt(1 / runs + 1 / 5)
    mean = statistics.fmean(VALUES)
    assert intervals.prediction_interval(VALUES, runs) == pytest.approx((mean - half, mean + half))


def test_intervals_widen_by_a_variance_that_is_known() -> None:
    mean, sd = statistics.fmean(VALUES), statistics.stdev(VALUES)
    chance = intervals.image_variance(mean, 5_000)
    assert chance == pytest.approx(100**2 * 2 * (mean / 100) * (1 - mean / 100) / 5_000)
    for found, quantile, factor in (
        (intervals.mean_interval(VALUES, 0.90, known_variance=chance), 0.95, 1 / 5),
        (intervals.prediction_interval(VALUES, known_variance=chance), 0.975, 1 + 1 / 5),
    ):
        half = stats.t.ppf(quantile, 4) * math.sqrt(sd**2 * factor + chance)
        assert found == pytest.approx((mean - half, mean + half))


def test_intervals_of_one_or_of_equal_values() -> None:
    assert intervals.mean_interval([90.0]) is None
    assert intervals.prediction_interval([90.0]) is None
    assert intervals.bootstrap_interval([90.0]) is None
    assert intervals.mean_interval([90.0, 90.0, 90.0]) == (90.0, 90.0)
    assert intervals.bootstrap_interval([90.0, 90.0]) == (90.0, 90.0)
    assert math.isnan(intervals.standard_deviation([90.0]))


def test_bootstrap_interval_repeats_and_is_shorter_than_t() -> None:
    found, t = intervals.bootstrap_interval(VALUES), intervals.mean_interval(VALUES)
    assert found is not None
    assert t is not None
    assert found == intervals.bootstrap_interval(VALUES)
    assert found.within(t)
    assert min(VALUES) <= found.low < statistics.fmean(VALUES) < found.high <= max(VALUES)


def coverage(
    find: Callable[[list[float]], Interval | None], runs: int, *, times: int, of_a_further_run: bool = False
) -> float:
    """The share of simulated studies whose interval covers the true mean of 90, or a further run."""
    numbers = random.Random(1)
    hits = 0
    for _ in range(times):
        interval = find([numbers.gauss(90, 0.3) for _ in range(runs)])
        assert interval is not None
        hits += interval.low <= (numbers.gauss(90, 0.3) if of_a_further_run else 90) <= interval.high
    return hits / times


def test_95_percent_interval_covers_95_percent() -> None:
    assert coverage(intervals.mean_interval, 5, times=4000) == pytest.approx(0.95, abs=0.012)


def test_95_percent_prediction_interval_covers_a_further_run_in_95_percent() -> None:
    found = coverage(intervals.prediction_interval, 4, times=4000, of_a_further_run=True)
    assert found == pytest.approx(0.95, abs=0.012)


@pytest.mark.parametrize(("seeds", "outside"), [(3, 0.16), (5, 0.32), (10, 0.51)])
def test_a_claim_of_one_run_lies_outside_the_95_percent_interval_ever_more_often(seeds: int, outside: float) -> None:
    covered = coverage(intervals.mean_interval, seeds, times=6000, of_a_further_run=True)
    assert 1 - covered == pytest.approx(outside, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "covered"), [(3, 0.75), (5, 0.83), (10, 0.90)])
def test_a_bootstrap_interval_of_few_runs_is_too_short(seeds: int, covered: float) -> None:
    assert coverage(intervals.bootstrap_interval, seeds, times=3000) == pytest.approx(covered, abs=0.02)


@pytest.mark.parametrize(("evaluations", "gain"), [(5, 1.16), (10, 1.54), (20, 1.87)])
def test_the_best_of_several_evaluations_lies_above_the_mean(evaluations: int, gain: float) -> None:
    numbers = random.Random(5)
    best = [max(numbers.gauss(0, 1) for _ in range(evaluations)) for _ in range(10_000)]
    assert statistics.fmean(best) == pytest.approx(gain, abs=0.03)


# --- two sets ------------------------------------------------------------------------------------


def test_welch_is_scipys() -> None:
    second = [89.9, 90.1, 89.7]
    found = intervals.welch(VALUES, second)
    expected = stats.ttest_ind(second, VALUES, equal_var=False)
    assert found.value == pytest.approx(statistics.fmean(second) - statistics.fmean(VALUES))
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.equivalence_interval == pytest.approx(tuple(expected.confidence_interval(0.90)))


def test_welch_without_spread_or_with_one_run_tests_nothing() -> None:
    assert intervals.welch([90.0], [91.0, 92.0]) == Difference(1.5)
    assert intervals.welch([90.0, 90.0], [91.0, 91.0]) == Difference(1.0)


def test_holm_on_a_worked_example() -> None:
    assert intervals.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert intervals.holm([]) == []
    assert intervals.holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_never_lowers_a_p_value_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = intervals.holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    by_p = sorted(zip(p_values, adjusted, strict=True))
    assert [q for _, q in by_p] == sorted(q for _, q in by_p)


def test_outcomes() -> None:
    narrow = Difference(0.1, equivalence_interval=Interval(-0.2, 0.4))
    wide = Difference(0.1, equivalence_interval=Interval(-1.2, 1.4))
    assert intervals.outcome(narrow, 0.5, 1.0) == "same"
    assert intervals.outcome(wide, 0.5, 1.0) == "unclear"
    assert intervals.outcome(narrow, 0.01, 1.0) == "different"
    assert intervals.outcome(Difference(0.1), None, 1.0) == "unclear"


def test_ratio_of_times() -> None:
    first, second = [1.0, 1.1, 0.9], [2.0, 2.2, 1.8]
    found = intervals.time_ratio(first, second)
    assert found.ratio == pytest.approx(2.0)
    assert found.range == pytest.approx((1.8 / 1.1, 2.2 / 0.9))
    assert found.p is None


@pytest.mark.parametrize(("few", "many"), [(6, 6), (6, 9), (8, 7)])
def test_interval_of_the_ratio_is_what_the_exact_test_does_not_reject(few: int, many: int) -> None:
    draws = random.Random(5)
    first, second = ([math.exp(draws.gauss(0, 0.1)) for _ in range(runs)] for runs in (few, many))
    interval = intervals.ratio_interval(first, second)
    assert interval is not None
    for end, inwards in ((interval.low, 1 + 1e-9), (interval.high, 1 - 1e-9)):
        p_inside, p_outside = (
            stats.mannwhitneyu([value / ratio for value in second], first, method="exact").pvalue
            for ratio in (end * inwards, end / inwards)
        )
        assert p_outside <= 0.05 < p_inside
    assert intervals.ratio_interval(first[:5], second) is None, "so few are not tested"
    assert intervals.ratio_interval(first, second, confidence=1 - 1e-9) is None, "so few are never that sure"


def test_times_are_tested_from_six_runs_and_flagged_beyond_five_percent() -> None:
    first = [1.00, 1.01, 1.02, 1.03, 1.04, 1.05]
    slower = intervals.time_ratio(first, [1.2 * time for time in first])
    assert slower.p == pytest.approx(stats.mannwhitneyu([1.2 * t for t in first], first, method="exact").pvalue)
    assert intervals.timing_differs(slower, slower.p)
    little = intervals.time_ratio(first, [time + 0.0501 for time in first])
    assert little.p is not None
    assert not intervals.timing_differs(intervals.Ratio(1.04, Interval(1.0, 1.1)), 0.001)
    assert not intervals.timing_differs(slower, 0.2)
    assert not intervals.timing_differs(slower, None)
    assert intervals.timing_differs(intervals.Ratio(0.9, Interval(0.8, 1.0)), 0.001)


def false_alarms(rows: int, runs: int, repetitions: int) -> float:
    """Share of comparisons without any difference in which at least one row is called different."""
    numbers = random.Random(f"{rows} {runs}")
    alarms = 0
    for _ in range(repetitions):
        found = [
            intervals.welch(*([numbers.gauss(90, 0.3) for _ in range(runs)] for _ in range(2))) for _ in range(rows)
        ]
        adjusted = intervals.holm([difference.p for difference in found if difference.p is not None])
        alarms += any(
            intervals.outcome(difference, p, 1.0) == "different" for difference, p in zip(found, adjusted, strict=True)
        )
    return alarms / repetitions


def test_comparing_equal_sets_raises_few_alarms() -> None:
    assert false_alarms(rows=3, runs=4, repetitions=150) <= 0.11


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "runs"), [(1, 3), (1, 5), (5, 3), (5, 5)])
def test_family_wise_false_alarm_rate_is_at_most_five_percent(rows: int, runs: int) -> None:
    assert false_alarms(rows, runs, 4000) <= 0.05 + 0.011


@pytest.mark.slow
def test_timing_false_alarm_rate_is_at_most_five_percent() -> None:
    numbers = random.Random(3)
    alarms = 0
    for _ in range(4000):
        found = intervals.time_ratio(*([math.exp(numbers.gauss(0, 0.2)) for _ in range(6)] for _ in range(2)))
        alarms += intervals.timing_differs(found, found.p)
    assert alarms / 4000 <= 0.05 + 0.011


@pytest.mark.parametrize("p_values", [[0.5], [0.004, 0.9, 0.02, 0.011], [0.001, 0.002, 0.003], [0.3, 0.2, 0.04]])
def test_the_level_of_a_comparison_is_where_holms_method_begins_to_see_it(p_values: list[float]) -> None:
    for place, level in enumerate(intervals.holm_levels(p_values)):
        for p, seen in ((0.999 * level, True), (1.001 * level, False)):
            changed = [*p_values[:place], p, *p_values[place + 1 :]]
            assert (intervals.holm(changed)[place] < intervals.SIGNIFICANCE) is seen
