"""What one run holds: its network, optimizer, schedule and training images, and its position."""

import bisect
import contextlib
import hashlib
import math
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import torch
import torch._dynamo  # An optimizer imports it, for seconds; here that is part of the set-up time.
from torch import nn

from resnet_bench.base.errors import UserError
from resnet_bench.data.augmentation import FIRST_EPOCH
from resnet_bench.data.dataset import Dataset, Split
from resnet_bench.data.of_recipe import as_batched, splits_of, train_loader, whitening_images
from resnet_bench.execution.devices import peak_memory, reset_peak_memory
from resnet_bench.execution.execution import Execution
from resnet_bench.models.of_recipe import build_network, frozen_parameters, recipe_macs
from resnet_bench.models.size import count_parameters
from resnet_bench.models.whitening import Whitened
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.recipe.settings import SplitName
from resnet_bench.training.errors import Diverged
from resnet_bench.training.events import EpochEnded, Finished, Predictions, Started, State, Steps
from resnet_bench.training.optimizers import build_optimizer
from resnet_bench.training.schedules import build_schedule

DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
"""Layers that draw random numbers while they train."""


@dataclass
class Position:
    """Where a run is and what it has counted; every snapshot contains its ``asdict``.

    Attributes:
        epoch: Current epoch, from 1; one more than the recipe has after the last.
        step_in_epoch: Optimizer steps done in this epoch. A whole epoch's: it is trained, and being evaluated.
        step: Optimizer steps done in the run.
        evaluated: Loss (nats) of each split evaluated since the last step, in this order.
        metrics: The final metrics measured so far, as in ``Finished``.
        train_seconds: Training time of the run.
        epoch_seconds: Training time of this epoch.
        evaluation_seconds: Evaluation time of the run, without test-time augmentation.
        tta_seconds: Time of test-time augmentation.
        loss_sum: Sum of this epoch's losses over its images, in nats.
        batch_loss_sum: Sum of this epoch's losses over its steps, whatever the size of their batches, in nats.
        last_loss: Loss of the last step's batch, in nats.
        correct: Images classified correctly in this epoch's steps.
        images: Images in this epoch's steps.
    """

    epoch: int = 1
    step_in_epoch: int = 0
    step: int = 0
    evaluated: dict[SplitName, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    train_seconds: float = 0.0
    epoch_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    tta_seconds: float = 0.0
    loss_sum: float = 0.0
    batch_loss_sum: float = 0.0
    last_loss: float = math.nan
    correct: int = 0
    images: int = 0


@dataclass(frozen=True)
class Chunk:
    """What consecutive optimizer steps measured, read in one host sync.

    Attributes:
        losses: Loss of each step in nats.
        learning_rates: Learning rate of each step.
        sizes: Images in each step.
        correct: Images classified correctly in all steps.
        seconds: From the first batch to the end of the host sync.
    """

    losses: list[float]
    learning_rates: list[float]
    sizes: list[int]
    correct: int
    seconds: float


class Clock:
    """Times work on a device, from the clock's creation on."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        execution.synchronize()
        self._started = time.perf_counter()

    def read(self) -> float:
        """Wait for the device; the seconds since the clock was created."""
        self._execution.synchronize()
        return time.perf_counter() - self._started


class Session:
    """One run on one device, without the rules of what happens when.

    Args:
        recipe: What to train.
        execution: How: device, precision and the like.
        seed: Decides initialization, order, augmentation and dropout.
        dataset: The images of ``recipe.data.dataset``.
        resume: A snapshot of an earlier session of this recipe and seed.

    Attributes:
        splits: The images of each split.
        batched_splits: The same, in the order in which the source's protocol batches them.
        network: The network; never compiled.
        forward: Computes the network's outputs; compiled where the execution says so.
        optimizer: Updates the network.
        schedule: Sets the optimizer's learning rates.
        train_loader: The augmented training images.
        freezes: Parameters to freeze, with the number of steps after which, in this order.
        frozen: How many of the freezes have been applied.
        position: Where the run is.
        predictions: Predictions for the test split, once it has had its final evaluation.
        event_snapshot: :meth:`snapshot` for events to carry; it does not keep the session alive.
        capture_seconds: Part of the set-up time that capturing CUDA graphs took.
        captures: Number of CUDA graphs captured.

    Raises:
        UserError: The dataset has too few images, or the snapshot belongs to another recipe or seed.
    """

    def __init__(
        self, recipe: Recipe, execution: Execution, seed: int, dataset: Dataset, resume: State | None = None
    ) -> None:
        self.recipe, self.execution, self.seed = recipe, execution, seed
        self.device = torch.device(execution.device)
        self._setup_clock = Clock(execution)
        self._knows_peak_memory = reset_peak_memory(self.device)
        self.splits = splits_of(recipe, dataset)
        self.batched_splits = as_batched(recipe, dataset, self.splits)
        self.network = _build_initial_network(recipe, execution, seed, self.splits["train"])
        self.freezes = _find_freezes(recipe, self.network)
        self.frozen = 0
        self.optimizer = build_optimizer(recipe.optimizer, self.network, fused=True)
        self.schedule = build_schedule(recipe, self.optimizer)
        self.train_loader = train_loader(recipe, self.splits["train"], execution, seed)
        self.position = Position()
        self.predictions: Predictions | None = None
        self.capture_seconds, self.captures = 0.0, 0
        self._has_dropout = any(isinstance(module, DROPOUT) and module.p > 0 for module in self.network.modules())
        self.event_snapshot = _snapshot_while_alive(self)
        if resume is not None:
            self._restore(resume)
        self.forward = _compile(self) if execution.compile else self.network

    # --- before steps and passes -------------------------------------------------------------------

    def start_epoch(self) -> None:
        """Prepare to train what is left of the current epoch."""
        self.network.train()
        position = self.position
        if position.step_in_epoch == 0:
            self.schedule.start_epoch(position.epoch)
            position.epoch_seconds = 0.0
            position.loss_sum, position.batch_loss_sum, position.correct, position.images = 0.0, 0.0, 0, 0
            position.evaluated = {}

    def before_step(self, step: int) -> None:
        """Apply the freezes due after ``step`` optimizer steps, and seed the next step's dropout."""
        self.apply_freezes(step)
        self.seed_dropout("dropout", step)

    def apply_freezes(self, step: int) -> None:
        """Freeze the parameters that are not trained after ``step`` optimizer steps."""
        while self.frozen < len(self.freezes) and step >= self.freezes[self.frozen][0]:
            for parameter in self.freezes[self.frozen][1]:
                parameter.requires_grad = False
            self.frozen += 1

    def seed_dropout(self, stream: str, number: int) -> None:
        """Make dropout a function of the seed, a stream and a number in it."""
        if self._has_dropout:
            torch.manual_seed(_derived_seed(self.seed, stream, number))

    # --- events ------------------------------------------------------------------------------------

    def started(self) -> Started:
        """The first event; the set-up time ends here."""
        return Started(
            parameters=count_parameters(self.network),
            macs=recipe_macs(self.recipe),
            steps_per_epoch=self.recipe.steps_per_epoch,
            epochs=self.recipe.training.epochs,
            train_images=self.recipe.data.num_train,
            step=self.position.step,
            setup_seconds=self._setup_clock.read(),
            capture_seconds=self.capture_seconds,
            captures=self.captures,
            snapshot=self.event_snapshot,
        )

    def count(self, chunk: Chunk) -> Steps:
        """Count steps that the position is behind already.

        Raises:
            Diverged: A loss is not finite.
        """
        position = self.position
        first_step = position.step - len(chunk.losses) + 1
        for i, loss in enumerate(chunk.losses):
            if not math.isfinite(loss):
                raise Diverged(first_step + i, chunk.learning_rates[i], loss)
            position.loss_sum += loss * chunk.sizes[i]
            position.batch_loss_sum += loss
        position.last_loss = chunk.losses[-1]
        position.correct += chunk.correct
        position.images += sum(chunk.sizes)
        position.epoch_seconds += chunk.seconds
        position.train_seconds += chunk.seconds
        return Steps(
            epoch=position.epoch,
            first_step=first_step,
            losses=chunk.losses,
            learning_rates=chunk.learning_rates,
            images=sum(chunk.sizes),
            correct=chunk.correct,
            seconds=chunk.seconds,
            snapshot=self.event_snapshot,
        )

    def check_finite(self, split: SplitName, **measured: float) -> None:
        """Check what an evaluation of a split measured.

        Raises:
            Diverged: A value is not finite: the weights are lost, or the running statistics of BatchNorm are.
        """
        for name, value in measured.items():
            if not math.isfinite(value):
                rate = float(self.optimizer.param_groups[0]["lr"])
                what = f"the {split} {name.replace('_', ' ')}"
                raise Diverged(self.position.step, rate, value, what=what)

    def end_epoch(self, accuracy: float) -> EpochEnded:
        """Move to the next epoch.

        Args:
            accuracy: Training accuracy of this one, a fraction.
        """
        position = self.position
        mean = position.loss_sum / position.images
        reported = {
            "mean": mean,
            "batches": position.batch_loss_sum / self.recipe.steps_per_epoch,
            "last_batch": position.last_loss,
        }
        ended = EpochEnded(
            epoch=position.epoch,
            step=position.step,
            loss=reported[self.recipe.training.reported_loss],
            loss_mean=mean,
            accuracy=accuracy,
            seconds=position.epoch_seconds,
            train_seconds=position.train_seconds,
            images_per_second=position.images / position.epoch_seconds,
            peak_memory_bytes=peak_memory(self.device) if self._knows_peak_memory else None,
            snapshot=self.event_snapshot,
        )
        position.epoch += 1
        position.step_in_epoch = 0
        return ended

    def finished(self) -> Finished:
        """The last event; it keeps this session alive for its snapshot."""
        position = self.position
        return Finished(
            epoch=self.recipe.training.epochs,
            step=position.step,
            train_seconds=position.train_seconds,
            evaluation_seconds=position.evaluation_seconds,
            tta_seconds=position.tta_seconds,
            metrics=dict(position.metrics),
            predictions=self.predictions,
            snapshot=self.snapshot,
        )

    # --- snapshots -----------------------------------------------------------------------------------

    def snapshot(self) -> State:
        """Everything needed to resume at the current position.

        Order, augmentation and dropout are functions of the seed and the position, so no random generator's state
        is included. The tensors are the session's own: copy them before it trains on.
        """
        return {
            "fingerprint": self.recipe.fingerprint,
            "seed": self.seed,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "position": asdict(self.position),
            "predictions": None
            if self.predictions is None
            else {
                "labels": torch.from_numpy(self.predictions.labels),
                "probabilities": torch.from_numpy(self.predictions.probabilities),
                "predicted_tta": None
                if self.predictions.predicted_tta is None
                else torch.from_numpy(self.predictions.predicted_tta),
            },
        }

    def _restore(self, state: State) -> None:
        for key, ours in (("fingerprint", self.recipe.fingerprint), ("seed", self.seed)):
            if state.get(key) != ours:
                raise UserError(
                    f"the checkpoint has {key} {state.get(key)} and this run has {key} {ours}; "
                    "resume with the recipe and seed that it was made with, or start from scratch"
                )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        # Without this mark torch warns of a scheduler that steps before its optimizer has.
        vars(self.optimizer)["_opt_called"] = True
        self.position = Position(**state["position"])
        if (predictions := state["predictions"]) is not None:
            labels, probabilities = predictions["labels"].numpy(), predictions["probabilities"].numpy()
            # A checkpoint of 0.1.0 has none.
            tta = predictions.get("predicted_tta")
            self.predictions = Predictions("test", labels, probabilities, None if tta is None else tta.numpy())


def _snapshot_while_alive(session: Session) -> Callable[[], State]:
    """The session's snapshot, without a strong reference to the session.

    Consumers keep their last event. When memory runs out, the session must be freed regardless, to leave its memory
    to the smaller batches that are tried then.
    """
    reference = weakref.ref(session)

    def snapshot() -> State:
        alive = reference()
        if alive is None:
            raise RuntimeError("this event's run is over; only the last event of a run still gives a snapshot then")
        return alive.snapshot()

    return snapshot


# --- kinds of steps ----------------------------------------------------------------------------------------


class StepKind(NamedTuple):
    """What has to be the same for two steps to run one compiled program, or to replay one capture."""

    frozen: int
    """Freezes applied before."""
    images: int
    size: int
    """Height and width in pixels."""


def kinds_of_steps(session: Session) -> list[StepKind]:
    """List the kinds of steps that a session has still to do, in order of their first."""
    loader, due = session.train_loader, [step for step, _ in session.freezes]
    kinds: dict[StepKind, None] = {}
    for step in range(session.position.step, session.recipe.training.epochs * len(loader)):
        epoch, batch = divmod(step, len(loader))
        shape = loader.batch_shape(FIRST_EPOCH + epoch, batch)
        kinds[StepKind(bisect.bisect_right(due, step), *shape)] = None
    return list(kinds)


@contextlib.contextmanager
def frozen_meanwhile(session: Session, count: int) -> Iterator[None]:
    """Apply the first ``count`` freezes of a session, and undo them."""
    parameters = [parameter for _, several in session.freezes[:count] for parameter in several]
    for parameter in parameters:
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad = True


# --- setting up ----------------------------------------------------------------------------------------


def _build_initial_network(recipe: Recipe, execution: Execution, seed: int, train: Split) -> nn.Module:
    # Built on the CPU whatever the device, so that a seed gives the same weights everywhere.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_derived_seed(seed, "initialisation", 0))
        network = build_network(recipe)
    if isinstance(network, Whitened) and (whitening := recipe.model.whitening) is not None:
        network.whitening.fit(whitening_images(recipe, train, whitening.images), eps=whitening.eps)
    return execution.placed(network)


def _find_freezes(recipe: Recipe, network: nn.Module) -> list[tuple[int, list[nn.Parameter]]]:
    freezes = [
        (math.ceil(freeze.after_epochs * recipe.steps_per_epoch), parameters)
        for freeze, parameters in frozen_parameters(recipe, network)
    ]
    return sorted(freezes, key=lambda freeze: freeze[0])


def _compile(session: Session) -> nn.Module:
    """Compile the network and run it on each kind of step to come: compilation is set-up, not training."""
    network, execution = session.network, session.execution
    compiled: nn.Module = torch.compile(network)  # type: ignore[assignment]  # torch types it as a function
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.train()
    for kind in kinds_of_steps(session):
        images = torch.randn(kind.images, 3, kind.size, kind.size, device=session.device)
        images = images.to(memory_format=execution.memory_format)
        with frozen_meanwhile(session, kind.frozen):
            with execution.autocast():
                outputs = compiled(images)
            outputs.float().sum().backward()
    network.zero_grad(set_to_none=True)
    network.load_state_dict(before)
    return compiled


def _derived_seed(seed: int, stream: str, number: int) -> int:
    """A 63-bit seed for a number in a stream of the run's seed, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
