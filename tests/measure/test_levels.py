"""Every level of execution trains the same: the same seed and batches, losses equal but for rounding."""

import pytest

from resnet_bench.data.dataset import generate_dataset
from resnet_bench.execution.execution import Execution
from resnet_bench.recipe.changes import override
from resnet_bench.recipe.files import load_benchmark
from resnet_bench.training.events import Steps
from resnet_bench.training.loop import train


def first_losses(recipe, execution, images) -> list[float]:
    return [loss for event in train(recipe, execution, 0, images) if isinstance(event, Steps) for loss in event.losses]


@pytest.fixture(scope="module")
def images():
    return {name: generate_dataset(name, train_size=64, test_size=4) for name in ("cifar10", "cifar100")}


@pytest.mark.parametrize("name", ["resnet18-step-decay", "cifar100-resnet"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.05)])
def test_fast_follows_plain(images, name, precision, tolerance) -> None:
    recipe = override(
        load_benchmark(name).recipe,
        {
            "data.train_images": 16,
            "data.test_images": 4,
            "training.batch_size": 8,
            "training.epochs": 1,
            "training.train_accuracy": "running",
            # Small, because training amplifies what is rounded.
            "optimizer.lr": 1e-4,
        },
    )
    dataset = images[recipe.data.dataset]
    plain = first_losses(recipe, Execution.resolve("cpu", mode="plain", threads=1), dataset)
    fast = first_losses(recipe, Execution.resolve("cpu", precision, mode="fast", threads=1), dataset)
    assert len(plain) == 2
    assert fast == pytest.approx(plain, rel=tolerance)
    if precision == "fp32":
        assert fast != plain
