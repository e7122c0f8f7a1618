"""The rules against scipy, against worked examples and against simulation."""

import math
import random
import statistics
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from resnet_bench.recipe.claims import Claim
from resnet_bench.reporting import statistics as rules
from resnet_bench.reporting.statistics import Difference, Interval, TimesToAccuracy, Verdict

VALUES = [90.31, 90.62, 90.48, 90.12, 90.55]


def judge(claim: Claim, *values: float) -> Verdict:
    return rules.verdict(claim, [{1: value} for value in values], full_profile=True, generated=False)


# --- intervals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("confidence", [0.80, 0.90, 0.95, 0.99])
def test_mean_interval_is_scipys_t_interval(confidence: float) -> None:
    expected = stats.t.interval(confidence, 4, statistics.fmean(VALUES), stats.sem(VALUES))
    assert rules.mean_interval(VALUES, confidence) == pytest.approx(expected)


@pytest.mark.parametrize("runs", [1, 5])
def test_prediction_interval_follows_its_formula(runs: int) -> None:
    half = stats.t.ppf(0.975, 4) * statistics.stdev(VALUES) * math.sqrt(1 / runs + 1 / 5)
    mean = statistics.fmean(VALUES)
    assert rules.prediction_interval(VALUES, runs) == pytest.approx((mean - half, mean + half))


def test_intervals_of_one_or_of_equal_values() -> None:
    assert rules.mean_interval([90.0]) is None
    assert rules.prediction_interval([90.0]) is None
    assert rules.bootstrap_interval([90.0]) is None
    assert rules.mean_interval([90.0, 90.0, 90.0]) == (90.0, 90.0)
    assert rules.bootstrap_interval([90.0, 90.0]) == (90.0, 90.0)
    assert math.isnan(rules.standard_deviation([90.0]))


def test_bootstrap_interval_repeats_and_is_shorter_than_t() -> None:
    found, t = rules.bootstrap_interval(VALUES), rules.mean_interval(VALUES)
    assert found is not None
    assert t is not None
    assert found == rules.bootstrap_interval(VALUES)
    assert found.within(t)
    assert min(VALUES) <= found.low < statistics.fmean(VALUES) < found.high <= max(VALUES)


def test_95_percent_interval_covers_95_percent() -> None:
    numbers = random.Random(1)
    hits = 0
    for _ in range(4000):
        interval = rules.mean_interval([numbers.gauss(90, 0.3) for _ in range(5)])
        assert interval is not None
        hits += interval.low <= 90 <= interval.high
    assert hits / 4000 == pytest.approx(0.95, abs=0.012)


def test_95_percent_prediction_interval_covers_a_further_run_in_95_percent() -> None:
    numbers = random.Random(2)
    hits = 0
    for _ in range(4000):
        interval = rules.prediction_interval([numbers.gauss(90, 0.3) for _ in range(4)])
        assert interval is not None
        hits += interval.low <= numbers.gauss(90, 0.3) <= interval.high
    assert hits / 4000 == pytest.approx(0.95, abs=0.012)


# --- verdicts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claim", "values", "word"),
    [
        (Claim(value="90.5"), VALUES, "reproduced"),
        (Claim(value="91.2"), VALUES, "reproduced"),
        (Claim(value="91.6"), VALUES, "not reproduced"),
        (Claim(value="89.0"), VALUES, "exceeded"),
        (Claim(value="91.5"), [90.0, 91.0, 90.5], "inconclusive"),
        (Claim(value="90"), [87.5, 90.0, 92.5, 90.2], "inconclusive"),
        (Claim(at_least=90.0), VALUES, "reproduced"),
        (Claim(at_least=92.0), VALUES, "not reproduced"),
        (Claim(at_least=90.4), VALUES, "inconclusive"),
        (Claim(at_least=80.0), VALUES, "reproduced"),
        (Claim(range=(90.0, 91.0)), VALUES, "reproduced"),
        (Claim(range=(92.0, 93.0)), VALUES, "not reproduced"),
        (Claim(range=(80.0, 81.0)), VALUES, "exceeded"),
        (Claim(range=(90.4, 93.0)), VALUES, "inconclusive"),
    ],
)
def test_verdict_words(claim: Claim, values: list[float], word: str) -> None:
    assert judge(claim, *values).word == word


def test_rounding_of_the_printed_number_widens_the_claim() -> None:
    assert judge(Claim(value="87"), 88.4, 88.42, 88.38).word == "reproduced"
    assert judge(Claim(value="87.00"), 88.4, 88.42, 88.38).word == "exceeded"


def test_more_runs_behind_the_claim_sharpen_the_prediction() -> None:
    one, many = judge(Claim(value="91.7"), *VALUES), judge(Claim(value="91.7", runs=200), *VALUES)
    assert one.prediction is not None
    assert many.prediction is not None
    assert many.prediction.within(one.prediction)
    assert many.prediction.high - many.prediction.low < 0.5 * (one.prediction.high - one.prediction.low)


def test_reasons_say_the_numbers() -> None:
    assert "lies in 89.45 to 91.55" in judge(Claim(value="90.5"), *VALUES).reason
    at_least = judge(Claim(at_least=90.4), *VALUES)
    assert at_least.reached == 3
    assert "3 of 5 seeds reached 90.4%" in at_least.reason
    assert "add seeds" in at_least.reason
    assert "the mean of 5 more runs of ours" in judge(Claim(value="95.0", runs=5), *VALUES).reason


def test_gap_is_ours_minus_the_claim() -> None:
    assert judge(Claim(value="90.5"), 90.0, 90.1, 90.2).gap == pytest.approx(-0.4)
    assert judge(Claim(at_least=90.0), 90.0, 90.1, 90.2).gap == pytest.approx(0.1)
    assert judge(Claim(range=(89.0, 90.0)), 90.0, 90.1, 90.2).gap == pytest.approx(0.1)
    assert judge(Claim(range=(89.0, 91.0)), 90.0, 90.1, 90.2).gap == 0.0


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"full_profile": False}, "smoke profile"),
        ({"generated": True}, "generated images"),
        ({"same_dataset": False}, "another dataset"),
        ({"changed": ("optimizer.lr",)}, "changed recipe: optimizer.lr"),
    ],
)
def test_what_is_never_judged(settings: dict[str, object], reason: str) -> None:
    arguments: dict[str, object] = {"full_profile": True, "generated": False} | settings
    found = rules.verdict(Claim(value="90.5"), [{1: value} for value in VALUES], **arguments)  # type: ignore[arg-type]
    assert (found.word, found.reason, found.gap) == ("not judged", reason, None)
    assert found.mean == pytest.approx(statistics.fmean(VALUES))


def test_fewer_than_three_seeds_are_named_and_not_judged() -> None:
    two = judge(Claim(value="87"), 86.4, 86.9)
    assert (two.word, two.reason, two.n) == ("not judged", "2 seeds: 86.40, 86.90", 2)
    assert judge(Claim(value="87"), 86.4).reason == "1 seed: 86.40"
    assert judge(Claim(value="87")).reason == "no finished run with test accuracy"
    assert judge(Claim(value="87", selection="epoch", epoch=70)).reason.endswith("at epoch 70")


def test_every_obstacle_is_said() -> None:
    found = rules.verdict(Claim(value="87"), [{1: 50.0}], full_profile=False, generated=True, same_dataset=False)
    assert found.reason == "smoke profile; generated images; another dataset; 1 seed: 50.00"


def test_selection_decides_which_epoch_counts() -> None:
    curve = {1: 80.0, 2: 91.0, 3: 89.0}
    assert rules.selected(Claim(value="90"), curve) == 89.0
    assert rules.selected(Claim(value="90", selection="best"), curve) == 91.0
    assert rules.selected(Claim(value="90", selection="epoch", epoch=1), curve) == 80.0
    assert rules.selected(Claim(value="90", selection="epoch", epoch=5), curve) is None
    assert rules.selected(Claim(value="90", selection="unknown"), curve) == 89.0
    assert rules.selected(Claim(value="90"), {}) is None


def test_unknown_selection_is_inconclusive_where_last_and_best_disagree() -> None:
    claim = Claim(value="95.0", selection="unknown")
    runs = [{1: 95.0 + noise, 2: 90.0 + noise} for noise in (-0.1, 0.0, 0.1)]
    found = rules.verdict(claim, runs, full_profile=True, generated=False)
    assert found.word == "inconclusive"
    assert "the last would be not reproduced" in found.reason
    assert "the best reproduced" in found.reason
    agreeing = [{1: 94.9 + noise, 2: 95.0 + noise} for noise in (-0.1, 0.0, 0.1)]
    assert rules.verdict(claim, agreeing, full_profile=True, generated=False).word == "reproduced"


def test_values_that_are_not_finite_do_not_count() -> None:
    runs = [{1: value} for value in (*VALUES, math.nan)]
    assert rules.verdict(Claim(value="90.5"), runs, full_profile=True, generated=False).n == 5


accuracies = st.lists(st.floats(0, 100).map(lambda value: round(value, 2)), min_size=3, max_size=12)
claims = st.one_of(
    st.integers(0, 100).map(lambda value: Claim(value=str(value))),
    st.floats(0, 100).map(lambda value: Claim(value=f"{value:.2f}")),
    st.floats(0, 100).map(lambda value: Claim(at_least=value)),
    st.tuples(st.floats(0, 100), st.floats(0, 100)).map(lambda ends: Claim(range=(min(ends), max(ends)))),
)


@given(claims, accuracies)
def test_a_verdict_agrees_with_the_numbers_that_it_shows(claim: Claim, values: list[float]) -> None:
    found = judge(claim, *values)
    low, high = claim.interval
    assert found.decision_interval is not None
    assert found.prediction is not None
    assert found.interval is not None
    assert found.decision_interval.within(found.interval)
    inside = found.decision_interval.within(Interval(low - claim.margin, high + claim.margin))
    assert (found.word == "reproduced") == inside
    assert found.word != "not reproduced" or found.prediction.high < low
    assert found.word != "exceeded" or found.prediction.low > high
    assert found.word != "not judged"


@given(claims, accuracies, st.randoms())
def test_a_verdict_does_not_depend_on_the_order_of_the_seeds(
    claim: Claim, values: list[float], numbers: random.Random
) -> None:
    shuffled = values.copy()
    numbers.shuffle(shuffled)
    # Sums of the same numbers in another order may differ in the last digit.
    first, second = judge(claim, *values), judge(claim, *shuffled)
    assert first.mean == pytest.approx(second.mean)
    assert first.n == second.n


@given(st.integers(1, 99), accuracies, st.floats(0.01, 50))
def test_better_runs_never_make_a_verdict_worse(number: int, values: list[float], gain: float) -> None:
    order = {"not reproduced": 0, "inconclusive": 1, "reproduced": 1, "exceeded": 2}
    claim = Claim(value=str(number))
    before, after = judge(claim, *values), judge(claim, *(value + gain for value in values))
    assert order[after.word] >= order[before.word]


def simulate(n: int, sd: float, gap: float, repetitions: int) -> dict[str, float]:
    """Percent of each verdict when the source's recipe is better than ours by a gap and prints one run."""
    numbers = random.Random(f"{n} {sd} {gap}")
    counts: Counter[str] = Counter()
    for _ in range(repetitions):
        claim = Claim(value=f"{numbers.gauss(90, sd):.2f}")
        counts[judge(claim, *(numbers.gauss(90 - gap, sd) for _ in range(n))).word] += 1
    return {word: 100 * count / repetitions for word, count in counts.items()}


@pytest.mark.parametrize(("n", "reproduced", "failed"), [(3, 81, 0.6), (5, 97, 0.9), (10, 99, 0.7)])
def test_a_faithful_recipe_is_hardly_ever_said_to_fail(n: int, reproduced: float, failed: float) -> None:
    found = simulate(n, 0.3, 0.0, 1500)
    assert found.get("reproduced", 0) == pytest.approx(reproduced, abs=3.5)
    assert found.get("not reproduced", 0) + found.get("exceeded", 0) == pytest.approx(failed, abs=1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "gap", "expected"),
    [
        (3, 0, (81, 18, 0.6)),
        (3, 1, (14, 54, 32)),
        (3, 2, (0, 19, 81)),
        (5, 0, (97, 3, 0.9)),
        (5, 1, (22, 23, 55)),
        (5, 2, (0, 1, 99)),
        (10, 0, (99, 0, 0.7)),
        (10, 1, (30, 4, 67)),
        (10, 2, (0, 0, 100)),
    ],
)
def test_operating_characteristics_are_as_documented(n: int, gap: float, expected: tuple[float, ...]) -> None:
    found = simulate(n, 0.3, gap, 40_000)
    failed = found.get("not reproduced", 0) + found.get("exceeded", 0)
    assert (found.get("reproduced", 0), found.get("inconclusive", 0), failed) == pytest.approx(expected, abs=1.2)


# --- two sets ------------------------------------------------------------------------------------


def test_welch_is_scipys() -> None:
    second = [89.9, 90.1, 89.7]
    found = rules.welch(VALUES, second)
    expected = stats.ttest_ind(second, VALUES, equal_var=False)
    assert found.difference == pytest.approx(statistics.fmean(second) - statistics.fmean(VALUES))
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.equivalence_interval == pytest.approx(tuple(expected.confidence_interval(0.90)))


def test_welch_without_spread_or_with_one_run_tests_nothing() -> None:
    assert rules.welch([90.0], [91.0, 92.0]) == Difference(1.5)
    assert rules.welch([90.0, 90.0], [91.0, 91.0]) == Difference(1.0)


def test_holm_on_a_worked_example() -> None:
    assert rules.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert rules.holm([]) == []
    assert rules.holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_never_lowers_a_p_value_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = rules.holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    by_p = sorted(zip(p_values, adjusted, strict=True))
    assert [q for _, q in by_p] == sorted(q for _, q in by_p)


def test_outcomes() -> None:
    narrow = Difference(0.1, equivalence_interval=Interval(-0.2, 0.4))
    wide = Difference(0.1, equivalence_interval=Interval(-1.2, 1.4))
    assert rules.outcome(narrow, 0.5, 1.0) == "same"
    assert rules.outcome(wide, 0.5, 1.0) == "unclear"
    assert rules.outcome(narrow, 0.01, 1.0) == "different"
    assert rules.outcome(Difference(0.1), None, 1.0) == "unclear"


def test_ratio_of_times() -> None:
    first, second = [1.0, 1.1, 0.9], [2.0, 2.2, 1.8]
    found = rules.time_ratio(first, second)
    assert found.ratio == pytest.approx(2.0)
    assert found.range == pytest.approx((1.8 / 1.1, 2.2 / 0.9))
    assert found.p is None


def test_times_are_tested_from_six_runs_and_flagged_beyond_five_percent() -> None:
    first = [1.00, 1.01, 1.02, 1.03, 1.04, 1.05]
    slower = rules.time_ratio(first, [1.2 * time for time in first])
    assert slower.p == pytest.approx(stats.mannwhitneyu([1.2 * t for t in first], first, method="exact").pvalue)
    assert rules.timing_differs(slower, slower.p)
    little = rules.time_ratio(first, [time + 0.0501 for time in first])
    assert little.p is not None
    assert not rules.timing_differs(rules.Ratio(1.04, Interval(1.0, 1.1)), 0.001)
    assert not rules.timing_differs(slower, 0.2)
    assert not rules.timing_differs(slower, None)
    assert rules.timing_differs(rules.Ratio(0.9, Interval(0.8, 1.0)), 0.001)


def test_typical_epoch_drops_the_first() -> None:
    assert rules.typical_epoch([9.0, 2.0, 1.0, 3.0]) == 2.0
    assert rules.typical_epoch([9.0]) == 9.0


def false_alarms(rows: int, runs: int, repetitions: int) -> float:
    """Share of comparisons without any difference in which at least one row is called different."""
    numbers = random.Random(f"{rows} {runs}")
    alarms = 0
    for _ in range(repetitions):
        found = [rules.welch(*([numbers.gauss(90, 0.3) for _ in range(runs)] for _ in range(2))) for _ in range(rows)]
        adjusted = rules.holm([difference.p for difference in found if difference.p is not None])
        alarms += any(
            rules.outcome(difference, p, 1.0) == "different" for difference, p in zip(found, adjusted, strict=True)
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
        found = rules.time_ratio(*([math.exp(numbers.gauss(0, 0.2)) for _ in range(6)] for _ in range(2)))
        alarms += rules.timing_differs(found, found.p)
    assert alarms / 4000 <= 0.05 + 0.011


# --- time to an accuracy -------------------------------------------------------------------------


def test_reached_when_the_mean_of_three_evaluations_holds_the_target() -> None:
    evaluations = [(1.0, 90.0), (2.0, 70.0), (3.0, 89.0), (4.0, 92.0), (5.0, 93.0)]
    assert rules.time_to_accuracy(evaluations, 90.0) == 5.0
    assert rules.time_to_accuracy(evaluations, 83.0) == 3.0
    assert rules.time_to_accuracy(evaluations, 95.0) == math.inf
    assert rules.time_to_accuracy([], 10.0) == math.inf


def test_with_fewer_than_three_evaluations_the_last_counts() -> None:
    assert rules.time_to_accuracy([(1.0, 95.0), (2.0, 80.0)], 90.0) == math.inf
    assert rules.time_to_accuracy([(1.0, 50.0), (2.0, 91.0)], 90.0) == 2.0


def test_missed_targets_count_as_infinity_in_the_median() -> None:
    times = TimesToAccuracy(90.0, (10.0, 12.0, math.inf), total_seconds=60.0)
    assert (times.reached, times.median, times.range) == (2, 12.0, (10.0, math.inf))
    assert times.seconds_per_success == 30.0
    assert TimesToAccuracy(90.0, (10.0, math.inf), 40.0).median == math.inf
    assert TimesToAccuracy(90.0, (math.inf,), 40.0).seconds_per_success == math.inf


def test_importing_the_rules_imports_nothing_heavy() -> None:
    code = (
        "import sys, resnet_bench.reporting.statistics\n"
        "print([name for name in ('scipy', 'pandas', 'numpy', 'torch', 'mlflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
