"""Positions in the artifact store: a run whose folder is lost resumes from there, with the same bits."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from resnet_bench.base.errors import UserError
from resnet_bench.running.prepare import prepare
from resnet_bench.running.run import run
from resnet_bench.tracking.delivery import Delivery
from resnet_bench.tracking.journal import Journal
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.tracker import Tracker
from resnet_bench.tracking.uploader import flush_all
from resnet_bench.training.events import EpochEnded, Steps
from tests.training.conftest import tiny_recipe
from tests.weights import weights_at_the_end

ROOT = Path(__file__).parents[2]
EPOCH = tiny_recipe().steps_per_epoch
UPLOAD_SECONDS = "resnet_bench.running.stored_position.UPLOAD_SECONDS"

KILLED = """
import pickle, sys, time
from pathlib import Path

from resnet_bench.running import stored_position
from resnet_bench.running.prepare import prepare
from resnet_bench.running.run import run
from resnet_bench.tracking import tracker
from resnet_bench.training.events import Steps

stored_position.UPLOAD_SECONDS = 0.0
tracker.UPLOAD_SECONDS = 0.1
job, context = pickle.loads(Path(sys.argv[1]).read_bytes())
for event in run(prepare(job, context), context):
    if isinstance(event, Steps) and event.last_step == job.recipe.steps_per_epoch + 1:
        print("in the second epoch", flush=True)
        time.sleep(3600)
"""


def stopped_in_its_second_epoch(job, context):
    """Train for an epoch and a step, and stop; return the run's id."""
    generator = run(prepare(job, context), context)
    opened = next(generator)
    for event in generator:
        if isinstance(event, Steps) and event.last_step == job.recipe.steps_per_epoch + 1:
            break
    generator.close()
    return opened.run_id


def resumed_and_stopped(job, context):
    """Resume a run, and stop it before its next step."""
    generator = run(prepare(replace(job, resume=True), context), context)
    next(generator)
    generator.close()


def run_in(context, job):
    return list(run(prepare(replace(job, resume=True), context), context))


def append(path, record):
    journal = Journal.open(path)
    journal.append(record)
    journal.close()


def away(*_, **__):
    raise ConnectionRefusedError("nobody is there")


def stored_positions(store, run_id):
    return [found.path for found in store.client().list_artifacts(run_id, "checkpoints")]


def assert_same_run(store, events, undisturbed):
    """Every value once, and the same bits."""
    client = store.client()

    def values(key, run_id):
        return [(point.step, point.value) for point in client.get_metric_history(run_id, key)]

    tracked = client.get_run(events[0].run_id)
    assert tracked.info.status == "FINISHED"
    for key in tracked.data.metrics:
        steps = [step for step, _ in values(key, events[0].run_id)]
        assert len(steps) == len(set(steps)), key
    for key in ("step/loss", "train/accuracy", "test/accuracy"):
        assert values(key, events[0].run_id) == values(key, undisturbed[0].run_id), key
    ours, theirs = weights_at_the_end(events), weights_at_the_end(undisturbed)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_whose_folder_is_lost_resumes_from_the_artifact_store(
    store, job_for, context, tmp_path, monkeypatch
) -> None:
    undisturbed = list(run(prepare(job_for(seed=71), context), context))
    monkeypatch.setattr(UPLOAD_SECONDS, 0.0)
    sending = replace(context, run_dir=tmp_path / "lost", upload_checkpoints=True)
    run_id = stopped_in_its_second_epoch(job_for(seed=71), sending)
    assert stored_positions(store, run_id) == ["checkpoints/0", "checkpoints/1"]
    shutil.rmtree(tmp_path / "lost")
    # Another seed, or another recipe, is another run.
    other = next(iter(run(prepare(job_for(seed=72, resume=True), sending), sending)))
    assert (other.step, other.run_id == run_id) == (0, False)
    events = list(run(prepare(job_for(seed=71, resume=True), sending), sending))
    assert (events[0].run_id, events[0].step) == (run_id, EPOCH + 1)
    assert_same_run(store, events, undisturbed)
    assert stored_positions(store, run_id) == [], "a finished run has its model there"


@pytest.mark.parametrize(("seed", "resumed_here"), [(77, 0), (85, 1)])
def test_a_run_that_goes_to_another_machine_and_back_has_every_value_once(
    seed, resumed_here, store, job_for, context, tmp_path
) -> None:
    undisturbed = list(run(prepare(job_for(seed=seed), context), context))
    here, there = (replace(context, run_dir=tmp_path / name, upload_checkpoints=True) for name in ("here", "there"))
    run_id = stopped_in_its_second_epoch(job_for(seed=seed), here)
    for _ in range(resumed_here):
        resumed_and_stopped(job_for(seed=seed), here)
    generator = run(prepare(job_for(seed=seed, resume=True), there), there)
    assert next(generator).step == EPOCH + 1
    while not isinstance(event := next(generator), Steps):
        pass
    generator.close()
    assert event.last_step > EPOCH + 1
    # The folder here knows nothing of what the other machine has sent.
    events = list(run(prepare(job_for(seed=seed, resume=True), here), here))
    assert (events[0].run_id, events[0].step) == (run_id, event.last_step)
    assert_same_run(store, events, undisturbed)
    assert store.client().get_run(run_id).data.tags["resnet_bench.resumed"] == str(resumed_here + 2)


def test_what_is_left_of_a_run_that_another_machine_has_resumed_is_not_delivered(
    store, job_for, context, tmp_path
) -> None:
    here, there = (replace(context, run_dir=tmp_path / name, upload_checkpoints=True) for name in ("here", "there"))
    run_id = stopped_in_its_second_epoch(job_for(seed=79), here)
    (journal,) = here.run_dir.glob("*/journal.jsonl")
    append(journal, {"kind": "status", "status": "KILLED", "timestamp": 0})
    assert run_in(there, job_for(seed=79))[0].run_id == run_id
    said: list[str] = []
    for _ in range(2):
        assert flush_all(store, here.run_dir, say=said.append)
    assert [text.partition(": ")[2] for text in said] == [
        f"nothing is delivered, because another machine has resumed run {run_id}",
        f"every run under {here.run_dir} is in the tracking store",
    ]
    assert store.client().get_run(run_id).info.status == "FINISHED"


def test_a_damaged_journal_is_delivered_whatever_the_store_says(store, job_for, context) -> None:
    run_id = stopped_in_its_second_epoch(job_for(seed=80), context)
    store.client().set_tag(run_id, "resnet_bench.resumed", "1")
    (journal,) = context.run_dir.glob("*/journal.jsonl")
    with journal.open("ab") as file:
        file.write(b"00000000 00000002 {}\n")
    append(journal, {"kind": "tags", "values": {"resnet_bench.reason": "delivered"}})
    flush_all(store, context.run_dir, say=print)
    assert store.client().get_run(run_id).data.tags["resnet_bench.reason"] == "delivered"


@pytest.mark.parametrize(("seed", "uploads"), [(82, False), (83, True)])
def test_a_run_that_lost_its_journal_alone_resumes_at_its_checkpoint_and_is_tracked_to_its_end(
    seed, uploads, store, job_for, context
) -> None:
    here = replace(context, upload_checkpoints=uploads)
    run_id = stopped_in_its_second_epoch(job_for(seed=seed), here)
    (journal,) = here.run_dir.glob("*/journal.jsonl")
    journal.unlink()
    events = run_in(here, job_for(seed=seed))
    assert (events[0].run_id, events[0].step) == (run_id, EPOCH + 1)
    assert events[-1].upload.complete
    client = store.client()
    assert client.get_run(run_id).info.status == "FINISHED"
    losses = client.get_metric_history(run_id, "step/loss")
    assert [point.step for point in losses] == list(range(1, 2 * EPOCH + 1))


def test_a_run_that_lost_its_journal_is_not_taken_for_one_that_another_machine_has_resumed(
    store, job_for, context, monkeypatch
) -> None:
    run_id = stopped_in_its_second_epoch(job_for(seed=84), context)
    for _ in range(2):
        resumed_and_stopped(job_for(seed=84), context)
    (journal,) = context.run_dir.glob("*/journal.jsonl")
    journal.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Delivery, "deliver", away)
        patch.setattr(Tracker, "close", partialmethod(Tracker.close, timeout=0.0))
        resumed_and_stopped(job_for(seed=84), context)
    said: list[str] = []
    assert flush_all(store, context.run_dir, say=said.append)
    assert [text.partition(": ")[2] for text in said] == ["everything is in the tracking store"]
    events = run_in(context, job_for(seed=84))
    assert (events[0].run_id, events[0].step) == (run_id, EPOCH + 1)


def test_positions_of_a_run_go_when_it_is_delivered_later(store, job_for, context, monkeypatch) -> None:
    sending = replace(context, upload_checkpoints=True)
    run_id = stopped_in_its_second_epoch(job_for(seed=81), sending)
    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "close", partialmethod(Tracker.close, timeout=0.0))
        patch.setattr(MlflowClient, "set_terminated", away)
        events = run_in(sending, job_for(seed=81))
    assert not events[-1].upload.complete
    assert stored_positions(store, run_id) == ["checkpoints/0"]
    assert flush_all(store, sending.run_dir, say=print)
    assert stored_positions(store, run_id) == []


def test_an_upload_that_was_cut_off_leaves_the_position_before_it(
    store, job_for, context, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(UPLOAD_SECONDS, 0.0)
    sending = replace(context, run_dir=tmp_path / "lost", upload_checkpoints=True)
    run_id = stopped_in_its_second_epoch(job_for(seed=73), sending)
    places = Path(store.client().get_run(run_id).info.artifact_uri.removeprefix("file://")) / "checkpoints"
    newest = places / "1" / "last.pt"
    os.truncate(newest, newest.stat().st_size // 2)
    generator = run(prepare(job_for(seed=73, resume=True), context), context)
    opened = next(generator)
    assert (opened.run_id, opened.step) == (run_id, EPOCH)
    generator.close()
    # What the second attempt had is at the other place than what it writes next.
    assert (opened.folder / "checkpoints" / "0" / "last.pt").is_file()


def test_positions_are_sent_at_most_every_ten_minutes_and_where_they_are_wanted(
    store, job_for, context, tmp_path
) -> None:
    for wanted, expected in ((False, []), (True, ["checkpoints/0"])):
        sending = replace(context, run_dir=tmp_path / str(wanted), upload_checkpoints=wanted)
        # Only the end of a run that is stopped is no matter of time.
        assert stored_positions(store, stopped_in_its_second_epoch(job_for(seed=74), sending)) == expected


@pytest.mark.slow
def test_of_two_machines_that_fetch_a_run_at_the_same_instant_one_gets_it(
    store, job_for, context, tmp_path, monkeypatch
) -> None:
    undisturbed = list(run(prepare(job_for(seed=78), context), context))
    for kind in ("is_server", "is_shared"):
        monkeypatch.setattr(Store, kind, True)
    lost, north, south = (
        replace(context, run_dir=tmp_path / name, upload_checkpoints=True) for name in ("lost", "north", "south")
    )
    run_id = stopped_in_its_second_epoch(job_for(seed=78), lost)
    log_param, events = MlflowClient.log_param, []

    def be_second(client, *arguments):
        monkeypatch.setattr(MlflowClient, "log_param", log_param)
        events.append(run(prepare(job_for(seed=78, resume=True), north), north))
        events.append(next(events[0]))
        log_param(client, *arguments)

    monkeypatch.setattr(MlflowClient, "log_param", be_second)
    with pytest.raises(UserError, match=rf"another machine has just fetched tiny seed 78 .*\(run {run_id}\)"):
        next(run(prepare(job_for(seed=78, resume=True), south), south))
    assert list(south.run_dir.glob("*/")) == []
    generator, *events = events
    events += generator
    assert (events[0].run_id, events[0].step) == (run_id, EPOCH + 1)
    # What a server is sent is thinned, but for values per epoch.
    assert_same_run(store, events, undisturbed)


def test_a_run_that_is_trained_elsewhere_is_not_begun_again(store, job_for, context, tmp_path) -> None:
    sending = replace(context, run_dir=tmp_path / "elsewhere", upload_checkpoints=True)
    run_id = stopped_in_its_second_epoch(job_for(seed=75), sending)
    client = store.client()
    client.set_tag(run_id, "resnet_bench.host", "elsewhere")
    client.update_run(run_id, status="RUNNING")
    with pytest.raises(UserError, match="elsewhere is training tiny seed 75 already"):
        list(run(prepare(job_for(seed=75, resume=True), context), context))
    assert list(context.run_dir.glob("*/")) == []


@pytest.mark.slow
def test_a_killed_run_whose_folder_is_gone_resumes_with_the_same_bits(store, job_for, context, tmp_path) -> None:
    undisturbed = list(run(prepare(job_for(seed=76), context), context))
    sending = replace(context, run_dir=tmp_path / "lost", upload_checkpoints=True)
    work = tmp_path / "work.pickle"
    work.write_bytes(pickle.dumps((job_for(seed=76), sending)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(work)], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "in the second epoch\n"
            (found,) = store.client().search_runs(
                [store.experiment_id(store.client(), "resnet-bench")],
                "tags.`resnet_bench.seed` = '76' and attributes.status = 'RUNNING'",
            )
            place = Path("checkpoints", "0", "last.pt")
            (written,) = (tmp_path / "lost").glob(f"*/{place}")
            stored = Path(found.info.artifact_uri.removeprefix("file://")) / place
            deadline = time.monotonic() + 300
            while not (stored.is_file() and stored.read_bytes() == written.read_bytes()):
                assert time.monotonic() < deadline
                time.sleep(0.1)
        finally:
            process.send_signal(signal.SIGKILL)
    shutil.rmtree(tmp_path / "lost")
    events = list(run(prepare(job_for(seed=76, resume=True), context), context))
    assert (events[0].run_id, events[0].step) == (found.info.run_id, EPOCH)
    assert any(isinstance(event, EpochEnded) for event in events)
    assert_same_run(store, events, undisturbed)
