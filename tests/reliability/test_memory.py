"""A batch that does not fit: the error says so and names one that does, which has been tried."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from resnet_bench.data.dataset import Dataset
from resnet_bench.execution.execution import Execution
from resnet_bench.recipe.changes import override
from resnet_bench.training import memory
from resnet_bench.training.errors import OutOfMemory
from resnet_bench.training.loop import train
from resnet_bench.training.memory import find_fitting_batch_size, ran_out_of_memory, within_free_memory
from resnet_bench.training.steps import EagerStep
from tests.stub_cuda import needs_gpu
from tests.training.conftest import PLAIN, images, tiny_recipe

REPOSITORY = Path(__file__).resolve().parents[2]
CANNOT = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"

__all__ = ["images"]


@pytest.fixture
def quick_to_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking for garbage among all that a test session holds takes longer than these attempts."""
    monkeypatch.setattr(memory, "free_what_is_unused", lambda: None)


def fits_up_to(limit: int, tried: list[int]) -> Callable[[int], None]:
    """An attempt that has memory for so many images."""

    def attempt(batch_size: int) -> None:
        tried.append(batch_size)
        if batch_size > limit:
            raise RuntimeError(CANNOT)

    return attempt


@pytest.mark.usefixtures("quick_to_free")
@pytest.mark.parametrize("limit", [2, 3, 7, 16, 26, 100, 128, 1000, 4095])
def test_what_is_suggested_fits_and_is_near_the_largest_that_does(limit: int) -> None:
    tried: list[int] = []
    fitting = find_fitting_batch_size(4096, fits_up_to(limit, tried))
    assert fitting is not None
    assert 0.7 * min(limit, 4096 * 7 // 8) - 8 < fitting <= limit
    assert fitting % 8 == 0 or fitting < 16
    assert fitting in tried
    assert sum(tried) < 3.5 * 4096


@pytest.mark.usefixtures("quick_to_free")
@pytest.mark.parametrize("batch_size", [50, 51, 100])
def test_what_is_suggested_has_been_tried_and_is_allowed(batch_size: int) -> None:
    tried: list[int] = []
    fitting = find_fitting_batch_size(batch_size, fits_up_to(1000, tried), lambda size: size % 3 == 2)
    assert fitting == tried[-1]
    assert fitting > batch_size / 2
    assert all(size % 3 == 2 for size in tried)
    assert find_fitting_batch_size(batch_size, fits_up_to(1000, tried), lambda _: False) is None


@pytest.mark.usefixtures("quick_to_free")
def test_where_no_batch_fits_none_is_suggested() -> None:
    assert find_fitting_batch_size(64, fits_up_to(1, [])) is None
    said = str(OutOfMemory("a small device", "resnet18", 64, None))
    assert said == (
        "a small device ran out of memory: training.batch_size = 64 of resnet18 did not fit, nor did any smaller batch"
    )


def test_another_error_of_an_attempt_is_not_taken_for_a_shortage() -> None:
    def attempt(batch_size: int) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        find_fitting_batch_size(64, attempt)


def test_a_shortage_is_recognised_whoever_reports_it() -> None:
    """The errors are real ones, of allocations that no machine can serve."""
    # More than any address space, yet not so much that the size itself is refused.
    for ask in (lambda: torch.empty(2**52, dtype=torch.uint8), lambda: np.ones(2**52, dtype=np.uint8)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            ask()
        assert ran_out_of_memory(caught.value)
    assert not ran_out_of_memory(RuntimeError("the size of tensor a must match the size of tensor b"))
    assert not ran_out_of_memory(ValueError(CANNOT))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux promises more memory than there is")
def test_an_attempt_cannot_take_more_than_is_free() -> None:
    """Half of what Linux would promise: without the limit the system might end this process instead."""
    import psutil

    with within_free_memory("cpu"), pytest.raises(RuntimeError) as caught:
        torch.empty(psutil.virtual_memory().available + 2**28, dtype=torch.uint8)
    assert ran_out_of_memory(caught.value)


def test_memory_that_runs_out_in_a_step_is_reported_with_the_batch_that_fits(
    images: Dataset, monkeypatch: pytest.MonkeyPatch, quick_to_free: None
) -> None:
    step = EagerStep.step

    def short_of_memory(eager: EagerStep, batch: torch.Tensor, labels: torch.Tensor, number: int) -> Any:
        if len(batch) > 5:
            raise RuntimeError(CANNOT)
        if len(batch) < 16:
            # The run that failed left its memory to the attempts, though its first event is still here.
            with pytest.raises(RuntimeError, match="this event's run is over"):
                started.snapshot()
        return step(eager, batch, labels, number)

    monkeypatch.setattr(EagerStep, "step", short_of_memory)
    events = train(tiny_recipe(), PLAIN, 0, images)
    started = next(events)
    with pytest.raises(OutOfMemory) as caught:
        list(events)
    assert str(caught.value) == (
        f"{PLAIN.device_name} ran out of memory: training.batch_size = 16 of he_resnet20 did not fit; 5 does "
        "(measured): --set training.batch_size=5, which is another recipe, not judged against the claim"
    )
    assert caught.value.__cause__ is None
    assert started.parameters
    monkeypatch.undo()
    train_with_suggestion = override(tiny_recipe(training={"epochs": 1}), {"training.batch_size": 5})
    assert list(train(train_with_suggestion, PLAIN, 0, images))[-1].step == 8


def test_memory_that_runs_out_in_an_evaluation_names_its_batch_size(
    images: Dataset, monkeypatch: pytest.MonkeyPatch, quick_to_free: None
) -> None:
    forward = torch.nn.Linear.forward

    def short_of_memory(layer: torch.nn.Linear, features: torch.Tensor) -> torch.Tensor:
        if len(features) > 17:
            raise RuntimeError(CANNOT)
        return forward(layer, features)

    monkeypatch.setattr(torch.nn.Linear, "forward", short_of_memory)
    with pytest.raises(OutOfMemory) as caught:
        list(train(tiny_recipe(), PLAIN, 0, images))
    assert (caught.value.setting, caught.value.batch_size, caught.value.fitting) == ("evaluation.batch_size", 20, 16)


@pytest.mark.parametrize(("images_left", "fitting"), [(0, 5), (1, 3)])
def test_a_batch_that_the_recipe_may_not_have_is_not_suggested(
    images: Dataset, monkeypatch: pytest.MonkeyPatch, quick_to_free: None, images_left: int, fitting: int
) -> None:
    """Of 41 images batches of 8, 5 and 4 leave one, which BatchNorm cannot train on."""
    step = EagerStep.step

    def short_of_memory(eager: EagerStep, batch: torch.Tensor, labels: torch.Tensor, number: int) -> Any:
        if len(batch) > 5:
            raise RuntimeError(CANNOT)
        return step(eager, batch, labels, number)

    monkeypatch.setattr(EagerStep, "step", short_of_memory)
    with pytest.raises(OutOfMemory) as caught:
        list(train(tiny_recipe(data={"train_images": 40 + images_left}), PLAIN, 0, images))
    assert caught.value.fitting == fitting


@pytest.mark.parametrize(
    ("part", "pixels_that_fit", "fitting"), [("training", 9 * 24**2, 8), ("evaluation", 9 * 32**2, 8)]
)
def test_a_batch_is_tried_with_the_largest_images_of_its_part(
    images: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    quick_to_free: None,
    part: str,
    pixels_that_fit: int,
    fitting: int,
) -> None:
    """Where images grow while training, those of the first epochs are smaller, and those of the test set larger."""
    forward = torch.nn.Conv2d.forward

    def short_of_memory(layer: torch.nn.Conv2d, batch: torch.Tensor) -> torch.Tensor:
        is_of_part = torch.is_grad_enabled() == (part == "training")
        if is_of_part and batch.shape[1] == 3 and batch[:, 0].numel() > pixels_that_fit:
            raise RuntimeError(CANNOT)
        return forward(layer, batch)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", short_of_memory)
    sizes = [{"pixels": 16, "epochs": 1}, {"pixels": 24, "epochs": 1}]
    model = {"name": "speedrun", "options": {"width1": 8, "width2": 12, "width3": 12}}
    recipe = tiny_recipe(augmentation={"sizes": sizes}, model=model)
    with pytest.raises(OutOfMemory) as caught:
        list(train(recipe, PLAIN, 0, images))
    assert caught.value.setting == f"{part}.batch_size"
    assert caught.value.fitting == fitting
    list(train(override(recipe, {f"{part}.batch_size": fitting}), PLAIN, 0, images))


def test_evaluations_whose_batches_nobody_chose_take_smaller_ones(
    images: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(evaluation={"mode": "batch_statistics", "batch_size": 6}, training={"epochs": 1})
    expected = list(train(recipe, PLAIN, 0, images))[-1].metrics
    forward = torch.nn.Linear.forward
    refused = []

    def short_of_memory(layer: torch.nn.Linear, features: torch.Tensor) -> torch.Tensor:
        if len(features) > 16:
            refused.append(len(features))
            raise RuntimeError(CANNOT)
        return forward(layer, features)

    monkeypatch.setattr(torch.nn.Linear, "forward", short_of_memory)
    assert list(train(recipe, PLAIN, 0, images))[-1].metrics == expected
    assert refused


TRAIN_WITH_LITTLE_MEMORY = """
import resource, sys
import psutil
from resnet_bench.data.dataset import generate_dataset
from resnet_bench.recipe.changes import override
from resnet_bench.training.errors import OutOfMemory
from resnet_bench.training.loop import train
from tests.training.conftest import PLAIN, tiny_recipe

setting, batch_size, megabytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
images = generate_dataset("cifar10", train_size=1024, test_size=512)
recipe = tiny_recipe(data={"train_images": 1024, "test_images": 512}, training={"epochs": 1})
# Threads and libraries take address space before it is limited.
list(train(tiny_recipe(), PLAIN, 0, images))
limit = psutil.Process().memory_info().vms + megabytes * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    list(train(override(recipe, {setting: batch_size}), PLAIN, 0, images))
except OutOfMemory as error:
    print(error, error.fitting, sep="\\n")
else:
    print("trained")
"""


TRIES_WITH_LITTLE_MEMORY = 5
"""Now and then a library crashes where its own small allocation is the one that fails."""


def train_with_little_memory(setting: str, batch_size: int, megabytes: int) -> list[str]:
    """Train in a fresh process, as a user would start again, and return the lines that it prints."""
    for _ in range(TRIES_WITH_LITTLE_MEMORY):
        done = subprocess.run(
            [sys.executable, "-c", TRAIN_WITH_LITTLE_MEMORY, setting, str(batch_size), str(megabytes)],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if done.returncode >= 0:
            break
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit the address space of a process")
@pytest.mark.parametrize(
    ("setting", "batch_size", "megabytes"), [("training.batch_size", 1024, 300), ("evaluation.batch_size", 512, 120)]
)
def test_a_cpu_without_memory_names_a_batch_that_really_trains(setting: str, batch_size: int, megabytes: int) -> None:
    said, fitting = train_with_little_memory(setting, batch_size, megabytes)
    assert f"ran out of memory: {setting} = {batch_size} of he_resnet20 did not fit; " in said
    assert f"--set {setting}={fitting}," in said
    assert 2 <= int(fitting) < batch_size
    # A quarter more than it was found with: how memory is split differs from process to process.
    assert train_with_little_memory(setting, int(fitting), megabytes * 5 // 4) == ["trained"]


@pytest.mark.slow
@pytest.mark.gpu
@needs_gpu
def test_a_gpu_without_memory_names_a_batch_that_really_trains(images: Dataset) -> None:
    execution = Execution.resolve("cuda", "fp32")
    recipe = tiny_recipe(
        model={"name": "torchvision:resnet18"}, augmentation={"resize": 512}, training={"batch_size": 40, "epochs": 1}
    )
    recipe = override(recipe, {"evaluation.batch_size": 2})
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(1.5e9 / total)
    try:
        with pytest.raises(OutOfMemory) as caught:
            list(train(recipe, execution, 0, images))
        fitting = caught.value.fitting
        assert fitting is not None
        assert caught.value.setting == "training.batch_size"
        list(train(override(recipe, {"training.batch_size": fitting}), execution, 0, images))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
