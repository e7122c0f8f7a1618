"""Studies under another name, and gone: Optuna, MLflow and the folders agree."""

import csv
import io
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from resnet_bench.base.errors import UserError
from resnet_bench.cli import study as verbs
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.running.kept_runs import Leftover, prune
from resnet_bench.running.run_folder import folders_in
from resnet_bench.running.stopping import Stop, Stopped
from resnet_bench.tracking.store import Store
from resnet_bench.tuning.events import RetrainingProgressed, StudyFinished
from resnet_bench.tuning.manage import delete_study, rename_study
from resnet_bench.tuning.run import run_study, work_on_study
from resnet_bench.tuning.stored_study import StoredStudy, study_names
from tests.tuning.conftest import TinyStudy

MakeStudy = Callable[..., TinyStudy]


@pytest.fixture
def finished(study_of: MakeStudy, tiny_plan: Any, scripted_training: list[Recipe], without_plots: None) -> TinyStudy:
    study = study_of(tiny_plan())
    study.events()
    return study


def run_dir(study: TinyStudy) -> Path:
    return study.context.run_dir


def trials_of(stored: StoredStudy) -> list[Any]:
    return [(trial.number, trial.state, trial.values, trial.params) for trial in stored.trials()]


def test_a_renamed_study_is_the_same_study(finished: TinyStudy, scripted_training: list[Recipe]) -> None:
    before = trials_of(finished.stored)
    runs = rename_study(finished.name, "new-name", finished.storage, finished.context.store, run_dir(finished))
    assert runs > 3
    storage = finished.storage.read()
    assert study_names(storage) == ["new-name"]
    after = StoredStudy.read("new-name", storage)
    assert trials_of(after) == before
    finished.name = "new-name"
    assert finished.parent.info.run_name == "new-name"
    assert finished.parent.data.tags["mlflow.note.content"].startswith("**Study new-name**")
    children = [*finished.children("trial"), *finished.children("retrain")]
    assert {run.data.tags["resnet_bench.study"] for run in children} == {"new-name"}
    assert {run.info.run_name for run in finished.children("trial")} == {f"trial {i} of new-name" for i in range(3)}
    retrained = {run.info.run_name for run in finished.children("retrain")}
    assert {f"source seed {seed} of new-name" for seed in (1000, 1001)} <= retrained
    assert all(name.endswith(" of new-name") for name in retrained)
    finished.assert_stores_agree()
    folders = folders_in(run_dir(finished))
    assert {folder.path.parent for folder in folders} == {run_dir(finished) / "studies" / "new-name"}
    # Run again, it has nothing left to do.
    trained = len(scripted_training)
    finished.events()
    assert len(scripted_training) == trained


def test_names_that_runs_of_0_1_0_have_are_renamed_and_those_that_a_person_gave_are_kept(finished: TinyStudy) -> None:
    client, trials = finished.context.store.client(), finished.children("trial")
    client.update_run(trials[0].info.run_id, name=f"{finished.name} trial 0")
    client.update_run(trials[1].info.run_id, name=f"worth a look, of {finished.name}s")
    rename_study(finished.name, "new-name", finished.storage, finished.context.store, run_dir(finished))
    names = [client.get_run(run.info.run_id).info.run_name for run in trials[:2]]
    assert names == ["new-name trial 0", f"worth a look, of {finished.name}s"]


def test_a_name_that_is_taken_or_none_is_refused(finished: TinyStudy) -> None:
    for new, sentence in ((finished.name, "there is a study of this name"), ("no name", "a study's name is at most")):
        with pytest.raises(UserError, match=sentence):
            rename_study(finished.name, new, finished.storage, finished.context.store, run_dir(finished))
    assert study_names(finished.storage.read()) == [finished.name]


def test_a_deleted_study_is_gone_everywhere_and_its_runs_can_be_restored(finished: TinyStudy) -> None:
    parent = finished.parent
    kept = len(finished.children("trial")) + len(finished.children("retrain"))
    removed = delete_study(finished.name, finished.storage, finished.context.store, run_dir(finished))
    assert removed.runs == kept + 1
    assert removed.trials == 3
    assert study_names(finished.storage.read()) == []
    assert not (run_dir(finished) / "studies" / finished.name).exists()
    client = finished.context.store.client()
    query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    assert not client.search_runs([parent.info.experiment_id], query)
    client.restore_run(parent.info.run_id)
    assert client.get_run(parent.info.run_id).data.tags["resnet_bench.study"] == finished.name


def test_a_study_whose_own_run_was_pruned_is_renamed_and_deleted(finished: TinyStudy, tmp_path: Path) -> None:
    store, trials = finished.context.store, finished.children("trial")
    client, parent = store.client(), finished.parent.info.run_id
    client.delete_run(parent)
    assert prune(store, Leftover("run", finished.name, "deleted in MLflow", 0, run_id=parent)) is None
    runs = rename_study(finished.name, "new-name", finished.storage, store, run_dir(finished))
    assert runs >= len(trials)
    assert {client.get_run(run.info.run_id).data.tags["resnet_bench.study"] for run in trials} == {"new-name"}

    folder = tmp_path / "other"
    folder.mkdir()
    other = Store.resolve(f"sqlite:///{folder / 'mlflow.db'}", folder)
    other.prepare()
    with pytest.raises(UserError, match=r"does not have the runs of study new-name; .* --tracking: sqlite:"):
        delete_study("new-name", finished.storage, other, run_dir(finished))

    client.update_run(trials[0].info.run_id, status="RUNNING")
    with pytest.raises(UserError, match="a process works on it"):
        delete_study("new-name", finished.storage, store, run_dir(finished))
    client.set_terminated(trials[0].info.run_id, "FINISHED")
    # What is left of a deletion that was interrupted, and of whose runs none is left.
    children = [*trials, *client.search_runs([trials[0].info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")]
    for run in {run.info.run_id: run for run in children}.values():
        client.delete_run(run.info.run_id)
        assert prune(store, Leftover("run", finished.name, "deleted in MLflow", 0, run_id=run.info.run_id)) is None
    assert delete_study("new-name", finished.storage, store, run_dir(finished)).runs == 0
    assert study_names(finished.storage.read()) == []


def test_a_study_at_work_is_left_alone(finished: TinyStudy) -> None:
    """Its process is alive: the trial it runs names it."""
    store = finished.context.store
    store.client().update_run(finished.parent.info.run_id, status="RUNNING")
    arguments = (finished.storage, store, run_dir(finished))
    with pytest.raises(UserError, match="a process works on it"):
        delete_study(finished.name, *arguments)
    with pytest.raises(UserError, match="a process works on it"):
        rename_study(finished.name, "other", *arguments)
    store.client().set_terminated(finished.parent.info.run_id, "KILLED")
    # Who holds the lock is waited for.
    with ThreadPoolExecutor(1) as pool:
        with finished.storage.lock():
            deletion = pool.submit(delete_study, finished.name, *arguments)
            with pytest.raises(TimeoutError):
                deletion.result(timeout=0.5)
            assert study_names(finished.storage.read()) == [finished.name]
        deletion.result()
    assert study_names(finished.storage.read()) == []


@pytest.mark.parametrize("verb", [run_study, work_on_study])
def test_a_study_that_is_retrained_is_at_work_whatever_another_process_does(
    verb: Any, study_of: MakeStudy, tiny_plan: Any, scripted_training: list[Recipe], without_plots: None
) -> None:
    study = study_of(tiny_plan())
    events = study.run()
    next(event for event in events if isinstance(event, RetrainingProgressed))
    assert study.stored.counts().running == 0
    stop = Stop()
    stop.reason = "interrupted by SIGINT"
    with pytest.raises(Stopped):
        list(verb(study.name, study.plan, study.storage, replace(study.context, stop=stop)))
    assert study.parent.info.status == "RUNNING", "the first process ends it"
    client = study.context.store.client()
    # As where the other process was killed.
    client.set_terminated(study.parent.info.run_id, "KILLED")
    arguments = (study.storage, study.context.store, run_dir(study))
    with pytest.raises(UserError, match="a process works on it"):
        delete_study(study.name, *arguments)
    with pytest.raises(UserError, match="a process works on it"):
        rename_study(study.name, "other", *arguments)
    assert isinstance(list(events)[-1], StudyFinished)
    assert study.parent.info.status == "FINISHED"
    assert delete_study(study.name, *arguments).trials == 3


# --- the verbs ---------------------------------------------------------------------------------------


def invoke(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(verbs.app, list(arguments))
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def test_trials_are_a_table_for_people_csv_for_spreadsheets_and_json_for_programs(
    done: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", done.context.store.uri)
    options = ("tiny", "--storage", done.storage.url)
    assert "5 of 5 trials are finished" in invoke("trials", *options)
    rows = list(csv.DictReader(io.StringIO(invoke("trials", *options, "--csv"))))
    document = json.loads(invoke("trials", *options, "--json"))
    assert (document["schema"], document["kind"], document["study"]) == (1, "study trials", "tiny")
    assert len(rows) == len(document["trials"]) == 5
    for row, trial in zip(rows, document["trials"], strict=True):
        assert (int(row["trial"]), row["state"]) == (trial["trial"], trial["state"])
        assert float(row["optimizer.lr"]) == trial["params"]["optimizer.lr"]
        assert (row["validation_accuracy"] or None) == (
            str(trial["values"]["validation_accuracy"]) if trial["values"] else None
        )
    with pytest.raises(UserError, match="give one of them"):
        invoke("trials", *options, "--csv", "--json")


def test_list_show_and_best_print_json(done: TinyStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", done.context.store.uri)
    options = ("tiny", "--storage", done.storage.url, "--json")
    (stored,) = json.loads(invoke("show", *options))["stored"]
    assert stored["best_trial"] == 2
    assert stored["counts"]["finished"] == 5
    best = json.loads(invoke("best", *options))
    assert best["result"]["best_settings"]["optimizer.lr"] == best["recipe"]["optimizer"]["lr"] == 0.0123
    assert "resnet18-step-decay-cpu" in {study["name"] for study in json.loads(invoke("list", "--json"))["studies"]}


def test_nothing_is_deleted_where_nobody_can_answer(finished: TinyStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", finished.context.store.uri)
    options = (finished.name, "--storage", finished.storage.url, "--run-dir", str(run_dir(finished)))
    with pytest.raises(UserError, match="without a terminal, say so with --yes"):
        invoke("delete", *options)
    assert "renamed" in invoke("rename", finished.name, "again", *options[1:])
    assert "3 trials" in invoke("delete", "again", *options[1:], "--yes")
    assert study_names(finished.storage.read()) == []


def test_a_study_out_of_time_queues_its_trial_again(
    study_of: MakeStudy, tiny_plan: Any, scripted_training: list[Recipe], without_plots: None
) -> None:
    study = study_of(tiny_plan())
    with pytest.raises(Stopped, match="--max-minutes"):
        list(study.run(Stop(time.monotonic())))
    assert study.parent.data.tags["resnet_bench.reason"] == "the time of --max-minutes was used up"
    assert study.stored.counts().finished == 0
