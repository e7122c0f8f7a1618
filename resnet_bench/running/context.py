"""What every task of one command shares."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from resnet_bench.data.dataset import Dataset, ImageLocation, load
from resnet_bench.execution.options import ExecutionOptions
from resnet_bench.recipe.datasets import DatasetFacts
from resnet_bench.running.stopping import Stop
from resnet_bench.tracking.store import Store


@dataclass(frozen=True)
class Context:
    """Where tasks find images, keep files and track runs. It is picklable; a copy has a separate ``stop``, its own.

    Attributes:
        store: MLflow's store.
        run_dir: Folder of the runs' folders.
        images: Where the images are.
        options: How runs are executed; a launcher narrows them to the place (a GPU, a share of the threads).
        stop: Set to end what runs, with a checkpoint each.
        upload_checkpoints: Whether positions go to the artifact store too, because machines share no ``run_dir``.
    """

    store: Store
    run_dir: Path
    images: ImageLocation
    options: ExecutionOptions = field(default_factory=ExecutionOptions)
    stop: Stop = field(default_factory=Stop)
    upload_checkpoints: bool = False
    _opened: dict[tuple[DatasetFacts, ImageLocation], Dataset] = field(default_factory=dict, repr=False, compare=False)
    """Also that of the contexts that are made from this one by replacing a field."""

    def __getstate__(self) -> dict[str, Any]:
        # Each process maps the images for itself.
        return {**vars(self), "_opened": {}}

    def holding(self, datasets: Mapping[DatasetFacts, Dataset]) -> "Context":
        """Return a context that has these images at hand, and does not look for them."""
        opened = {(facts, self.images): dataset for facts, dataset in datasets.items()}
        return replace(self, _opened={**self._opened, **opened})

    def open_images(self, facts: DatasetFacts, progress: Callable[[str], None] | None = None) -> Dataset:
        """Return a dataset, which is verified and mapped into memory once.

        Raises:
            UserError: There are no images, or they are damaged.
        """
        key = (facts, self.images)
        if key not in self._opened:
            self._opened[key] = load(facts, self.images, progress)
        return self._opened[key]
