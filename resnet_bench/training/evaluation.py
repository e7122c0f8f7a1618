"""Evaluation: by the source's protocol, by the standard one (eval mode, per image), and with TTA."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_bench.data.loader import ResidentLoader
from resnet_bench.data.of_recipe import evaluation_loader
from resnet_bench.execution.execution import Execution
from resnet_bench.recipe.settings import SplitName, TestTimeAugmentation
from resnet_bench.training.events import Evaluated, Predictions
from resnet_bench.training.memory import ran_out_of_memory, shortage_in
from resnet_bench.training.session import Clock, Session

STANDARD_BATCH_SIZE = 500
"""Images per batch where the batch size does not change the result and steps are eager."""

PIXELS_PER_GRAPHED_BATCH = 2000 * 32**2
"""Pixels per such batch where steps are CUDA graphs: 2000 images of 32 pixels fill the largest GPUs and fit small
ones."""

Batches = Iterable[tuple[Tensor, Tensor]]
"""Normalized images [B, 3, H, W] and their labels, int64 [B]."""

Result = TypeVar("Result")


class Evaluator:
    """Evaluates the network of a session.

    Args:
        session: Its position counts the evaluations and their time; nothing of its network is changed.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        evaluation = session.recipe.evaluation
        splits: list[SplitName] = list(evaluation.splits)
        if evaluation.test_at_end and "test" not in splits:
            splits.append("test")
        self._source_loaders = {split: self._source_loader(split) for split in splits}
        self._standard_loaders: dict[tuple[SplitName, int], ResidentLoader] = {}
        self._batch_size = STANDARD_BATCH_SIZE
        if session.execution.cuda_graphs:
            self._batch_size = max(self._batch_size, PIXELS_PER_GRAPHED_BATCH // session.recipe.image_size**2)

    def evaluate_all(self, epoch: int) -> Iterator[Evaluated]:
        """Evaluate the recipe's splits that have not been evaluated since the last step, one by one."""
        for split in self._session.recipe.evaluation.splits:
            if split not in self._session.position.evaluated:
                yield self.evaluate(split, epoch)

    @shortage_in("evaluation")
    def evaluate(self, split: SplitName, epoch: int) -> Evaluated:
        """Evaluate a split; after the last epoch with TTA, where the recipe asks for it.

        Args:
            split: The split.
            epoch: Epochs trained; decides the order where the source shuffles.

        Raises:
            Diverged: A loss or an accuracy is not finite.
            MemoryShortage: The recipe's batches do not fit, or not even one image does.
        """
        session, recipe, position = self._session, self._session.recipe, self._session.position
        is_last = epoch == recipe.training.epochs
        is_final_test = is_last and split == "test"
        clock = Clock(session.execution)
        source, standard = self._measure_both(split, epoch, keep_probabilities=is_final_test)
        seconds = clock.read()
        accuracy, loss = source.averaged(recipe.evaluation.averaging)
        session.check_finite(
            split,
            loss=loss,
            accuracy=accuracy,
            standard_loss=standard.loss_over_images,
            standard_accuracy=standard.accuracy_over_images,
        )
        tta = None
        if (views := recipe.evaluation.test_time_augmentation) is not None and is_last:
            clock = Clock(session.execution)
            tta = self._in_fitting_batches(
                split, lambda loader: evaluate_tta(session.forward, loader.epoch(0), session.execution, views)
            )
            position.tta_seconds += clock.read()
        position.evaluation_seconds += seconds
        position.evaluated[split] = loss
        if is_final_test:
            position.metrics = {"test/accuracy": accuracy, "test/accuracy_standard": standard.accuracy_over_images}
            if tta is not None:
                position.metrics["test/accuracy_tta"] = tta.accuracy
            if standard.labels is not None and standard.probabilities is not None:
                session.predictions = Predictions(
                    "test", standard.labels, standard.probabilities, None if tta is None else tta.predicted
                )
        return Evaluated(
            epoch=epoch,
            step=position.step,
            split=split,
            accuracy=accuracy,
            loss=loss,
            accuracy_standard=standard.accuracy_over_images,
            loss_standard=standard.loss_over_images,
            images=standard.images,
            seconds=seconds,
            accuracy_tta=None if tta is None else tta.accuracy,
            snapshot=session.event_snapshot,
        )

    def train_accuracy(self) -> float:
        """Training accuracy of the current epoch as the source reports it, a fraction.

        Raises:
            Diverged: The pass over the training images has a loss that is not finite.
        """
        session, recipe, position = self._session, self._session.recipe, self._session.position
        if recipe.training.train_accuracy == "running":
            return position.correct / position.images
        session.seed_dropout("dropout/evaluation/train", position.epoch)
        clock = Clock(session.execution)
        batches = session.train_loader.second_pass(position.epoch)
        measured = measure(session.forward, batches, session.execution, mode=recipe.evaluation.mode)
        position.evaluation_seconds += clock.read()
        accuracy, loss = measured.averaged(recipe.evaluation.averaging)
        session.check_finite("train", loss=loss, accuracy=accuracy)
        return accuracy

    def try_out(self) -> None:
        """Use as much memory as evaluation by the source's protocol does."""
        session = self._session
        session.network.train(session.recipe.evaluation.mode == "batch_statistics")
        for loader in self._source_loaders.values():
            images, _ = next(loader.epoch(0))
            with torch.no_grad(), session.execution.autocast():
                session.forward(images)

    def _measure_both(self, split: SplitName, epoch: int, *, keep_probabilities: bool) -> "tuple[Measured, Measured]":
        """Measure by the source's protocol and by the standard one, in one pass where that serves both."""
        evaluation, execution, forward = self._session.recipe.evaluation, self._session.execution, self._session.forward

        def measure_standard(loader: ResidentLoader, batches_of: int | None = None) -> Measured:
            return measure(
                forward,
                loader.epoch(0),
                execution,
                mode="eval",
                keep_probabilities=keep_probabilities,
                batches_of=batches_of,
            )

        if evaluation.mode == "batch_statistics":
            self._session.seed_dropout(f"dropout/evaluation/{split}", epoch)
            source = measure(forward, self._source_loaders[split].epoch(epoch), execution, mode=evaluation.mode)
            return source, self._in_fitting_batches(split, measure_standard)
        if execution.cuda_graphs:
            # In eval mode the outputs for an image do not depend on its batch, so batches can be large.
            both = self._in_fitting_batches(
                split, lambda loader: measure_standard(loader, batches_of=evaluation.batch_size)
            )
        elif evaluation.shuffle:
            both = measure_standard(self._standard_loader(split, evaluation.batch_size))
        else:
            both = measure_standard(self._source_loaders[split])
        return both, both

    def _in_fitting_batches(self, split: SplitName, measurement: Callable[[ResidentLoader], Result]) -> Result:
        """Do a measurement that is independent of the batch size; halve the batches while memory runs out."""
        while True:
            try:
                return measurement(self._standard_loader(split, self._batch_size))
            except Exception as error:
                if self._batch_size == 1 or not ran_out_of_memory(error):
                    raise
            self._batch_size //= 2

    def _source_loader(self, split: SplitName) -> ResidentLoader:
        """A split in the batches and the order of the source's protocol."""
        session, evaluation = self._session, self._session.recipe.evaluation
        return evaluation_loader(
            session.recipe,
            session.batched_splits[split],
            session.execution,
            batch_size=evaluation.batch_size,
            shuffled_by=(session.seed, f"evaluation/{split}") if evaluation.shuffle else None,
        )

    def _standard_loader(self, split: SplitName, batch_size: int) -> ResidentLoader:
        """A split in the dataset's order."""
        session = self._session
        if (split, batch_size) not in self._standard_loaders:
            self._standard_loaders[split, batch_size] = evaluation_loader(
                session.recipe, session.splits[split], session.execution, batch_size=batch_size
            )
        return self._standard_loaders[split, batch_size]


@dataclass(frozen=True)
class Measured:
    """Accuracy (a fraction) and loss (nats) of a pass, averaged over images and over batches."""

    accuracy_over_images: float
    accuracy_over_batches: float
    loss_over_images: float
    loss_over_batches: float
    images: int
    probabilities: npt.NDArray[np.float32] | None = None
    """Shape [N, classes] in the order of the batches, if asked for."""
    labels: npt.NDArray[np.int64] | None = None

    def averaged(self, averaging: str) -> tuple[float, float]:
        """Accuracy and loss by a recipe's ``evaluation.averaging``."""
        if averaging == "batches":
            return self.accuracy_over_batches, self.loss_over_batches
        return self.accuracy_over_images, self.loss_over_images


@torch.no_grad()
def measure(
    network: nn.Module,
    batches: Batches,
    execution: Execution,
    *,
    mode: str,
    keep_probabilities: bool = False,
    batches_of: int | None = None,
) -> Measured:
    """Measure a network's accuracy and loss in one pass; nothing of the network is changed.

    Args:
        network: On the execution's device; its outputs are logits [B, classes].
        batches: The images and labels.
        execution: Precision of the forward pass. Losses are computed in fp32.
        mode: ``eval`` or ``batch_statistics`` (see :class:`~resnet_bench.recipe.settings.Evaluation`).
        keep_probabilities: Also return softmax outputs and labels.
        batches_of: Average over batches of this many images instead of the batches given.
    """
    reduction = "mean" if batches_of is None else "none"
    losses, correct, sizes, probabilities, labels_seen = [], [], [], [], []
    with _prepared(network, mode):
        for images, labels in batches:
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

    # Everything stays on the device until here: one host sync.
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


@dataclass(frozen=True)
class MeasuredTTA:
    """Accuracy (a fraction) of outputs averaged over several views, and the classes that they predict."""

    accuracy: float
    predicted: npt.NDArray[np.int64]
    """Shape [N], in the order of the batches."""


@torch.no_grad()
def evaluate_tta(
    network: nn.Module, batches: Batches, execution: Execution, augmentation: TestTimeAugmentation
) -> MeasuredTTA:
    """Measure a network by outputs averaged over several views of each image.

    Args:
        network: On the execution's device; in eval mode meanwhile.
        batches: The images and labels.
        execution: Precision of the forward pass.
        augmentation: The views.
    """
    correct, predicted = [], []
    with _prepared(network, "eval"):
        for images, labels in batches:
            outputs = torch.zeros((), device=images.device)
            for view, weight in tta_views(images, augmentation):
                with execution.autocast():
                    logits = network(view.contiguous(memory_format=execution.memory_format))
                outputs = outputs + weight * logits.float()
            predicted.append(outputs.argmax(1))
            correct.append((predicted[-1] == labels).sum())
    classes = torch.cat(predicted).cpu().numpy()
    return MeasuredTTA(int(torch.stack(correct).sum().cpu()) / len(classes), classes)


def tta_views(images: Tensor, augmentation: TestTimeAugmentation) -> Iterator[tuple[Tensor, float]]:
    """Give the views of a batch [B, 3, H, W], each with its weight; the weights add up to 1."""
    shifted = [(images, 1.0)]
    if shift := augmentation.shift:
        padded = F.pad(images, (shift,) * 4, mode="reflect")
        up_left = padded[..., 2 * shift :, 2 * shift :]
        down_right = padded[..., : -2 * shift, : -2 * shift]
        shifted = [(images, 0.5), (up_left, 0.25), (down_right, 0.25)]
    for view, weight in shifted:
        if augmentation.mirror:
            yield view, weight / 2
            yield view.flip(-1), weight / 2
        else:
            yield view, weight


@contextlib.contextmanager
def _prepared(network: nn.Module, mode: str) -> Iterator[None]:
    """Set the network's mode; restore it, and the running statistics, afterwards."""
    was_training = network.training
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()] if mode == "batch_statistics" else []
    network.train(mode == "batch_statistics")
    try:
        yield
    finally:
        network.train(was_training)
        for buffer, before in buffers:
            buffer.copy_(before)
