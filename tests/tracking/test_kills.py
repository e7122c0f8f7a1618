"""Many processes, many kills: what was measured arrives exactly once all the same."""

import multiprocessing
import os
import random
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.tracking.facts import RunFacts
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.tracker import Tracker
from resnet_bench.tracking.vocabulary import EXPERIMENT, tag
from resnet_bench.training.events import Evaluated

from .training_events import BENCHMARK, STEPS_PER_EPOCH, finished, learning_rate, loss, started, steps

pytestmark = pytest.mark.slow

KILLS = 40
STEPS = 4000
CHECKPOINT_EVERY = 70
"""Not a multiple of a chunk, nor of an epoch."""


@pytest.fixture(scope="module")
def processes() -> multiprocessing.context.ForkServerContext:
    """Starts processes that have imported everything already, so that a kill hits the work and not the start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "mlflow.store.tracking.sqlalchemy_store",
            "pytest",
            "resnet_bench.tracking.tracker",
            "resnet_bench.training.events",
        ]
    )
    return context


def open_tracker(project: Path, folder: Path, *, seed: int, resume_step: int | None = None) -> Tracker:
    import resnet_bench.tracking.tracker

    resnet_bench.tracking.tracker.UPLOAD_SECONDS = 0.01
    benchmark = Benchmark.model_validate(BENCHMARK)
    description = RunFacts(
        benchmark=benchmark,
        recipe=benchmark.recipe,
        profile="full",
        seed=seed,
        execution={"device": "cpu"},
        device_name="x",
        dataset_name="cifar10",
        data_source="parquet",
        data_fingerprint="f",
        generated=False,
    )
    return Tracker.open(Store.resolve(None, project), description, folder, resume_step=resume_step)


def train(project: Path, folder: Path, last_step: int, progress: Any) -> None:
    """Train to a step, resuming from the last checkpoint, which is the number of a step in a file.

    Before the last step of all it waits there to be killed, while its uploader works. The step that it has recorded
    last is the value of ``progress``.
    """
    checkpoint = folder / "checkpoint"
    done = int(checkpoint.read_text()) if checkpoint.exists() else 0
    tracker = open_tracker(project, folder, seed=0, resume_step=done)
    tracker.record(started(done))
    while done < last_step:
        last = min(done + 7, last_step, (done // CHECKPOINT_EVERY + 1) * CHECKPOINT_EVERY)
        tracker.record(steps(done + 1, last))
        progress.value = last
        for epoch in range(done // STEPS_PER_EPOCH + 1, last // STEPS_PER_EPOCH + 1):
            tracker.record(Evaluated(epoch, last, "test", 1 / epoch, 1.0, 1.0, 1.0, 50, 0.1, snapshot=dict))
        done = last
        if done % CHECKPOINT_EVERY == 0:
            unfinished = checkpoint.with_suffix(".unfinished")
            unfinished.write_text(str(done))
            os.replace(unfinished, checkpoint)  # noqa: PTH105
        time.sleep(0.002)
    if last_step < STEPS:
        # Where the test ends early, nobody kills it.
        time.sleep(600)
        return
    tracker.record(finished())
    assert tracker.close("finished").complete
    (folder / "finished").touch()


def wait_for_step(step: int, progress: Any, child: BaseProcess) -> None:
    """Wait until the child has recorded a step."""
    while progress.value < step:
        assert child.is_alive(), "it ended by itself"
        time.sleep(0.001)


def test_a_run_that_is_killed_again_and_again_has_every_value_once(
    processes: multiprocessing.context.ForkServerContext, store: Store, tmp_path: Path
) -> None:
    project, folder = tmp_path / "project", tmp_path / "run"
    checkpoint = folder / "checkpoint"
    generator = random.Random(0)
    for kill in range(KILLS):
        # However fast the machine is, the run cannot end before the last kill.
        last_step = STEPS * (kill + 1) // (KILLS + 1)
        progress = processes.RawValue("i", 0)
        child = processes.Process(target=train, args=(project, folder, last_step, progress))
        child.start()
        if kill % 3:
            done = int(checkpoint.read_text()) if checkpoint.exists() else 0
            wait_for_step(generator.randint(done + 1, last_step), progress, child)
        else:
            # Every third one while it gets ready.
            child.join(generator.uniform(0, 0.5))
        assert child.exitcode is None, "it ended by itself"
        child.kill()
        child.join()
    last = processes.Process(target=train, args=(project, folder, STEPS, processes.RawValue("i", 0)))
    last.start()
    last.join(600)
    assert last.exitcode == 0
    assert (folder / "finished").exists()

    client = store.client()
    (run,) = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    for key, value in (("step/loss", loss), ("step/learning_rate", learning_rate)):
        found = client.get_metric_history(run.info.run_id, key)
        assert sorted((m.step, m.value) for m in found) == [(step, value(step)) for step in range(1, STEPS + 1)]
    found = client.get_metric_history(run.info.run_id, "test/accuracy")
    epochs = STEPS // STEPS_PER_EPOCH
    assert sorted((m.step, m.value) for m in found) == [(epoch, 1 / epoch) for epoch in range(1, epochs + 1)]
    assert run.info.status == "FINISHED"
    # Not by those that were killed while they got ready.
    assert int(run.data.tags["resnet_bench.resumed"]) >= KILLS // 2


def write_a_run(project: Path, folder: Path, seed: int) -> None:
    tracker = open_tracker(project, folder, seed=seed)
    for step in range(1, 1001):
        tracker.record(steps(step, step))
        time.sleep(0.001)
    report = tracker.close("finished", timeout=120)
    assert report.complete, report


def test_sixteen_processes_write_to_one_database_at_once(
    processes: multiprocessing.context.ForkServerContext, store: Store, tmp_path: Path
) -> None:
    children = [
        processes.Process(target=write_a_run, args=(tmp_path / "project", tmp_path / f"run-{seed}", seed))
        for seed in range(16)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 16
    client = store.client()
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    runs = client.search_runs([experiment], f"tags.`{tag('role')}` = 'run'")
    assert len(runs) == 16
    for run in runs:
        found = client.get_metric_history(run.info.run_id, "step/loss")
        assert sorted((m.step, m.value) for m in found) == [(step, loss(step)) for step in range(1, 1001)]
