"""The weights of finished runs, which the store has as MLflow models."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from resnet_bench.running.events import Event
from resnet_bench.tracking.model import PREFIX, load_weights
from resnet_bench.tracking.store import Store
from resnet_bench.training.events import Finished

Weights = dict[str, torch.Tensor]


def weights_at_the_end(events: list[Event]) -> Weights:
    """What a run that was watched ended with."""
    (finished,) = (event for event in events if isinstance(event, Finished))
    network: Weights = finished.snapshot()["network"]
    return network


def weights_in_store(store: Store, run_id: str) -> Weights:
    """What the store has of a run; ``tests.reliability.tiny`` has models written as weights alone."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(store.client().download_artifacts(run_id, "model", scratch))
        if (plain := folder / "weights.pt").is_file():
            found = torch.load(plain, weights_only=True)
            return {name.removeprefix(PREFIX): tensor for name, tensor in found.items()}
        return {name: tensor.detach() for name, tensor in load_weights(folder).items()}


def weights_of_project(project: Path) -> dict[int, Weights]:
    """The weights of each run of a project, by its seed."""
    store = Store.resolve(f"sqlite:///{project / 'mlflow.db'}")
    states: list[dict[str, Any]] = [json.loads(file.read_text()) for file in (project / "runs").glob("*/run.json")]
    return {int(state["identity"]["seed"]): weights_in_store(store, state["run_id"]) for state in states}
