"""Measures a network on one split: the source's way, and the plain way beside it."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_bench.data.loader import ResidentLoader
from resnet_bench.execution.execution import Execution
from resnet_bench.recipe.settings import TestTimeAugmentation


@dataclass(frozen=True)
class Measured:
    """A split's accuracy (a fraction) and loss (nats), averaged over images and over batches."""

    accuracy_over_images: float
    accuracy_over_batches: float
    loss_over_images: float
    loss_over_batches: float
    images: int
    probabilities: npt.NDArray[np.float32] | None = None
    """Shape [N, classes] in the loader's order, where they were asked for."""
    labels: npt.NDArray[np.int64] | None = None

    def averaged(self, averaging: str) -> tuple[float, float]:
        """Accuracy and loss by a recipe's ``evaluation.averaging``."""
        if averaging == "batches":
            return self.accuracy_over_batches, self.loss_over_batches
        return self.accuracy_over_images, self.loss_over_images


@torch.no_grad()
def measure(
    network: nn.Module,
    loader: ResidentLoader,
    execution: Execution,
    *,
    mode: str,
    epoch: int = 0,
    keep_probabilities: bool = False,
    batches_of: int | None = None,
) -> Measured:
    """Run a split through the network once; nothing of the network is changed.

    Args:
        network: On the execution's device; its outputs are logits [B, classes].
        loader: Gives images [B, 3, H, W] and labels [B].
        execution: Precision of the forward pass. Losses are computed in fp32.
        mode: ``eval`` or ``batch_statistics`` (see :class:`~resnet_bench.benchmark.Evaluation`).
        epoch: Which epoch of the loader's random stream to take, where it shuffles.
        keep_probabilities: Also return softmax outputs and labels.
        batches_of: Average over batches of this many images, whatever the size of the loader's; those by default.
    """
    reduction = "mean" if batches_of is None else "none"
    losses, correct, sizes, probabilities, labels_seen = [], [], [], [], []
    with _prepared(network, mode):
        for images, labels in loader.epoch(epoch):
            with execution.autocast():
                outputs = network(images)
            outputs = outputs.float()
            losses.append(F.cross_entropy(outputs, labels, reduction=reduction))
            are_correct = outputs.argmax(1) == labels
            correct.append(are_correct.sum() if batches_of is None else are_correct)
            sizes.append(len(labels))
            if keep_probabilities:
                probabilities.append(outputs.softmax(1))
                labels_seen.append(labels)

    # Everything stays on the device until here, so that the host waits once.
    if batches_of is None:
        batch_losses = torch.stack(losses).cpu().double().numpy()
        batch_correct = torch.stack(correct).cpu().double().numpy()
        batch_sizes = np.array(sizes, dtype=np.float64)
    else:
        starts = np.arange(0, sum(sizes), batches_of)
        batch_sizes = np.diff(np.append(starts, sum(sizes))).astype(np.float64)
        batch_losses = np.add.reduceat(torch.cat(losses).cpu().double().numpy(), starts) / batch_sizes
        batch_correct = np.add.reduceat(torch.cat(correct).cpu().double().numpy(), starts)
    images_seen = int(batch_sizes.sum())
    return Measured(
        accuracy_over_images=float(batch_correct.sum() / images_seen),
        accuracy_over_batches=float((batch_correct / batch_sizes).mean()),
        loss_over_images=float((batch_losses * batch_sizes).sum() / images_seen),
        loss_over_batches=float(batch_losses.mean()),
        images=images_seen,
        probabilities=torch.cat(probabilities).cpu().numpy() if keep_probabilities else None,
        labels=torch.cat(labels_seen).cpu().numpy() if keep_probabilities else None,
    )


@torch.no_grad()
def measure_augmented(
    network: nn.Module, loader: ResidentLoader, execution: Execution, augmentation: TestTimeAugmentation
) -> float:
    """The fraction of a split that is classified correctly when the outputs of several views are averaged.

    Args:
        network: On the execution's device; it is put into eval mode meanwhile.
        loader: Gives images [B, 3, H, W] and labels [B].
        execution: Precision of the forward pass.
        augmentation: The views.
    """
    correct = []
    with _prepared(network, "eval"):
        for images, labels in loader.epoch(0):
            outputs = torch.zeros((), device=images.device)
            for view, weight in _views(images, augmentation):
                with execution.autocast():
                    logits = network(view.contiguous(memory_format=execution.memory_format))
                outputs = outputs + weight * logits.float()
            correct.append((outputs.argmax(1) == labels).sum())
    return int(torch.stack(correct).sum().cpu()) / loader.num_images


def _views(images: Tensor, augmentation: TestTimeAugmentation) -> Iterator[tuple[Tensor, float]]:
    """The views of a batch and what each weighs; the weights add up to 1."""
    moved = [(images, 1.0)]
    if shift := augmentation.shift:
        padded = F.pad(images, (shift,) * 4, mode="reflect")
        up_left = padded[..., 2 * shift :, 2 * shift :]
        down_right = padded[..., : -2 * shift, : -2 * shift]
        moved = [(images, 0.5), (up_left, 0.25), (down_right, 0.25)]
    for view, weight in moved:
        if augmentation.mirror:
            yield view, weight / 2
            yield view.flip(-1), weight / 2
        else:
            yield view, weight


@contextlib.contextmanager
def _prepared(network: nn.Module, mode: str) -> Iterator[None]:
    """Put the network into the mode, and afterwards back as it was, running statistics included."""
    was_training = network.training
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()] if mode == "batch_statistics" else []
    network.train(mode == "batch_statistics")
    try:
        yield
    finally:
        network.train(was_training)
        for buffer, before in buffers:
            buffer.copy_(before)
