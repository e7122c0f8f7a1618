"""Every benchmark that is shipped trains."""

import math

import pytest

from resnet_bench.data.dataset import generate_dataset
from resnet_bench.execution.execution import Execution
from resnet_bench.recipe.changes import override
from resnet_bench.recipe.files import load_benchmark, scan_benchmarks
from resnet_bench.training.events import Evaluated, Finished, Steps
from resnet_bench.training.loop import train


@pytest.mark.slow
@pytest.mark.parametrize("name", scan_benchmarks()[0])
def test_every_shipped_benchmark_trains(name: str) -> None:
    """Its smoke profile, cut to a few batches of generated images."""
    recipe = load_benchmark(name).recipe_for("smoke")
    held_out = {"data.validation.images": 4} if recipe.data.validation else {}
    cut = {
        "data.train_images": 24 + sum(held_out.values()),
        "data.test_images": 4,
        "training.epochs": 1,
        "training.batch_size": 4,
        "evaluation.batch_size": 2,
        **held_out,
    }
    recipe = override(recipe, cut)
    images = generate_dataset(recipe.data.dataset, train_size=28, test_size=4)
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


def test_times_of_our_own_claims_are_of_the_record_clock() -> None:
    ours = [each.test_claim for each in scan_benchmarks()[0].values() if each.source.kind == "ours"]
    timed = [claim for claim in ours if claim is not None and claim.wall_seconds is not None]
    assert timed
    assert all(claim.wall_includes == (("setup", "tta") if claim.is_tta else ("setup",)) for claim in timed)
