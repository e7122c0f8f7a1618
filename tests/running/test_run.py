"""A run from request to MLflow, however it ends."""

import gc
import json
import math
import sys
import time

import pytest
import torch

from resnet_bench.running import run as running
from resnet_bench.running.run import RunClosed, RunOpened, run
from resnet_bench.running.stopping import Stop, Stopped
from resnet_bench.training import checkpoint
from resnet_bench.training.errors import Diverged
from resnet_bench.training.events import EpochEnded, Evaluated, Finished, Steps


def mlflow_run(store, events):
    opened = events[0]
    assert isinstance(opened, RunOpened)
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


def test_a_run_lands_in_mlflow_whole(store, images, request_for, runs_folder) -> None:
    request = request_for()
    events = list(run(request, images, store, runs_folder=runs_folder))
    assert isinstance(events[-2], Finished)
    closed = events[-1]
    assert isinstance(closed, RunClosed)
    assert closed.shipping.complete

    tracked = mlflow_run(store, events)
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["optimizer.lr"] == "0.02"
    assert tracked.data.tags["resnet_bench.fingerprint"] == request.recipe.fingerprint
    assert tracked.data.tags["resnet_bench.generated"] == "true"
    steps = [loss for event in events if isinstance(event, Steps) for loss in event.losses]
    assert history(store, tracked.info.run_id, "step/loss") == list(enumerate(steps, start=1))
    ended = [(event.epoch, event.accuracy) for event in events if isinstance(event, EpochEnded)]
    assert history(store, tracked.info.run_id, "train/accuracy") == ended
    assert tracked.data.metrics["final/test_accuracy"] == events[-2].metrics["test/accuracy"]

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
        "checkpoints",
        "model",
    }
    assert {item.path for item in client.list_artifacts(tracked.info.run_id, "checkpoints")} == {
        "checkpoints/best.pt",
        "checkpoints/last.pt",
    }


def test_what_is_logged_of_the_predictions_agrees_with_the_accuracy(store, images, request_for, runs_folder) -> None:
    pandas = pytest.importorskip("pandas")
    events = list(run(request_for(seed=5), images, store, runs_folder=runs_folder))
    folder = events[0].folder / "artifacts"
    accuracy = events[-2].metrics["test/accuracy_standard"]
    predictions = pandas.read_parquet(folder / "predictions.parquet")
    assert (predictions.label == predictions.predicted).mean() == pytest.approx(accuracy)
    classes = pandas.read_csv(folder / "per_class_accuracy.csv")
    assert classes.correct.sum() / classes.images.sum() == pytest.approx(accuracy)
    mistakes = json.loads((folder / "confident_mistakes.json").read_text())
    assert len(mistakes) == min(24, (predictions.label != predictions.predicted).sum())
    confidences = [mistake["confidence"] for mistake in mistakes]
    assert confidences == sorted(confidences, reverse=True)
    assert all(mistake["label"] != mistake["predicted"] for mistake in mistakes)


@pytest.mark.parametrize("behind_step", [2, 3, 4])
def test_a_closed_run_goes_on_in_place_and_ends_with_the_same_bits(
    store, images, request_for, runs_folder, tmp_path, behind_step
) -> None:
    undisturbed = list(run(request_for(), images, store, runs_folder=tmp_path / "undisturbed"))

    generator = run(request_for(), images, store, runs_folder=runs_folder)
    opened = until(generator, lambda event: isinstance(event, Steps) and event.last_step == behind_step)[0]
    generator.close()
    interrupted = store.client().get_run(opened.run_id)
    assert interrupted.info.status == "KILLED"
    assert interrupted.data.tags["resnet_bench.reason"] == "stopped before its end"

    events = list(run(request_for(resume=True), images, store, runs_folder=runs_folder))
    assert events[0].run_id == opened.run_id
    assert events[0].resumed_at_step == behind_step
    tracked = mlflow_run(store, events)
    assert tracked.info.status == "FINISHED"
    assert history(store, opened.run_id, "step/loss") == history(store, undisturbed[0].run_id, "step/loss")
    ours, theirs = (checkpoint.load(each[0].folder / "checkpoints" / "last.pt") for each in (events, undisturbed))
    assert all(torch.equal(ours["network"][name], theirs["network"][name]) for name in theirs["network"])


def test_interrupted_in_the_middle_of_a_step_a_run_goes_on_behind_its_last_whole_epoch(
    store, images, request_for, runs_folder, tmp_path, monkeypatch
) -> None:
    """A second Ctrl-C waits for nothing: the weights may be those of half a step."""
    (*_, finished, _) = undisturbed = list(run(request_for(), images, store, runs_folder=tmp_path / "undisturbed"))
    steps = finished.step
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
            list(run(request_for(), images, store, runs_folder=runs_folder))
    events = list(run(request_for(resume=True), images, store, runs_folder=runs_folder))
    assert events[0].resumed_at_step == steps // 2
    assert mlflow_run(store, events).info.status == "FINISHED"
    ours, theirs = (checkpoint.load(each[0].folder / "checkpoints" / "last.pt") for each in (events, undisturbed))
    assert all(torch.equal(ours["network"][name], theirs["network"][name]) for name in theirs["network"])


def test_a_stop_request_checkpoints_and_marks_the_run(store, images, request_for, runs_folder) -> None:
    stop = Stop()
    generator = run(request_for(), images, store, runs_folder=runs_folder, stop=stop)
    opened = until(generator, lambda event: isinstance(event, Steps))[0]
    stop.reason = "interrupted by SIGTERM"
    with pytest.raises(Stopped, match="SIGTERM"):
        next(generator)
    tracked = store.client().get_run(opened.run_id)
    assert tracked.info.status == "KILLED"
    assert tracked.data.tags["resnet_bench.reason"] == "interrupted by SIGTERM"
    state = checkpoint.load(opened.folder / "checkpoints" / "last.pt")
    assert state["position"]["step"] == 1


def test_a_program_that_exits_in_the_middle_of_a_run_has_not_finished_it(
    store, images, request_for, runs_folder
) -> None:
    def consume() -> None:
        for event in run(request_for(keep_model=False), images, store, runs_folder=runs_folder):
            opened.append(event)
            if isinstance(event, Steps):
                sys.exit()

    opened = []
    with pytest.raises(SystemExit):
        consume()
    gc.collect()
    assert store.client().get_run(opened[0].run_id).info.status == "KILLED"


def test_a_pruned_run_says_why(store, images, request_for, runs_folder) -> None:
    generator = run(request_for(keep_model=False), images, store, runs_folder=runs_folder)
    opened = until(generator, lambda event: isinstance(event, EpochEnded))[0]
    with pytest.raises(Stopped):
        generator.throw(Stopped("pruned", "worse than the median at epoch 1"))
    tracked = store.client().get_run(opened.run_id)
    assert tracked.info.status == "KILLED"
    assert tracked.data.tags["resnet_bench.reason"] == "worse than the median at epoch 1"
    assert not (opened.folder / "checkpoints").exists()


def test_a_diverged_run_fails_with_step_and_rate(store, images, request_for, runs_folder) -> None:
    generator = run(request_for(recipe={"optimizer": {"lr": 1e18}}), images, store, runs_folder=runs_folder)
    opened = next(generator)
    with pytest.raises(Diverged):
        list(generator)
    tracked = store.client().get_run(opened.run_id)
    assert tracked.info.status == "FAILED"
    assert "at learning rate 1e+18" in tracked.data.tags["resnet_bench.reason"]


def test_a_finished_run_is_not_trained_again_on_resume(store, images, request_for, runs_folder) -> None:
    first = list(run(request_for(), images, store, runs_folder=runs_folder))
    again = list(run(request_for(resume=True), images, store, runs_folder=runs_folder))
    assert [type(event) for event in again] == [RunOpened]
    assert again[0].already_finished
    assert again[0].run_id == first[0].run_id
    other_seed = list(run(request_for(resume=True, seed=1), images, store, runs_folder=runs_folder))
    assert other_seed[0].run_id != first[0].run_id


def test_a_run_that_another_process_holds_is_not_taken_over(store, images, request_for, runs_folder) -> None:
    generator = run(request_for(), images, store, runs_folder=runs_folder)
    opened = until(generator, lambda event: isinstance(event, Steps))[0]
    other = next(run(request_for(resume=True), images, store, runs_folder=runs_folder))
    assert other.folder != opened.folder
    generator.close()


@pytest.mark.parametrize(("writing_seconds", "epochs_written"), [(0.0, [1, 2, 3, 4]), (0.3, [1, 4])])
def test_checkpoints_are_rarer_where_the_disk_is_slower_than_an_epoch(
    store, images, request_for, runs_folder, monkeypatch, writing_seconds, epochs_written
) -> None:
    """The best epoch's weights are those that the position knows of; the last epoch's position is there at the end."""
    save, written = checkpoint.save, []

    def slowly(state, path) -> None:
        time.sleep(writing_seconds)
        save(state, path)
        if path.name == "last.pt":
            written.append(state["position"]["epoch"] - 1)
            assert checkpoint.load(path.with_name("best.pt"))["accuracy"] == state["best_accuracy"]

    monkeypatch.setattr(checkpoint, "save", slowly)
    if writing_seconds == 0:
        monkeypatch.setattr(running, "CHECKPOINT_INTERVAL_FACTOR", 0.0)
    request = request_for(recipe={"training": {"epochs": 4}})
    list(run(request, images, store, runs_folder=runs_folder))
    assert written == epochs_written


def test_who_stops_a_run_loses_nothing_though_no_checkpoint_was_due(
    store, images, request_for, runs_folder, monkeypatch
) -> None:
    monkeypatch.setattr(running, "CHECKPOINT_INTERVAL_FACTOR", math.inf)
    request = request_for(recipe={"training": {"epochs": 4}})
    generator = run(request, images, store, runs_folder=runs_folder)
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
    store, images, request_for, runs_folder, tmp_path, epoch
) -> None:
    recipe = {"evaluation": {"before_training": True}}
    undisturbed = list(run(request_for(recipe=recipe), images, store, runs_folder=tmp_path / "undisturbed"))

    generator = run(request_for(recipe=recipe), images, store, runs_folder=runs_folder)
    stopped_at = until(generator, lambda event: isinstance(event, Evaluated) and event.epoch == epoch)
    generator.close()
    events = list(run(request_for(recipe=recipe, resume=True), images, store, runs_folder=runs_folder))

    assert events[0].resumed_at_step == stopped_at[-1].step
    again = [event.epoch for event in events if isinstance(event, Evaluated)]
    assert again == [event.epoch for event in undisturbed if isinstance(event, Evaluated) and event.epoch > epoch]
    assert events[0].run_id == stopped_at[0].run_id
    for key in ("test/accuracy", "test/loss", "train/accuracy", "step/loss", "final/test_accuracy"):
        assert history(store, events[0].run_id, key) == history(store, undisturbed[0].run_id, key)
    for name in ("last.pt", "best.pt"):
        ours, theirs = (checkpoint.load(each[0].folder / "checkpoints" / name) for each in (events, undisturbed))
        assert all(torch.equal(ours["network"][key], theirs["network"][key]) for key in theirs["network"])
    assert ours["accuracy"] == theirs["accuracy"]
