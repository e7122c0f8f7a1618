"""Time each training stage separately."""

import itertools
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from torch.utils.data import DataLoader

from resnet_bench.data.dataset import Dataset, Split
from resnet_bench.data.loader import ResidentLoader
from resnet_bench.data.of_recipe import splits_of, train_loader
from resnet_bench.execution.execution import Execution
from resnet_bench.measure.baseline_loop import PillowImages
from resnet_bench.measure.peaks import Clock
from resnet_bench.measure.workload import Workload
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.tracking.journal import Journal, metrics_record

MIN_LOADED_IMAGES = 1000
_JOURNAL_LINES = 100


@dataclass(frozen=True)
class Stages:
    """Milliseconds per batch of each stage when nothing else runs.

    Attributes:
        augment: From images in memory to normalized batches on the device, in this process.
        forward: The model and the loss.
        backward: The gradients.
        optimizer: Clipping and the update.
        evaluation: The model in eval mode.
        tracking: Journaling what a step measured; the baseline loop reads its loss within its step.
    """

    augment: float
    forward: float
    backward: float
    optimizer: float
    evaluation: float
    tracking: float


def time_stages(
    recipe: Recipe,
    dataset: Dataset,
    executions: Mapping[str, Execution],
    *,
    source: str,
    repeats: int,
    clock: Clock = time.perf_counter,
) -> dict[str, Stages]:
    """Compute medians over repeats in which the executions are interleaved.

    Args:
        recipe: What is trained.
        dataset: Its images.
        executions: By name.
        source: The name of the one that loads images and updates weights as the baseline loop does.
        repeats: Turns of each.
        clock: What times are read from.
    """
    split = splits_of(recipe, dataset)["train"]
    arms = {
        name: _Bench(recipe, execution, split, clock, is_source=name == source)
        for name, execution in executions.items()
    }
    found: dict[str, list[Stages]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, arm in arms.items():
            found[name].append(arm.measure())
    return {
        name: Stages(*(statistics.median(getattr(one, stage.name) for one in several) for stage in fields(Stages)))
        for name, several in found.items()
    }


class _Bench:
    def __init__(self, recipe: Recipe, execution: Execution, split: Split, clock: Clock, *, is_source: bool) -> None:
        self._execution, self._is_source, self._clock = execution, is_source, clock
        self._batch_size = recipe.training.batch_size
        count = max(MIN_LOADED_IMAGES, 2 * self._batch_size)
        part = Split(split.images[:count], split.labels[:count])
        self._loader: DataLoader[object] | ResidentLoader
        if is_source:
            self._loader = DataLoader(PillowImages(part, recipe), self._batch_size, shuffle=True)
        else:
            self._loader = train_loader(recipe, part, execution, seed=0)
        self._workload = Workload(recipe, execution, fused=not is_source, clock=clock)
        with execution.applied():
            # In this order: gradients of an earlier step would still be accumulated on its stream, not the capture's.
            self._workload.capture()
            self._workload.step()

    def measure(self) -> Stages:
        with self._execution.applied():
            self._workload.step()
            step = self._workload.step()
            seconds = {
                "augment": self._augment(),
                "forward": step.forward,
                "backward": step.backward,
                "optimizer": step.optimizer,
                "evaluation": self._workload.evaluate(),
                "tracking": 0.0 if self._is_source else _track(),
            }
        return Stages(**{name: 1000 * value for name, value in seconds.items()})

    def _augment(self) -> float:
        """Measure a batch as large as the recipe's, in seconds."""
        batches = self._loader.epoch(1) if isinstance(self._loader, ResidentLoader) else iter(self._loader)
        self._execution.synchronize()
        started = self._clock()
        images = sum(len(labels) for _, labels in batches)
        self._execution.synchronize()
        return (self._clock() - started) / images * self._batch_size


def _track() -> float:
    """Time the tracker's journal per step, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal.open(Path(folder) / "journal.jsonl")
        try:
            started = time.perf_counter()
            for step in itertools.islice(itertools.count(1), _JOURNAL_LINES):
                values = {"step/loss": [2.3], "step/learning_rate": [0.1]}
                journal.append(metrics_record("step", step, values, timestamp=0, seconds=0.1))
            return (time.perf_counter() - started) / _JOURNAL_LINES
        finally:
            journal.close()
