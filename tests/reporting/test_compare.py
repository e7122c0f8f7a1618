"""Two sets of results: what differs, by how much, and whether it is more than noise."""

import io
import json
import math
import random
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from resnet_bench.base.errors import UserError
from resnet_bench.judging import intervals
from resnet_bench.judging.power import smallest_difference
from resnet_bench.reporting import compare as comparing
from resnet_bench.reporting import compare_text, report
from resnet_bench.reporting.compare import ComparisonRow, ResultComparison, Side
from resnet_bench.reporting.tables import Tables
from tests.reporting.synthetic import benchmark
from tests.reporting.test_runs import EMPTY

GOOD = [90.1, 90.4, 90.2, 90.5, 90.3, 90.6]


def compare(a: Any, b: Any, **chosen: Any) -> ResultComparison:
    return comparing.compare_runs(*comparing.read_sides(a, b, **chosen))


def side(
    name: str, *, finals: list[float] = GOOD, epoch: float = 1.0, first_minute: int = 0, **changes: object
) -> Side:
    """A side of runs, one every two minutes, each a little faster or slower than the others."""
    runs = []
    for seed, final in enumerate(finals):
        curve = {1: final / 200, 2: final / 100}
        times = dict.fromkeys((1, 2, 3), epoch * (1 + 0.002 * (7 * seed % 5)))
        runs.append(
            replace(
                EMPTY,
                id=f"{name}{seed}",
                seed=seed,
                started=EMPTY.started + timedelta(minutes=first_minute + 2 * seed),
                metrics={"test/accuracy": curve, "test/loss": {2: 1 - final / 100}, "time/epoch_seconds": times},
                **{"environment": {"torch": "2.15.0", "gpu": "H200"}, **changes},  # type: ignore[arg-type]
            )
        )
    return Side(name, tuple(runs))


def primary(comparison: ResultComparison, metric: str = "test accuracy", benchmark: str = "b") -> ComparisonRow:
    (row,) = [row for row in comparison.rows if row.metric == metric and row.benchmark == benchmark and row.primary]
    return row


WITH_TTA = benchmark(
    "b",
    [{"at_least": 90, "metric": "accuracy_tta"}],
    evaluation={"batch_size": 800, "test_time_augmentation": {"shift": 2}},
).model_dump_json()
"""The record of a benchmark whose claim is one with TTA."""


def tta_side(name: str, finals: list[float], with_tta: list[float], **changes: object) -> Side:
    """A side of runs of that benchmark."""
    runs = side(name, finals=finals, benchmark_json=WITH_TTA, **changes).runs
    pairs = zip(runs, with_tta, strict=True)
    return Side(
        name,
        tuple(replace(run, metrics={**run.metrics, "test/accuracy_tta": {2: value / 100}}) for run, value in pairs),
    )


def shifted(by: float) -> list[float]:
    return [round(value + by, 2) for value in GOOD[::-1]]


def test_a_worse_accuracy_is_a_regression() -> None:
    found = comparing.compare_runs(side("A"), side("B", finals=shifted(-2.0)))
    row = primary(found)
    expected = intervals.welch(GOOD, shifted(-2.0))
    assert (row.word, row.regression) == ("worse", True)
    assert row.difference == pytest.approx(-2.0)
    assert row.interval == pytest.approx(expected.interval)
    assert row.p == pytest.approx(expected.p)
    assert found.regressions == [row]


@pytest.mark.parametrize(
    ("finals", "word"),
    [
        (shifted(2.0), "better"),
        (shifted(0.05), "same"),
        ([88.0, 92.5, 90.1], "unclear"),
        ([95.0], "unclear"),
    ],
)
def test_what_is_no_regression(finals: list[float], word: str) -> None:
    found = comparing.compare_runs(side("A"), side("B", finals=finals))
    assert primary(found).word == word
    assert found.regressions == []


def test_the_accuracy_that_is_claimed_is_tested_and_the_plain_one_shown() -> None:
    found = comparing.compare_runs(tta_side("A", GOOD, GOOD), tta_side("B", shifted(0.05), shifted(-2.0)))
    assert (primary(found, "test accuracy (TTA)").word, len(found.regressions)) == ("worse", 1)
    (plain,) = [row for row in found.rows if row.metric == "test accuracy"]
    assert (plain.primary, plain.word) == (False, "not tested")
    assert plain.difference == pytest.approx(0.05)
    # Where one side has no accuracy with TTA, such as runs of a shortened evaluation, the plain ones are tested.
    without = comparing.compare_runs(tta_side("A", GOOD, GOOD), side("B", finals=shifted(-2.0)))
    assert primary(without).word == "worse"


def test_one_run_a_side_is_said_to_tell_nothing() -> None:
    row = primary(comparing.compare_runs(side("A", finals=[90.0]), side("B", finals=[50.0])))
    assert (row.word, row.interval, row.p) == ("unclear", None, None)
    assert "cannot tell noise from change" in row.note


def test_bit_identical_runs_are_said_to_be_so() -> None:
    found = comparing.compare_runs(side("A"), side("B"))
    assert primary(found).word == "identical"
    assert primary(found).note == "bit-identical for seeds 0, 1, 2, 3, 4 and 5"
    assert primary(found).adjusted_p is None
    partly = comparing.compare_runs(side("A"), side("B", finals=[*GOOD[:3], 90.9, 90.8, 90.0]))
    assert primary(partly).note == "bit-identical for seeds 0, 1 and 2"


def test_p_values_are_adjusted_over_the_benchmarks() -> None:
    drift = shifted(-0.4)
    alone = comparing.compare_runs(side("A"), side("B", finals=drift))
    others = [
        (side(f"A{n}", benchmark=f"other{n}"), side(f"B{n}", benchmark=f"other{n}", finals=shifted(0.01)))
        for n in range(5)
    ]
    together = comparing.compare_runs(
        Side("A", (*side("A").runs, *(run for a, _ in others for run in a.runs))),
        Side("B", (*side("B", finals=drift).runs, *(run for _, b in others for run in b.runs))),
    )
    assert primary(alone).adjusted_p == primary(alone).p
    assert primary(together).p == primary(alone).p
    assert primary(together).adjusted_p == pytest.approx(6 * (primary(alone).p or math.nan))


def test_slower_epochs_are_a_regression_when_the_sides_took_turns() -> None:
    found = comparing.compare_runs(side("A"), side("B", epoch=1.2, first_minute=1))
    row = primary(found, "epoch time")
    assert (row.word, row.regression) == ("worse", True)
    assert row.difference == pytest.approx(0.2)
    assert (
        primary(comparing.compare_runs(side("A"), side("B", epoch=0.8, first_minute=1)), "epoch time").word == "better"
    )


@pytest.mark.parametrize(
    ("b", "note"),
    [
        (side("B", epoch=1.2, first_minute=100), "were not interleaved"),
        (side("B", epoch=1.2, first_minute=1, finals=GOOD[:5]), "fewer than 6 runs per side"),
    ],
)
def test_times_without_a_test_get_a_ratio_and_no_verdict(b: Side, note: str) -> None:
    row = primary(comparing.compare_runs(side("A"), b), "epoch time")
    assert (row.word, row.p) == ("not tested", None)
    assert note in row.note
    assert row.difference == pytest.approx(0.2)
    assert row.interval is not None


def test_less_than_five_percent_is_never_flagged() -> None:
    row = primary(comparing.compare_runs(side("A"), side("B", epoch=1.04, first_minute=1)), "epoch time")
    assert row.p is not None
    assert row.p < 0.01
    assert row.word == "unclear"


def test_two_machines_need_not_take_turns() -> None:
    row = primary(comparing.compare_runs(side("A"), side("B", epoch=2.0, first_minute=100, host="other")), "epoch time")
    assert row.word == "worse"


def test_one_run_on_another_host_is_no_way_around_taking_turns() -> None:
    first, *others = side("A").runs
    a = Side("A", (replace(first, host="other"), *others))
    row = primary(comparing.compare_runs(a, side("B", epoch=1.2, first_minute=100)), "epoch time")
    assert row.word == "not tested"
    assert "were not interleaved" in row.note


def on_both(name: str, gpu: int, cpu: int, first_minute: int, slower: float = 1.0) -> Side:
    """A side of runs of 5 s per epoch on a GPU and 300 s on a CPU."""
    there = side(f"{name}g", finals=GOOD[:gpu], epoch=5.0 * slower, first_minute=first_minute)
    processor = {"device": "Test CPU", "device_type": "cpu"}
    here = side(f"{name}c", finals=GOOD[:cpu], epoch=300.0 * slower, first_minute=first_minute, **processor)
    return Side(name, (*there.runs, *here.runs))


def test_times_of_two_devices_are_never_in_one_test() -> None:
    found = comparing.compare_runs(on_both("A", 6, 1, 0), on_both("B", 1, 6, 1))
    rows = {row.device: row for row in found.rows if row.metric == "epoch time"}
    assert {device: (row.word, row.a_runs, row.b_runs) for device, row in rows.items()} == {
        "GPU": ("not tested", 6, 1),
        "Test CPU": ("not tested", 1, 6),
    }
    assert all(row.difference == pytest.approx(0.0, abs=0.01) for row in rows.values())
    assert found.regressions == []
    # Each device is tested by itself, and the text says which it is.
    slower = comparing.compare_runs(on_both("A", 6, 6, 0), on_both("B", 6, 6, 1, slower=1.2))
    assert {row.device: row.word for row in slower.rows if row.metric == "epoch time"} == {
        "GPU": "worse",
        "Test CPU": "worse",
    }
    for text in (rendered(found), compare_text.markdown(found)):
        assert "epoch time, Test CPU" in text
    assert {row["device"] for row in json.loads(compare_text.as_json(found))["rows"]} == {"", "GPU", "Test CPU"}


def test_runs_on_a_device_of_one_side_only_are_left_out_of_times() -> None:
    row = primary(comparing.compare_runs(on_both("A", 6, 0, 0), on_both("B", 6, 6, 1)), "epoch time")
    assert (row.device, row.a_runs, row.b_runs, row.word) == ("GPU", 6, 6, "unclear")


def test_shown_costs_are_by_device_too() -> None:
    def with_costs(side: Side) -> Side:
        rates = {"GPU": 10_000.0, "Test CPU": 100.0}
        runs = (
            replace(
                run,
                metrics={
                    **run.metrics,
                    "time/images_per_second": dict.fromkeys((1, 2), rates[run.device]),
                    "time/train_seconds": {2: 1e6 / rates[run.device]},
                    "memory/peak_bytes": {1: rates[run.device] * 2**20},
                },
            )
            for run in side.runs
        )
        return Side(side.name, tuple(runs))

    found = comparing.compare_runs(with_costs(on_both("A", 1, 2, 0)), with_costs(on_both("B", 2, 1, 1)))
    for metric in ("throughput", "training time", "peak memory"):
        rows = [row for row in found.rows if row.metric == metric]
        assert {row.device: (row.a_runs, row.b_runs, row.difference) for row in rows} == {
            "GPU": (1, 2, 0.0),
            "Test CPU": (2, 1, 0.0),
        }


def test_regressions_come_first_and_shown_metrics_last() -> None:
    a = Side("A", (*side("A", benchmark="z").runs, *side("A", benchmark="a").runs))
    b = Side(
        "B", (*side("B", benchmark="z", finals=shifted(-3)).runs, *side("B", benchmark="a", finals=shifted(0)).runs)
    )
    rows = comparing.compare_runs(a, b).rows
    assert (rows[0].benchmark, rows[0].word) == ("z", "worse")
    assert [row.primary for row in rows] == sorted((row.primary for row in rows), reverse=True)
    assert "test loss" in {row.metric for row in rows if not row.primary}
    assert all(row.word == "not tested" for row in rows if not row.primary)


def test_environments_are_said_first() -> None:
    b = side("B", code_commit="f" * 40)
    b = Side("B", tuple(replace(run, environment={"torch": "2.16.0", "gpu": "H200"}) for run in b.runs))
    found = comparing.compare_runs(side("A"), b)
    assert found.environment == (("code_commit", "c", "f" * 40), ("torch", "2.15.0", "2.16.0"))
    text = rendered(found)
    assert text.index("torch: 2.15.0 → 2.16.0") < text.index("test accuracy")
    assert "The same environment on both sides." in rendered(comparing.compare_runs(side("A"), side("A")))


def test_recipes_are_only_mixed_when_there_is_no_other_way_and_then_it_is_said() -> None:
    changed = side("B", fingerprint="g", recipe={"training.epochs": "4", "optimizer.lr": "0.1"})
    row = primary(comparing.compare_runs(side("A"), changed))
    assert row.note == "different recipes: optimizer.lr"
    both = Side("B", (*changed.runs, *side("C", finals=shifted(0.13)).runs))
    assert primary(comparing.compare_runs(side("A"), both)).note == ""
    images = primary(comparing.compare_runs(side("A"), side("B", data_fingerprint="e")))
    assert images.note.startswith("different images")


def test_what_only_one_side_has_is_named() -> None:
    a = Side("A", (*side("A").runs, *side("A", benchmark="alone", profile="smoke").runs))
    found = comparing.compare_runs(a, side("B", generated=False))
    assert found.only_a == ("alone (smoke)",)
    assert "Only A has runs of alone (smoke)." in compare_text.markdown(found)
    nothing = comparing.compare_runs(side("A"), side("B", benchmark="other"))
    assert nothing.rows == ()
    assert "nothing was compared" in compare_text.summary(nothing)


def rendered(comparison: ResultComparison) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(compare_text.table(comparison))
    return console.export_text()


def test_terminal_markdown_and_json_agree() -> None:
    found = comparing.compare_runs(side("A"), side("B", finals=shifted(-2.0)))
    for text in (rendered(found), compare_text.markdown(found)):
        assert "−2.00" in text
        assert "90.35 (6)" in text
        assert "worse" in text
    data = json.loads(compare_text.as_json(found))
    assert data["regressions"] == 1
    assert data["rows"][0]["metric"] == "test accuracy"
    assert data["rows"][0]["difference"] == pytest.approx(-2.0)
    assert data["rows"][0]["regression"] is True


def test_unclear_has_the_smallest_difference_that_could_have_been_seen_beside_it() -> None:
    finals = [88.0, 92.5, 90.1, 90.6, 89.9, 91.3]
    found = comparing.compare_runs(side("A"), side("B", finals=finals, epoch=1.01, first_minute=1))
    accuracy, time = primary(found), primary(found, "epoch time")
    assert (accuracy.word, time.word) == ("unclear", "unclear")
    assert accuracy.detectable == pytest.approx(smallest_difference(GOOD, finals))
    assert time.detectable == pytest.approx(0.05, abs=0.01)
    assert time.detectable > 0.05
    for text in (rendered(found), compare_text.markdown(found)):
        assert f"unclear, detectable {accuracy.detectable:.2f} pp" in text
        assert f"unclear, detectable ×{1 + (time.detectable or 0):.3f}" in text
        assert "the smallest difference that these runs would have shown with 80% power" in text
    data = {row["metric"]: row["detectable"] for row in json.loads(compare_text.as_json(found))["rows"]}
    assert data["test accuracy"] == pytest.approx(accuracy.detectable)
    worse = comparing.compare_runs(side("A"), side("B", finals=shifted(-2.0), epoch=1.2, first_minute=1))
    assert "detectable" not in rendered(worse)


def test_what_is_detectable_grows_with_the_comparisons_that_share_the_level() -> None:
    finals = [88.0, 92.5, 90.1, 90.6, 89.9, 91.3]
    names = [f"b{number}" for number in range(30)]
    a, b = (
        Side(name, tuple(run for each in names for run in side(name, benchmark=each, **changes).runs))
        for name, changes in (("A", {}), ("B", {"finals": finals, "epoch": 1.01, "first_minute": 1}))
    )
    rows = [row for row in comparing.compare_runs(a, b).rows if row.primary]
    accuracies, times = ([row for row in rows if (row.metric == "epoch time") is is_time] for is_time in (False, True))
    expected = smallest_difference(GOOD, finals, alpha=0.05 / 30)
    assert [row.detectable for row in accuracies] == [pytest.approx(expected)] * 30
    assert {(row.word, row.detectable) for row in times} == {("unclear", None)}
    assert all("too few runs per side for so many comparisons" in row.note for row in times)


def test_names_mean_nothing_in_markup() -> None:
    nasty = "[bold]x[/bold] <script> | y"
    found = comparing.compare_runs(side("A", benchmark=nasty), side("B", benchmark=nasty, finals=shifted(-2.0)))
    assert "<script>" not in compare_text.markdown(found)
    linked = compare_text.markdown(comparing.compare_runs(side("![a](http://x)"), side("~~B~~")))
    assert r"A: !\[a\](http" in linked
    assert "~~B" not in linked
    assert "[bold]x" in rendered(found)
    rows = [line for line in compare_text.markdown(found).splitlines() if line.startswith("| ")]
    assert all(line.replace(r"\|", "").count("|") == 9 for line in rows)


def test_a_loss_that_is_not_finite_has_no_mean() -> None:
    lost = side("B")
    first, *others = lost.runs
    first = replace(first, metrics={**first.metrics, "test/loss": {2: math.inf}})
    found = comparing.compare_runs(side("A"), Side("B", (first, *others)))
    (row,) = [row for row in found.rows if row.metric == "test loss"]
    assert (row.a_runs, row.b_runs, row.note) == (6, 5, "1 run left out: not finite")


# --- naming a side -------------------------------------------------------------------------------


def test_two_commits_of_one_store(store_uri: str) -> None:
    found = compare("aaaa", "AAAAAAAA", sources=[store_uri])
    assert {row.word for row in found.rows if row.metric == "test accuracy"} == {"identical"}
    with pytest.raises(UserError, match="abcd1234: there is no finished run"):
        compare("aaaa", "abcd1234", sources=[store_uri])


def test_two_tags_of_one_store(store_uri: str) -> None:
    found = compare("device=Test GPU", "resnet_bench.device=Test CPU, 2 threads", sources=[store_uri])
    assert ("device", "Test GPU", "Test CPU, 2 threads") in found.environment
    row = primary(found, "epoch time", "nine-onecycle")
    assert row.word == "not tested"
    assert row.difference > 100
    assert compare("profile=full", "generated=false", sources=[store_uri]).rows


def test_a_store_against_its_own_report(store_uri: str, store_tables: Tables, tmp_path: Path) -> None:
    for name, content in report.table_files(store_tables).items():
        (tmp_path / name).write_bytes(content)
    found = compare(store_uri, str(tmp_path))
    assert found.environment == ()
    assert {row.word for row in found.rows if row.metric == "test accuracy"} == {"identical"}
    assert found.regressions == []


def test_only_some_benchmarks(store_uri: str) -> None:
    found = compare("profile=full", "profile=full", sources=[store_uri], benchmarks=["ranged"])
    assert {row.benchmark for row in found.rows} == {"ranged"}


@pytest.mark.parametrize("spec", ["what?", "", "xyz", "ab"])
def test_a_side_that_is_nothing_known(spec: str) -> None:
    with pytest.raises(UserError, match="is not a store, folder, tag or commit"):
        compare(spec, "aaaa")


def test_a_tag_that_no_run_has(store_uri: str) -> None:
    with pytest.raises(UserError, match="team=blue: there is no finished run"):
        compare("team=blue", "aaaa", sources=[store_uri])


def share_of_alarms(benchmarks: int, seeds: int, repetitions: int) -> float:
    """Share of whole comparisons that find a regression where both sides are drawn from the same distributions."""
    numbers = random.Random(f"{benchmarks} {seeds}")

    def drawn(name: str, first_minute: int) -> Side:
        runs = []
        for number in range(benchmarks):
            finals = [numbers.gauss(90, 0.3) for _ in range(seeds)]
            for run in side(name, benchmark=f"b{number}", finals=finals, first_minute=first_minute).runs:
                seconds = math.exp(numbers.gauss(0, 0.1))
                runs.append(replace(run, metrics={**run.metrics, "time/epoch_seconds": {1: 9.0, 2: seconds}}))
        return Side(name, tuple(runs))

    found = [comparing.compare_runs(drawn("A", 0), drawn("B", 1)) for _ in range(repetitions)]
    return sum(bool(comparison.regressions) for comparison in found) / repetitions


def test_false_alarms_of_a_whole_comparison_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 0.065
    assert share_of_alarms(benchmarks=5, seeds=4, repetitions=100) <= limit
    monkeypatch.setattr(intervals, "holm", list)
    assert share_of_alarms(benchmarks=5, seeds=4, repetitions=100) > limit, "without it the alarms are too many"


@pytest.mark.slow
def test_accuracies_and_times_together_raise_an_alarm_in_five_percent_at_most() -> None:
    """From six runs a side both are tested; two standard errors of 1,500 repetitions are 0.011."""
    share = share_of_alarms(benchmarks=2, seeds=6, repetitions=1500)
    assert 0.02 <= share <= 0.05 + 0.011


def test_recipes_and_images_of_one_benchmark_have_names_that_differ() -> None:
    several = Side(
        "A",
        (
            *side("1").runs,
            *side("2", data_fingerprint="e" * 64).runs,
            *side("3", fingerprint="other fingerprint").runs,
        ),
    )
    found = comparing.compare_runs(several, several)
    names = {row.label for row in found.rows if row.metric == "test accuracy"}
    assert names == {"b (f, images d)", "b (f, images eeeeee)", "b (other )"}
