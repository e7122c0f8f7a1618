"""The events of a training run.

Losses are in nats, accuracies are fractions between 0 and 1, times are in seconds. Epochs count from 1, an evaluation
before training has epoch 0. Steps count from 1 over the whole run.

Every event has a ``snapshot``: called before the generator is advanced, it gives the state from which a run resumes
after this event.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from resnet_bench.recipe.settings import SplitName

State = dict[str, Any]
"""Everything needed to resume a run: tensors and plain values, as ``torch.load(weights_only=True)`` reads."""


@dataclass(frozen=True)
class Started:
    """The first event, also of a resumed run."""

    parameters: int
    macs: int
    """Multiply-accumulate operations of the convolutions and linear layers per image."""
    steps_per_epoch: int
    epochs: int
    train_images: int
    step: int = 0
    """Steps done before the run was resumed."""
    setup_seconds: float = 0.0
    """Time to build the network, move the images to the device and capture CUDA graphs."""
    capture_seconds: float = 0.0
    """Part of these for capturing CUDA graphs, in which a GPU's libraries initialize and choose kernels."""
    captures: int = 0
    """Number of CUDA graphs captured; 0 where steps are eager."""
    snapshot: Callable[[], State] = field(repr=False, compare=False, kw_only=True)


@dataclass(frozen=True)
class Steps:
    """Consecutive optimizer steps, whose measurements were read in one host sync."""

    epoch: int
    first_step: int
    losses: list[float]
    learning_rates: list[float]
    images: int
    """Images trained on in these steps."""
    correct: int
    """Number of these that the network classified correctly while training."""
    seconds: float
    snapshot: Callable[[], State] = field(repr=False, compare=False)

    @property
    def last_step(self) -> int:
        """The step of the last loss."""
        return self.first_step + len(self.losses) - 1


@dataclass(frozen=True)
class Evaluated:
    """One split was evaluated.

    ``accuracy`` and ``loss`` follow the source's protocol. ``accuracy_standard`` and ``loss_standard`` are averages
    over all images, with the network in eval mode and without test-time augmentation (TTA).
    """

    epoch: int
    step: int
    split: SplitName
    accuracy: float
    loss: float
    accuracy_standard: float
    loss_standard: float
    images: int
    seconds: float
    accuracy_tta: float | None = None
    """TTA accuracy after the last epoch, where the recipe asks for it."""
    snapshot: Callable[[], State] = field(repr=False, compare=False, kw_only=True)


@dataclass(frozen=True)
class EpochEnded:
    """An epoch was trained and evaluated."""

    epoch: int
    step: int
    loss: float
    """Training loss as the source reports it: the mean over images, the mean of the batches' means, or the last
    batch's; ``training.reported_loss`` says which."""
    loss_mean: float
    """Mean training loss over the epoch's images."""
    accuracy: float
    """Training accuracy as the source reports it: counted during training, or in a separate pass."""
    seconds: float
    """Training time alone, without evaluation, set-up and compilation."""
    train_seconds: float
    """Training time of the run so far."""
    images_per_second: float
    peak_memory_bytes: int | None
    """Peak of the GPU's allocator, or of the process on a CPU, since the run began; None where the system does not
    tell."""
    snapshot: Callable[[], State] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Predictions:
    """Outputs of the trained network for one split, in eval mode, in the dataset's canonical order."""

    split: SplitName
    labels: npt.NDArray[np.int64]
    """Shape [N]."""
    probabilities: npt.NDArray[np.float32]
    """Shape [N, classes]."""
    predicted_tta: npt.NDArray[np.int64] | None = None
    """Classes predicted with TTA, shape [N], where the recipe asks for it."""


@dataclass(frozen=True)
class Finished:
    """The last event of a run trained to its end; its ``snapshot`` stays valid."""

    epoch: int
    step: int
    train_seconds: float
    evaluation_seconds: float
    metrics: Mapping[str, float]
    """Final metrics: ``test/accuracy``, ``test/accuracy_standard`` and, with TTA, ``test/accuracy_tta``."""
    predictions: Predictions | None
    snapshot: Callable[[], State] = field(repr=False, compare=False)
    tta_seconds: float = 0.0
    """TTA time of all splits."""


Event = Started | Steps | Evaluated | EpochEnded | Finished

EndReason = Literal["finished", "failed", "killed", "pruned"]
