"""What is shipped works: every benchmark trains, and the wheel holds all that it needs."""

import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from resnet_bench.data.dataset import generate_dataset
from resnet_bench.execution.execution import Execution
from resnet_bench.recipe.changes import override
from resnet_bench.recipe.files import load_benchmark, scan_benchmarks
from resnet_bench.training.events import Evaluated, Finished, Steps
from resnet_bench.training.loop import train

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("name", scan_benchmarks()[0])
def test_every_shipped_benchmark_trains(name: str) -> None:
    """Its smoke profile, cut to a few batches of generated images."""
    recipe = load_benchmark(name).recipe_for("smoke")
    held_out = {"data.validation.images": 16} if recipe.data.validation else {}
    cut = {
        "data.train_images": 96 + sum(held_out.values()),
        "data.test_images": 16,
        "training.epochs": 1,
        "training.batch_size": 16,
        "evaluation.batch_size": 8,
        **held_out,
    }
    recipe = override(recipe, cut)
    images = generate_dataset(recipe.data.dataset, train_size=112, test_size=16)
    events = list(train(recipe, Execution.resolve("cpu"), 0, images))
    losses = [loss for event in events if isinstance(event, Steps) for loss in event.losses]
    assert len(losses) == 6
    assert all(map(math.isfinite, losses))
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert 0 <= finished.metrics["test/accuracy"] <= 1
    evaluated = [event for event in events if isinstance(event, Evaluated)]
    assert {event.split for event in evaluated} >= set(recipe.evaluation.splits)
    if recipe.evaluation.before_training:
        assert evaluated[0].epoch == 0


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_folder(tmp_path: Path) -> None:
    built = tmp_path / "built"
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(built)],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    (wheel,) = built.glob("*.whl")
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    listed = subprocess.run(
        [sys.executable, "-P", "-m", "resnet_bench", "list"],
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "150"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert all(name in listed for name in scan_benchmarks()[0])
    studies = {path.name for path in (installed / "resnet_bench" / "shipped" / "studies").glob("*.toml")}
    assert studies == {path.name for path in (REPOSITORY / "studies").glob("*.toml")}
    reporting = Path("resnet_bench") / "reporting"
    shipped, ours = (
        {
            path.relative_to(root)
            for folder in ("templates", "sections")
            for path in (root / reporting / folder).iterdir()
        }
        for root in (installed, REPOSITORY)
    )
    assert shipped == {path for path in ours if path.name != "__pycache__"}
