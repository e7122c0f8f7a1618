"""Optimizer steps that are captured once for each shape of batch and then replayed: on a GPU as CUDA graphs.

A small network's step is hundreds of kernels of some microseconds, which a host launches more slowly than the device
runs them. Captured, they are one launch. A captured step reads its images, labels and learning rates from memory that
stays where it is and leaves its loss there, so that the host is not waited for either: learning rates are handed over
for many steps at once, and what these measured is read when all of them are done.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from resnet_bench.training.optimizers import rates_from

WARM_UPS = 3
"""Times a step is run before it is captured, on the stream of the capture: libraries choose kernels and set
themselves up in the first ones. As many as torch's documentation runs."""

CHECKED_STEPS = 2
"""The first shows that the loss is computed right, the second that the weights were updated right."""

LOSS_TOLERANCES = (1e-3, 0.1)
"""Relative to the loss: the first step's differs by rounding, the second's by what an update makes of that."""

_CHECK_SEED = 0


Gradients = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Of a batch of images and labels: leaves them with the parameters, and returns the loss [] and how many images were
classified correctly []."""


class CannotCapture(RuntimeError):
    """A step computes something else when it is replayed than when it is run."""


class Recorder(Protocol):
    """Makes work on tensors that stay where they are repeatable."""

    def record(self, work: Callable[[], None], warm_ups: int = WARM_UPS) -> Callable[[], None]:
        """Run some work a number of times, or once more, and give back what repeats it.

        Raises:
            RuntimeError: The work cannot be recorded.
        """


class Calls:
    """Does the work anew each time: the reference for what is recorded, and all that there is on a CPU."""

    def record(self, work: Callable[[], None], warm_ups: int = WARM_UPS) -> Callable[[], None]:
        """The work itself, after it was run as often as before a capture."""
        for _ in range(warm_ups):
            work()
        return work


class CudaGraphs:
    """Captures work as CUDA graphs that share their memory: no two of them may run at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        # The memory is given up with the last graph in it, and some versions of torch capture no other into it then.
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def record(self, work: Callable[[], None], warm_ups: int = WARM_UPS) -> Callable[[], None]:
        """The replay of a graph of the work.

        Raises:
            RuntimeError: It does what a graph cannot hold, such as to wait for the device.
        """
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            # The outer context leaves the stream also where torch's own does not, when a capture fails.
            with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
                for _ in range(warm_ups):
                    work()
                # Other threads of this process may go on using the device.
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    work()
        except RuntimeError as error:
            if not isinstance(error.__context__, RuntimeError):
                # The work failed and the capture ended well, with the memory that the work had taken until then.
                graph.reset()
                raise
            # Leaving a broken capture raises an error of its own; what broke it came before.
            self._recover(graph)
            raise RuntimeError(str(error.__context__)) from error
        current.wait_stream(self._stream)
        self._graphs.append(graph)
        return graph.replay

    def _recover(self, broken: torch.cuda.CUDAGraph) -> None:
        """Have torch know that a broken capture is over.

        Some versions leave that to a capture that ends well: until then random numbers are refused outside of one
        (CUDAGeneratorState::increase), and memory goes on being kept for it.
        """
        _broken.append(broken)
        torch.cuda.synchronize(self._device)
        with contextlib.suppress(RuntimeError):
            broken.reset()
        with contextlib.suppress(RuntimeError):
            # Where that did not give its memory back.
            torch._C._cuda_endAllocateToPool(self._device.index, self._pool)
            torch._C._cuda_releasePool(self._device.index, self._pool)
        with (
            contextlib.suppress(RuntimeError),
            torch.cuda.device(self._device),
            torch.cuda.stream(self._stream),
            torch.cuda.graph(torch.cuda.CUDAGraph(), stream=self._stream, capture_error_mode="thread_local"),
        ):
            torch.zeros(1, device=self._device)


_broken: list[torch.cuda.CUDAGraph] = []
"""Graphs whose capture failed; torch's allocator may still ask them whether they are being captured."""


def recorder_for(device: torch.device) -> Recorder:
    """CUDA graphs on a GPU, and plain calls elsewhere."""
    return CudaGraphs(device) if device.type == "cuda" else Calls()


class CapturedStep:
    """Optimizer steps on static memory, one capture for each shape of batch and set of frozen parameters.

    Args:
        network: What is trained; its parameters, their gradients and its buffers stay where they are.
        optimizer: Updates it; where it is captured too, a fused one or Muon on a GPU.
        updates: Whether the optimizer is captured too. Only learning rates can then change from step to step;
            otherwise the optimizer runs behind each replay as it always does.
        recorder: What captures.
        capacity: Most steps between two reads.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        updates: bool,
        recorder: Recorder,
        capacity: int,
    ) -> None:
        self.updates = updates
        self._network, self._optimizer, self._recorder = network, optimizer, recorder
        self._captures: dict[tuple[int, ...], _Capture] = {}
        device = next(network.parameters()).device
        groups = len(optimizer.param_groups)
        capacity = max(capacity, WARM_UPS + 1)
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        self._rates = torch.zeros(capacity, groups, device=device)
        self._losses = torch.zeros(capacity, device=device)
        self._correct = torch.zeros(capacity, dtype=torch.int64, device=device)
        self._current_rates = torch.zeros(1, groups, device=device)

    def __len__(self) -> int:
        """Captures so far."""
        return len(self._captures)

    # --- capturing -------------------------------------------------------------------------------

    def capture(self, gradients: Gradients, images: Tensor, labels: Tensor, *, stage: int = 0) -> None:
        """Capture steps on batches of this shape, and check that a replay does what the step does.

        Weights, buffers and what the optimizer remembers are afterwards as they were; what it did not remember yet
        is there, and zero. torch's random generators move on.

        Args:
            gradients: Computes the gradients of a batch; it must not wait for the device.
            images: A batch, in the memory order that all of its shape have.
            labels: Its labels.
            stage: A number for the set of parameters that need gradients now.

        Raises:
            RuntimeError: It cannot be captured, or the replay does something else.
        """
        before = _Snapshot(self._network, self._optimizer)
        rates = [[float(group["lr"]) for group in self._optimizer.param_groups]] * WARM_UPS
        capture = _Capture(torch.empty_like(images).copy_(images), labels.clone())
        self._optimizer.zero_grad(set_to_none=True)
        try:
            self.begin(rates)
            capture.replay = self._recorder.record(lambda: self._work(gradients, capture))
            self._optimizer.zero_grad(set_to_none=True)
            before.restore()
            self._captures[_key(images, stage)] = capture
            expected = self._losses_of_plain_steps(gradients, images, labels)
            before.restore()
            self._check(images, labels, stage, rates, expected)
        finally:
            self._optimizer.zero_grad(set_to_none=True)
            before.restore()

    def _work(self, gradients: Gradients, capture: "_Capture") -> None:
        """What is captured: a step from static memory to static memory."""
        self._optimizer.zero_grad(set_to_none=True)
        loss, correct = gradients(capture.images, capture.labels)
        if self.updates:
            torch.index_select(self._rates, 0, self._position, out=self._current_rates)
            with rates_from(self._optimizer, self._current_rates[0].unbind()):
                self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        else:
            capture.keep_gradients(self._optimizer)
        self._losses.index_copy_(0, self._position, loss.reshape(1))
        self._correct.index_copy_(0, self._position, correct.reshape(1))
        self._position.add_(1)

    def _losses_of_plain_steps(self, gradients: Gradients, images: Tensor, labels: Tensor) -> list[float]:
        losses = []
        for step in range(CHECKED_STEPS):
            torch.manual_seed(_CHECK_SEED + step)
            losses.append(float(gradients(images, labels)[0]))
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        return losses

    def _check(
        self,
        images: Tensor,
        labels: Tensor,
        stage: int,
        rates: Sequence[Sequence[float]],
        expected: Sequence[float],
    ) -> None:
        self.begin(rates)
        for step in range(CHECKED_STEPS):
            torch.manual_seed(_CHECK_SEED + step)
            self.step(images, labels, stage=stage)
        replayed, _ = self.read(CHECKED_STEPS)
        for ours, theirs, tolerance in zip(replayed, expected, LOSS_TOLERANCES, strict=True):
            both_overflow = not (math.isfinite(ours) or math.isfinite(theirs))
            if not (both_overflow or math.isclose(ours, theirs, rel_tol=tolerance, abs_tol=tolerance)):
                raise CannotCapture(f"its losses are {expected}, and those of its replay {replayed}")

    # --- replaying -------------------------------------------------------------------------------

    def begin(self, rates: Sequence[Sequence[float]]) -> None:
        """Hand over what the next steps need, before the first of them.

        Args:
            rates: Each step's learning rate of each group of the optimizer; read only where it is captured too.
        """
        self._position.zero_()
        if self.updates:
            table = torch.tensor(rates, dtype=torch.float32)
            if self._rates.is_cuda:
                # From pinned memory the host need not wait until the device has copied it.
                table = table.pin_memory()
            self._rates[: len(rates)].copy_(table, non_blocking=True)

    def step(self, images: Tensor, labels: Tensor, *, stage: int = 0) -> None:
        """Do one optimizer step on a batch whose shape was captured; the host does not wait for it."""
        capture = self._captures[_key(images, stage)]
        capture.images.copy_(images)
        capture.labels.copy_(labels)
        capture.replay()
        if not self.updates:
            capture.give_gradients()
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)

    def read(self, steps: int) -> tuple[list[float], int]:
        """Wait for the steps since ``begin``: the loss of each, and the images classified correctly in all."""
        return self._losses[:steps].tolist(), int(self._correct[:steps].sum())


class _Capture:
    """The static memory of one capture."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self.replay: Callable[[], None]
        self._gradients: list[tuple[Tensor, Tensor]] = []

    def keep_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Hold on to the gradients that replays write, where the optimizer is not captured."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._gradients = [(each, each.grad) for each in parameters if each.grad is not None]

    def give_gradients(self) -> None:
        """Let the parameters have the gradients of the last replay."""
        for parameter, gradient in self._gradients:
            parameter.grad = gradient


class _Snapshot:
    """Weights, buffers and an optimizer's state, to be put back in place."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        tensors = [*network.parameters(), *network.buffers(), *self._remembered()]
        self._before = {id(tensor): (tensor, tensor.detach().clone()) for tensor in tensors}

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back; what the optimizer has come to remember since becomes zero, as it starts."""
        for tensor, value in self._before.values():
            tensor.copy_(value)
        for tensor in self._remembered():
            if id(tensor) not in self._before:
                tensor.zero_()

    def _remembered(self) -> list[Tensor]:
        states = self._optimizer.state.values()
        return [value for state in states for value in state.values() if isinstance(value, Tensor)]


def _key(images: Tensor, stage: int) -> tuple[int, ...]:
    return (stage, *images.shape)
