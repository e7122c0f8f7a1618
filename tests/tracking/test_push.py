"""Runs copied from one store to another: everything, once, and again after an interruption."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

from resnet_bench.base.errors import UserError
from resnet_bench.tracking.facts import RunFacts
from resnet_bench.tracking.push import push
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.tracker import Tracker
from resnet_bench.tracking.vocabulary import STUDIES_EXPERIMENT

from .test_tracker import expected_histories, histories, record_all, whole_run

Describe = Callable[..., RunFacts]
ORIGIN = "resnet_bench.origin"


@pytest.fixture
def target(empty_database: Path, tmp_path: Path) -> Store:
    folder = tmp_path / "target"
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    return Store.resolve(None, folder)


@pytest.fixture
def study(store: Store, describe: Describe, tmp_path: Path) -> dict[str, str]:
    """A parent, a trial in it, and a run in another experiment: their ids by name."""
    client = store.client()
    experiment = store.experiment_id(client, STUDIES_EXPERIMENT)
    parent = client.create_run(experiment, start_time=1_000, tags={"resnet_bench.role": "study"}, run_name="my study")
    client.log_param(parent.info.run_id, "space.optimizer.lr", "0.1 to 1")
    client.log_batch(parent.info.run_id, metrics=[Metric("study/best", value, 5, 0) for value in (0.1, float("nan"))])
    client.set_terminated(parent.info.run_id, "KILLED", end_time=9_000)
    ids = {"my study": parent.info.run_id}
    for name, facts in {
        "trial 0": describe(
            run_name="trial 0", experiment=STUDIES_EXPERIMENT, role="trial", parent_run_id=parent.info.run_id
        ),
        "alone": describe(run_name="alone"),
    }.items():
        tracker = Tracker.open(store, facts, tmp_path / "runs" / name)
        record_all(tracker, whole_run())
        tracker.text("notes/recipe.toml", f"# {name}\n")
        assert tracker.close("finished").complete
        assert tracker.run_id
        ids[name] = tracker.run_id
    return ids


def runs_of(store: Store) -> dict[str, Any]:
    client = store.client()
    found = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert len({run.info.run_name for run in found}) == len(found), "a run is there twice"
    return {run.info.run_name: run for run in found}


def assert_copied(store: Store, target: Store, ids: dict[str, str]) -> None:
    """Everything of the runs is in the target, under their names."""
    copies = runs_of(target)
    assert set(copies) == set(ids)
    for name, run_id in ids.items():
        original, copy = store.client().get_run(run_id), copies[name]
        for field in ("status", "start_time", "end_time", "run_name"):
            assert getattr(copy.info, field) == getattr(original.info, field), field
        assert copy.data.params == original.data.params
        changed = {ORIGIN, "resnet_bench.origin_state", "mlflow.parentRunId"}
        tags = {key: value for key, value in copy.data.tags.items() if key not in changed}
        assert tags == {key: value for key, value in original.data.tags.items() if key not in changed}
        assert copy.data.tags[ORIGIN] == run_id
        for key in original.data.metrics:
            found = [sorted(map(repr, _points(each, run, key))) for each, run in ((store, original), (target, copy))]
            assert found[0] == found[1]
        assert [each.dataset.digest for each in copy.inputs.dataset_inputs] == [
            each.dataset.digest for each in original.inputs.dataset_inputs
        ]
    assert copies["trial 0"].data.tags["mlflow.parentRunId"] == copies["my study"].info.run_id
    assert "mlflow.parentRunId" not in copies["alone"].data.tags
    for name in ("trial 0", "alone"):
        text = Path(target.client().download_artifacts(copies[name].info.run_id, "notes/recipe.toml")).read_text()
        assert text == f"# {name}\n"


def _points(store: Store, run: Any, key: str) -> list[tuple[int, int, float]]:
    history = store.client().get_metric_history(run.info.run_id, key)
    return [(metric.step, metric.timestamp, metric.value) for metric in history]


def test_everything_is_copied_once(store: Store, target: Store, study: dict[str, str]) -> None:
    report = push(store, target)
    assert {run.name for run in report.pushed} == set(study)
    assert not report.failed
    assert_copied(store, target, study)
    assert histories(target, runs_of(target)["alone"].info.run_id) == expected_histories()
    again = push(store, target)
    assert (again.pushed, again.there) == ([], 3)
    assert_copied(store, target, study)


def test_runs_that_are_there_themselves_are_not_copied(store: Store, study: dict[str, str], tmp_path: Path) -> None:
    """As where the target is a server of the same database, which has another address."""
    assert store.path is not None
    same = Store.resolve(f"sqlite:///{tmp_path}/served.db")
    shutil.copy(store.path, tmp_path / "served.db")
    report = push(store, same)
    assert (report.pushed, report.there) == ([], 3)
    assert {run.info.run_id for run in runs_of(same).values()} == set(study.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "call"),
    [("create_run", 1), ("log_batch", 2), ("log_batch", 5), ("log_artifact", 1), ("set_terminated", 2)],
)
def test_a_push_that_was_killed_anywhere_is_continued(
    method: str, call: int, store: Store, target: Store, study: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the process had been killed behind the call, of which the store has done its part."""
    work, calls = getattr(MlflowClient, method), 0

    def die(client: MlflowClient, *words: Any, **named: Any) -> Any:
        nonlocal calls
        result = work(client, *words, **named)
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, method, die)
        with pytest.raises(KeyboardInterrupt):
            push(store, target)
    assert calls == call
    assert not push(store, target).failed
    assert_copied(store, target, study)


@pytest.mark.slow
def test_a_run_that_changed_since_is_brought_up_to_date(store: Store, target: Store, study: dict[str, str]) -> None:
    client = store.client()
    client.set_tag(study["trial 0"], "resnet_bench.reason", "stopped")
    push(store, target)
    client.delete_tag(study["trial 0"], "resnet_bench.reason")
    client.log_metric(study["trial 0"], "study/value", 0.5, timestamp=77, step=0)
    client.set_terminated(study["my study"], "FINISHED", end_time=12_000)
    (Path(client.get_run(study["alone"]).info.artifact_uri.removeprefix("file://")) / "more.txt").write_text("more")
    report = push(store, target)
    assert {run.name for run in report.pushed} == set(study)
    assert_copied(store, target, study)


@pytest.mark.slow
def test_copies_of_copies_are_the_same_run(
    store: Store, target: Store, study: dict[str, str], empty_database: Path, tmp_path: Path
) -> None:
    third_folder = tmp_path / "third"
    third_folder.mkdir()
    shutil.copy(empty_database, third_folder / "mlflow.db")
    third = Store.resolve(None, third_folder)
    push(store, target)
    before = runs_of(store)
    assert push(target, store).there == 3
    assert {name: run.info.run_id for name, run in runs_of(store).items()} == {
        name: run.info.run_id for name, run in before.items()
    }
    push(target, third)
    push(store, third)
    assert_copied(store, third, study)


@pytest.mark.slow
def test_runs_that_have_not_ended_and_what_is_nested_in_them_wait(
    store: Store, target: Store, study: dict[str, str]
) -> None:
    store.client().update_run(study["my study"], status="RUNNING")
    report = push(store, target)
    assert {run.name for run in report.running} == {"my study", "trial 0"}
    assert set(runs_of(target)) == {"alone"}
    store.client().set_terminated(study["my study"], "FINISHED", end_time=9_500)
    assert {run.name for run in push(store, target).pushed} == {"my study", "trial 0"}
    assert_copied(store, target, study)


@pytest.mark.slow
def test_a_copy_that_was_deleted_stays_deleted(store: Store, target: Store, study: dict[str, str]) -> None:
    push(store, target)
    target.client().delete_run(runs_of(target)["alone"].info.run_id)
    report = push(store, target)
    assert [run.run_id for run in report.deleted] == [study["alone"]]
    assert set(runs_of(target)) == {"my study", "trial 0"}


@pytest.mark.slow
def test_one_run_that_fails_stops_no_other(
    store: Store, target: Store, study: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    download = MlflowClient.download_artifacts

    def fail(client: MlflowClient, run_id: str, *words: Any, **named: Any) -> str:
        if run_id == study["alone"]:
            raise OSError("the share is away")
        return download(client, run_id, *words, **named)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "download_artifacts", fail)
        report = push(store, target)
    assert [(run.name, run.problem) for run in report.failed] == [("alone", "the share is away")]
    assert {run.name for run in report.pushed} == {"my study", "trial 0"}
    push(store, target)
    assert_copied(store, target, study)


def test_bad_input_is_one_sentence(store: Store, target: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not pushed to itself"):
        push(store, Store.resolve(f"sqlite:///{store.path}"))
    with pytest.raises(UserError, match="does not exist"):
        push(Store.resolve(f"sqlite:///{tmp_path}/missing.db"), target)
    with pytest.raises(UserError, match=r"takes no runs: .* does not answer"):
        push(store, Store.resolve("http://127.0.0.1:9"))


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_one_sentence(
    store: Store, target: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name = hashlib.sha256(target.uri.encode()).hexdigest()[:16]
    (tmp_path / "cache" / "resnet-bench" / f"push-{name}.lock").mkdir(parents=True)
    store.prepare()
    with pytest.raises(UserError, match=r"cannot be written .*; set XDG_CACHE_HOME to another folder"):
        push(store, target)


def test_two_pushes_to_one_store_do_not_meet(store: Store, target: Store, study: dict[str, str]) -> None:
    refused = []

    def push_meanwhile(_: str) -> None:
        with pytest.raises(UserError, match="under way"):
            push(store, target)
        refused.append(True)

    push(store, target, say=push_meanwhile)
    assert len(refused) == len(study)


@pytest.mark.slow
def test_the_command_says_what_it_did(
    store: Store, target: Store, study: dict[str, str], invoke: Callable[[str], Any]
) -> None:
    result = invoke(f"tracking push --from {store.path} --to {target.path} --json")
    assert (result.code, len(json.loads(result.out)["pushed"])) == (0, len(study))
    result = invoke(f"tracking push --from {store.path} --to {target.path}")
    assert (result.code, result.out) == (0, "pushed 0 runs, 3 were there\n")
    result = invoke(f"tracking push --from {store.path} --to {store.path}")
    assert result.code == 2
    assert result.err.count("\n") == 1
