"""A record check: each seed trained once, as it comes, with a baseline timed in between."""

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnet_bench.base.errors import UserError
from resnet_bench.execution.execution import Execution
from resnet_bench.judging.record import claim_of
from resnet_bench.measure.record_clock import time_steps
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.running.context import Context
from resnet_bench.running.events import Event, JobFinished, JobStarted, TaskEvent, update
from resnet_bench.running.job import Job, Task
from resnet_bench.running.launchers.launcher import Place, find_launcher
from resnet_bench.running.outcome import Outcome
from resnet_bench.running.prepare import resolve
from resnet_bench.running.record_bundle import (
    Attempt,
    BaselineTiming,
    Classes,
    RecordBundle,
    RecordPlan,
    accuracies,
    clock_seconds,
    now,
)
from resnet_bench.running.stopping import Stopped
from resnet_bench.tracking.environment import code_fingerprint, code_version, environment, package_version
from resnet_bench.training.events import Finished, Predictions


@dataclass(frozen=True)
class BaselineTimed(TaskEvent):
    """Some steps of the baseline were timed."""

    step_seconds: tuple[float, ...]


@dataclass(frozen=True)
class TimeBaseline:
    """A task that times some steps of a baseline, executed as the recipe that it is compared with."""

    baseline: Benchmark
    compared: Recipe

    @property
    def label(self) -> str:
        """What it is."""
        return f"baseline {self.baseline.name}"

    def events(self, context: Context) -> Generator[BaselineTimed, None, None]:
        """Time it."""
        dataset = context.open_images(self.baseline.recipe.data.facts)
        execution = resolve(self.compared, context.options)

        def stop() -> None:
            if context.stop:
                raise Stopped("killed", context.stop.reason or "stopped")

        yield BaselineTimed(tuple(time_steps(self.baseline.recipe, execution, dataset, stop)))


@dataclass(frozen=True)
class RecordCheck:
    """What a check measures.

    Attributes:
        benchmark: What claims the record.
        seeds: Fixed beforehand.
        baseline: A benchmark to compare with; it is timed over some steps before, between and after, not trained.
    """

    benchmark: Benchmark
    seeds: Sequence[int]
    baseline: Benchmark | None = None

    def plan(self, execution: Execution) -> RecordPlan:
        """Return what is named before the first run."""
        commit, dirty = code_version()
        return RecordPlan(
            benchmark=self.benchmark.name,
            recipe=self.benchmark.recipe.fingerprint,
            claim=claim_of(self.benchmark).text,
            seeds=tuple(self.seeds),
            baseline=self.baseline.name if self.baseline is not None else None,
            baseline_recipe=self.baseline.recipe.fingerprint if self.baseline is not None else None,
            device=execution.device_name,
            device_type=execution.device_type,
            execution=execution.asdict(),
            environment=environment(),
            code=code_fingerprint(),
            commit=f"{commit}, changed" if dirty else commit,
            version=package_version(),
            named=now(),
        )

    def create(self, folder: Path, execution: Execution) -> RecordBundle:
        """Make the bundle of a new check, which names the seeds; see :meth:`RecordBundle.create`."""
        return RecordBundle.create(folder, self.plan(execution), self.benchmark, self.baseline)

    def resume(self, folder: Path, execution: Execution) -> RecordBundle:
        """Open the bundle of an interrupted check; see :meth:`RecordBundle.resume`."""
        return RecordBundle.resume(folder, self.plan(execution), self.benchmark, self.baseline)

    def measure(
        self,
        context: Context,
        bundle: RecordBundle,
        *,
        without_predictions: bool = False,
        watch: Callable[[Task, Event], None] = lambda *_: None,
    ) -> Generator[Attempt, None, None]:
        """Train each seed once, one after another, and time the baseline in between.

        A seed whose run fails, whatever the error, has failed; it is not trained again. The bundle is complete when
        the generator ends, except where the device took no more work: then the check can be resumed.

        Args:
            context: Where and how.
            bundle: Keeps what is measured; seeds that it holds are not trained.
            without_predictions: Leave the predictions out of the bundle, by their hashes.
            watch: Called with each event of a seed or of the baseline.

        Yields:
            Each seed with how it ended.

        Raises:
            UserError: The benchmark has no record to check, the images are not the published ones, or the baseline
                cannot be trained.
            Stopped: ``context.stop`` was set.
        """
        claim_of(self.benchmark)
        dataset = context.open_images(self.benchmark.recipe.data.facts)
        if dataset.generated or not dataset.official:
            raise UserError(
                f"a record needs the published images of {dataset.name}; {dataset.location} holds others "
                "(resnet-bench data prepare fetches them)"
            )
        yield from bundle.record.attempts
        unstarted = yield from self._train(context, bundle, watch)
        if unstarted is None:
            bundle.finish(without_predictions=without_predictions)
            return
        left = [seed for seed in self.seeds if seed not in bundle.attempts]
        # They never ran, so that they may later: the bundle on disk does not have them.
        attempts = (*bundle.record.attempts, *(Attempt(seed=seed, failure=unstarted[:300]) for seed in left))
        bundle.record = bundle.record.model_copy(update={"attempts": attempts})
        yield from attempts[-len(left) :] if left else ()

    def tasks_left(self, bundle: RecordBundle) -> int:
        """Count the seeds and timings of the baseline that are left."""
        timings = 0 if self.baseline is None else 2 + (len(self.seeds) > 1) - len(bundle.record.baseline)
        return sum(seed not in bundle.attempts for seed in self.seeds) + timings

    def _train(
        self, context: Context, bundle: RecordBundle, watch: Callable[[Task, Event], None]
    ) -> Generator[Attempt, None, str | None]:
        """Returns why seeds were not started, where the device took no more work.

        Raises:
            Stopped: It was asked to stop before all tasks were done, within one of them or between two.
        """
        outcome, predictions, unstarted = Outcome(), None, None
        launched = find_launcher("inline", [Place()]).run(self._tasks(bundle), context)
        with contextlib.closing(launched) as events:
            for task, event in events:
                watch(task, event)
                if isinstance(event, JobStarted) and isinstance(task, Job):
                    bundle.update(under_way=task.seed)
                if isinstance(event, BaselineTimed):
                    timing = BaselineTiming(after_seeds=len(bundle.record.attempts), step_seconds=event.step_seconds)
                    bundle.update(baseline=(*bundle.record.baseline, timing))
                if isinstance(event, Finished):
                    predictions = event.predictions
                update(outcome, event)
                if not isinstance(event, JobFinished):
                    continue
                if event.interrupted:
                    raise Stopped("killed", context.stop.reason or "stopped")
                if isinstance(task, Job):
                    attempt = _attempt(task.seed, outcome, predictions, bundle)
                    bundle.update(attempts=(*bundle.record.attempts, attempt), under_way=None)
                    yield attempt
                elif event.failure is not None:
                    raise UserError(f"{task.label}: {event.failure}")
                outcome, predictions = Outcome(), None
                if event.device_problem:
                    unstarted = f"not started: {event.device_problem}"
        # A launcher that is asked to stop between two tasks ends without a word.
        if unstarted is None and self.tasks_left(bundle) > 0:
            raise Stopped("killed", context.stop.reason or "stopped")
        return unstarted

    def _tasks(self, bundle: RecordBundle) -> Iterator[Task]:
        """The seeds that are left, with the baseline before the first, at half of them and after the last."""
        for place, seed in enumerate(self.seeds):
            if seed in bundle.attempts:
                continue
            timings_due = 1 + (place >= len(self.seeds) // 2 > 0)
            if self.baseline is not None and len(bundle.record.baseline) < timings_due:
                yield TimeBaseline(self.baseline, self.benchmark.recipe)
            yield Job(
                benchmark=self.benchmark,
                recipe=self.benchmark.recipe,
                profile="full",
                seed=seed,
                force=True,
                planned=tuple(self.seeds),
                warm_up=True,
            )
        if self.baseline is not None:
            yield TimeBaseline(self.baseline, self.benchmark.recipe)


def _attempt(seed: int, outcome: Outcome, predictions: Predictions | None, bundle: RecordBundle) -> Attempt:
    """Return how a seed ended; its predictions are kept in the bundle, and its accuracies are counted from them."""
    found: dict[str, float] = {}
    failure = outcome.failure
    if failure is None and predictions is None:
        failure = "it ended without predictions of the test images"
    elif failure is None and predictions is not None:
        labels, kinds = predictions.labels.astype(np.uint8), _kinds(predictions, with_tta=bundle.claim.is_tta)
        found = accuracies(labels, kinds)
        bundle.keep_predictions(seed, labels, kinds)
    attempt = Attempt(
        seed=seed,
        setup_seconds=outcome.setup_seconds,
        train_seconds=outcome.train_seconds or 0.0,
        tta_seconds=outcome.tta_seconds,
        warm_up_seconds=outcome.warm_up_seconds,
        joules=outcome.joules,
        failure=None if failure is None else failure[:300],
        **found,
    )
    return attempt.model_copy(update={"seconds": clock_seconds(attempt, bundle.claim)})


def _kinds(predictions: Predictions, *, with_tta: bool) -> list[Classes]:
    """Return what a finished run predicts: standard and, for a TTA claim, with TTA."""
    kinds = [predictions.probabilities.argmax(axis=1)]
    if with_tta and predictions.predicted_tta is not None:
        kinds.append(predictions.predicted_tta)
    # Outputs beyond the classes are wrong, whatever they are; no dataset has 256 classes.
    return [np.minimum(kind, 255).astype(np.uint8) for kind in kinds]
