"""One optimizer step of a recipe, taken apart, on images that are on the device already."""

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from resnet_bench import models
from resnet_bench.benchmark import Recipe
from resnet_bench.execution import Execution
from resnet_bench.hardware import Clock, seconds_of
from resnet_bench.training.optimizers import build_optimizer, clip_gradients


@dataclass(frozen=True)
class StepSeconds:
    """Where the time of a step goes; each part ends when the device is done."""

    forward: float
    backward: float
    optimizer: float

    @property
    def total(self) -> float:
        """The whole step."""
        return self.forward + self.backward + self.optimizer


class Workload:
    """A network that can be trained on one batch of noise over and over, within ``execution.applied()``.

    Args:
        recipe: Network, batch size, loss, clipping and optimizer.
        execution: How it is computed.
        batch_size: Images a batch; the recipe's by default.
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
            network = models.build_network(recipe)
            count = batch_size or recipe.training.batch_size
            images = torch.randn(count, 3, recipe.image_size, recipe.image_size)
            self._labels = torch.randint(recipe.num_outputs, (count,)).to(execution.device)
        self.network = network.to(execution.device).to(memory_format=execution.weight_memory_format)
        self._images = images.to(execution.device).to(memory_format=execution.memory_format)
        self._optimizer = build_optimizer(recipe.optimizer, self.network, fused=fused)
        self._forward = torch.compile(self.network) if execution.compile else self.network

    def step(self) -> StepSeconds:
        """Do one step and say where its time went."""
        self.network.train()
        return StepSeconds(
            seconds_of(self._run_forward, self._execution, self._clock),
            seconds_of(self._run_backward, self._execution, self._clock),
            seconds_of(self._run_optimizer, self._execution, self._clock),
        )

    def evaluate(self) -> float:
        """Seconds that the network needs in eval mode for the batch."""
        self.network.eval()
        with torch.no_grad():
            return seconds_of(self._run_forward, self._execution, self._clock)

    def _run_forward(self) -> None:
        with self._execution.autocast():
            outputs = self._forward(self._images)
        smoothing = self._recipe.training.label_smoothing
        self._loss = F.cross_entropy(outputs.float(), self._labels, label_smoothing=smoothing)

    def _run_backward(self) -> None:
        torch.autograd.backward(self._loss)

    def _run_optimizer(self) -> None:
        clip_gradients(self._recipe.training, self.network)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
