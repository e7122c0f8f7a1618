"""A benchmark small enough to read, and the events that its training would give."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from resnet_bench.training.events import EpochEnded, Evaluated, Event, Finished, Predictions, Started, Steps

BENCHMARK: dict[str, Any] = {
    "name": "small",
    "source": {"title": "A small source", "kind": "ours", "url": "https://example.org/small"},
    "claims": ({"at_least": 60.0, "quote": "over 60%"}, {"value": "65.2"}, {"split": "train", "at_least": 25.0}),
    "recipe": {
        "data": {
            "dataset": "cifar10",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.25, 0.25, 0.25),
            "train_images": 100,
            "test_images": 50,
        },
        "model": {"name": "resnet20"},
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
        "schedule": {"name": "constant"},
        "training": {"epochs": 4, "batch_size": 10},
        "evaluation": {"batch_size": 50},
    },
}
STEPS_PER_EPOCH = 10
ACCURACIES = (0.5, 0.6, 0.64, 0.66)
"""Test accuracy at the end of each epoch; the mean of the last three first reaches 0.6 at epoch 4."""


def no_state() -> dict[str, Any]:
    return {}


def loss(step: int) -> float:
    return 2.5 / step


def learning_rate(step: int) -> float:
    return 0.1 / (1 + step)


def steps(first: int, last: int) -> Steps:
    return Steps(
        epoch=(first - 1) // STEPS_PER_EPOCH + 1,
        first_step=first,
        losses=[loss(step) for step in range(first, last + 1)],
        learning_rates=[learning_rate(step) for step in range(first, last + 1)],
        images=10 * (last - first + 1),
        correct=1,
        seconds=0.5,
        snapshot=no_state,
    )


def evaluated(epoch: int) -> Evaluated:
    accuracy = ACCURACIES[epoch - 1]
    return Evaluated(
        epoch,
        epoch * STEPS_PER_EPOCH,
        "test",
        accuracy,
        1 / epoch,
        accuracy - 0.01,
        0.9 / epoch,
        50,
        0.25,
        snapshot=no_state,
    )


def epoch_ended(epoch: int) -> EpochEnded:
    return EpochEnded(
        epoch=epoch,
        step=epoch * STEPS_PER_EPOCH,
        loss=1.1 / epoch,
        loss_mean=1 / epoch,
        accuracy=0.1 * epoch,
        seconds=2.0,
        train_seconds=2.0 * epoch,
        images_per_second=50.0,
        peak_memory_bytes=1000,
        snapshot=no_state,
    )


def started(step: int = 0) -> Started:
    return Started(
        parameters=272474,
        macs=40_551_808,
        steps_per_epoch=STEPS_PER_EPOCH,
        epochs=4,
        train_images=100,
        step=step,
        setup_seconds=0.5,
        captures=3,
        snapshot=no_state,
    )


def finished() -> Finished:
    labels = np.arange(50, dtype=np.int64) % 10
    probabilities = np.full((50, 10), 0.1, dtype=np.float32)
    return Finished(
        epoch=4,
        step=4 * STEPS_PER_EPOCH,
        train_seconds=8.0,
        evaluation_seconds=1.0,
        metrics={"test/accuracy": 0.66, "test/accuracy_standard": 0.65},
        predictions=Predictions("test", labels, probabilities),
        snapshot=no_state,
    )


def training(first_epoch: int = 1, last_epoch: int = 4, chunk: int = 4) -> Iterator[Event]:
    """The events of some epochs, steps in chunks, without beginning and end."""
    for epoch in range(first_epoch, last_epoch + 1):
        begin, end = (epoch - 1) * STEPS_PER_EPOCH + 1, epoch * STEPS_PER_EPOCH
        for first in range(begin, end + 1, chunk):
            yield steps(first, min(first + chunk - 1, end))
        yield evaluated(epoch)
        yield epoch_ended(epoch)
