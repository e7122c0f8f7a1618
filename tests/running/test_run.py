"""A run from request to MLflow, however it ends."""

import gc
import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from resnet_bench.base.errors import UserError
from resnet_bench.data.dataset import generate_dataset
from resnet_bench.running import run as running
from resnet_bench.running.events import Closed, Opened, update
from resnet_bench.running.outcome import Outcome
from resnet_bench.running.prepare import prepare
from resnet_bench.running.run import run
from resnet_bench.running.run_folder import settle
from resnet_bench.running.stopping import Stopped
from resnet_bench.tracking.cursor import JOURNAL, Cursor
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.tracker import Tracker
from resnet_bench.tracking.vocabulary import current_metrics
from resnet_bench.training import checkpoint
from resnet_bench.training.errors import Diverged
from resnet_bench.training.evaluation import Evaluator
from resnet_bench.training.events import EpochEnded, Evaluated, Finished, Steps
from tests.reliability import tiny
from tests.running.conftest import tiny_context, tiny_job
from tests.weights import weights_at_the_end, weights_in_store

NETWORK = {"name": "speedrun", "options": {"width1": 8, "width2": 12, "width3": 12}}
"""How a run ends depends on no network in particular: a small one takes half as long."""


def small_job(*, recipe=None, **changes):
    return tiny_job(recipe={"model": NETWORK, **(recipe or {})}, **changes)


@pytest.fixture
def job_for():
    return small_job


def started(job, context):
    return run(prepare(job, context), context)


def mlflow_run(store, events):
    opened = events[0]
    assert isinstance(opened, Opened)
    return store.client().get_run(opened.run_id)


def history(store, run_id, key):
    return [(metric.step, metric.value) for metric in store.client().get_metric_history(run_id, key)]


def until(generator, condition):
    """Events up to the first that meets a condition; the generator stays open."""
    events = []
    for event in generator:
        events.append(event)
        if condition(event):
            return events
    raise AssertionError("the run ended first")


@pytest.fixture
def whole_outcome() -> None:
    """For a test that looks at the pictures and the exported network."""


@pytest.fixture(autouse=True)
def quick_outcome(request, monkeypatch) -> None:
    """Drawing and exporting takes most of a tiny run."""
    if "whole_outcome" not in request.fixturenames:
        tiny.speed_up(monkeypatch)


@pytest.fixture(scope="module")
def undisturbed(store, tmp_path_factory):
    """The events of a tiny run that nothing has stopped."""
    with pytest.MonkeyPatch.context() as patch:
        tiny.speed_up(patch)
        return list(started(small_job(), tiny_context(store, tmp_path_factory.mktemp("undisturbed"))))


def test_a_run_lands_in_mlflow_whole(store, job_for, context, runs_folder, whole_outcome) -> None:
    job = job_for()
    events = list(started(job, context))
    assert isinstance(events[-2], Finished)
    closed = events[-1]
    assert isinstance(closed, Closed)
    assert closed.upload.complete

    tracked = mlflow_run(store, events)
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["optimizer.lr"] == "0.02"
    assert tracked.data.tags["resnet_bench.fingerprint"] == job.recipe.fingerprint
    assert tracked.data.tags["resnet_bench.generated"] == "true"
    steps = [loss for event in events if isinstance(event, Steps) for loss in event.losses]
    assert history(store, tracked.info.run_id, "step/loss") == list(enumerate(steps, start=1))
    ended = [(event.epoch, event.accuracy) for event in events if isinstance(event, EpochEnded)]
    assert history(store, tracked.info.run_id, "train/accuracy") == ended
    assert current_metrics(tracked.data.metrics)["final/test_accuracy"] == events[-2].metrics["test/accuracy"]

    client = store.client()
    names = {item.path for item in client.list_artifacts(tracked.info.run_id)}
    assert names >= {
        "recipe.toml",
        "benchmark.json",
        "per_class_accuracy.csv",
        "confusion_matrix.csv",
        "confusion_matrix.png",
        "predictions.parquet",
        "confident_mistakes.json",
        "inputs.png",
        "model",
    }
    # The weights are kept once, without the optimizer's state: what the store has, the run's folder lacks.
    assert "checkpoints" not in names
    kept, ended = weights_in_store(store, tracked.info.run_id), weights_at_the_end(events)
    assert kept.keys() == ended.keys()
    assert all(torch.equal(kept[name], ended[name]) for name in ended)
    assert {path.name for path in events[0].folder.iterdir()} == {
        "in_use.lock",
        "journal.jsonl",
        "run.json",
        "shipping.json",
        "shipping.lock",
        "store.json",
    }


@pytest.mark.parametrize(("profile", "best"), [("full", 1), ("full", 2), ("smoke", 1)])
def test_the_best_epochs_weights_are_kept_where_a_full_run_ends_with_others(
    store, job_for, context, monkeypatch, profile, best
) -> None:
    logged = []
    monkeypatch.setattr(Tracker, "artifact", lambda self, path, where="": logged.append((path.name, where)))
    evaluated = Evaluator.evaluate

    def with_a_best_epoch(self, split, epoch):
        return replace(evaluated(self, split, epoch), accuracy=0.9 if epoch == best else 0.1)

    monkeypatch.setattr(Evaluator, "evaluate", with_a_best_epoch)
    list(started(job_for(profile=profile), context))
    assert (("best.pt", "checkpoints") in logged) == (profile == "full" and best == 1)


@pytest.mark.parametrize(("seed", "noted"), [(1003, True), (1203, False)])
def test_a_run_that_was_killed_before_it_tidied_up_is_tidied_by_the_next_command(
    seed, noted, store, job_for, context, monkeypatch
) -> None:
    def killed(folder, store):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(running, "remove_delivered", killed)
        generator = started(job_for(seed=seed), context)
        opened = next(generator)
        with pytest.raises(KeyboardInterrupt):
            list(generator)
    state = opened.folder / "run.json"
    state.write_text(state.read_text().replace('"finished"', '"running"'))
    if not noted:
        # It had not even noted that its last record had arrived.
        last = (opened.folder / JOURNAL).read_bytes().splitlines(keepends=True)[-1]
        cursor = Cursor.load(opened.folder)
        replace(cursor, arrived=cursor.arrived - len(last)).save(opened.folder)
    assert (opened.folder / "checkpoints" / "last.pt").is_file()
    (again,) = started(job_for(seed=seed, force=False), context)
    assert again.outcome is not None
    assert json.loads(state.read_text())["status"] == "finished"
    assert not (opened.folder / "checkpoints").exists()
    # Folders of other machines, and whatever a shared store says.
    settle(context.run_dir, "elsewhere", opened.run_id, store)
    settle(context.run_dir / "deeper", f"../{opened.folder.name}", opened.run_id, store)


def test_what_is_logged_of_the_predictions_agrees_with_the_accuracy(store, job_for, context, tmp_path) -> None:
    pandas = pytest.importorskip("pandas")
    events = list(started(job_for(seed=5), context))
    folder = Path(store.client().download_artifacts(events[0].run_id, "", str(tmp_path)))
    accuracy = events[-2].metrics["test/accuracy_standard"]
    predictions = pandas.read_parquet(folder / "predictions.parquet")
    assert (predictions.label == predictions.predicted).mean() == pytest.approx(accuracy)
    assert predictions.image[0].startswith("generated test image ")
    classes = pandas.read_csv(folder / "per_class_accuracy.csv")
    assert classes.correct.sum() / classes.images.sum() == pytest.approx(accuracy)
    mistakes = json.loads((folder / "confident_mistakes.json").read_text())
    assert len(mistakes) == min(24, (predictions.label != predictions.predicted).sum())
    confidences = [mistake["confidence"] for mistake in mistakes]
    assert confidences == sorted(confidences, reverse=True)
    assert all(mistake["label"] != mistake["predicted"] for mistake in mistakes)


@pytest.mark.parametrize("resume", [True, False])
def test_run_trains_nothing_that_another_process_finished_since_it_was_looked_up(
    store, job_for, context, runs_folder, resume
) -> None:
    job = job_for(seed=40 + resume, resume=resume, force=False)
    late = prepare(job, context)
    assert late.outcome is None
    opened, *_ = run(prepare(job, context), context)
    folders = list(runs_folder.glob("*/run.json"))

    (event,) = run(late, context)
    assert event.run_id == opened.run_id
    assert event.outcome.accuracy_standard is not None
    assert list(runs_folder.glob("*/run.json")) == folders
    assert len([path for path in runs_folder.iterdir() if path.is_dir()]) == 1


@pytest.mark.parametrize("behind_step", [2, 3, 4])
def test_a_closed_run_resumes_in_place_with_the_same_bits(store, job_for, context, undisturbed, behind_step) -> None:
    generator = started(job_for(), context)
    opened = until(generator, lambda event: isinstance(event, Steps) and event.last_step == behind_step)[0]
    generator.close()
    interrupted = store.client().get_run(opened.run_id)
    assert interrupted.info.status == "KILLED"
    assert interrupted.data.tags["resnet_bench.reason"] == "stopped before its end"

    events = list(started(job_for(resume=True), context))
    assert events[0].run_id == opened.run_id
    assert events[0].step == behind_step
    tracked = mlflow_run(store, events)
    assert tracked.info.status == "FINISHED"
    assert history(store, opened.run_id, "step/loss") == history(store, undisturbed[0].run_id, "step/loss")
    ours, theirs = weights_at_the_end(events), weights_at_the_end(undisturbed)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_interrupted_run_says_what_the_store_does_not_have(store, job_for, context, caplog) -> None:
    generator = started(job_for(), context)
    opened = until(generator, lambda event: isinstance(event, Steps))[0]
    store.client().delete_run(opened.run_id)
    generator.close()
    said = [record.getMessage() for record in caplog.records if "still on disk" in record.getMessage()]
    assert len(said) == 1
    assert "tracking flush" in said[0]
    assert "runs restore" in said[0]


def test_a_run_interrupted_within_a_step_resumes_after_its_last_whole_epoch(
    store, job_for, context, undisturbed, monkeypatch
) -> None:
    """A second Ctrl-C waits for nothing: the weights may be those of half a step."""
    steps = undisturbed[-2].step
    step, done = torch.optim.SGD.step, 0

    def interrupted_step(self, closure=None):
        nonlocal done
        step(self, closure)
        done += 1
        if done == steps - 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", interrupted_step)
        with pytest.raises(KeyboardInterrupt):
            list(started(job_for(), context))
    events = list(started(job_for(resume=True), context))
    assert events[0].step == steps // 2
    assert mlflow_run(store, events).info.status == "FINISHED"
    ours, theirs = weights_at_the_end(events), weights_at_the_end(undisturbed)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_stop_request_checkpoints_and_marks_the_run(store, job_for, context, runs_folder) -> None:
    generator = started(job_for(), context)
    opened = until(generator, lambda event: isinstance(event, Steps))[0]
    context.stop.reason = "interrupted by SIGTERM"
    with pytest.raises(Stopped, match="SIGTERM"):
        next(generator)
    tracked = store.client().get_run(opened.run_id)
    assert tracked.info.status == "KILLED"
    assert tracked.data.tags["resnet_bench.reason"] == "interrupted by SIGTERM"
    state = checkpoint.load(opened.folder / "checkpoints" / "last.pt")
    assert state["position"]["step"] == 1


def test_a_program_that_exits_in_the_middle_of_a_run_has_not_finished_it(store, job_for, context, runs_folder) -> None:
    def consume() -> None:
        for event in started(job_for(keep_model=False), context):
            opened.append(event)
            if isinstance(event, Steps):
                sys.exit()

    opened = []
    with pytest.raises(SystemExit):
        consume()
    gc.collect()
    assert store.client().get_run(opened[0].run_id).info.status == "KILLED"


def test_a_pruned_run_says_why(store, job_for, context, runs_folder) -> None:
    generator = started(job_for(keep_model=False), context)
    opened = until(generator, lambda event: isinstance(event, EpochEnded))[0]
    with pytest.raises(Stopped):
        generator.throw(Stopped("pruned", "worse than the median at epoch 1"))
    tracked = store.client().get_run(opened.run_id)
    assert tracked.info.status == "KILLED"
    assert tracked.data.tags["resnet_bench.reason"] == "worse than the median at epoch 1"
    assert not (opened.folder / "checkpoints").exists()


def test_a_diverged_run_fails_with_step_and_rate(store, job_for, context, runs_folder) -> None:
    generator = started(job_for(recipe={"optimizer": {"lr": 1e18}}), context)
    opened = next(generator)
    with pytest.raises(Diverged):
        list(generator)
    tracked = store.client().get_run(opened.run_id)
    assert tracked.info.status == "FAILED"
    assert "at learning rate 1e+18" in tracked.data.tags["resnet_bench.reason"]


def test_a_run_whose_evaluation_is_not_finite_fails_and_is_not_cached(store, job_for, context) -> None:
    changes = {"optimizer": {"lr": 1e30}, "training": {"epochs": 1, "batch_size": 40}}
    job = job_for(seed=1002, recipe=changes, force=False)
    events = []
    with pytest.raises(Diverged):
        events.extend(started(job, context))
    (tracked,) = store.client().search_runs(
        [store.experiment_id(store.client(), "resnet-bench")], "tags.`resnet_bench.seed` = '1002'"
    )
    assert tracked.info.status == "FAILED"
    assert "the test loss became" in tracked.data.tags["resnet_bench.reason"]
    assert prepare(job, context).outcome is None


def test_a_finished_run_of_an_earlier_version_whose_evaluation_was_not_finite_is_not_cached(
    store, job_for, context
) -> None:
    job = job_for(seed=1003, force=False, keep_model=False)
    opened = next(iter(list(started(job, context))))
    assert prepare(job, context).outcome is not None
    store.client().log_metric(opened.run_id, "test/loss", math.inf, step=2)
    assert prepare(job, context).outcome is None


def test_looking_for_a_finished_run_leaves_the_store_as_it_is(job_for, tmp_path, context) -> None:
    empty = tmp_path / "mlflow.db"
    empty.touch()
    job = job_for(force=False)
    assert prepare(job, replace(context, store=Store.resolve(str(empty)))).outcome is None
    assert empty.read_bytes() == b""
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_run_yields_the_outcome_of_a_run_that_was_finished_before(store, job_for, context) -> None:
    """The seeds are those of no other test: they share a store."""
    first = list(started(job_for(seed=1001), context))
    told = Outcome()
    for event in first:
        update(told, event)
    again = list(started(job_for(seed=1001, force=False, resume=True), context))
    assert [type(event) for event in again] == [Opened]
    found = again[0].outcome
    assert found.cached
    assert again[0].run_id == found.run_id == first[0].run_id
    for name in ("epochs", "accuracy", "accuracy_by_epoch", "accuracy_standard", "images_per_second", "url"):
        assert getattr(found, name) == pytest.approx(getattr(told, name)), name
    assert prepare(job_for(seed=1002, force=False), context).outcome is None
    tracked = store.client().get_run(found.run_id)
    assert tracked.data.metrics["final/images_per_second"] == pytest.approx(told.images_per_second, rel=1e-4)


def test_run_refuses_images_of_another_dataset(job_for, context, runs_folder) -> None:
    prepared = replace(prepare(job_for(), context), dataset=generate_dataset("cifar100", train_size=64, test_size=32))
    with pytest.raises(UserError, match="trains on cifar10; the images at hand are of cifar100"):
        next(run(prepared, context))
    assert not runs_folder.exists()


@pytest.mark.parametrize(("last_event", "epoch"), [(EpochEnded, 2), (Evaluated, 3), (EpochEnded, 3)])
def test_a_resumed_run_knows_what_it_told_before(job_for, context, last_event, epoch) -> None:
    """Behind the last evaluation, no other follows that would tell its accuracies once more."""
    recipe = {"training": {"epochs": 3}, "evaluation": {"test_time_augmentation": {"mirror": True}}}
    undisturbed = Outcome()
    for event in started(job_for(recipe=recipe), context):
        update(undisturbed, event)
    generator = started(job_for(recipe=recipe), context)
    until(generator, lambda event: isinstance(event, last_event) and event.epoch == epoch)
    generator.close()
    resumed = Outcome()
    events = list(started(job_for(recipe=recipe, resume=True), context))
    for event in events:
        update(resumed, event)
    assert events[0].step > 0
    for name in ("epochs", "accuracy_by_epoch", "accuracy_standard", "accuracy_tta"):
        assert getattr(resumed, name) == getattr(undisturbed, name) is not None, name
    assert resumed.train_seconds == events[-2].train_seconds
    assert len(resumed.throughput_by_epoch) == 3


@pytest.mark.parametrize(("before", "now"), [(2, 2), (2, 1), (1, 2)])
def test_a_resumed_run_knows_that_seeds_shared_its_device(job_for, context, before: int, now: int) -> None:
    """Its times say nothing about the device alone, if either process shared it."""
    generator = started(job_for(sharing=before), context)
    until(generator, lambda event: isinstance(event, EpochEnded) and event.epoch == 1)
    generator.close()
    resumed = Outcome(sharing=now)
    for event in started(job_for(sharing=now, resume=True), context):
        update(resumed, event)
    assert resumed.sharing == 2


def test_resume_refuses_a_run_that_another_process_is_training(job_for, context) -> None:
    generator = started(job_for(), context)
    opened = until(generator, lambda event: isinstance(event, Steps))[0]
    with pytest.raises(UserError) as refused:
        next(started(job_for(resume=True), context))
    assert str(refused.value).startswith(f"process {os.getpid()} on ")
    assert f"is training tiny seed 0 already ({opened.folder})" in str(refused.value)
    # A command that does not resume asks for a new run.
    other = started(job_for(), context)
    assert next(other).folder != opened.folder
    other.close()
    generator.close()


def test_resume_says_what_differs_in_a_run_that_is_left_aside(job_for, context, caplog) -> None:
    generator = started(job_for(), context)
    until(generator, lambda event: isinstance(event, Steps))
    generator.close()
    changed = job_for(resume=True, recipe={"training": {"batch_size": 8}})
    generator = started(changed, context)
    assert next(generator).step == 0
    generator.close()
    assert "tiny seed 0 starts from scratch: an unfinished run of this seed is left aside" in caplog.text
    assert caplog.messages[-1].endswith("recipe differs (training.batch_size)")
    generator = started(job_for(resume=True), replace(context, options=replace(context.options, precision="bf16")))
    next(generator)
    generator.close()
    assert "precision differs (fp32 then, bf16 now)" in caplog.messages[-1]
    # Another seed has nothing to leave aside.
    caplog.clear()
    generator = started(job_for(resume=True, seed=1), context)
    next(generator)
    generator.close()
    assert not caplog.messages


@pytest.mark.parametrize(
    ("profile", "changed", "name"),
    [("full", False, "tiny seed 0"), ("smoke", False, "tiny smoke seed 0"), ("full", True, "tiny seed 0 (--set)")],
)
def test_a_runs_name_has_its_profile_and_whether_it_was_changed(job_for, context, profile, changed, name) -> None:
    job = job_for(profile=profile)
    if changed:
        job = replace(job, recipe=job_for(recipe={"training": {"batch_size": 8}}).recipe)
    assert prepare(job, context).facts.name == name


@pytest.mark.parametrize(("writing_seconds", "epochs_written"), [(0.0, [1, 2, 3, 4]), (0.3, [1, 4])])
def test_checkpoints_are_rarer_where_the_disk_is_slower_than_an_epoch(
    store, job_for, context, runs_folder, monkeypatch, writing_seconds, epochs_written
) -> None:
    """The best epoch's weights are those that the position knows of; the last epoch's position is there at the end."""
    save, written = checkpoint.save, []
    clock = SimpleNamespace(now=0.0)
    clock.perf_counter = lambda: clock.now

    def slowly(state, path) -> None:
        clock.now += writing_seconds
        save(state, path)
        if path.name == "last.pt":
            written.append(state["position"]["epoch"] - 1)
            assert checkpoint.load(path.with_name("best.pt"))["accuracy"] == state["best_accuracy"]

    monkeypatch.setattr(checkpoint, "save", slowly)
    # Writing is all that takes time.
    monkeypatch.setattr(running, "time", clock)
    job = job_for(recipe={"training": {"epochs": 4}})
    list(started(job, context))
    assert written == epochs_written


def test_a_stopped_run_loses_nothing_before_its_next_checkpoint(
    store, job_for, context, runs_folder, monkeypatch
) -> None:
    monkeypatch.setattr(running, "CHECKPOINT_INTERVAL_FACTOR", math.inf)
    job = job_for(recipe={"training": {"epochs": 4}})
    generator = started(job, context)
    third = until(generator, lambda event: isinstance(event, EpochEnded) and event.epoch == 3)[-1]
    weights = {name: value.clone() for name, value in third.snapshot()["network"].items()}
    kept = next(runs_folder.glob("*/checkpoints/last.pt"))
    assert checkpoint.load(kept)["position"]["step"] < third.snapshot()["position"]["step"]
    generator.close()
    last = checkpoint.load(kept)
    assert all(torch.equal(last["network"][name], value) for name, value in weights.items())
    assert checkpoint.load(kept.with_name("best.pt"))["accuracy"] == last["best_accuracy"]


@pytest.mark.parametrize("epoch", [0, 2])
def test_run_stopped_between_two_evaluations_resumes_there(
    store, job_for, context, tmp_path, monkeypatch, epoch
) -> None:
    recipe = {"evaluation": {"before_training": True}}
    monkeypatch.setattr(running, "remove_delivered", lambda folder, store: 0)
    undisturbed = list(started(job_for(recipe=recipe), replace(context, run_dir=tmp_path / "undisturbed")))

    generator = started(job_for(recipe=recipe), context)
    stopped_at = until(generator, lambda event: isinstance(event, Evaluated) and event.epoch == epoch)
    generator.close()
    events = list(started(job_for(recipe=recipe, resume=True), context))

    assert events[0].step == stopped_at[-1].step
    again = [event.epoch for event in events if isinstance(event, Evaluated)]
    assert again == [event.epoch for event in undisturbed if isinstance(event, Evaluated) and event.epoch > epoch]
    assert events[0].run_id == stopped_at[0].run_id
    for key in ("test/accuracy", "test/loss", "train/accuracy", "step/loss", "final/test_accuracy"):
        assert history(store, events[0].run_id, key) == history(store, undisturbed[0].run_id, key)
    for name in ("last.pt", "best.pt"):
        ours, theirs = (checkpoint.load(each[0].folder / "checkpoints" / name) for each in (events, undisturbed))
        assert all(torch.equal(ours["network"][key], theirs["network"][key]) for key in theirs["network"])
    assert ours["accuracy"] == theirs["accuracy"]
