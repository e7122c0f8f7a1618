"""A whole suite that is done within a second or two: images in class folders, training, tracking and report."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnet_bench.data.content import Content, SplitArrays
from resnet_bench.data.dataset import ImageLocation
from resnet_bench.execution.options import ExecutionOptions
from resnet_bench.measure.estimate import Costs
from resnet_bench.recipe.files import load_benchmark
from resnet_bench.running.context import Context
from resnet_bench.running.plan import RunOptions
from resnet_bench.tracking.facts import RunFacts
from resnet_bench.tracking.store import Store
from tests.data import builders

BENCHMARK = "he-resnet20"
EPOCHS = 2
BATCH_SIZE = 8
TRAIN_IMAGES = 32
TEST_IMAGES = 20
STEPS = EPOCHS * TRAIN_IMAGES // BATCH_SIZE


def write_images(folder: Path) -> None:
    """Forty training and twenty test images of ten classes as PNG files, which the data cache then decodes."""
    info = replace(builders.small_info(), train_size=40, test_size=TEST_IMAGES)
    random = np.random.default_rng(0)

    def split(size: int) -> SplitArrays:
        images = random.integers(0, 256, (size, 3, 32, 32), dtype=np.uint8)
        return SplitArrays(images, np.arange(size, dtype=np.int64) % info.num_classes)

    builders.write_class_folders(folder / "cifar10", info, Content(split(40), split(TEST_IMAGES)))


CHANGES = {
    "data.train_images": TRAIN_IMAGES,
    "data.test_images": TEST_IMAGES,
    "training.epochs": EPOCHS,
    "training.batch_size": BATCH_SIZE,
    "evaluation.batch_size": TEST_IMAGES,
}


def options(**changes: Any) -> RunOptions:
    """A run of the benchmark on those images."""
    return replace(RunOptions([BENCHMARK], profile="smoke", changes=CHANGES), **changes)


def context(project: Path, *, tracking: str | None = None, run_dir: Path | None = None, **changes: Any) -> Context:
    """A project's folder; keyword arguments change how runs are executed."""
    # A process that has computed with several threads must not be forked: its children would wait for them.
    executed = ExecutionOptions("cpu", precision="fp32", threads=1, deterministic=True)
    return Context(
        store=Store.resolve(tracking or f"sqlite:///{project / 'mlflow.db'}", Path.cwd()),
        run_dir=run_dir or project / "runs",
        images=ImageLocation(project / "data"),
        options=replace(executed, **changes),
    )


def facts() -> RunFacts:
    """What such a run is tracked as."""
    benchmark = load_benchmark(BENCHMARK)
    return RunFacts(
        benchmark=benchmark,
        recipe=benchmark.recipe_for("smoke"),
        profile="smoke",
        seed=0,
        execution={"device": "cpu", "precision": "fp32", "threads": 1},
        device_name="a processor",
        dataset_name="cifar10",
        data_source="image folder",
        data_fingerprint="d" * 64,
        generated=False,
    )


def draw_nothing(path: Path, *_: object) -> None:
    """Stands in for a plot."""
    path.write_bytes(b"a picture")


def speed_up(patch: pytest.MonkeyPatch) -> None:
    """Leave out what takes most of the time and is not looked at: counting, estimating, drawing and exporting."""
    import torch

    def save_weights(network: torch.nn.Module, example: object, folder: Path, *, requirements: object = None) -> None:
        folder.mkdir(exist_ok=True)
        torch.save(network.state_dict(), folder / "weights.pt")

    patch.setattr("resnet_bench.running.plan.measure_costs", lambda recipe, execution: Costs.by_pixels(recipe))
    patch.setattr("resnet_bench.running.plan.estimate_seconds", lambda recipe, costs: 1.0)
    patch.setattr("resnet_bench.running.plan.check_benchmark", lambda benchmark: None)
    for module in ("measure.autotune", "training.session"):
        patch.setattr(f"resnet_bench.{module}.recipe_macs", lambda recipe: 1)
    patch.setattr("resnet_bench.running.pictures.write_confusion_matrix_png", draw_nothing)
    patch.setattr("resnet_bench.tracking.tracker.save_model", save_weights)
