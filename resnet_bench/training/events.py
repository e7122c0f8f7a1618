"""What a training run tells whoever iterates over it.

Losses are in nats, accuracies are fractions between 0 and 1, times are in seconds, epochs are counted from 1
(an evaluation at epoch 0 happens before training) and steps from 1 over the whole run.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from resnet_bench.recipe.settings import SplitName

State = dict[str, Any]
"""Everything that a run needs to go on: tensors and plain values, as ``torch.load(weights_only=True)`` reads."""


@dataclass(frozen=True)
class Started:
    """Sent once, before the first step (also when a run is resumed)."""

    parameters: int
    macs: int
    """Multiply-accumulates of the convolutions and linear layers for one image."""
    steps_per_epoch: int
    epochs: int
    train_images: int
    step: int = 0
    """Steps already done when the run is resumed."""
    setup_seconds: float = 0.0
    """Building the network and moving the images to the device."""
    capture_seconds: float = 0.0
    """Of these, for capturing steps; a GPU's libraries set themselves up and choose kernels meanwhile."""
    captures: int = 0
    """Kinds of steps that were captured; 0 where each step is run anew."""


@dataclass(frozen=True)
class Steps:
    """Some optimizer steps in a row; what they measured was read from the device together."""

    epoch: int
    first_step: int
    losses: list[float]
    learning_rates: list[float]
    images: int
    """Images trained on in these steps."""
    correct: int
    """Of these, how many the network classified correctly while training."""
    seconds: float
    snapshot: Callable[[], State] = field(repr=False, compare=False)

    @property
    def last_step(self) -> int:
        """The step that the last of the losses belongs to."""
        return self.first_step + len(self.losses) - 1


@dataclass(frozen=True)
class Evaluated:
    """One split was evaluated.

    ``accuracy`` and ``loss`` are measured the source's way; ``accuracy_plain`` and ``loss_plain`` with the
    network in eval mode, as a fraction and mean over all images.
    """

    epoch: int
    step: int
    split: SplitName
    accuracy: float
    loss: float
    accuracy_plain: float
    loss_plain: float
    images: int
    seconds: float
    accuracy_augmented: float | None = None
    """With test-time augmentation, where the recipe has it, after the last epoch."""


@dataclass(frozen=True)
class EpochEnded:
    """An epoch was trained and evaluated."""

    epoch: int
    step: int
    loss: float
    """Training loss as the source reports it."""
    loss_mean: float
    """Mean training loss over the epoch's images."""
    accuracy: float
    """Training accuracy as the source reports it: a running count, or that of a separate pass."""
    seconds: float
    """Training alone: evaluation, set-up and compilation are not in it."""
    train_seconds: float
    """Training time of the run so far."""
    images_per_second: float
    peak_memory_bytes: int
    """Peak of the device's allocator, or of the process on a CPU."""
    snapshot: Callable[[], State] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Predictions:
    """What the trained network says of one split, in eval mode, in the dataset's canonical order."""

    split: SplitName
    labels: npt.NDArray[np.int64]
    """Shape [N]."""
    probabilities: npt.NDArray[np.float32]
    """Shape [N, classes]."""


@dataclass(frozen=True)
class Finished:
    """The last event of a run that was trained to its end."""

    epoch: int
    step: int
    train_seconds: float
    evaluation_seconds: float
    metrics: Mapping[str, float]
    """Final numbers, such as ``test/accuracy`` and ``test/accuracy_plain``."""
    predictions: Predictions | None
    snapshot: Callable[[], State] = field(repr=False, compare=False)
    augmented_seconds: float = 0.0
    """Evaluation with test-time augmentation, over all splits that it was done for."""


Event = Started | Steps | Evaluated | EpochEnded | Finished

EndReason = Literal["finished", "failed", "killed", "pruned"]
