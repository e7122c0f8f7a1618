"""A benchmark over commits and torch versions: what is one point, and where there is a step."""

import random
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

import pytest

from resnet_bench.judging import intervals
from resnet_bench.judging.power import smallest_difference
from resnet_bench.reporting import history
from resnet_bench.reporting.history import History, HistoryPoint, PointValues
from resnet_bench.reporting.runs import Run
from tests.reporting.test_compare import WITH_TTA
from tests.reporting.test_runs import EMPTY

BEFORE, AFTER = [90.1, 90.4, 90.2, 90.3], [88.2, 88.5, 88.3, 88.4]


def point(
    commit: str, minute: int, finals: list[float], rate: float = 1000.0, torch: str = "2.15.0", **changes: object
) -> list[Run]:
    """Runs of one commit; each a little faster or slower than the others."""
    return [
        replace(
            EMPTY,
            id=f"{commit}{minute}{seed}",
            seed=seed,
            code_commit=commit,
            started=EMPTY.started + timedelta(minutes=minute + seed),
            environment={"torch": torch},
            metrics={
                "test/accuracy": {1: 0.5, 4: final / 100},
                "time/images_per_second": dict.fromkeys((1, 2, 3), rate * (1 + 0.004 * (3 * seed % 4))),
            },
            **changes,  # type: ignore[arg-type]
        )
        for seed, final in enumerate(finals)
    ]


def only(runs: list[Run]) -> History:
    (found,) = history.histories(runs)
    return found


def rates(of: HistoryPoint) -> PointValues:
    """The throughput of the only kind of machine."""
    (found,) = of.throughput.values()
    return found


def test_points_are_commits_and_torch_versions_in_the_order_of_time() -> None:
    runs = [
        *point("c2", 20, AFTER),
        *point("c1", 0, BEFORE),
        *point("c2", 40, AFTER, torch="2.16.0"),
        *point("c2", 60, AFTER, code_dirty=True),
    ]
    found = only(runs)
    assert [(each.commit, each.torch, each.dirty) for each in found.points] == [
        ("c1", "2.15.0", False),
        ("c2", "2.15.0", False),
        ("c2", "2.16.0", False),
        ("c2", "2.15.0", True),
    ]
    first = found.points[0]
    assert first.accuracy.values == pytest.approx(BEFORE)
    assert first.accuracy.interval == pytest.approx(intervals.mean_interval(BEFORE))
    assert rates(first).mean == pytest.approx(1006)
    assert first.accuracy.change is rates(first).change is None


def test_the_title_says_which_accuracy_it_is() -> None:
    runs = point("c1", 0, BEFORE)
    assert history.title(only(runs)).endswith("test accuracy")
    with_tta = [
        replace(run, benchmark_json=WITH_TTA, metrics={**run.metrics, "test/accuracy_tta": {4: 0.95}}) for run in runs
    ]
    assert history.title(only(with_tta)).endswith("test accuracy (TTA)")
    assert only(with_tta).points[0].accuracy.mean == pytest.approx(95)


def test_a_step_is_marked_where_it_is_and_nowhere_else() -> None:
    found = only([*point("c1", 0, BEFORE), *point("c2", 20, AFTER), *point("c3", 40, [88.3, 88.4, 88.5, 88.2])])
    changes = [each.accuracy.change for each in found.points]
    assert changes[0] is None
    assert (changes[1].step, changes[2].step) == (True, False)
    assert changes[1].value == pytest.approx(-1.9)
    assert changes[1].p == pytest.approx(2 * (intervals.welch(BEFORE, AFTER).p or 0)), "adjusted over both neighbors"
    assert (changes[1].detectable, changes[2].detectable) == (
        None,
        pytest.approx(smallest_difference(AFTER, [88.3, 88.4, 88.5, 88.2])),
    )
    cells = [row[5] for row in history.rows(found)]
    assert cells[0] == "–"
    assert cells[1] == "−1.90 ▼ step"
    assert cells[2].startswith("0.00 (detectable 0.")


def test_a_detectable_change_is_that_of_the_level_which_holms_method_leaves() -> None:
    same = [BEFORE, [90.2, 90.3, 90.4, 90.0], [90.3, 90.2, 90.1, 90.5]]
    runs = [run for number, finals in enumerate(same) for run in point(f"c{number}", 20 * number, finals)]
    changes = [each.accuracy.change for each in only(runs).points[1:]]
    for change, (before, after) in zip(changes, pairwise(same), strict=True):
        assert change.detectable == pytest.approx(smallest_difference(before, after, alpha=0.05 / 2))


@pytest.mark.parametrize(("rate", "step"), [(800.0, True), (1200.0, True), (970.0, False)])
def test_a_step_of_the_throughput_is_beyond_five_percent(rate: float, step: bool) -> None:
    change = rates(only([*point("c1", 0, BEFORE), *point("c2", 20, BEFORE, rate)]).points[1]).change
    assert change.value == pytest.approx(rate / 1000 - 1)
    assert change.p < 0.05
    assert change.step is step
    assert (change.detectable is None) is step
    if change.detectable is not None:
        assert change.detectable > 0.05, "a change of exactly 5% is shown half of the time"


def test_runs_that_shared_their_device_are_left_out_of_the_throughput() -> None:
    shared = [
        replace(
            run, tags={"resnet_bench.seeds_per_device": "2"}, metrics={"test/accuracy": run.metrics["test/accuracy"]}
        )
        for run in point("c2", 20, BEFORE[:3])
    ]
    found = only([*point("c1", 0, BEFORE), *shared, *point("c3", 60, BEFORE)])
    second, third = found.points[1:]
    assert (len(second.accuracy.values), second.throughput, second.shared_runs) == (3, {}, 3)
    assert rates(third).change is not None, "compared with the last commit that was timed"


def test_machines_that_share_a_name_share_accuracies_and_no_throughput() -> None:
    def on(model: str | None, runs: list[Run]) -> list[Run]:
        environment = {"torch": "2.15.0", "cpu": "AMD EPYC", "cpu_model": model}
        return [replace(run, device="AMD EPYC", device_type="cpu", environment=environment) for run in runs]

    zen4, zen5 = "family 25, model 17", "family 26, model 2"
    runs = [
        *on(zen4, point("c1", 0, BEFORE)),
        *on(zen5, point("c2", 20, BEFORE, 1700.0)),
        *on(zen4, point("c3", 40, AFTER)),
        *on(zen5, point("c3", 60, AFTER, 1200.0)),
        *on(None, point("c3", 80, AFTER, 600.0)),
    ]
    found = only(runs)
    assert found.machines == (zen4, zen5, "model not recorded")
    changes = [{machine: each.change for machine, each in one.throughput.items()} for one in found.points]
    assert changes[0] == {zen4: None}
    assert changes[1] == {zen5: None}, "there is nothing of this machine before"
    assert changes[2][zen4].value == pytest.approx(0)
    assert (changes[2][zen5].value, changes[2][zen5].step) == (pytest.approx(1200 / 1700 - 1), True)
    assert changes[2]["model not recorded"] is None
    assert [len(each.accuracy.values) for each in found.points] == [4, 4, 4]
    assert found.points[2].accuracy.change.step
    assert history.title(found).endswith(f"; machine 1: {zen4}; machine 2: {zen5}; machine 3: model not recorded")
    rows = history.rows(found)
    assert [row[0] for row in rows] == ["c1", "c2", "c3", "", ""]
    assert rows[3][6:] == ["4", "1,207 ± 10 (machine 2)", "−29.41% ▼ step"]


def test_what_trains_otherwise_is_another_history() -> None:
    runs = [*point("c1", 0, BEFORE), *point("c2", 20, AFTER)]
    for change in (
        {"profile": "smoke"},
        {"fingerprint": "g"},
        {"data_fingerprint": "e"},
        {"generated": True},
        {"device": "other"},
        {"precision": "fp32"},
    ):
        found = history.histories([*runs, *point("c3", 40, AFTER, **change)])
        assert [[each.commit for each in one.points] for one in found] == [["c1", "c2"], ["c3"]]


def test_a_seed_counts_once_and_its_throughput_each_time() -> None:
    again = point("c1", 30, [90.9])
    (found,) = only([*point("c1", 0, BEFORE), *again]).points
    assert found.accuracy.values == pytest.approx([90.9, *BEFORE[1:]])
    assert len(rates(found).values) == 5


def test_one_run_per_point_is_shown_and_not_tested() -> None:
    found = only([*point("c1", 0, [90.0]), *point("c2", 20, [50.0])])
    change = found.points[1].accuracy.change
    assert (change.value, change.p, change.step) == (-40.0, None, False)
    assert history.rows(found)[1][5] == "−40.00 (not tested)"


def share_of_alarms(repetitions: int) -> float:
    """Share of histories of six commits without a change in which a step is marked."""
    numbers = random.Random(7)

    def alarm() -> bool:
        runs = []
        for number in range(6):
            made = point(f"c{number}", 20 * number, [numbers.gauss(90, 0.3) for _ in range(3)])
            for run in made:
                per_epoch = dict.fromkeys((1, 2, 3), 1000 * (1 + numbers.gauss(0, 0.1)))
                runs.append(replace(run, metrics={**run.metrics, "time/images_per_second": per_epoch}))
        measured = [part for each in only(runs).points for part in (each.accuracy, rates(each))]
        return any(part.change is not None and part.change.step for part in measured)

    return sum(alarm() for _ in range(repetitions)) / repetitions


@pytest.mark.slow
def test_steps_are_marked_by_chance_in_at_most_five_percent_each() -> None:
    """Accuracy and throughput are each adjusted to 5%; two standard errors of 300 repetitions are 0.035."""
    assert share_of_alarms(300) <= 0.10 + 0.035
