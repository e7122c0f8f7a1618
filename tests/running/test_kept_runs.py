"""What is kept of runs, what can be removed, and that store and folders agree afterwards."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resnet_bench.base.errors import UserError
from resnet_bench.running.kept_runs import (
    KeptRun,
    Leftover,
    PrunePlan,
    delete_runs,
    find_run,
    plan_prune,
    prune,
    read_runs,
)
from resnet_bench.running.run_folder import RunFolder
from resnet_bench.tracking.delivery import Delivery
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.tracker import Tracker
from tests.golden import typed
from tests.reliability import tiny

MakeRun = Callable[..., RunFolder]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    store = Store.resolve(None, tmp_path)
    store.prepare()
    return store


@pytest.fixture
def make_run(store: Store, tmp_path: Path) -> MakeRun:
    """Make a run as training leaves it: tracked, with an artifact of 1,000 bytes and a checkpoint of 2,000."""

    def make(end: Any = "finished", *, seed: int = 0, checkpoint: bool = True, **changes: Any) -> RunFolder:
        facts = replace(tiny.facts(), seed=seed, **changes)
        folder = RunFolder.create(tmp_path / "runs", facts)
        facts = replace(facts, more_tags={"folder": folder.path.name})
        tracker = Tracker.open(store, facts, folder.path)
        tracker.text("recipe.toml", "x" * 1000)
        tracker.metrics({"final/test_accuracy": 0.5}, epoch=1)
        if checkpoint:
            folder.last_checkpoint.parent.mkdir()
            folder.last_checkpoint.write_bytes(bytes(2000))
        report = tracker.close(end, timeout=120)
        folder.note_end(end, tracker.run_id)
        folder.release()
        assert report.complete
        return folder

    return make


def reasons(plan: PrunePlan) -> dict[str, str]:
    return {leftover.name: leftover.why for leftover in plan.leftovers if leftover.kind == "folder"}


def carry_out(store: Store, plan: PrunePlan) -> None:
    assert [prune(store, leftover) for leftover in plan.leftovers] == [None] * len(plan.leftovers)


def test_runs_are_listed_with_what_they_take(store: Store, make_run: MakeRun, tmp_path: Path) -> None:
    first, second = make_run(seed=1), make_run("killed", seed=2)
    runs = read_runs(store, tmp_path / "runs")
    assert [(run.seed, run.status, run.resumable) for run in runs] == [(2, "KILLED", True), (1, "FINISHED", False)]
    assert {run.folder for run in runs} == {first.path, second.path}
    assert all(run.folder_bytes > 3000 and run.artifact_bytes == 1000 for run in runs)
    assert [run.test_accuracy for run in runs] == [0.5, 0.5]
    assert find_run(runs, runs[0].run_id[:12]) == runs[0]
    assert find_run(runs, runs[1].name) == runs[1]
    for name, sentence in (("nothing", "no run has this id or name"), ("", "an empty name"), (PREFIXED, "2 runs")):
        with pytest.raises(UserError, match=sentence):
            find_run([replace(run, name=PREFIXED) for run in runs], name)


PREFIXED = "he-resnet20"


def test_prune_frees_what_ended_and_keeps_what_can_be_resumed(store: Store, make_run: MakeRun, tmp_path: Path) -> None:
    finished, killed, bare = make_run(), make_run("killed", seed=1), make_run("failed", seed=2, checkpoint=False)
    plan = plan_prune(store, tmp_path / "runs")
    assert reasons(plan) == {
        finished.path.name: "finished, and in the store",
        bare.path.name: "ended, and in the store",
    }
    assert [(kept.path, kept.why) for kept in plan.kept] == [(killed.path, "it can be resumed")]
    assert plan.bytes > 3000
    assert finished.path.is_dir()
    carry_out(store, plan)
    assert [path.name for path in (tmp_path / "runs").glob("*/")] == [killed.path.name]
    # The runs themselves, and their artifacts, are untouched.
    assert [run.artifact_bytes for run in read_runs(store, tmp_path / "runs")] == [1000] * 3
    assert plan_prune(store, tmp_path / "runs").leftovers == []

    told = plan_prune(store, tmp_path / "runs", unfinished=True)
    assert reasons(told) == {killed.path.name: "not finished"}
    carry_out(store, told)
    assert not killed.path.exists()


def test_a_deleted_run_is_restorable_until_it_is_pruned(store: Store, make_run: MakeRun, tmp_path: Path) -> None:
    folder, other = make_run("killed"), make_run(seed=1)
    (run,) = (run for run in read_runs(store, tmp_path / "runs") if run.seed == 0)
    assert delete_runs(store, [run]) == run.folder_bytes
    assert not folder.path.exists()
    assert [run.seed for run in read_runs(store, tmp_path / "runs")] == [1]
    artifacts = tmp_path / "mlartifacts" / "resnet-bench" / run.run_id
    assert (artifacts / "artifacts" / "recipe.toml").is_file()
    plan = plan_prune(store, tmp_path / "runs")
    (leftover,) = (leftover for leftover in plan.leftovers if leftover.kind == "run")
    assert (leftover.run_id, leftover.bytes, leftover.why) == (run.run_id, 1000, "deleted in MLflow")
    # Somebody restores it before the answer is typed.
    store.client().restore_run(run.run_id)
    assert prune(store, leftover) is None
    assert artifacts.is_dir()
    store.client().delete_run(run.run_id)
    carry_out(store, plan)
    assert not artifacts.exists()
    with pytest.raises(Exception, match="not found"):
        store.client().get_run(run.run_id)
    assert not other.path.exists()


def test_folders_follow_what_happened_in_mlflow(store: Store, make_run: MakeRun, tmp_path: Path) -> None:
    deleted, purged = make_run("killed"), make_run(seed=1)
    client = store.client()
    client.delete_run(str(deleted.run_id))
    client.delete_run(str(purged.run_id))
    client._tracking_client.store._hard_delete_run(purged.run_id)
    assert reasons(plan_prune(store, tmp_path / "runs")) == {
        deleted.path.name: "its run was deleted in MLflow",
        purged.path.name: "the store has no run of it",
    }


def test_measurements_that_no_store_has_are_kept(
    store: Store, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> bool:
        raise ConnectionError("nobody is there")

    facts = tiny.facts()
    folder = RunFolder.create(tmp_path / "runs", facts)
    with monkeypatch.context() as patch:
        patch.setattr(Delivery, "step", away)
        Tracker.open(store, facts, folder.path).close("finished", timeout=0)
    folder.note_end("finished", None)
    held = plan_prune(store, tmp_path / "runs", unfinished=True)
    assert [kept.why for kept in held.kept] == ["it is running"]
    folder.release()
    (kept,) = plan_prune(store, tmp_path / "runs").kept
    assert "tracking flush" in kept.why
    assert reasons(plan_prune(store, tmp_path / "runs", unfinished=True)) == {
        folder.path.name: "the store has no run of it"
    }


def test_folders_of_another_store_and_running_runs_are_left_alone(
    store: Store, make_run: MakeRun, tmp_path: Path
) -> None:
    made = make_run()
    running = make_run(seed=1)
    store.client().update_run(str(running.run_id), status="RUNNING")
    other = Store.resolve(f"sqlite:///{tmp_path / 'other.db'}")
    other.prepare()
    assert {kept.why for kept in plan_prune(other, tmp_path / "runs").kept} == {"it belongs to another tracking store"}
    plan = plan_prune(store, tmp_path / "runs")
    assert [kept.path for kept in plan.kept] == [running.path]
    leftover = Leftover("folder", made.path.name, "", 0, made.path)
    taken = RunFolder(made.path, {})
    assert taken.take()
    assert "another process uses it" in (prune(store, leftover) or "")
    taken.release()
    assert made.path.is_dir()


def test_a_checkpoint_beside_its_model_is_one_copy_too_many(store: Store, make_run: MakeRun, tmp_path: Path) -> None:
    """As version 0.1.0 left them."""
    folder = make_run()
    artifacts = tmp_path / "mlartifacts" / "resnet-bench" / str(folder.run_id) / "artifacts"
    for name in ("checkpoints/last.pt", "checkpoints/best.pt", "model/MLmodel"):
        (artifacts / name).parent.mkdir(exist_ok=True)
        (artifacts / name).write_bytes(bytes(500))
    plan = plan_prune(store, tmp_path / "runs")
    assert [(leftover.path, leftover.bytes) for leftover in plan.leftovers if leftover.kind == "checkpoint"] == [
        (artifacts / "checkpoints" / "last.pt", 500)
    ]
    carry_out(store, plan)
    assert sorted(path.name for path in artifacts.rglob("*") if path.is_file()) == ["MLmodel", "best.pt", "recipe.toml"]


def test_where_one_is_running_or_a_study_nothing_is_deleted(store: Store, make_run: MakeRun, tmp_path: Path) -> None:
    make_run()
    make_run(seed=1)
    (run, other) = read_runs(store, tmp_path / "runs")
    changed: list[tuple[KeptRun, str]] = [
        (replace(run, role="study", name="s"), "resnet-bench study delete s"),
        (replace(run, status="RUNNING"), "is running"),
    ]
    for wrong, sentence in changed:
        with pytest.raises(UserError, match=sentence):
            delete_runs(store, [other, wrong])
    assert len(read_runs(store, tmp_path / "runs")) == 2
    assert other.folder is not None
    assert other.folder.is_dir()


# --- the command -----------------------------------------------------------------------------------


def test_the_verbs_say_what_they_do_and_ask_nobody(store: Store, make_run: MakeRun, tmp_path: Path) -> None:
    make_run()
    make_run("killed", seed=1)
    (killed, finished) = read_runs(store, tmp_path / "runs")
    shown = typed("runs list")
    assert shown.code == 0, shown.err
    assert "killed, can be" in shown.out
    assert "50.00%" in shown.out
    assert f"runs/{finished.folder.name}" in typed(f"runs show {finished.run_id[:10]}").out

    document = json.loads(typed("runs list --json").out)
    assert (document["schema"], document["kind"]) == (1, "runs list")
    assert [run["run_id"] for run in document["runs"]] == [killed.run_id, finished.run_id]

    refused = typed(f"runs delete {killed.run_id}")
    assert (refused.code, refused.err) == (2, "error: nothing was deleted; without a terminal, say so with --yes\n")
    dry = typed("runs prune")
    assert dry.code == 0
    assert dry.out.endswith("to free\nnothing was removed; add --yes to remove it\n")
    assert finished.folder.is_dir()
    document = json.loads(typed("runs prune --json").out)
    assert (document["removed"], document["freed_bytes"]) == (False, 0)
    assert document["bytes"] == sum(leftover["bytes"] for leftover in document["leftovers"]) > 3000

    assert typed(f"runs delete {killed.run_id} --yes").code == 0
    freed = json.loads(typed("runs prune --yes --json").out)
    assert freed["removed"]
    assert freed["freed_bytes"] == freed["bytes"] > 1000
    assert typed("runs prune").out == "nothing to remove\n"
    assert not killed.folder.exists()
