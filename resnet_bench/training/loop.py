"""The training loop, from a recipe to a trained network, as a generator of events.

To watch a run, iterate over it; to stop it, stop iterating. What a step measures stays on the device and is
read once a chunk of steps, so that watching costs nothing.
"""

import bisect
import contextlib
import hashlib
import itertools
import logging
import math
import resource
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

import torch
import torch._dynamo  # An optimizer imports it for seconds, in a run's set-up time, where it is not there already.
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_bench.base.errors import UserError
from resnet_bench.data.augmentation import FIRST_EPOCH
from resnet_bench.data.dataset import Dataset
from resnet_bench.data.loader import ResidentLoader
from resnet_bench.data.of_recipe import evaluation_loader, splits_of, train_loader, whitening_images
from resnet_bench.execution.execution import Execution
from resnet_bench.models.of_recipe import build_network, frozen_parameters
from resnet_bench.models.size import count_macs, count_parameters
from resnet_bench.models.whitening import Whitened
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.recipe.settings import SplitName
from resnet_bench.training.captured_step import CapturedStep, recorder_for
from resnet_bench.training.errors import Diverged
from resnet_bench.training.evaluation import Measured, measure, measure_augmented
from resnet_bench.training.events import EpochEnded, Evaluated, Event, Finished, Predictions, Started, State, Steps
from resnet_bench.training.memory import Part, free_what_is_unused, out_of_memory, ran_out_of_memory
from resnet_bench.training.optimizers import build_optimizer, clip_gradients
from resnet_bench.training.schedules import build_schedule, moves_momentum

STEPS_BETWEEN_READS = 50
"""On a GPU the host waits for the device this often; on a CPU reading costs nothing and is done every step."""

CAPTURED_STEPS_BETWEEN_READS = 500
"""Captured steps are short: the device would idle a good part of the time if it were read as often as otherwise."""

PLAIN_EVALUATION_BATCH = 500

PIXELS_EVALUATED_AT_ONCE = 2000 * 32**2
"""Where steps are captured; 2000 images of 32 pixels fill the largest GPUs, and fit into small ones."""

_log = logging.getLogger(__name__)

Result = TypeVar("Result")

SEPARATE_PASS_EPOCHS = 1_000_000
"""Added to the epoch when the training images are gone through once more to measure the accuracy on them, so that
order and augmentation are drawn anew."""


def train(
    recipe: Recipe, execution: Execution, seed: int, dataset: Dataset, *, resume: State | None = None
) -> Generator[Event, None, None]:
    """Train a recipe once.

    Args:
        recipe: What to train; with the seed it decides the result.
        execution: How: device, precision and the like; it decides speed and rounding.
        seed: Initialisation, order, augmentation and dropout depend on it and on nothing else.
        dataset: The images of ``recipe.data.dataset``.
        resume: A snapshot that an earlier run's event gave; training goes on behind it, and on the same
            machine with the same execution ends with the same bits.

    Yields:
        ``Started``; ``Steps`` as they are done; at the end of each epoch ``Evaluated`` for each split and
        then ``EpochEnded``; at last ``Finished``. Any event with a ``snapshot`` can be resumed behind, as
        long as the generator has not been advanced further.

    Raises:
        Diverged: The loss is no longer finite.
        OutOfMemory: The device has too little memory for the batch size; which one fits has been tried.
        UserError: The dataset has too few images, or the snapshot belongs to another recipe or seed.
    """
    with execution.applied():
        run: _Run | None = None
        try:
            run = _Run(recipe, execution, seed, dataset, resume)
            yield from run.events()
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            # What the error's frames and the run hold would be missing where smaller batches are tried.
            traceback.clear_frames(error.__traceback__)
        else:
            return
        part: Part = "evaluation" if run is not None and run.is_evaluating else "training"
        if run is not None:
            vars(run).clear()

        def attempt(smaller: Recipe, eager: Execution) -> None:
            _Run(smaller, eager, seed, dataset, None).try_out()

        raise out_of_memory(recipe, execution, part, attempt)


class _Clock:
    """Seconds of device time spent between ``start`` and ``stop``, added up."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._started = 0.0

    def start(self) -> None:
        self._execution.synchronize()
        self._started = time.perf_counter()

    def stop(self) -> float:
        self._execution.synchronize()
        return time.perf_counter() - self._started


class _Run:
    """The state of one run, and the events that it passes through."""

    def __init__(self, recipe: Recipe, execution: Execution, seed: int, dataset: Dataset, resume: State | None) -> None:
        self.recipe, self.execution, self.seed = recipe, execution, seed
        self.device = torch.device(execution.device)
        self.clock = _Clock(execution)
        self.clock.start()

        if execution.device_type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.splits = splits_of(recipe, dataset)
        self.network = self._build_network()
        self.has_dropout = any(
            isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0 for module in self.network.modules()
        )
        self.freezes = self._freezes()
        self.frozen = 0
        self.optimizer = build_optimizer(recipe.optimizer, self.network, fused=True)
        self.schedule = build_schedule(recipe, self.optimizer)
        self.forward = self._compiled() if execution.compile else self.network
        self.train_loader = train_loader(recipe, self.splits["train"], execution, seed)
        self.source_loaders = {name: self._source_loader(name) for name in self._evaluated_splits()}

        self.epoch, self.step_in_epoch, self.step = 1, 0, 0
        self.train_seconds = self.epoch_seconds = self.evaluation_seconds = self.augmented_seconds = 0.0
        self.loss_sum, self.last_loss, self.correct, self.images = 0.0, math.nan, 0, 0
        self.final_test: tuple[Evaluated, Measured] | None = None
        self.plain_loaders: dict[tuple[SplitName, int], ResidentLoader] = {}
        self.plain_batch_size = PLAIN_EVALUATION_BATCH
        if execution.graphs:
            self.plain_batch_size = max(self.plain_batch_size, PIXELS_EVALUATED_AT_ONCE // recipe.image_size**2)
        self.is_evaluating = False
        if resume is not None:
            self._restore(resume)
        self.setup_seconds, self.capture_seconds = self.clock.stop(), 0.0
        self.captured: CapturedStep | None = None
        if execution.graphs:
            self.clock.start()
            self.captured = self._captured()
            if self.device.type == "cuda":
                # What capturing took beside the captures themselves.
                torch.cuda.empty_cache()
            self.capture_seconds = self.clock.stop()
            self.setup_seconds += self.capture_seconds
            self.train_loader.prepare(self.epoch)

    # --- the paragraph that this module is about -------------------------------------------------

    def events(self) -> Iterator[Event]:
        """The whole run, event by event."""
        training, evaluation = self.recipe.training, self.recipe.evaluation
        yield self._started_event()
        if evaluation.before_training and self.step == 0:
            for split in evaluation.splits:
                yield self._evaluate(split, 0)

        for epoch in range(self.epoch, training.epochs + 1):
            self.epoch = epoch
            yield from self._train_epoch()

            evaluated: list[Evaluated] = []
            if epoch % evaluation.every == 0 or epoch == training.epochs:
                for split in evaluation.splits:
                    evaluated.append(self._evaluate(split, epoch))
                    yield evaluated[-1]
            accuracy = self._train_accuracy()
            self.schedule.after_epoch(evaluated[0].loss if evaluated else None)
            yield self._end_epoch(accuracy)

        if evaluation.test_at_end and self.final_test is None:
            yield self._evaluate("test", training.epochs)
        yield self._finished_event()

    def _train_epoch(self) -> Iterator[Steps]:
        """Train what is left of the current epoch."""
        self.network.train()
        if self.step_in_epoch == 0:
            self.schedule.start_epoch(self.epoch)
            self.epoch_seconds = 0.0
            self.loss_sum, self.correct, self.images = 0.0, 0, 0

        chunk = _Chunk()
        self.clock.start()
        batches = self.train_loader.epoch(self.epoch, start_batch=self.step_in_epoch)
        if self.captured is not None:
            yield from self._replay_epoch(self.captured, batches)
            return
        for images, labels in batches:
            chunk.add(*self._step(images, labels), len(labels))
            self.step += 1
            self.step_in_epoch += 1
            if self._should_read(len(chunk.losses)):
                yield self._read(chunk, *chunk.read())
                chunk = _Chunk()
                self.clock.start()
        if chunk.losses:
            yield self._read(chunk, *chunk.read())

    def _step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, float]:
        """One optimizer step: the loss, how many images were classified correctly, and the learning rate."""
        self._freeze_what_is_due()
        if self.has_dropout:
            torch.manual_seed(_derived_seed(self.seed, "dropout", self.step))
        loss, correct = self._gradients(images, labels)
        learning_rate = float(self.optimizer.param_groups[0]["lr"])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.after_step()
        return loss, correct, learning_rate

    def _gradients(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the gradients of a batch: its loss, and how many images were classified correctly."""
        training = self.recipe.training
        with self.execution.autocast():
            outputs = self.forward(images)
        outputs = outputs.float()
        loss = F.cross_entropy(outputs, labels, label_smoothing=training.label_smoothing)
        torch.autograd.backward(loss)
        clip_gradients(training, self.network)
        return loss.detach(), (outputs.detach().argmax(1) == labels).sum()

    def _freeze_what_is_due(self) -> None:
        while self.frozen < len(self.freezes) and self.step >= self.freezes[self.frozen][0]:
            for parameter in self.freezes[self.frozen][1]:
                parameter.requires_grad = False
            self.frozen += 1

    def _should_read(self, unread_steps: int) -> bool:
        return self.execution.device_type == "cpu" or unread_steps == STEPS_BETWEEN_READS

    def _read(self, chunk: "_Chunk", losses: list[float], correct: int) -> Steps:
        """Tell what a chunk measured, once the host has it; the training clock stands still from here on."""
        seconds = self.clock.stop()
        first_step = self.step - len(losses) + 1
        for i, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise Diverged(first_step + i, chunk.learning_rates[i], loss)
            self.loss_sum += loss * chunk.sizes[i]
        self.last_loss = losses[-1]
        self.correct += correct
        self.images += sum(chunk.sizes)
        self.epoch_seconds += seconds
        self.train_seconds += seconds
        return Steps(
            epoch=self.epoch,
            first_step=first_step,
            losses=losses,
            learning_rates=chunk.learning_rates,
            images=sum(chunk.sizes),
            correct=correct,
            seconds=seconds,
            snapshot=self.snapshot,
        )

    def try_out(self) -> None:
        """Use as much memory as a whole run does; the second step has the optimizer's state beside it."""
        self.network.train()
        batches = itertools.chain(self.train_loader.epoch(1), self.train_loader.epoch(2))
        for images, labels in itertools.islice(batches, 2):
            self._step(images, labels)
        self.network.train(self.recipe.evaluation.mode == "batch_statistics")
        for loader in self.source_loaders.values():
            images, _ = next(loader.epoch(0))
            with torch.no_grad(), self.execution.autocast():
                self.forward(images)

    # --- captured steps --------------------------------------------------------------------------

    def _replay_epoch(self, captured: CapturedStep, batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[Steps]:
        """Train what is left of the current epoch by captured steps, a chunk of which the host waits for at a time."""
        while left := len(self.train_loader) - self.step_in_epoch:
            self.clock.start()
            steps = min(left, CAPTURED_STEPS_BETWEEN_READS)
            chunk = self._replay(captured, batches, steps)
            if steps == left and self.epoch < self.recipe.training.epochs:
                # The device still works on the steps above.
                self.train_loader.prepare(self.epoch + 1)
            yield self._read(chunk, *captured.read(steps))

    def _replay(self, captured: CapturedStep, batches: Iterator[tuple[Tensor, Tensor]], steps: int) -> "_Chunk":
        """Have the device do some steps; the host does not wait for it."""
        chunk = _Chunk()
        rates = self._rates_ahead(steps) if captured.updates else []
        captured.begin(rates)
        for images, labels in itertools.islice(batches, steps):
            self._freeze_what_is_due()
            if self.has_dropout:
                torch.manual_seed(_derived_seed(self.seed, "dropout", self.step))
            if not captured.updates:
                rates.append(self._rates())
            captured.step(images, labels, stage=self.frozen)
            if not captured.updates:
                self.schedule.after_step()
            self.step += 1
            self.step_in_epoch += 1
            chunk.sizes.append(len(labels))
        chunk.learning_rates = [groups[0] for groups in rates]
        return chunk

    def _rates(self) -> list[float]:
        """The learning rate of each group of the optimizer."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def _rates_ahead(self, steps: int) -> list[list[float]]:
        """The learning rates of the next steps; the schedule is then where it is behind them."""
        rates = []
        for _ in range(steps):
            rates.append(self._rates())
            self.schedule.after_step()
        return rates

    def _captured(self) -> CapturedStep | None:
        """Steps captured for every kind of batch to come; None where that fails, which costs nothing but time."""
        captured = CapturedStep(
            self.network,
            self.optimizer,
            updates=not moves_momentum(self.recipe),
            recorder=recorder_for(self.device),
            capacity=CAPTURED_STEPS_BETWEEN_READS,
        )
        noise = torch.Generator().manual_seed(0)
        self.network.train()
        try:
            with torch.random.fork_rng([self.device.index] if self.device.type == "cuda" else []):
                for frozen, count, size in self._kinds_of_steps():
                    images = torch.randn(count, 3, size, size, generator=noise).to(self.device)
                    images = images.contiguous(memory_format=self.execution.memory_format)
                    labels = torch.randint(self.recipe.num_outputs, (count,), generator=noise).to(self.device)
                    with self._frozen_meanwhile(frozen):
                        captured.capture(self._gradients, images, labels, stage=frozen)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
        else:
            return captured
        # What the broken capture and the error's frames hold is memory that the steps to come need.
        del captured
        free_what_is_unused()
        _log.warning(
            "steps of %s are not captured as CUDA graphs, so they may take longer: %s", self.recipe.model.name, reason
        )
        return None

    def _kinds_of_steps(self) -> list[tuple[int, int, int]]:
        """The different steps that are left: how many freezes are behind them, images, and height and width."""
        due = [step for step, _ in self.freezes]
        kinds: dict[tuple[int, int, int], None] = {}
        for step in range(self.step, self.recipe.training.epochs * len(self.train_loader)):
            epoch, batch = divmod(step, len(self.train_loader))
            shape = self.train_loader.batch_shape(FIRST_EPOCH + epoch, batch)
            kinds[bisect.bisect_right(due, step), *shape] = None
        return list(kinds)

    @contextlib.contextmanager
    def _frozen_meanwhile(self, count: int) -> Iterator[None]:
        """Freeze what the first so many freezes will, and thaw it again."""
        parameters = [parameter for _, several in self.freezes[:count] for parameter in several]
        for parameter in parameters:
            parameter.requires_grad = False
        try:
            yield
        finally:
            for parameter in parameters:
                parameter.requires_grad = True

    # --- evaluation ------------------------------------------------------------------------------

    def _evaluate(self, split: SplitName, epoch: int) -> Evaluated:
        """Measure a split both ways; one pass serves both where the source's way is the plain one."""
        recipe = self.recipe.evaluation
        self.is_evaluating = True
        is_final_test = split == "test" and epoch == self.recipe.training.epochs
        self.clock.start()
        if recipe.mode == "eval" and self.execution.graphs:
            # What the network says of an image does not depend on its batch, so that batches can be large.
            plain = source = self._in_batches_that_fit(
                lambda loader: measure(
                    self.forward,
                    loader,
                    self.execution,
                    mode="eval",
                    keep_probabilities=is_final_test,
                    batches_of=recipe.batch_size,
                ),
                split,
            )
        elif recipe.mode == "eval":
            plain_loader = self.source_loaders[split]
            if recipe.shuffle:
                plain_loader = self._plain_loader(split, recipe.batch_size)
            plain = source = measure(
                self.forward, plain_loader, self.execution, mode="eval", keep_probabilities=is_final_test
            )
        else:
            self._seed_dropout(f"evaluation/{split}", epoch)
            source = measure(self.forward, self.source_loaders[split], self.execution, mode=recipe.mode, epoch=epoch)
            plain = self._in_batches_that_fit(
                lambda loader: measure(
                    self.forward, loader, self.execution, mode="eval", keep_probabilities=is_final_test
                ),
                split,
            )
        seconds = self.clock.stop()
        augmented = None
        if (views := recipe.test_time_augmentation) is not None and epoch == self.recipe.training.epochs:
            self.clock.start()
            augmented = self._in_batches_that_fit(
                lambda loader: measure_augmented(self.forward, loader, self.execution, views), split
            )
            self.augmented_seconds += self.clock.stop()
        self.evaluation_seconds += seconds
        self.is_evaluating = False
        accuracy, loss = source.averaged(recipe.averaging)
        event = Evaluated(
            epoch=epoch,
            step=self.step,
            split=split,
            accuracy=accuracy,
            loss=loss,
            accuracy_plain=plain.accuracy_over_images,
            loss_plain=plain.loss_over_images,
            images=plain.images,
            seconds=seconds,
            accuracy_augmented=augmented,
        )
        if is_final_test:
            self.final_test = (event, plain)
        return event

    def _in_batches_that_fit(self, measurement: Callable[[ResidentLoader], Result], split: SplitName) -> Result:
        """A measurement that does not depend on the batches, in smaller ones where memory runs out."""
        while True:
            try:
                return measurement(self._plain_loader(split, self.plain_batch_size))
            except Exception as error:
                if self.plain_batch_size == 1 or not ran_out_of_memory(error):
                    raise
            self.plain_batch_size //= 2

    def _train_accuracy(self) -> float:
        """Accuracy on the training images as the source reports it, a fraction."""
        if self.recipe.training.train_accuracy == "running":
            return self.correct / self.images
        recipe = self.recipe.evaluation
        self._seed_dropout("evaluation/train", self.epoch)
        self.clock.start()
        epoch = SEPARATE_PASS_EPOCHS + self.epoch
        measured = measure(self.forward, self.train_loader, self.execution, mode=recipe.mode, epoch=epoch)
        self.evaluation_seconds += self.clock.stop()
        return measured.averaged(recipe.averaging)[0]

    def _seed_dropout(self, purpose: str, epoch: int) -> None:
        if self.has_dropout:
            torch.manual_seed(_derived_seed(self.seed, f"dropout/{purpose}", epoch))

    # --- setting up ------------------------------------------------------------------------------

    def _build_network(self) -> nn.Module:
        # Built on the CPU whatever the device, so that a seed gives the same weights everywhere.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_derived_seed(self.seed, "initialisation", 0))
            network = build_network(self.recipe)
        if isinstance(network, Whitened):
            whitening = self.recipe.model.whitening
            assert whitening is not None
            images = whitening_images(self.recipe, self.splits["train"], whitening.images)
            network.whitening.fit(images, eps=whitening.eps)
        return self.execution.placed(network)

    def _freezes(self) -> list[tuple[int, list[nn.Parameter]]]:
        """The parameters that are frozen during the run, with the number of steps after which, in this order."""
        freezes = [
            (math.ceil(freeze.after_epochs * self.recipe.steps_per_epoch), parameters)
            for freeze, parameters in frozen_parameters(self.recipe, self.network)
        ]
        return sorted(freezes, key=lambda freeze: freeze[0])

    def _compiled(self) -> nn.Module:
        """The network compiled, with the compilation done: it is set-up, not training."""
        compiled: nn.Module = torch.compile(self.network)  # type: ignore[assignment]  # torch types it as a function
        size = self.recipe.image_size
        last = self.recipe.data.num_train % self.recipe.training.batch_size
        before = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        for batch in {self.recipe.training.batch_size, last} - {0}:
            images = torch.randn(batch, 3, size, size, device=self.device)
            images = images.to(memory_format=self.execution.memory_format)
            with self.execution.autocast():
                outputs = compiled(images)
            outputs.float().sum().backward()
        self.network.zero_grad(set_to_none=True)
        self.network.load_state_dict(before)
        return compiled

    def _source_loader(self, split: SplitName) -> ResidentLoader:
        """A split in the batches and the order that the source evaluates it in."""
        evaluation = self.recipe.evaluation
        return evaluation_loader(
            self.recipe,
            self.splits[split],
            self.execution,
            batch_size=evaluation.batch_size,
            shuffled_by=(self.seed, f"evaluation/{split}") if evaluation.shuffle else None,
        )

    def _plain_loader(self, split: SplitName, batch_size: int) -> ResidentLoader:
        if (split, batch_size) not in self.plain_loaders:
            self.plain_loaders[split, batch_size] = evaluation_loader(
                self.recipe, self.splits[split], self.execution, batch_size=batch_size
            )
        return self.plain_loaders[split, batch_size]

    def _evaluated_splits(self) -> list[SplitName]:
        names: list[SplitName] = list(self.recipe.evaluation.splits)
        if self.recipe.evaluation.test_at_end and "test" not in names:
            names.append("test")
        return names

    # --- events and snapshots --------------------------------------------------------------------

    def _started_event(self) -> Started:
        size = self.recipe.image_size
        return Started(
            parameters=count_parameters(self.network),
            macs=count_macs(self.network, (3, size, size)),
            steps_per_epoch=self.recipe.steps_per_epoch,
            epochs=self.recipe.training.epochs,
            train_images=self.recipe.data.num_train,
            step=self.step,
            setup_seconds=self.setup_seconds,
            capture_seconds=self.capture_seconds,
            captures=len(self.captured) if self.captured is not None else 0,
        )

    def _end_epoch(self, accuracy: float) -> EpochEnded:
        mean = self.loss_sum / self.images
        ended = EpochEnded(
            epoch=self.epoch,
            step=self.step,
            loss=mean if self.recipe.training.reported_loss == "mean" else self.last_loss,
            loss_mean=mean,
            accuracy=accuracy,
            seconds=self.epoch_seconds,
            train_seconds=self.train_seconds,
            images_per_second=self.images / self.epoch_seconds,
            peak_memory_bytes=_peak_memory(self.device),
            snapshot=self.snapshot,
        )
        self.epoch += 1
        self.step_in_epoch = 0
        return ended

    def _finished_event(self) -> Finished:
        metrics: dict[str, float] = {}
        predictions = None
        if self.final_test is not None:
            test, plain = self.final_test
            metrics = {"test/accuracy": test.accuracy, "test/accuracy_plain": test.accuracy_plain}
            if test.accuracy_augmented is not None:
                metrics["test/accuracy_augmented"] = test.accuracy_augmented
            assert plain.probabilities is not None
            assert plain.labels is not None
            predictions = Predictions(split="test", labels=plain.labels, probabilities=plain.probabilities)
        # Whoever keeps the event, and with it the snapshot, has no use for the memory of the captures.
        self.captured = None
        return Finished(
            epoch=self.recipe.training.epochs,
            step=self.step,
            train_seconds=self.train_seconds,
            evaluation_seconds=self.evaluation_seconds,
            augmented_seconds=self.augmented_seconds,
            metrics=metrics,
            predictions=predictions,
            snapshot=self.snapshot,
        )

    def snapshot(self) -> State:
        """Everything that a run needs to go on behind the event that this came with.

        Order, augmentation and dropout are functions of the seed and the position, so no generator's state
        is in it.
        """
        return {
            "fingerprint": self.recipe.fingerprint,
            "seed": self.seed,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "position": {key: getattr(self, key) for key in _POSITION},
        }

    def _restore(self, state: State) -> None:
        for key, ours in (("fingerprint", self.recipe.fingerprint), ("seed", self.seed)):
            if state.get(key) != ours:
                raise UserError(
                    f"the checkpoint is of {key} {state.get(key)}, this run of {key} {ours}; "
                    "go on with the recipe and seed it was made with, or start anew"
                )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        # Without this mark torch warns of a scheduler that steps before its optimizer has.
        vars(self.optimizer)["_opt_called"] = True
        for key in _POSITION:
            setattr(self, key, state["position"][key])


_POSITION = (
    "epoch",
    "step_in_epoch",
    "step",
    "train_seconds",
    "epoch_seconds",
    "evaluation_seconds",
    "augmented_seconds",
    "loss_sum",
    "last_loss",
    "correct",
    "images",
)


class _Chunk:
    """What some steps measured, still on the device."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.correct: list[Tensor] = []
        self.learning_rates: list[float] = []
        self.sizes: list[int] = []

    def add(self, loss: Tensor, correct: Tensor, learning_rate: float, size: int) -> None:
        self.losses.append(loss)
        self.correct.append(correct)
        self.learning_rates.append(learning_rate)
        self.sizes.append(size)

    def read(self) -> tuple[list[float], int]:
        """Wait for the device: the loss of each step, and the images classified correctly in all."""
        return torch.stack(self.losses).cpu().tolist(), int(torch.stack(self.correct).sum().cpu())


def _derived_seed(seed: int, purpose: str, position: int) -> int:
    """A 63-bit seed of its own for each purpose and position, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
