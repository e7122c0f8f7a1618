"""A dry run: a few real steps of a job, to see what it needs; nothing is kept or tracked."""

import contextlib
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from resnet_bench.data.of_recipe import augmented_examples
from resnet_bench.execution.devices import peak_memory
from resnet_bench.recipe.changes import override
from resnet_bench.running.artifacts import EXAMPLE_IMAGES
from resnet_bench.running.context import Context
from resnet_bench.running.events import TaskEvent
from resnet_bench.running.job import Job
from resnet_bench.running.pictures import write_image_grid
from resnet_bench.running.prepare import resolve
from resnet_bench.training.events import EpochEnded, Started, State, Steps
from resnet_bench.training.loop import train

STEPS = 2
"""The optimizer's state is there from the second step on, which is also the first one that is warm."""


@dataclass(frozen=True)
class Tried(TaskEvent):
    """What a job needs, as a few steps of it showed.

    Attributes:
        job: The job.
        steps: Optimizer steps of the whole run.
        parameters: Trained parameters of the network.
        macs: Multiply-accumulates of one forward pass of one image.
        step_seconds: Of the last step that was tried.
        train_seconds: Of all steps, if each takes as long per pixel; without evaluation and set-up.
        memory_bytes: Peak of the GPU's allocator, or of the process on a CPU; None where the system does not tell.
        checkpoint_bytes: Of the position to resume from: the weights and the optimizer's state.
        weights_bytes: Of the network's weights alone.
        images: A PNG of training images as the network sees them, before they are normalized.
    """

    job: Job
    steps: int
    parameters: int
    macs: int
    step_seconds: float
    train_seconds: float
    memory_bytes: int | None
    checkpoint_bytes: int
    weights_bytes: int
    images: Path


@dataclass(frozen=True)
class DryRun:
    """A task that tries the jobs at a place like theirs.

    Attributes:
        jobs: One per benchmark is enough: seeds need the same.
        folder: Where to write the images.
    """

    jobs: tuple[Job, ...]
    folder: Path
    label: str = "the dry run"

    def events(self, context: Context) -> Generator[Tried, None, None]:
        """Try one job after the other.

        Raises:
            OutOfMemory: The batch size does not fit; the error names one that does.
            UserError: The device does not exist here, or the images are missing or damaged.
        """
        for job in self.jobs:
            yield _tried(job, context, self.folder)


def _tried(job: Job, context: Context, folder: Path) -> Tried:
    execution = resolve(job.recipe, job.options or context.options)
    dataset = context.open_images(job.recipe.data.facts)
    images = folder / f"dry-run-{job.benchmark.name}.png"
    write_image_grid(images, augmented_examples(job.recipe, dataset, job.seed, count=EXAMPLE_IMAGES))
    recipe = override(job.recipe, {"evaluation.before_training": False})
    done = 0
    with contextlib.closing(train(recipe, execution, job.seed, dataset)) as events:
        for event in events:
            match event:
                case Started():
                    started = event
                case Steps():
                    done += len(event.losses)
                    step_seconds = event.seconds / len(event.losses)
            if done >= STEPS or isinstance(event, EpochEnded):
                state = event.snapshot()
                checkpoint_bytes, weights_bytes = _tensor_bytes(state), _tensor_bytes(state["network"])
                break
    memory = None
    # A system that does not tell.
    with contextlib.suppress(OSError):
        memory = peak_memory(torch.device(execution.device))
    steps = started.steps_per_epoch * started.epochs
    # Where images grow during training, the first steps have fewer pixels than most.
    pixels = (recipe.image_sizes[0] / recipe.image_size) ** 2
    return Tried(
        job=job,
        steps=steps,
        parameters=started.parameters,
        macs=started.macs,
        step_seconds=step_seconds,
        train_seconds=step_seconds * steps * recipe.relative_pixels / pixels,
        memory_bytes=memory,
        checkpoint_bytes=checkpoint_bytes,
        weights_bytes=weights_bytes,
        images=images,
    )


def _tensor_bytes(state: State) -> int:
    return sum(tensor.nbytes for tensor in _tensors(state))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for below in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(below)
