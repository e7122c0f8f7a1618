"""Whether a recipe holds the accuracy that it claims, and in how many seconds: the protocol of docs/records.md."""

import contextlib
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnet_bench.base.describe_error import describe_error
from resnet_bench.base.errors import UserError
from resnet_bench.base.files import write_atomically
from resnet_bench.data.dataset import Dataset, generate_dataset
from resnet_bench.execution.execution import Execution
from resnet_bench.judging.intervals import Interval, mean_interval
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.changes import cut_short
from resnet_bench.recipe.claims import Claim
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.running.run import RunRequest, run
from resnet_bench.running.stopping import Stop
from resnet_bench.tracking.environment import code_fingerprint, environment
from resnet_bench.tracking.store import Store
from resnet_bench.training.errors import TrainingError
from resnet_bench.training.events import EpochEnded, Finished, Started, Steps
from resnet_bench.training.loop import train

MIN_SEEDS = {"cpu": 10, "cuda": 200, "mps": 10}
"""Fewer say nothing of tenths of a point."""

BASELINE_STEPS = 12
"""Steps that a baseline is timed over at a time; the first quarter of them is warm-up."""

WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Attempt:
    """One seed; seconds are those of the record's clock."""

    seed: int
    accuracy: float | None = None
    """In percent, by the claim's metric; None where the run failed."""
    plain: float | None = None
    setup_seconds: float = 0.0
    """From images in host memory to the first step: building, whitening, moving."""
    train_seconds: float = 0.0
    augmented_seconds: float = 0.0
    """Test-time augmentation; it counts where the claim is about it."""
    failure: str | None = None

    @property
    def seconds(self) -> float:
        """What the clock says."""
        return self.setup_seconds + self.train_seconds + self.augmented_seconds


@dataclass(frozen=True)
class Record:
    """What was measured for one recipe on one machine."""

    benchmark: Benchmark
    claim: Claim
    execution: Execution
    attempts: tuple[Attempt, ...]
    warm_up_seconds: float
    """On generated images, outside the clock."""
    baseline: str | None = None
    baseline_seconds: tuple[float, ...] = field(default=())
    """For each time that the baseline was timed: the seconds of its whole training at that speed."""

    @property
    def accuracies(self) -> list[float]:
        """Of the runs that came to their end, in percent."""
        return [attempt.accuracy for attempt in self.attempts if attempt.accuracy is not None]

    @property
    def failures(self) -> list[Attempt]:
        """Runs that did not come to their end; they are kept, and there is no record with one."""
        return [attempt for attempt in self.attempts if attempt.accuracy is None]

    @property
    def interval(self) -> Interval | None:
        """90% interval of the mean, whose lower end is that of the one-sided 95% interval."""
        return mean_interval(self.accuracies, confidence=0.90)

    @property
    def target(self) -> float:
        """What the lower end has to reach, in percent."""
        assert self.claim.at_least is not None
        return self.claim.at_least

    @property
    def enough(self) -> bool:
        """Whether there are as many seeds as the protocol asks for."""
        return len(self.attempts) >= MIN_SEEDS[self.execution.device_type]

    @property
    def holds(self) -> bool:
        """Whether the claim holds by the protocol."""
        interval = self.interval
        return self.enough and not self.failures and interval is not None and interval.low >= self.target

    @property
    def seconds(self) -> list[float]:
        """The clock of each run that came to its end."""
        return [attempt.seconds for attempt in self.attempts if attempt.accuracy is not None]

    @property
    def ratio(self) -> float | None:
        """How many times as long the baseline takes."""
        if not self.baseline_seconds or not self.seconds:
            return None
        return statistics.median(self.baseline_seconds) / statistics.median(self.seconds)

    @property
    def sentence(self) -> str:
        """The verdict, for a person."""
        if self.failures:
            return f"no record: {len(self.failures)} of {len(self.attempts)} runs failed"
        interval = self.interval
        if interval is None:
            return "no record: one seed has no interval"
        found = (
            f"mean {statistics.fmean(self.accuracies):.3f}% over {len(self.accuracies)} seeds, the lower end of the "
            f"one-sided 95% interval is {interval.low:.3f}%, the target {self.target:g}%"
        )
        if not self.enough:
            return f"not judged, {MIN_SEEDS[self.execution.device_type]} seeds are the least: {found}"
        return f"{'the record holds' if self.holds else 'no record'}: {found}"

    def asdict(self) -> dict[str, Any]:
        """Everything, as plain values."""
        interval = self.interval
        return {
            "benchmark": self.benchmark.name,
            "fingerprint": self.benchmark.recipe.fingerprint,
            "claim": self.claim.text,
            "holds": self.holds,
            "sentence": self.sentence,
            "mean": statistics.fmean(self.accuracies) if self.accuracies else None,
            "standard_deviation": statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None,
            "lower_end": interval.low if interval else None,
            "median_seconds": statistics.median(self.seconds) if self.seconds else None,
            "device": self.execution.device_name,
            "execution": self.execution.asdict(),
            "warm_up_seconds": self.warm_up_seconds,
            "baseline": self.baseline,
            "baseline_seconds": list(self.baseline_seconds),
            "ratio": self.ratio,
            "attempts": [{**vars(attempt), "seconds": attempt.seconds} for attempt in self.attempts],
        }


def claim_of(benchmark: Benchmark) -> Claim:
    """The claim that a record is about.

    Raises:
        UserError: The benchmark claims no bound on the test set, or its recipe breaks the protocol.
    """
    claim = next((claim for claim in benchmark.claims if claim.split == "test" and claim.at_least is not None), None)
    if claim is None:
        raise UserError(
            f"benchmark {benchmark.name} has no record to check: it needs a claim such as "
            '[[claims]] at_least = 90.0, metric = "accuracy_tta"'
        )
    for problem in _breaches(benchmark.recipe, claim):
        raise UserError(f"benchmark {benchmark.name} cannot hold a record: {problem}")
    return claim


def _breaches(recipe: Recipe, claim: Claim) -> Iterator[str]:
    data, evaluation = recipe.data, recipe.evaluation
    if claim.selection != "last":
        yield f'selection = "{claim.selection}"; the protocol takes the last epoch, not a better one'
    if evaluation.mode != "eval":
        yield 'evaluation.mode = "batch_statistics" uses statistics of the test images; write "eval"'
    if data.test_images is not None:
        yield "data.test_images leaves test images out; all 10,000 count"
    if not evaluation.test_at_end and "test" not in evaluation.splits:
        yield "the test set is never evaluated; write evaluation.test_at_end = true"
    if recipe.model.options.get("pretrained"):
        yield "model.options.pretrained brings weights that were trained elsewhere"


@dataclass
class RecordProgress:
    """What a check has measured so far, in a file that is written anew after each seed.

    Attributes:
        path: The file; it is there while a check is under way or was interrupted.
        what: What is checked with what, as plain values; a check goes on with the same only.
        attempts: Seeds that are done, in their order.
        baseline_seconds: The baseline's timings so far.
    """

    path: Path
    what: Mapping[str, Any]
    attempts: list[Attempt] = field(default_factory=list)
    baseline_seconds: list[float] = field(default_factory=list)

    def keep(self) -> None:
        """Write the file."""
        table = {
            "what": self.what,
            "attempts": [vars(attempt) for attempt in self.attempts],
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
            attempts = [Attempt(**attempt) for attempt in table["attempts"]]
            baseline_seconds = [float(seconds) for seconds in table["baseline_seconds"]]
        except FileNotFoundError:
            raise UserError(
                f"--resume: {self.path} is not there, no check was interrupted; leave --resume out"
            ) from None
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"--resume: {self.path} cannot be read; leave --resume out to begin anew") from None
        # As the file has it: JSON knows no tuples.
        now = json.loads(json.dumps(self.what))
        for key in now:
            if what.get(key) != now[key]:
                raise UserError(
                    f"--resume: the check in {self.path} was of another {key} ({what.get(key)} then, {now[key]} "
                    "now), and half a check is none; leave --resume out to begin anew"
                )
        self.attempts, self.baseline_seconds = attempts, baseline_seconds

    def forget(self) -> None:
        """Delete the file: the check came to its end."""
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Check:
    """What a check measures.

    Attributes:
        benchmark: What claims the record.
        execution: How it is run.
        seeds: Fixed beforehand.
        runs_folder: Where the runs keep their journals, and the check its progress.
        baseline: A recipe to compare with; it is timed over some steps before, between and after, not trained.
    """

    benchmark: Benchmark
    execution: Execution
    seeds: Sequence[int]
    runs_folder: Path
    baseline: Benchmark | None = None

    def new_progress(self) -> RecordProgress:
        """Where the check keeps what it has measured; nothing is read or written yet."""
        machine = environment()
        what = {
            "recipe": self.benchmark.recipe.fingerprint,
            "claim": claim_of(self.benchmark).text,
            "seeds": list(self.seeds),
            "baseline": self.baseline.recipe.fingerprint if self.baseline is not None else None,
            "execution": self.execution.asdict(),
            "code": code_fingerprint(),
            "processor": machine["cpu"],
            "GPU": machine["gpu"],
            "torch": machine["torch"],
        }
        return RecordProgress(self.runs_folder / f"record-{self.benchmark.name}.json", what)


def measure(
    check: Check, dataset: Dataset, store: Store, *, stop: Stop, progress: RecordProgress | None = None
) -> Iterator[Attempt | Record]:
    """Run a recipe by the protocol: each seed once, as it comes, and a baseline timed in between.

    Args:
        check: What is measured.
        dataset: The published images.
        store: Where the runs are tracked.
        stop: Set by whoever wants to stop.
        progress: Keeps what is measured; seeds that it holds already are not trained again.

    Yields:
        An ``Attempt`` for each seed, and at last the ``Record``.

    Raises:
        UserError: The benchmark has no record to check, or the images are not the published ones.
        Stopped: ``stop`` was set.
    """
    benchmark, execution, baseline = check.benchmark, check.execution, check.baseline
    claim = claim_of(benchmark)
    if dataset.generated or not dataset.official:
        raise UserError(
            f"a record needs the published images of {dataset.name}; {dataset.location} holds others "
            "(resnet-bench data prepare fetches them)"
        )
    progress = progress or check.new_progress()
    warm_up_seconds = warm_up(benchmark.recipe, execution)
    for place, seed in enumerate(check.seeds):
        if place == len(progress.attempts):
            timings_due = 1 + (place >= len(check.seeds) // 2 > 0)
            if baseline is not None and len(progress.baseline_seconds) < timings_due:
                progress.baseline_seconds.append(whole_training_seconds(baseline.recipe, execution, dataset))
                progress.keep()
            progress.attempts.append(_attempt(check, claim, dataset, store, seed, stop))
            progress.keep()
        yield progress.attempts[place]
    timings = list(progress.baseline_seconds)
    if baseline is not None:
        timings.append(whole_training_seconds(baseline.recipe, execution, dataset))
    name = baseline.name if baseline is not None else None
    yield Record(benchmark, claim, execution, tuple(progress.attempts), warm_up_seconds, name, tuple(timings))
    progress.forget()


def warm_up(recipe: Recipe, execution: Execution) -> float:
    """Train some steps on generated images at each size, so that no clock sees compilation; returns the seconds."""
    seconds = 0.0
    for size in recipe.image_sizes:
        short = cut_short(recipe, WARM_UP_STEPS, epochs=1, image_size=size)
        generated = generate_dataset(
            recipe.data.dataset, train_size=short.data.available_images, test_size=short.data.num_test
        )
        for event in train(short, execution, 0, generated):
            if isinstance(event, Started):
                seconds += event.setup_seconds
            elif isinstance(event, Finished):
                seconds += event.train_seconds
    return seconds


def whole_training_seconds(recipe: Recipe, execution: Execution, dataset: Dataset) -> float:
    """How long the whole training of a recipe would take, from the median of some of its steps."""
    seconds: list[float] = []
    with contextlib.closing(train(recipe, execution, 0, dataset)) as events:
        for event in events:
            if isinstance(event, Steps):
                seconds.append(event.seconds / len(event.losses))
            if isinstance(event, EpochEnded) or len(seconds) >= BASELINE_STEPS:
                break
    warm = seconds[len(seconds) // 4 :]
    return statistics.median(warm) * recipe.steps_per_epoch * recipe.training.epochs


def _attempt(check: Check, claim: Claim, dataset: Dataset, store: Store, seed: int, stop: Stop) -> Attempt:
    request = RunRequest(check.benchmark, check.benchmark.recipe, "full", seed, check.execution)
    setup = 0.0
    finished: Finished | None = None
    try:
        for event in run(request, dataset, store, runs_folder=check.runs_folder, stop=stop):
            if isinstance(event, Started):
                setup = event.setup_seconds
            elif isinstance(event, Finished):
                finished = event
    except (TrainingError, RuntimeError) as error:
        return Attempt(seed, failure=describe_error(error))
    assert finished is not None
    return Attempt(
        seed=seed,
        accuracy=_percent(finished.metrics, f"test/{claim.metric}"),
        plain=_percent(finished.metrics, "test/accuracy_standard"),
        setup_seconds=setup,
        train_seconds=finished.train_seconds,
        augmented_seconds=finished.tta_seconds if claim.is_tta else 0.0,
    )


def _percent(metrics: Mapping[str, float], key: str) -> float | None:
    value = metrics.get(key)
    return None if value is None else 100 * value
