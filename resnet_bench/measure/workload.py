"""The parts of one optimizer step of a recipe, on images that are on the device."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from resnet_bench.execution.execution import Execution
from resnet_bench.measure.peaks import Clock, seconds_of
from resnet_bench.models.of_recipe import build_network
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.training.cuda_graphs import recorder_for
from resnet_bench.training.optimizers import build_optimizer, clip_gradients, rates_from


@dataclass(frozen=True)
class StepSeconds:
    """Seconds of the parts of a step; each part ends when the device is done."""

    forward: float
    backward: float
    optimizer: float

    @property
    def total(self) -> float:
        """The whole step."""
        return self.forward + self.backward + self.optimizer


class Workload:
    """A model that is trained on one batch of noise repeatedly, within ``execution.applied()``.

    Args:
        recipe: Model, batch size, loss, clipping and optimizer.
        execution: How it is computed.
        batch_size: Images per batch; the recipe's by default.
        fused: Use torch's fused optimizers.
        clock: What times are read from.
    """

    def __init__(
        self,
        recipe: Recipe,
        execution: Execution,
        *,
        batch_size: int | None = None,
        fused: bool = True,
        clock: Clock = time.perf_counter,
    ) -> None:
        self._recipe, self._execution, self._clock = recipe, execution, clock
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = build_network(recipe)
            count = batch_size or recipe.training.batch_size
            images = torch.randn(count, 3, recipe.image_size, recipe.image_size)
            self._labels = torch.randint(recipe.num_outputs, (count,)).to(execution.device)
        self.network = execution.placed(network)
        self._images = images.to(execution.device).to(memory_format=execution.memory_format)
        self._optimizer = build_optimizer(recipe.optimizer, self.network, fused=fused)
        self._rates = [torch.tensor(group["lr"], device=execution.device) for group in self._optimizer.param_groups]
        self._forward = torch.compile(self.network) if execution.compile else self.network
        self._parts: tuple[Callable[[], None], ...] = (self._run_forward, self._run_backward, self._run_optimizer)
        self._evaluation: Callable[[], None] = self._run_evaluation

    def capture(self) -> None:
        """Capture each part of a step, and an evaluation, if the execution captures steps.

        Parts that cannot be captured still run eagerly.
        """
        if not self._execution.cuda_graphs:
            return
        recorder = recorder_for(torch.device(self._execution.device))
        self.network.train()
        with contextlib.suppress(RuntimeError):
            # Each part uses the results of the one before, so that only whole steps can be repeated to warm up.
            recorder.record(self._run_step)
            forward, backward, update = (recorder.record(part, warm_ups=0) for part in self._parts)
            self.network.eval()
            self._evaluation = recorder.record(self._run_evaluation)
            self._parts = (forward, backward, update)

    def step(self) -> StepSeconds:
        """Run one step and time its parts."""
        self.network.train()
        forward, backward, update = (seconds_of(part, self._execution, self._clock) for part in self._parts)
        return StepSeconds(forward, backward, update)

    def evaluate(self) -> float:
        """Time the batch in eval mode, in seconds."""
        self.network.eval()
        return seconds_of(self._evaluation, self._execution, self._clock)

    def _run_step(self) -> None:
        for part in (self._run_forward, self._run_backward, self._run_optimizer):
            part()

    def _run_evaluation(self) -> None:
        with torch.no_grad():
            self._run_forward()

    def _run_forward(self) -> None:
        with self._execution.autocast():
            outputs = self._forward(self._images)
        smoothing = self._recipe.training.label_smoothing
        self._loss = F.cross_entropy(outputs.float(), self._labels, label_smoothing=smoothing)

    def _run_backward(self) -> None:
        torch.autograd.backward(self._loss)

    def _run_optimizer(self) -> None:
        clip_gradients(self._recipe.training, self.network)
        with rates_from(self._optimizer, self._rates) if self._execution.cuda_graphs else contextlib.nullcontext():
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
