"""What tests of clusters share: a run that can be disturbed, and what stores have of runs."""

import importlib
import json
import os
import socket
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from resnet_bench.data.dataset import ImageLocation
from resnet_bench.recipe.datasets import DatasetFacts
from resnet_bench.running.context import Context
from resnet_bench.running.events import Event, JobFinished
from resnet_bench.running.job import Job
from resnet_bench.running.launchers.launcher import Place, find_launcher
from resnet_bench.running.launchers.options import RayOptions
from resnet_bench.running.stopping import Stop
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.vocabulary import EXPERIMENT, tag
from resnet_bench.training.events import EpochEnded
from tests.reliability import tiny
from tests.running.conftest import PLAIN
from tests.weights import weights_in_store

SECONDS = 120.0
"""Whatever is waited for here takes seconds on a machine that has nothing else to do."""
SHORT = {
    "resnet_bench.tracking.leases.BEAT_SECONDS": 0.5,
    "resnet_bench.tracking.leases.HOLD_SECONDS": 3.0,
    "resnet_bench.tracking.leases.LOST_SECONDS": 6.0,
    "resnet_bench.tracking.leases.LOOK_SECONDS": 0.5,
    "resnet_bench.tracking.tracker.UPLOAD_SECONDS": 0.1,
    "resnet_bench.tracking.uploader.MAX_BACKOFF_SECONDS": 0.5,
    "resnet_bench.running.stored_position.UPLOAD_SECONDS": 0.0,
}
"""A lease of a minute takes minutes to test."""
SOON = {
    "resnet_bench.running.launchers.supervision.NODES_SECONDS": 1.0,
    "resnet_bench.running.launchers.supervision.SILENT_SECONDS": 5.0,
}
"""Likewise for a node that is silent."""


def shorten(names: Mapping[str, float]) -> None:
    """Set constants in this process."""
    for name, value in names.items():
        module, _, constant = name.rpartition(".")
        setattr(importlib.import_module(module), constant, value)


def wait_until(holds: Callable[[], bool], what: str, seconds: float = SECONDS) -> None:
    """Wait for a condition, for a generous time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not in {seconds:.0f} s: {what}"
        time.sleep(0.1)


@dataclass(frozen=True)
class Held:
    """A run whose first attempt waits after its first epoch, until something is done to its job.

    It leaves the file ``held-SEED`` with the host's name.
    """

    job: Job
    folder: Path

    @property
    def label(self) -> str:
        return self.job.label

    @property
    def facts(self) -> DatasetFacts:
        return self.job.facts

    def events(self, context: Context) -> Generator[Event, None, None]:
        held = self.folder / f"held-{self.job.seed}"
        job = replace(self.job, resume=held.exists())
        for event in job.events(context):
            yield event
            if isinstance(event, EpochEnded) and event.epoch == 1 and not held.exists():
                (self.folder / f".held-{self.job.seed}").write_text(socket.gethostname())
                (self.folder / f".held-{self.job.seed}").rename(held)
                while not context.stop:
                    time.sleep(0.05)


@dataclass(frozen=True)
class Hasty(Held):
    """Likewise, with short leases, and every checkpoint sent to the artifact store, in each process that gets it.

    It notes the host, the process and the GPUs of each attempt in the file ``places-SEED``.
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        shorten(SHORT)

    def events(self, context: Context) -> Generator[Event, None, None]:
        with (self.folder / f"places-{self.job.seed}").open("a") as file:
            file.write(f"{socket.gethostname()} {os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
        yield from super().events(context)


class HastyOptions(RayOptions):
    """In each process that gets them, a silent node is given up soon."""

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        shorten(SOON)


def runs_in(store: Store) -> dict[str, tuple[str, str]]:
    """Id and status of each run of a store, by its name."""
    client = store.client()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    # Not the summaries that they are nested in.
    found = client.search_runs([experiment.experiment_id], f"tags.`{tag('role')}` = 'run'")
    assert len({run.info.run_name for run in found}) == len(found), "a run was begun twice"
    return {run.info.run_name: (run.info.run_id, run.info.status) for run in found}


def history(store: Store, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in store.client().get_metric_history(run_id, key))


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def first_json(printed: str) -> Any:
    """The document that a command has printed among whatever else."""
    return json.JSONDecoder().raw_decode(printed, printed.index("{"))[0]


def make_context(folder: Path) -> Context:
    """Where tiny jobs run whose results are compared: with a store that nobody else uses."""
    folder.mkdir()
    store = Store.resolve(f"sqlite:///{folder / 'mlflow.db'}")
    store.prepare()
    return Context(store, folder / "runs", ImageLocation(folder, generated=(64, 32)), PLAIN, Stop())


def assert_undisturbed(there: Context, jobs: Sequence[Job], here: Context) -> None:
    """Check that runs have ended as they end where nothing disturbs them: bit by bit."""
    events = find_launcher("inline", [Place()]).run(jobs, here)
    assert all(event.failure is None for _, event in events if isinstance(event, JobFinished))
    disturbed, undisturbed = runs_in(there.store), runs_in(here.store)
    assert {status for _, status in disturbed.values()} == {"FINISHED"}
    assert disturbed.keys() == undisturbed.keys()
    assert len(disturbed) == len(jobs)
    for name, (run_id, _) in disturbed.items():
        assert same(weights_in_store(there.store, run_id), weights_in_store(here.store, undisturbed[name][0]))
        for key in ("train/loss", "test/accuracy"):
            assert history(there.store, run_id, key) == history(here.store, undisturbed[name][0], key), (name, key)


def run_command() -> list[str]:
    """The words of a tiny run on the images in the folder ``data``."""
    tiny_run = (
        f"run {tiny.BENCHMARK} --profile smoke --execution plain --threads 1 --device cpu --deterministic --data data"
    )
    return [*tiny_run.split(), *(f"--set={key}={value}" for key, value in tiny.CHANGES.items())]
