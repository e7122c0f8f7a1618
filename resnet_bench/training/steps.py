"""Optimizer steps: the seam between the loop and how a step is computed, and steps computed by eager PyTorch."""

import itertools
from collections.abc import Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_bench.training.memory import shortage_in
from resnet_bench.training.optimizers import clip_gradients
from resnet_bench.training.session import Chunk, Clock, Position, Session

SYNC_EVERY_STEPS = 50
"""Steps between two host syncs on a GPU. On a CPU a sync costs nothing and follows every step."""


class Step(Protocol):
    """Computes the optimizer steps of a session."""

    def epoch(self, position: Position) -> Iterator[Chunk]:
        """Train what is left of the current epoch.

        Args:
            position: The session's; it is behind a chunk's steps when the chunk is yielded.

        Yields:
            A chunk per host sync.

        Raises:
            MemoryShortage: The batch does not fit.
        """


class EagerStep:
    """Steps that PyTorch computes operation by operation."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def epoch(self, position: Position) -> Iterator[Chunk]:
        """Train what is left of the current epoch (see :class:`Step`)."""
        loader = self._session.train_loader
        batches = loader.epoch(position.epoch, start_batch=position.step_in_epoch)
        at_once = 1 if self._session.execution.device_type == "cpu" else SYNC_EVERY_STEPS
        while position.step_in_epoch < len(loader):
            with shortage_in("training"):
                chunk = self._chunk(itertools.islice(batches, at_once), position)
            yield chunk

    def _chunk(self, batches: Iterator[tuple[Tensor, Tensor]], position: Position) -> Chunk:
        clock = Clock(self._session.execution)
        losses, correct, learning_rates, sizes = [], [], [], []
        for images, labels in batches:
            learning_rates.append(float(self._session.optimizer.param_groups[0]["lr"]))
            loss, correct_in_batch = self.step(images, labels, position.step)
            losses.append(loss)
            correct.append(correct_in_batch)
            sizes.append(len(labels))
            position.step += 1
            position.step_in_epoch += 1
        return Chunk(
            losses=torch.stack(losses).cpu().tolist(),
            learning_rates=learning_rates,
            sizes=sizes,
            correct=int(torch.stack(correct).sum().cpu()),
            seconds=clock.read(),
        )

    def step(self, images: Tensor, labels: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Do one optimizer step.

        Args:
            images: Normalized images [B, 3, H, W].
            labels: Their labels, int64 [B].
            number: Optimizer steps done before.

        Returns:
            The batch's loss in nats [] and the number of images classified correctly [], on the device.
        """
        session = self._session
        session.before_step(number)
        loss, correct = self.gradients(images, labels)
        session.optimizer.step()
        session.optimizer.zero_grad(set_to_none=True)
        session.schedule.after_step()
        return loss, correct

    def gradients(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute a batch's gradients and clip them; see :meth:`step` for arguments and results."""
        session, training = self._session, self._session.recipe.training
        with session.execution.autocast():
            outputs = session.forward(images)
        outputs = outputs.float()
        loss = F.cross_entropy(outputs, labels, label_smoothing=training.label_smoothing)
        torch.autograd.backward(loss)
        clip_gradients(training, session.network)
        return loss.detach(), (outputs.detach().argmax(1) == labels).sum()

    def try_out(self) -> None:
        """Use as much memory as training does: only the second step runs beside the optimizer's state."""
        session = self._session
        session.network.train()
        batches = itertools.chain(session.train_loader.epoch(1), session.train_loader.epoch(2))
        for images, labels in itertools.islice(batches, 2):
            self.step(images, labels, session.position.step)
