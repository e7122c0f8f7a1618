"""The Mann–Whitney test: what scipy computes, for few runs and for many, with bounded work."""

import random
import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from scipy import stats

from resnet_bench.judging.intervals import time_ratio
from resnet_bench.judging.power import smallest_excess, smallest_ratio, standard_times
from resnet_bench.judging.ranks import lower_tail, rank_bound, two_sided_p


@pytest.mark.parametrize(("runs", "other_runs"), [(6, 6), (6, 9), (13, 7), (20, 20)])
def test_p_is_scipys_also_with_ties(runs: int, other_runs: int) -> None:
    numbers = random.Random(f"{runs} {other_runs}")
    for digits in (1, 6):
        first, second = ([round(numbers.gauss(1, 0.2), digits) for _ in range(n)] for n in (runs, other_runs))
        expected = stats.mannwhitneyu(second, first, method="exact").pvalue
        assert two_sided_p(first, second) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("runs", "other_runs"), [(130, 130), (60, 600), (1000, 1000)])
def test_p_of_many_runs_is_approximated(runs: int, other_runs: int) -> None:
    numbers = random.Random(runs)
    first, second = ([numbers.gauss(mean, 0.2) for _ in range(n)] for mean, n in ((1.0, runs), (1.03, other_runs)))
    expected = stats.mannwhitneyu(second, first, method="asymptotic").pvalue
    assert two_sided_p(first, second) == pytest.approx(expected, rel=0.02)


def test_the_approximation_takes_over_without_a_step() -> None:
    """The distribution for 125 runs per side is exact, that for 126 is not."""
    for level in (0.05, 0.025, 0.001, 1e-5):
        tails = []
        for runs in (124, 125, 126, 127):
            pairs, spread = runs * runs, (runs * runs * (2 * runs + 1) / 12) ** 0.5
            count = pairs / 2 - 0.5 + spread * stats.norm.ppf(level)
            low = int(count)
            shares = [lower_tail(each, runs, runs) for each in (low, low + 1)]
            tails.append(shares[0] + (count - low) * (shares[1] - shares[0]))
        assert tails[2] - tails[1] == pytest.approx(tails[1] - tails[0], abs=0.01 * level)


@pytest.mark.parametrize("level", [0.025, 0.001])
@pytest.mark.parametrize(("runs", "other_runs"), [(6, 6), (6, 520), (40, 25), (300, 200)])
def test_the_bound_is_the_largest_count_of_that_probability(runs: int, other_runs: int, level: float) -> None:
    bound = rank_bound(runs, other_runs, level)
    if bound is None:
        assert lower_tail(0, runs, other_runs) > level
    else:
        assert lower_tail(bound, runs, other_runs) <= level < lower_tail(bound + 1, runs, other_runs)


def lines_run(work: Callable[[], Any]) -> int:
    """Count the lines of Python that some work runs: each pass of a loop counts."""
    counted = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal counted
        counted += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return counted


def test_the_work_for_a_bound_does_not_grow_with_the_runs() -> None:
    """Lines of Python and bytes of arrays bound the work together."""
    rank_bound(6, 6, 0.02)
    tracemalloc.start()
    try:
        for runs in (125, 500, 20_000):
            assert lines_run(lambda runs=runs: rank_bound(runs, runs, 0.02)) < 3_000
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_more_runs_than_are_simulated_share_a_simulation() -> None:
    numbers = random.Random(1)
    times = [numbers.gauss(1, 0.03) for _ in range(3_000)]
    standard_times.cache_clear()
    for runs in (31, 200, 3_000):
        assert smallest_ratio(times[:runs], times[:runs]) is not None
    assert standard_times.cache_info().misses == 1
    needed, medians = standard_times(30, 30, 0)
    assert len(needed) == len(medians) <= 10_000
    narrow, wide = (smallest_excess(times[:runs], times[:runs]) or 0.0 for runs in (3_000, 300))
    assert (wide - 1) / (narrow - 1) == pytest.approx(10**0.5, rel=0.1)


def test_times_of_many_runs_are_compared() -> None:
    numbers = random.Random(2)
    first, second = ([numbers.gauss(mean, 0.02) for _ in range(300)] for mean in (1.0, 1.1))
    found = time_ratio(first, second)
    assert found.ratio == pytest.approx(1.1, abs=0.01)
    assert found.p is not None
    assert found.p < 1e-6
