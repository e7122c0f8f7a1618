"""Training steps compared with the baseline loop: what is measured, and how it is shown."""

import itertools
import json
import math
import warnings

import pytest
from torch.utils.data import DataLoader
from torchvision import transforms

from resnet_bench.base.errors import UserError
from resnet_bench.data.dataset import Dataset, Split, generate_dataset
from resnet_bench.execution.execution import Execution
from resnet_bench.measure.baseline_loop import BaselineLoop, PillowImages, loader_workers
from resnet_bench.measure.log import metrics_of
from resnet_bench.measure.page import remarks, speed_table, stage_table
from resnet_bench.measure.speed import Spread, compare
from resnet_bench.recipe.changes import override
from resnet_bench.recipe.files import load_benchmark
from resnet_bench.training.events import Steps
from resnet_bench.training.loop import train

PLAIN = Execution.resolve("cpu", threads=1, mode="plain")
FAST = Execution.resolve("cpu", "fp32", threads=1, mode="fast", deterministic=True)


@pytest.fixture(scope="module")
def images() -> Dataset:
    return generate_dataset("cifar10", train_size=240, test_size=20, seed=0)


@pytest.fixture(scope="module")
def benchmark():
    shipped = load_benchmark("he-resnet20")
    small = {"data.train_images": 240, "data.test_images": 20, "training.batch_size": 20, "training.epochs": 1}
    return shipped.model_copy(update={"recipe": override(shipped.recipe, small)})


@pytest.fixture(scope="module")
def comparison(benchmark, images):
    return compare(benchmark, images, {"plain": PLAIN, "fast": FAST}, steps=2, repeats=2)


def test_every_arm_is_in_proportion_to_the_source(comparison) -> None:
    assert [arm.name for arm in comparison.arms] == ["source", "plain", "fast"]
    source = comparison.arms[0]
    assert source.ratio == Spread(1.0, 1.0, 1.0)
    for arm in comparison.arms:
        rate, ratio = arm.images_per_second, arm.ratio
        assert 0 < rate.low <= rate.median <= rate.high
        assert ratio.low <= ratio.median <= ratio.high
        assert ratio.high <= rate.high / source.images_per_second.low * (1 + 1e-9)
        assert arm.milliseconds.median == pytest.approx(1000 * 20 / rate.median, rel=0.5)
        assert arm.startup_seconds > 0
        assert arm.peak_memory_bytes > 1e8
        assert 0 < arm.peak_share < 3
        assert arm.compile_seconds == 0
    assert comparison.generated
    assert comparison.peak_bandwidth > 1e8


def test_the_stages_are_those_of_a_step(comparison) -> None:
    for arm in comparison.arms:
        stages = arm.stages
        assert min(stages.augment, stages.forward, stages.backward, stages.optimizer, stages.evaluation) > 0
        assert (stages.tracking > 0) == (arm.name != "source")
        assert stages.tracking < 5


def test_a_comparison_is_shown_and_told(comparison) -> None:
    assert speed_table(comparison).row_count == stage_table(comparison).row_count == 3
    assert "0 loader processes" in remarks(comparison)[0]
    metrics = metrics_of(comparison)
    assert metrics["fast/ratio"] == comparison.arms[2].ratio.median
    assert metrics["source/stage/augment_ms"] == comparison.arms[0].stages.augment
    assert all(math.isfinite(value) for value in metrics.values())
    assert json.loads(json.dumps(comparison.asdict()))["arms"][2]["name"] == "fast"


def test_images_that_grow_are_timed_at_their_full_size(benchmark, images, monkeypatch) -> None:
    """Timed at 16 pixels, our loop would be faster by up to four times the work that it leaves out."""
    growing = override(benchmark.recipe, {"augmentation.sizes": [{"pixels": 16, "epochs": 1.0}]})
    trained = []

    def watched(recipe, *args):
        trained.append(recipe.image_sizes)
        return train(recipe, *args)

    monkeypatch.setattr("resnet_bench.measure.speed.train", watched)
    found = compare(benchmark.model_copy(update={"recipe": growing}), images, {"plain": PLAIN}, steps=1, repeats=1)
    assert trained == [(32,)]
    assert (found.image_size, found.run_image_sizes) == (32, (16,))
    assert "images: 32 pixels in every loop; a run trains on 16 pixels" in remarks(found)


def test_a_spread_is_median_and_range() -> None:
    assert Spread.of([3, 1, 2, 10]) == Spread(2.5, 1, 10)


# --- the source's loop -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "workers"), [("resnet9-onecycle-adam", 3), ("resnet9-dropout", 3)])
def test_a_variant_has_its_sources_workers(name, workers) -> None:
    assert loader_workers(load_benchmark(name)) == workers
    assert loader_workers(load_benchmark("resnet18-step-decay")) == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet9-onecycle-adam", ["RandomCrop", "RandomHorizontalFlip", "ToTensor", "Normalize"]),
        ("resnet34-sgd-224", ["Resize", "ToTensor", "Normalize"]),
    ],
)
def test_its_images_go_through_torchvisions_transforms(images, name, expected) -> None:
    recipe = load_benchmark(name).recipe
    dataset = PillowImages(images.train, recipe)
    steps = dataset.transform.transforms
    assert [type(step).__name__ for step in steps] == expected
    pixels, label = dataset[3]
    assert pixels.shape == (3, recipe.image_size, recipe.image_size)
    assert label == images.train.labels[3]
    crops = [step for step in steps if isinstance(step, transforms.RandomCrop)]
    assert all((crop.padding, crop.padding_mode, crop.size) == (4, "reflect", (32, 32)) for crop in crops)


def test_its_images_are_jittered_as_ours_are(images) -> None:
    changes = {"augmentation.crop_padding": 0, "augmentation.flip": False}
    recipe = override(load_benchmark("he-resnet20").recipe, changes)
    plain = PillowImages(images.train, recipe)[3][0]
    jittered = PillowImages(images.train, override(recipe, {"augmentation.jitter.contrast": 0.5}))
    factors = [(jittered[3][0] / plain).flatten() for _ in range(20)]
    assert all(float(factor.max() - factor.min()) < 1e-3 for factor in factors), "one factor per image"
    means = [float(factor.mean()) for factor in factors]
    assert 0.5 <= min(means) < 0.9 < 1.1 < max(means) <= 1.5
    brighter = PillowImages(images.train, override(recipe, {"augmentation.jitter.brightness": 0.5}))
    shifts = [float((brighter[3][0] - plain).mean()) for _ in range(20)]
    assert -0.5 <= min(shifts) < -0.1 < 0.1 < max(shifts) <= 0.5


def test_its_step_is_that_of_the_plain_loop(benchmark, images) -> None:
    """From the same weights and on the same batch, the source's loop and ours have the same loss after each step."""
    changes = {
        "augmentation.crop_padding": 0,
        "augmentation.flip": False,
        "data.train_images": 20,
        "training.epochs": 3,
        "optimizer.lr": 0.01,
    }
    recipe = override(benchmark.recipe, changes)
    events = [event for event in train(recipe, PLAIN, 0, images) if isinstance(event, Steps)]
    # A batch of all images is the same in every order. The first step's weights are where the baseline loop starts.
    run = train(recipe, PLAIN, 0, images)
    position = next(event for event in run if isinstance(event, Steps)).snapshot()
    with PLAIN.applied():
        all_of_them = Split(images.train.images[:20], images.train.labels[:20])
        loop = BaselineLoop(recipe, PLAIN, all_of_them, workers=0)
        loop.network.load_state_dict(position["network"])
        loop.optimizer.load_state_dict(position["optimizer"])
        for _ in range(2):
            assert list(loop.steps()) == [20]
    ours = list(itertools.chain.from_iterable(event.losses for event in events))
    assert loop.losses == pytest.approx(ours[1:], rel=1e-4)
    assert loop.learning_rates == [0.01, 0.01]


def test_more_loader_processes_than_cores_are_not_warned_of(benchmark, images) -> None:
    """PyTorch asks by this method when a loader is made and for each pass; the processes are not started."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        loop = BaselineLoop(benchmark.recipe, PLAIN, images.train, workers=1000)
        loop.loader.check_worker_number_rationality()
        assert warned == []
        DataLoader.check_worker_number_rationality(loop.loader)
    assert len(warned) == 1


def test_too_few_images_are_one_sentence(benchmark) -> None:
    few = generate_dataset("cifar10", train_size=10, test_size=5, seed=0)
    with pytest.raises(UserError, match="the recipe needs"):
        compare(benchmark, few, {"fast": FAST}, steps=1, repeats=1)
