"""The run that sums up the seeds of an experiment: what it shows, when it changes, and who skips it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from mlflow.entities import Run

import resnet_bench as rb
from resnet_bench.reporting import reading, runs
from resnet_bench.running.kept_runs import delete_runs, find_run, read_runs
from resnet_bench.tracking.facts import RunFacts
from resnet_bench.tracking.finished_runs import finished_runs
from resnet_bench.tracking.push import push
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.summaries import refresh, summarize
from resnet_bench.tracking.tracker import Tracker
from resnet_bench.tracking.uploader import flush_all
from resnet_bench.tracking.vocabulary import EXPERIMENT, PARENT, tag

from .training_events import finished, started, training

Describe = Callable[..., RunFacts]
ACCURACIES = {0: 0.91, 1: 0.92, 2: 0.96}


def finished_run(store: Store, facts: RunFacts, accuracy: float, seconds: float = 8, **tags: str) -> Run:
    """A run as the tracker leaves it, without waiting for one."""
    client = store.client()
    experiment = store.experiment_id(client, EXPERIMENT)
    all_tags = {**facts.tags(), **{tag(name): value for name, value in tags.items()}}
    run_id = client.create_run(experiment, tags=all_tags, run_name=facts.name).info.run_id
    for key, value in {
        "test_accuracy": accuracy,
        "test_accuracy_standard": accuracy - 0.01,
        "train_seconds": seconds,
    }.items():
        client.log_metric(run_id, f"final/{key}", value, step=0)
    client.set_terminated(run_id, "FINISHED")
    run = client.get_run(run_id)
    summarize(store, client, run.data.tags, experiment)
    return run


def summaries(store: Store) -> list[Run]:
    client = store.client()
    return list(client.search_runs([store.experiment_id(client, EXPERIMENT)], f"tags.`{tag('summary')}` LIKE '%'"))


def parents(store: Store) -> set[str | None]:
    client = store.client()
    experiment = store.experiment_id(client, EXPERIMENT)
    runs = client.search_runs([experiment], f"tags.`{tag('role')}` = 'run'")
    return {run.data.tags.get(PARENT) for run in runs}


@pytest.fixture
def seeds(store: Store, describe: Describe) -> list[Run]:
    return [finished_run(store, describe(seed=seed), accuracy) for seed, accuracy in ACCURACIES.items()]


def test_the_summary_is_the_parent_of_its_seeds_with_mean_sd_and_number(store: Store, seeds: list[Run]) -> None:
    (summary,) = summaries(store)
    assert summary.data.metrics == {
        "final/test_accuracy": 0.93,
        "final/test_accuracy_standard": 0.92,
        "final/train_seconds": 8.0,
        "summary/test_accuracy_sd": 0.026458,
        "summary/test_accuracy_standard_sd": 0.026458,
        "summary/seeds": 3.0,
    }
    assert (summary.info.run_name, summary.info.status) == ("small, mean of 3 seeds", "FINISHED")
    assert "| test_accuracy | 93.00% | 2.65 pp | 3 |" in summary.data.tags["mlflow.note.content"]
    assert parents(store) == {summary.info.run_id}
    # MLflow draws bars where every value is at step 0.
    history = store.client().get_metric_history(summary.info.run_id, "final/test_accuracy")
    assert {point.step for point in history} == {0}


def test_one_seed_has_no_summary(store: Store, describe: Describe) -> None:
    finished_run(store, describe(seed=0), 0.9)
    finished_run(store, describe(seed=0), 0.8)
    assert summaries(store) == []
    assert parents(store) == {None}


def test_each_seed_counts_once_and_other_experiments_not(store: Store, describe: Describe, seeds: list[Run]) -> None:
    finished_run(store, describe(seed=2), 0.93)
    finished_run(store, describe(seed=4, data_fingerprint="of other images"), 0.1)
    finished_run(store, describe(seed=5, profile="smoke"), 0.1)
    finished_run(store, describe(seed=6), float("nan"))
    (summary,) = summaries(store)
    assert summary.data.metrics["final/test_accuracy"] == pytest.approx(0.92)
    assert summary.data.metrics["summary/seeds"] == 3


def test_seeds_from_several_devices_count_as_in_reports(store: Store, describe: Describe, seeds: list[Run]) -> None:
    """Other devices add the seeds that the one with most of them lacks; times are of that one alone."""
    finished_run(store, describe(seed=2), 0.5, 99.0, device="another")
    finished_run(store, describe(seed=3), 0.81, 99.0, device="another")
    (summary,) = summaries(store)
    assert summary.info.run_name == "small, mean of 4 seeds"
    assert summary.data.metrics["final/train_seconds"] == 8.0
    (group,) = runs.group(runs.load(reading.read([store.uri]))[0])
    reported = fmean(run.once["final/test_accuracy"] for run in group.runs)
    assert summary.data.metrics["final/test_accuracy"] == pytest.approx(reported) == 0.9
    assert summary.data.tags[tag("device")] == f"{seeds[0].data.tags[tag('device')]} and another"
    assert runs.devices_text(group) == summary.data.tags[tag("device")]


def test_of_two_devices_with_as_many_seeds_the_latest_counts(store: Store, describe: Describe) -> None:
    for device, accuracy in (("first", 0.8), ("second", 0.9)):
        for seed in range(2):
            finished_run(store, describe(seed=seed), accuracy, device=device)
    (summary,) = summaries(store)
    (group,) = runs.group(runs.load(reading.read([store.uri]))[0])
    assert [run.once["final/test_accuracy"] for run in group.runs] == [0.9, 0.9]
    assert summary.data.metrics["final/test_accuracy"] == 0.9
    assert summary.data.tags[tag("device")] == runs.devices_text(group) == "second"


def test_times_of_runs_that_shared_a_device_are_left_out(store: Store, describe: Describe) -> None:
    for seed in range(2):
        finished_run(store, describe(seed=seed, seeds_per_device=2), 0.9)
    (summary,) = summaries(store)
    assert "final/train_seconds" not in summary.data.metrics


def test_the_summary_follows_deleted_seeds(store: Store, seeds: list[Run], tmp_path: Path) -> None:
    delete_runs(store, [find_run(read_runs(store, tmp_path), seeds[2].info.run_id)])
    (summary,) = summaries(store)
    assert summary.data.metrics["final/test_accuracy"] == pytest.approx(0.915)
    assert summary.info.run_name == "small, mean of 2 seeds"
    # On MLflow's pages nobody tells us; the next start of the pages looks.
    store.client().delete_run(seeds[1].info.run_id)
    refresh(store, store.client())
    assert summaries(store) == []
    assert parents(store) == {None}


def test_a_summary_that_was_deleted_or_made_twice_is_one_again(
    store: Store, describe: Describe, seeds: list[Run]
) -> None:
    client = store.client()
    (first,) = summaries(store)
    client.delete_run(first.info.run_id)
    finished_run(store, describe(seed=3), 0.9)
    (second,) = summaries(store)
    assert second.info.run_id != first.info.run_id
    assert parents(store) == {second.info.run_id}
    client.create_run(second.info.experiment_id, tags={tag("summary"): second.data.tags[tag("summary")]})
    finished_run(store, describe(seed=4), 0.9)
    (third,) = summaries(store)
    assert third.data.metrics["summary/seeds"] == 5
    assert parents(store) == {third.info.run_id}


def test_seeds_that_end_together_on_two_machines_have_one_summary(
    store: Store, describe: Describe, seeds: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = store.client()
    (former,) = summaries(store)
    key, experiment = former.data.tags[tag("summary")], former.info.experiment_id
    client.delete_run(former.info.run_id)
    create, rivals = client.create_run, []

    def create_both(*arguments: Any, **options: Any) -> Run:
        # The other machine makes one after both have looked, and hands it the seeds that it knows.
        ours = create(*arguments, **options)
        if not rivals:
            rivals.append(create(experiment, start_time=0, tags={tag("summary"): key}))
            client.set_tag(seeds[0].info.run_id, PARENT, rivals[0].info.run_id)
        return ours

    monkeypatch.setattr(client, "create_run", create_both)
    summarize(store, client, seeds[0].data.tags, experiment)
    assert rivals
    (summary,) = summaries(store)
    assert parents(store) == {summary.info.run_id}
    assert summary.data.metrics["summary/seeds"] == 3


def test_a_seed_that_ends_while_the_summary_is_written_is_in_it(
    store: Store, describe: Describe, seeds: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = store.client()
    log_batch, late = client.log_batch, []

    def log_first(*arguments: Any, **options: Any) -> None:
        log_batch(*arguments, **options)
        if not late:
            late.append(True)
            facts = describe(seed=8)
            made = client.create_run(seeds[0].info.experiment_id, tags=facts.tags(), run_name=facts.name)
            run_id = made.info.run_id
            client.log_metric(run_id, "final/test_accuracy", 0.5, step=0)
            client.set_terminated(run_id, "FINISHED")

    for run in seeds[2:]:
        client.delete_run(run.info.run_id)
    monkeypatch.setattr(client, "log_batch", log_first)
    summarize(store, client, seeds[0].data.tags, seeds[0].info.experiment_id)
    (summary,) = summaries(store)
    assert late
    assert summary.data.metrics["summary/seeds"] == 3
    assert summary.info.run_name == "small, mean of 3 seeds"


def test_no_reader_takes_the_summary_for_a_run(store: Store, seeds: list[Run], tmp_path: Path) -> None:
    ids = {run.info.run_id for run in seeds}
    assert {run.run_id for run in read_runs(store, tmp_path)} == ids
    assert set(finished_runs(store.reader())) == ids
    assert set(rb.results(store.uri)["run_id"]) == ids


def test_a_store_that_runs_are_pushed_to_has_its_own_summary(
    store: Store, seeds: list[Run], describe: Describe, empty_database: Path, tmp_path: Path
) -> None:
    shutil.copy(empty_database, tmp_path / "other.db")
    other = Store.resolve(str(tmp_path / "other.db"))
    other.prepare()
    finished_run(other, describe(seed=3), 0.93)
    for _ in range(2):
        report = push(store, other, say=lambda _: None)
        assert (report.failed, report.deleted) == ([], [])
        (summary,) = summaries(other)
        assert summary.data.metrics["summary/seeds"] == 4
        assert parents(other) == {summary.info.run_id}


def test_the_tracker_makes_it_at_the_end_of_a_run_and_flush_where_the_store_was_away(
    store: Store, describe: Describe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"

    def track(seed: int) -> Any:
        tracker = Tracker.open(store, describe(seed=seed), runs / str(seed))
        for event in [started(), *training(), finished()]:
            tracker.record(event)
        return tracker.close("finished", timeout=60)

    for seed in range(2):
        assert track(seed).complete
    (summary,) = summaries(store)
    assert summary.data.metrics["final/test_accuracy"] == pytest.approx(0.66)
    assert summary.data.metrics["summary/seeds"] == 2
    with monkeypatch.context() as away:
        away.setattr(Store, "client", _unreachable)
        tracker = Tracker.open(store, describe(seed=2), runs / "2")
        for event in [started(), *training(), finished()]:
            tracker.record(event)
        assert not tracker.close("finished", timeout=0.1).complete
    assert summaries(store)[0].data.metrics["summary/seeds"] == 2
    assert flush_all(None, runs, say=lambda _: None)
    assert summaries(store)[0].data.metrics["summary/seeds"] == 3


def _unreachable(self: Store) -> Any:
    raise ConnectionError("away")


def test_a_store_that_refuses_the_summary_loses_nothing_else(
    store: Store, seeds: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = store.client()
    monkeypatch.setattr(client, "search_runs", _refuses)
    summarize(store, client, seeds[0].data.tags, seeds[0].info.experiment_id)
    assert len(summaries(store)) == 1


def _refuses(*_: Any, **__: Any) -> Any:
    raise ConnectionError("away")
