"""A record check: each seed trained once, as it comes, with a baseline timed in between."""

import contextlib
import json
import statistics
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from resnet_bench.base.errors import UserError
from resnet_bench.base.files import write_atomically
from resnet_bench.execution.execution import Execution
from resnet_bench.judging.record import RecordVerdict, claim_of, judge_record
from resnet_bench.measure.record_clock import whole_training_seconds
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.claims import Claim
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.running.context import Context
from resnet_bench.running.events import Event, JobFinished, TaskEvent
from resnet_bench.running.job import Job, Task
from resnet_bench.running.launchers.launcher import Place, find_launcher
from resnet_bench.running.outcome import Outcome
from resnet_bench.running.prepare import resolve
from resnet_bench.running.stopping import Stopped
from resnet_bench.tracking.environment import code_fingerprint, environment

# --- what a check finds ---------------------------------------------------------------------------


def record_accuracy(outcome: Outcome, claim: Claim) -> float | None:
    """Return what a claim is about, in percent; None where the run failed."""
    accuracies = outcome.accuracies(claim.metric)
    return 100 * accuracies[max(accuracies)] if accuracies and outcome.failure is None else None


def clock_seconds(outcome: Outcome, claim: Claim) -> float:
    """Return the seconds of the record's clock: set-up, training, and the test-time augmentation that is claimed."""
    augmented = outcome.tta_seconds if claim.metric != "accuracy" else 0.0
    return outcome.setup_seconds + (outcome.train_seconds or 0.0) + augmented


@dataclass(frozen=True)
class Record:
    """What was measured for one recipe on one machine.

    Attributes:
        benchmark: What claims the record.
        execution: How it was run.
        outcomes: Of every seed that was named beforehand.
        baseline: Name of the benchmark that was timed in between.
        baseline_seconds: For each time that it was timed: the seconds of its whole training at that speed.
    """

    benchmark: Benchmark
    execution: Execution
    outcomes: Mapping[int, Outcome]
    baseline: str | None = None
    baseline_seconds: tuple[float, ...] = ()

    @property
    def claim(self) -> Claim:
        """What the record is about."""
        return claim_of(self.benchmark)

    @property
    def verdict(self) -> RecordVerdict:
        """Whether it holds."""
        accuracies = [record_accuracy(outcome, self.claim) for outcome in self.outcomes.values()]
        return judge_record(self.claim, accuracies, self.execution.device_type)

    @property
    def seconds(self) -> list[float]:
        """The clock of each run that was trained to its end."""
        finished = [outcome for outcome in self.outcomes.values() if outcome.failure is None]
        return [clock_seconds(outcome, self.claim) for outcome in finished]

    @property
    def warm_up_seconds(self) -> float:
        """Of the first seed, on generated images, outside the clock."""
        return next((outcome.warm_up_seconds for outcome in self.outcomes.values() if outcome.warm_up_seconds), 0.0)

    @property
    def speedup(self) -> float | None:
        """How many times as long the baseline takes."""
        if not self.baseline_seconds or not self.seconds:
            return None
        return statistics.median(self.baseline_seconds) / statistics.median(self.seconds)

    def asdict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        verdict = self.verdict
        return {
            "benchmark": self.benchmark.name,
            "fingerprint": self.benchmark.recipe.fingerprint,
            "claim": self.claim.text,
            "holds": verdict.holds,
            "sentence": verdict.sentence,
            "mean": statistics.fmean(verdict.finished) if verdict.finished else None,
            "standard_deviation": statistics.stdev(verdict.finished) if len(verdict.finished) > 1 else None,
            "lower_end": verdict.interval.low if verdict.interval else None,
            "median_seconds": statistics.median(self.seconds) if self.seconds else None,
            "device": self.execution.device_name,
            "execution": self.execution.asdict(),
            "warm_up_seconds": self.warm_up_seconds,
            "baseline": self.baseline,
            "baseline_seconds": list(self.baseline_seconds),
            "ratio": self.speedup,
            "attempts": [self._attempt(seed, outcome) for seed, outcome in self.outcomes.items()],
        }

    def _attempt(self, seed: int, outcome: Outcome) -> dict[str, Any]:
        standard = outcome.accuracy_standard
        return {
            "seed": seed,
            "accuracy": record_accuracy(outcome, self.claim),
            "standard": None if standard is None else 100 * standard,
            "setup_seconds": outcome.setup_seconds,
            "train_seconds": outcome.train_seconds or 0.0,
            "tta_seconds": outcome.tta_seconds,
            "seconds": clock_seconds(outcome, self.claim),
            "url": outcome.url,
            "failure": outcome.failure,
        }


# --- what a check has measured so far -------------------------------------------------------------


@dataclass
class RecordProgress:
    """What a check has measured so far, in a file that is written after each seed.

    Attributes:
        path: The file; it is there while a check is under way or was interrupted.
        what: What is checked with what, as plain values; a check is resumed with the same only.
        outcomes: Of the seeds that have ended, however they ended.
        under_way: The seed that is trained at the moment.
        baseline_seconds: The baseline's timings so far.
    """

    path: Path
    what: Mapping[str, Any]
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    under_way: int | None = None
    baseline_seconds: list[float] = field(default_factory=list)

    def keep(self) -> None:
        """Write the file."""
        table = {
            "what": self.what,
            "outcomes": {seed: asdict(outcome) for seed, outcome in self.outcomes.items()},
            "under_way": self.under_way,
            "baseline_seconds": self.baseline_seconds,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, json.dumps(table, indent=2).encode())

    def read(self) -> None:
        """Take over what the file holds.

        Raises:
            UserError: There is no file, it is damaged, or something else was checked than now.
        """
        try:
            table = json.loads(self.path.read_bytes())
            what = dict(table["what"])
            outcomes = {int(seed): _outcome(row) for seed, row in table["outcomes"].items()}
            under_way = None if table["under_way"] is None else int(table["under_way"])
            baseline_seconds = [float(seconds) for seconds in table["baseline_seconds"]]
        except FileNotFoundError:
            raise UserError(
                f"--resume: {self.path} is not there, no check was interrupted; leave --resume out"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"--resume: {self.path} cannot be read; leave --resume out to start from scratch") from None
        # As the file has it: JSON knows no tuples.
        now = json.loads(json.dumps(self.what))
        for key in now:
            if what.get(key) != now[key]:
                raise UserError(
                    f"--resume: the check in {self.path} was of another {key} ({what.get(key)} then, {now[key]} "
                    "now), and half a check is none; leave --resume out to start from scratch"
                )
        self.outcomes, self.under_way, self.baseline_seconds = outcomes, under_way, baseline_seconds

    def forget(self) -> None:
        """Delete the file: the check has ended."""
        self.path.unlink(missing_ok=True)


def _outcome(row: Mapping[str, Any]) -> Outcome:
    values = {each.name: row[each.name] for each in fields(Outcome)}
    by_epoch = {int(epoch): float(value) for epoch, value in values["accuracy_by_epoch"].items()}
    return Outcome(**{**values, "accuracy_by_epoch": by_epoch})


# --- the check ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BaselineTimed(TaskEvent):
    """The whole training of the baseline would take so long."""

    seconds: float


@dataclass(frozen=True)
class BaselineTiming:
    """A task that times some steps of a baseline, executed as the recipe that it is compared with."""

    baseline: Benchmark
    compared: Recipe

    @property
    def label(self) -> str:
        """What it is."""
        return f"baseline {self.baseline.name}"

    def events(self, context: Context) -> Generator[BaselineTimed, None, None]:
        """Time it."""
        dataset = context.open_images(self.baseline.recipe.data.dataset)
        execution = resolve(self.compared, context.options)

        def stop() -> None:
            if context.stop:
                raise Stopped("killed", context.stop.reason or "stopped")

        yield BaselineTimed(whole_training_seconds(self.baseline.recipe, execution, dataset, stop))


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

    def new_progress(self, execution: Execution, run_dir: Path) -> RecordProgress:
        """Return where the check keeps what it has measured; nothing is read or written yet."""
        machine = environment()
        what = {
            "recipe": self.benchmark.recipe.fingerprint,
            "claim": claim_of(self.benchmark).text,
            "seeds": list(self.seeds),
            "baseline": self.baseline.recipe.fingerprint if self.baseline is not None else None,
            "execution": execution.asdict(),
            "code": code_fingerprint(),
            "processor": machine["cpu"],
            "GPU": machine["gpu"],
            "torch": machine["torch"],
        }
        return RecordProgress(run_dir / f"record-{self.benchmark.name}.json", what)

    def measure(
        self, context: Context, progress: RecordProgress, watch: Callable[[Task, Event], None] = lambda *_: None
    ) -> Generator[tuple[int, Outcome] | Record, None, None]:
        """Train each seed once, one after another, and time the baseline in between.

        A seed whose run fails, whatever the error, has failed; it is not trained again.

        Args:
            context: Where and how.
            progress: Keeps what is measured; seeds that it holds are not trained.
            watch: Called with each event of a seed or of the baseline.

        Yields:
            Each seed with its outcome, and at last the ``Record``.

        Raises:
            UserError: The benchmark has no record to check, the images are not the published ones, or the baseline
                cannot be trained.
            Stopped: ``context.stop`` was set.
        """
        claim_of(self.benchmark)
        dataset = context.open_images(self.benchmark.recipe.data.dataset)
        if dataset.generated or not dataset.official:
            raise UserError(
                f"a record needs the published images of {dataset.name}; {dataset.location} holds others "
                "(resnet-bench data prepare fetches them)"
            )
        execution = resolve(self.benchmark.recipe, context.options)
        yield from progress.outcomes.items()
        unstarted = yield from self._train(context, progress, watch)
        outcomes = {seed: progress.outcomes.get(seed, Outcome(failure=unstarted)) for seed in self.seeds}
        name = self.baseline.name if self.baseline is not None else None
        yield Record(self.benchmark, execution, outcomes, name, tuple(progress.baseline_seconds))
        if unstarted is None:
            progress.forget()

    def tasks_left(self, progress: RecordProgress) -> int:
        """Count the seeds and timings of the baseline that are left."""
        timings = 0 if self.baseline is None else 2 + (len(self.seeds) > 1) - len(progress.baseline_seconds)
        return sum(seed not in progress.outcomes for seed in self.seeds) + timings

    def _train(
        self, context: Context, progress: RecordProgress, watch: Callable[[Task, Event], None]
    ) -> Generator[tuple[int, Outcome], None, str | None]:
        """Returns why seeds were not started, where some were not."""
        outcome, unstarted = Outcome(), None
        launched = find_launcher("inline", [Place()]).run(self._tasks(progress), context)
        with contextlib.closing(launched) as events:
            for task, event in events:
                watch(task, event)
                if isinstance(event, BaselineTimed):
                    progress.baseline_seconds.append(event.seconds)
                    progress.keep()
                outcome.take(event)
                if not isinstance(event, JobFinished):
                    continue
                if event.interrupted:
                    raise Stopped("killed", context.stop.reason or "stopped")
                if isinstance(task, Job):
                    progress.outcomes[task.seed], progress.under_way = outcome, None
                    progress.keep()
                    yield task.seed, outcome
                elif event.failure is not None:
                    raise UserError(f"{task.label}: {event.failure}")
                outcome = Outcome()
                if event.device_problem:
                    unstarted = f"not started: {event.device_problem}"
        return unstarted

    def _tasks(self, progress: RecordProgress) -> Iterator[Task]:
        """The seeds that are left, with the baseline before the first, at half of them and after the last."""
        for place, seed in enumerate(self.seeds):
            if seed in progress.outcomes:
                continue
            timings_due = 1 + (place >= len(self.seeds) // 2 > 0)
            if self.baseline is not None and len(progress.baseline_seconds) < timings_due:
                yield BaselineTiming(self.baseline, self.benchmark.recipe)
            progress.under_way = seed
            progress.keep()
            yield Job(
                benchmark=self.benchmark,
                recipe=self.benchmark.recipe,
                profile="full",
                seed=seed,
                force=True,
                warm_up=True,
            )
        if self.baseline is not None:
            yield BaselineTiming(self.baseline, self.benchmark.recipe)
