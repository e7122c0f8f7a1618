"""What tests of clusters share: a run that can be disturbed, and what stores have of runs."""

import json
import socket
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from resnet_bench.recipe.datasets import DatasetFacts
from resnet_bench.running.context import Context
from resnet_bench.running.events import Event
from resnet_bench.running.job import Job
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.vocabulary import EXPERIMENT, tag
from resnet_bench.training.events import EpochEnded

SECONDS = 120.0
"""Whatever is waited for here takes seconds on a machine that has nothing else to do."""


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
