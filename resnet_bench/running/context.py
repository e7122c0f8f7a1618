"""What every task of one command shares."""

from dataclasses import dataclass, field
from pathlib import Path

from resnet_bench.data.dataset import ImageLocation
from resnet_bench.execution.options import ExecutionOptions
from resnet_bench.running.stopping import Stop
from resnet_bench.tracking.store import Store


@dataclass(frozen=True)
class Context:
    """Where tasks find images, keep files and track runs. It is picklable; a copy has a ``stop`` of its own.

    Attributes:
        store: MLflow's store.
        run_dir: Folder of the runs' folders.
        images: Where the images are.
        options: How runs are executed; a launcher narrows them to the place (a GPU, a share of the threads).
        stop: Set to end what runs, with a checkpoint each.
    """

    store: Store
    run_dir: Path
    images: ImageLocation
    options: ExecutionOptions = field(default_factory=ExecutionOptions)
    stop: Stop = field(default_factory=Stop)
