"""Optimizer steps as CUDA graphs: captured once per kind of step, then replayed.

A small network's step is hundreds of kernels of some microseconds each; a host launches them more slowly than a GPU
runs them. A graph launches them together. It reads images, labels and learning rates from static memory and leaves the
loss there, so there is no host sync within a chunk: the learning rates of all its steps are copied beforehand, and
what they measured is read at its end.
"""

import contextlib
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from resnet_bench.training.memory import free_what_is_unused, shortage_in
from resnet_bench.training.optimizers import rates_from
from resnet_bench.training.schedules import moves_momentum
from resnet_bench.training.session import Chunk, Clock, Position, Session, frozen_meanwhile, kinds_of_steps
from resnet_bench.training.steps import EagerStep, Step

SYNC_EVERY_GRAPHED_STEPS = 500
"""Graphed steps between two host syncs: they are short, and frequent syncs would leave the device idle."""

WARM_UPS = 3
"""Runs of a step before its capture, on the same stream: libraries initialize and choose kernels in the first ones.
As many as in torch's documentation."""

CHECKED_STEPS = 2
"""The first checks the loss, the second the update of the weights."""

LOSS_TOLERANCES = (1e-3, 0.1)
"""Relative to the loss: the first step's differs by rounding, which the update amplifies in the second's."""

_CHECK_SEED = 0

_log = logging.getLogger(__name__)

Gradients = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Computes the gradients of a batch of images and labels; returns the loss [] and the number of images classified
correctly []."""


class CaptureError(RuntimeError):
    """The replay of a captured step differs from the eager step."""


class GraphRecorder(Protocol):
    """Records work on static tensors, to repeat it."""

    def record(self, work: Callable[[], None], warm_ups: int = WARM_UPS) -> Callable[[], None]:
        """Run ``work`` for warm-up, then record it.

        Args:
            work: Reads and writes tensors that stay where they are.
            warm_ups: Number of runs before.

        Returns:
            A function that repeats the work.

        Raises:
            RuntimeError: The work cannot be recorded.
        """


class Calls:
    """Records nothing and calls the work again each time: the reference, and the only recorder on a CPU."""

    def record(self, work: Callable[[], None], warm_ups: int = WARM_UPS) -> Callable[[], None]:
        """Return the work itself, after as many runs as a capture is preceded by."""
        for _ in range(warm_ups):
            work()
        return work


class CudaGraphs:
    """Captures work as CUDA graphs that share their memory, so that no two may run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        # The pool dies with its last graph, and some versions of torch capture nothing into it after that.
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def record(self, work: Callable[[], None], warm_ups: int = WARM_UPS) -> Callable[[], None]:
        """Capture the work; return the replay of its graph.

        Raises:
            RuntimeError: The work does what a graph cannot contain, such as a host sync.
        """
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            # When a capture fails, torch's own context may not leave the stream; the outer one does.
            with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
                for _ in range(warm_ups):
                    work()
                # Thread-local, so that other threads of this process may use the device meanwhile.
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    work()
        except RuntimeError as error:
            if not isinstance(error.__context__, RuntimeError):
                # The work failed and the capture ended well; it still owns the memory that the work allocated.
                graph.reset()
                raise
            # Leaving a broken capture raises a second error; the cause is its context.
            self._recover(graph)
            raise RuntimeError(str(error.__context__)) from error
        current.wait_stream(self._stream)
        self._graphs.append(graph)
        return graph.replay

    def _recover(self, broken: torch.cuda.CUDAGraph) -> None:
        """Tell torch that a broken capture is over.

        Some versions only notice when a later capture ends well. Until then they refuse random numbers outside of a
        capture (CUDAGeneratorState::increase) and keep memory for the broken one.
        """
        _broken.append(broken)
        torch.cuda.synchronize(self._device)
        with contextlib.suppress(RuntimeError):
            broken.reset()
        with contextlib.suppress(RuntimeError):
            # In case that did not free its memory.
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
"""Graphs whose capture failed. Kept: torch's allocator may still ask them whether they are being captured."""


def recorder_for(device: torch.device) -> GraphRecorder:
    """Choose the recorder: CUDA graphs on a GPU, calls elsewhere."""
    return CudaGraphs(device) if device.type == "cuda" else Calls()


class GraphedStep:
    """Steps of a session as CUDA graphs; implements :class:`~resnet_bench.training.steps.Step`.

    Args:
        session: The session.
        graphs: A capture of every kind of step that the session has to do.
    """

    def __init__(self, session: Session, graphs: "StepGraphs") -> None:
        self._session, self._graphs = session, graphs

    def epoch(self, position: Position) -> Iterator[Chunk]:
        """Train what is left of the current epoch (see :class:`~resnet_bench.training.steps.Step`)."""
        loader = self._session.train_loader
        batches = loader.epoch(position.epoch, start_batch=position.step_in_epoch)
        while left := len(loader) - position.step_in_epoch:
            with shortage_in("training"):
                chunk = self._chunk(batches, position, min(left, SYNC_EVERY_GRAPHED_STEPS))
            yield chunk

    def _chunk(self, batches: Iterator[tuple[Tensor, Tensor]], position: Position, steps: int) -> Chunk:
        clock = Clock(self._session.execution)
        rates, sizes = self.launch(batches, position, steps)
        loader = self._session.train_loader
        if position.step_in_epoch == len(loader) and position.epoch < self._session.recipe.training.epochs:
            # The device is still busy with the steps launched above.
            loader.prepare(position.epoch + 1)
        losses, correct = self._graphs.read(steps)
        return Chunk(losses, [groups[0] for groups in rates], sizes, correct, clock.read())

    def launch(
        self, batches: Iterator[tuple[Tensor, Tensor]], position: Position, steps: int
    ) -> tuple[list[list[float]], list[int]]:
        """Launch steps without a host sync.

        Args:
            batches: The images and labels.
            position: The session's; it is behind the steps afterwards.
            steps: Number of steps.

        Returns:
            The learning rates per step and group of the optimizer, and the images per step.
        """
        session, graphs = self._session, self._graphs
        sizes: list[int] = []
        rates = self._rates_ahead(steps) if graphs.updates else []
        graphs.begin(rates)
        for images, labels in itertools.islice(batches, steps):
            session.before_step(position.step)
            if not graphs.updates:
                rates.append(self._rates())
            graphs.step(images, labels, stage=session.frozen)
            if not graphs.updates:
                session.schedule.after_step()
            position.step += 1
            position.step_in_epoch += 1
            sizes.append(len(labels))
        return rates, sizes

    def _rates(self) -> list[float]:
        return [float(group["lr"]) for group in self._session.optimizer.param_groups]

    def _rates_ahead(self, steps: int) -> list[list[float]]:
        """The learning rates of the next steps; the schedule is behind these steps afterwards."""
        rates = []
        for _ in range(steps):
            rates.append(self._rates())
            self._session.schedule.after_step()
        return rates


def build_step(session: Session) -> Step:
    """Choose how to compute a session's steps: as CUDA graphs if its execution asks for them, else eagerly.

    Steps that cannot be captured are eager, with a warning: they cost time and nothing else. Sets the session's
    ``captures`` and ``capture_seconds``.
    """
    if not session.execution.cuda_graphs:
        return EagerStep(session)
    clock = Clock(session.execution)
    graphs = _capture_all(session)
    if session.device.type == "cuda":
        # Memory that capturing took beside the captures themselves.
        torch.cuda.empty_cache()
    session.capture_seconds = clock.read()
    session.captures = len(graphs) if graphs is not None else 0
    is_epoch_trained = session.position.step_in_epoch == len(session.train_loader)
    session.train_loader.prepare(session.position.epoch + is_epoch_trained)
    return EagerStep(session) if graphs is None else GraphedStep(session, graphs)


def _capture_all(session: Session) -> "StepGraphs | None":
    """Capture every kind of step to come; None where that fails."""
    graphs = StepGraphs(
        session.network,
        session.optimizer,
        updates=not moves_momentum(session.recipe),
        recorder=recorder_for(session.device),
        capacity=SYNC_EVERY_GRAPHED_STEPS,
    )
    gradients = EagerStep(session).gradients
    noise = torch.Generator().manual_seed(0)
    session.network.train()
    try:
        with torch.random.fork_rng([session.device.index] if session.device.type == "cuda" else []):
            for kind in kinds_of_steps(session):
                images = torch.randn(kind.images, 3, kind.size, kind.size, generator=noise).to(session.device)
                images = images.contiguous(memory_format=session.execution.memory_format)
                labels = torch.randint(session.recipe.num_outputs, (kind.images,), generator=noise).to(session.device)
                with frozen_meanwhile(session, kind.frozen):
                    graphs.capture(gradients, images, labels, stage=kind.frozen)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
    else:
        return graphs
    # The broken capture and the error's frames hold memory that eager steps need.
    del graphs
    free_what_is_unused()
    _log.warning(
        "steps of %s are not captured as CUDA graphs, so they may take longer: %s", session.recipe.model.name, reason
    )
    return None


class StepGraphs:
    """Optimizer steps on static memory, captured per shape of batch and set of frozen parameters.

    Args:
        network: The network; its parameters, gradients and buffers stay where they are.
        optimizer: Its optimizer. To be captured too, it must be fused, or Muon on a GPU.
        updates: Whether the optimizer is captured too. Then only learning rates can change between steps. Otherwise
            the optimizer runs eagerly after each replay.
        recorder: Captures the steps.
        capacity: Maximum number of steps between two reads.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        updates: bool,
        recorder: GraphRecorder,
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
        """Return the number of captures."""
        return len(self._captures)

    # --- capturing -------------------------------------------------------------------------------

    def capture(self, gradients: Gradients, images: Tensor, labels: Tensor, *, stage: int = 0) -> None:
        """Capture the step on batches of this shape, and compare its replay with eager steps.

        Weights, buffers and the optimizer's state are restored; state that the optimizer did not have is zero.
        torch's random generators advance.

        Args:
            gradients: Computes the gradients of a batch, without a host sync.
            images: A batch, in the memory format of all batches of its shape.
            labels: Its labels.
            stage: Number of the set of parameters that need gradients.

        Raises:
            CaptureError: The replay differs from eager steps.
            RuntimeError: The step cannot be captured.
        """
        before = _Saved(self._network, self._optimizer)
        rates = [[float(group["lr"]) for group in self._optimizer.param_groups]] * WARM_UPS
        capture = _Capture(torch.empty_like(images).copy_(images), labels.clone())
        self._optimizer.zero_grad(set_to_none=True)
        try:
            self.begin(rates)
            capture.replay = self._recorder.record(lambda: self._work(gradients, capture))
            self._optimizer.zero_grad(set_to_none=True)
            before.restore()
            self._captures[_key(images, stage)] = capture
            expected = self._losses_of_eager_steps(gradients, images, labels)
            before.restore()
            self._check(images, labels, stage, rates, expected)
        finally:
            self._optimizer.zero_grad(set_to_none=True)
            before.restore()

    def _work(self, gradients: Gradients, capture: "_Capture") -> None:
        """Do one step from static memory to static memory: the work that is captured."""
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

    def _losses_of_eager_steps(self, gradients: Gradients, images: Tensor, labels: Tensor) -> list[float]:
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
                raise CaptureError(f"its losses are {expected}, and those of its replay {replayed}")

    # --- replaying -------------------------------------------------------------------------------

    def begin(self, rates: Sequence[Sequence[float]]) -> None:
        """Prepare the next steps, up to the next read.

        Args:
            rates: Learning rates, per step and group of the optimizer; needed only where it is captured too.
        """
        self._position.zero_()
        if self.updates:
            table = torch.tensor(rates, dtype=torch.float32)
            if self._rates.is_cuda:
                # A copy from pinned memory needs no host sync.
                table = table.pin_memory()
            self._rates[: len(rates)].copy_(table, non_blocking=True)

    def step(self, images: Tensor, labels: Tensor, *, stage: int = 0) -> None:
        """Do one optimizer step on a batch of a captured shape, without a host sync."""
        capture = self._captures[_key(images, stage)]
        capture.images.copy_(images)
        capture.labels.copy_(labels)
        capture.replay()
        if not self.updates:
            capture.give_gradients()
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)

    def read(self, steps: int) -> tuple[list[float], int]:
        """Wait for the steps since ``begin``; return the loss of each and the images classified correctly in all."""
        return self._losses[:steps].tolist(), int(self._correct[:steps].sum())


class _Capture:
    """The static memory of one capture."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self.replay: Callable[[], None]
        self._gradients: list[tuple[Tensor, Tensor]] = []

    def keep_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Remember the gradients that replays write, for an optimizer that is not captured."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._gradients = [(each, each.grad) for each in parameters if each.grad is not None]

    def give_gradients(self) -> None:
        """Give the parameters the gradients of the last replay."""
        for parameter, gradient in self._gradients:
            parameter.grad = gradient


class _Saved:
    """Copies of weights, buffers and an optimizer's state, to restore in place."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        tensors = [*network.parameters(), *network.buffers(), *self._state()]
        self._before = {id(tensor): (tensor, tensor.detach().clone()) for tensor in tensors}

    @torch.no_grad()
    def restore(self) -> None:
        """Restore everything; state that the optimizer has gained since becomes zero, its initial value."""
        for tensor, value in self._before.values():
            tensor.copy_(value)
        for tensor in self._state():
            if id(tensor) not in self._before:
                tensor.zero_()

    def _state(self) -> list[Tensor]:
        states = self._optimizer.state.values()
        return [value for state in states for value in state.values() if isinstance(value, Tensor)]


def _key(images: Tensor, stage: int) -> tuple[int, ...]:
    return (stage, *images.shape)
