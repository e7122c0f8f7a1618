"""Limits of what a change may cost: broken only where the whole interval says so."""

import math
import random
from dataclasses import replace

import pytest

from resnet_bench.judging import intervals
from resnet_bench.recipe.limits import Limit
from resnet_bench.reporting import compare as comparing
from resnet_bench.reporting import compare_text
from resnet_bench.reporting.compare import Side
from resnet_bench.reporting.limits import CheckedLimits, LimitRow, check_limits
from tests.reporting.test_compare import GOOD, shifted, side, tta_side

DROP = Limit(benchmark="b", drop=0.5)
SLOWER = Limit(benchmark="b", time_factor=1.1)


def only(checked: CheckedLimits) -> LimitRow:
    (row,) = checked.rows
    return row


@pytest.mark.parametrize(
    ("finals", "word"),
    [
        (shifted(-2.0), "broken"),
        (shifted(-0.1), "kept"),
        (shifted(3.0), "kept"),
        (shifted(-0.55), "unclear"),
        ([88.0, 92.5, 90.1], "unclear"),
    ],
)
def test_a_drop_is_judged_by_its_whole_interval(finals: list[float], word: str) -> None:
    row = only(check_limits([DROP], side("A"), side("B", finals=finals)))
    assert row.word == word
    assert row.interval == pytest.approx(intervals.welch(GOOD, finals).interval)
    assert (row.detectable is not None) == (word == "unclear")
    if row.detectable is not None:
        assert row.detectable > DROP.drop


def test_a_drop_within_its_limit_is_no_failure_although_it_is_worse_than_noise() -> None:
    a, b = side("A"), side("B", finals=shifted(-0.4))
    (worse,) = comparing.compare_runs(a, b).regressions
    checked = check_limits([Limit(benchmark="b", drop=1.0)], a, b)
    assert only(checked).word == "kept"
    assert checked.decide(worse)
    assert not check_limits([Limit(benchmark="other", drop=1.0)], a, b).decide(worse)
    assert not check_limits([SLOWER], a, b).decide(worse), "it limits times"


def test_a_drop_is_of_the_accuracy_that_is_claimed() -> None:
    a, b = tta_side("A", GOOD, GOOD), tta_side("B", GOOD, shifted(-2.0))
    row = only(check_limits([DROP], a, b))
    assert (row.metric, row.word) == ("test accuracy (TTA)", "broken")
    kept = tta_side("B", shifted(-2.0), shifted(-0.3))
    checked = check_limits([Limit(benchmark="b", drop=1.0)], a, kept)
    (worse,) = comparing.compare_runs(a, kept).regressions
    assert (only(checked).word, checked.decide(worse)) == ("kept", True)


@pytest.mark.parametrize(("factor", "word"), [(1.5, "broken"), (1.02, "kept"), (1.1, "unclear")])
def test_a_time_is_judged_by_its_exact_interval(factor: float, word: str) -> None:
    row = only(check_limits([SLOWER], side("A"), side("B", epoch=factor, first_minute=1)))
    assert row.word == word
    assert row.change == pytest.approx(factor, rel=0.01)
    assert row.interval is not None
    assert row.interval.low <= row.change <= row.interval.high


@pytest.mark.parametrize(
    ("b", "note"),
    [
        (side("B", epoch=2.0, first_minute=100), "not interleaved"),
        (side("B", epoch=2.0, first_minute=1, finals=GOOD[:5]), "fewer than 6 runs per side"),
    ],
)
def test_times_that_are_not_tested_break_no_limit(b: Side, note: str) -> None:
    row = only(check_limits([SLOWER], side("A"), b))
    assert (row.word, row.interval) == ("unclear", None)
    assert note in row.note


def test_one_run_breaks_no_limit_and_identical_ones_keep_it() -> None:
    row = only(check_limits([DROP], side("A", finals=[90.0]), side("B", finals=[50.0])))
    assert (row.word, row.interval) == ("unclear", None)
    assert "cannot tell noise from change" in row.note
    noisy = [70.0, 95.0, 80.0]
    row = only(check_limits([DROP], side("A", finals=noisy), side("B", finals=noisy)))
    assert (row.word, row.note) == ("kept", "bit-identical")


def test_devices_are_checked_one_by_one_and_never_mixed() -> None:
    def both(name: str, on_gpu: float, on_cpu: float) -> Side:
        gpu = side(f"{name}g", finals=shifted(on_gpu), device="NVIDIA H200", device_type="cuda")
        cpu = side(f"{name}c", finals=shifted(on_cpu), device="AMD EPYC, 2 threads", device_type="cpu")
        return Side(name, (*gpu.runs, *cpu.runs))

    a, b = both("A", 0.0, 0.1), both("B", -2.0, 0.02)
    words = {row.device: row.word for row in check_limits([DROP], a, b).rows}
    assert words == {"NVIDIA H200": "broken", "AMD EPYC, 2 threads": "kept"}
    for device, word in (("h200", "broken"), ("cuda", "broken"), ("cpu", "kept"), ("EPYC", "kept")):
        assert only(check_limits([replaced(DROP, device=device)], a, b)).word == word
    missing = check_limits([replaced(DROP, device="A100"), replaced(DROP, profile="smoke")], a, b)
    nothing = "no such runs on both sides of one device"
    assert (missing.rows, missing.unchecked) == ((), (f"b, on A100: {nothing}", f"b, smoke: {nothing}"))
    row = comparing.compare_runs(a, b).rows[0]
    assert not check_limits([replaced(DROP, device="cpu")], a, b).decide(row), "the other device has no limit"
    assert check_limits([DROP], a, b).decide(row)


def test_times_are_checked_by_kind_of_machine_and_accuracies_by_name() -> None:
    def on(name: str, model: str | None, epoch: float, minute: int) -> Side:
        environment = {"cpu": "AMD EPYC", "cpu_model": model}
        return side(
            name, epoch=epoch, first_minute=minute, device="AMD EPYC", device_type="cpu", environment=environment
        )

    zen4, zen5 = "family 25, model 17", "family 26, model 2"
    limit = Limit(benchmark="b", drop=0.5, time_factor=1.1)
    slower = check_limits([limit], on("A", zen5, 1.0, 0), on("B", zen4, 2.0, 1))
    assert [(row.metric, row.word) for row in slower.rows] == [("test accuracy", "kept")]
    assert slower.unchecked == ("time_factor of b, full, on AMD EPYC: no times of one kind of machine on both sides",)
    assert not any(check_limits([limit], on("A", None, 1.0, 0), on("B", zen4, 2.0, 1)).broken)
    # Of two kinds each is checked by itself.
    a = Side("A", (*on("A4", zen4, 1.0, 0).runs, *on("A5", zen5, 1.0, 0).runs))
    b = Side("B", (*on("B4", zen4, 1.0, 1).runs, *on("B5", zen5, 2.0, 1).runs))
    times = {row.device: row.word for row in check_limits([SLOWER], a, b).rows}
    assert times == {f"AMD EPYC ({zen4})": "kept", f"AMD EPYC ({zen5})": "broken"}


def test_a_time_limit_that_is_kept_decides_although_runs_elsewhere_have_no_times() -> None:
    def with_shared(name: str, epoch: float, minute: int) -> Side:
        here = side(name, epoch=epoch, first_minute=minute)
        (run,) = side(f"{name}s", finals=[90.3], device="other").runs
        return Side(name, (*here.runs, replace(run, metrics={"test/accuracy": run.metrics["test/accuracy"]})))

    a, b = with_shared("A", 1.0, 0), with_shared("B", 1.1, 1)
    (slower,) = comparing.compare_runs(a, b).regressions
    checked = check_limits([Limit(benchmark="b", time_factor=1.2)], a, b)
    assert {row.word for row in checked.rows} == {"kept"}
    assert checked.decide(slower)


def test_a_device_of_one_side_only_is_not_checked() -> None:
    a = side("A", device="NVIDIA H200", device_type="cuda")
    checked = check_limits([DROP], a, side("B", finals=shifted(-9), device="other", device_type="cuda"))
    assert checked.unchecked == ("b: no such runs on both sides of one device",)
    assert (checked.rows, checked.decided) == ((), frozenset())


def test_a_time_that_could_not_be_checked_is_named() -> None:
    both = Limit(benchmark="b", drop=0.5, time_factor=1.1)
    untimed = side("B", finals=shifted(-0.1))
    runs = tuple(replace(run, metrics={"test/accuracy": run.metrics["test/accuracy"]}) for run in untimed.runs)
    checked = check_limits([both], side("A"), Side("B", runs))
    assert [row.metric for row in checked.rows] == ["test accuracy"]
    (sentence,) = checked.unchecked
    assert sentence.startswith("time_factor of b, full, on ")
    assert sentence.endswith(": no times on both sides")
    comparison = comparing.compare_runs(side("A"), Side("B", runs))
    assert f"limit not checked: {sentence}" in compare_text.limit_notes(checked)
    for text in (compare_text.markdown(comparison, checked), compare_text.as_json(comparison, checked)):
        assert "no times on both sides" in text


def test_limits_of_two_recipes_of_one_benchmark_have_labels() -> None:
    a, b = (
        Side(name, (*side(name).runs, *side(f"{name}2", fingerprint="g" * 8, finals=finals).runs))
        for name, finals in (("A", GOOD), ("B", shifted(-2.0)))
    )
    rows = check_limits([DROP], a, b).rows
    labels = {row.word: row.label for row in rows}
    assert len(set(labels.values())) == len(rows) == 2
    assert all(label.startswith("b") for label in labels.values())
    text = compare_text.markdown(comparing.compare_runs(a, b), check_limits([DROP], a, b))
    limits = text.partition("## Limits")[2]
    assert all(label.replace("#", "") in limits for label in labels.values())


def replaced(limit: Limit, **changes: object) -> Limit:
    return limit.model_copy(update=changes)


def test_intervals_of_many_limits_are_right_together() -> None:
    names = [f"b{number}" for number in range(8)]
    a, b = (
        Side(name, tuple(run for each in names for run in side(name, benchmark=each, finals=finals).runs))
        for name, finals in (("A", GOOD), ("B", shifted(-0.75)))
    )
    alone = only(check_limits([Limit(benchmark="b0", drop=0.5)], a, b))
    together = check_limits([Limit(benchmark=name, drop=0.5) for name in names], a, b).rows
    assert alone.word == "broken"
    assert {row.word for row in together} == {"unclear"}
    assert together[0].interval == pytest.approx(intervals.welch_interval(GOOD, shifted(-0.75), 1 - 0.05 / 8))


@pytest.mark.slow
def test_a_limit_is_wrongly_broken_in_two_and_a_half_percent_at_most() -> None:
    """At the very limit; two standard errors of 1,000 repetitions are 0.01."""
    numbers = random.Random(3)

    def alarm() -> bool:
        runs = [[numbers.gauss(mean, 0.3) for _ in range(4)] for mean in (90.0, 89.5) for _ in range(3)]
        a, b = (
            Side(
                name,
                tuple(
                    run for n, finals in enumerate(part) for run in side(name, benchmark=f"b{n}", finals=finals).runs
                ),
            )
            for name, part in (("A", runs[:3]), ("B", runs[3:]))
        )
        return bool(check_limits([Limit(benchmark=f"b{n}", drop=0.5) for n in range(3)], a, b).broken)

    assert sum(alarm() for _ in range(1000)) / 1000 <= 0.025 + 0.01


@pytest.mark.slow
def test_a_time_limit_is_wrongly_broken_in_two_and_a_half_percent_at_most() -> None:
    numbers = random.Random(4)

    def alarm() -> bool:
        sides = []
        for name, factor, first in (("A", 1.0, 0), ("B", 1.1, 1)):
            made = side(name, first_minute=first)
            runs = [
                replace(run, metrics={**run.metrics, "time/epoch_seconds": {1: 9.0, 2: factor * math.exp(noise)}})
                for run in made.runs
                for noise in [numbers.gauss(0, 0.1)]
            ]
            sides.append(Side(name, tuple(runs)))
        return bool(check_limits([SLOWER], *sides).broken)

    assert sum(alarm() for _ in range(1000)) / 1000 <= 0.025 + 0.01
