"""What a record check trains and times, what its clock covers, and what becomes of a seed that fails."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from resnet_bench.base.errors import UserError
from resnet_bench.cli.app import app
from resnet_bench.data.dataset import Dataset, ImageLocation, generate_dataset
from resnet_bench.execution.execution import Execution
from resnet_bench.execution.options import ExecutionOptions
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.datasets import DATASETS
from resnet_bench.running.context import Context
from resnet_bench.running.events import Opened
from resnet_bench.running.outcome import Outcome
from resnet_bench.running.prepare import Prepared, resolve
from resnet_bench.running.record_check import Record, RecordCheck, RecordProgress, clock_seconds
from resnet_bench.running.stopping import Stop, Stopped
from resnet_bench.tracking.store import Store
from resnet_bench.training.events import EpochEnded, Evaluated
from tests.judging.test_record import fast

CPU = Execution.resolve("cpu", "fp32", threads=1)
FAST = fast()


def finished(accuracy: float, seconds: float = 50.0) -> Outcome:
    return Outcome(
        epochs=2,
        accuracy_by_epoch={2: accuracy - 0.01},
        accuracy_standard=accuracy - 0.01,
        accuracy_tta=accuracy,
        setup_seconds=1.0,
        train_seconds=seconds,
        tta_seconds=2.0,
    )


# --- the clock ------------------------------------------------------------------------------------


def test_the_clock_covers_set_up_training_and_the_augmented_test() -> None:
    outcome = finished(0.9)
    assert clock_seconds(outcome, FAST.claims[0]) == 53.0
    assert clock_seconds(outcome, fast(claims=[{"at_least": 5.0}]).claims[0]) == 51.0


def test_the_speedup_is_that_of_the_medians() -> None:
    outcomes = {seed: finished(0.905, 47.0 + seed) for seed in range(9)}
    assert Record(FAST, CPU, outcomes, "slow", (500.0, 540.0, 9000.0)).speedup == pytest.approx(10.0)
    assert Record(FAST, CPU, outcomes).speedup is None


def test_a_failed_seed_has_no_accuracy_and_no_time() -> None:
    failed = replace(finished(0.9), failure="the loss became nan")
    record = Record(FAST, CPU, {0: finished(0.9), 1: failed})
    assert record.verdict.accuracies == (pytest.approx(90.0), None)
    assert record.seconds == [53.0]
    assert [attempt["failure"] for attempt in record.asdict()["attempts"]] == [None, "the loss became nan"]


# --- what is kept ---------------------------------------------------------------------------------


def kept(
    folder: Path, seeds: range = range(3), baseline: Benchmark | None = None, execution: Execution = CPU
) -> RecordProgress:
    return RecordCheck(FAST, seeds, baseline).new_progress(execution, folder)


def test_progress_is_read_as_it_was_kept(tmp_path: Path) -> None:
    written = kept(tmp_path)
    written.outcomes = {0: finished(0.901), 1: Outcome(failure="the loss became nan")}
    written.under_way = 2
    written.baseline_seconds.append(700.5)
    written.keep()
    read = kept(tmp_path)
    read.read()
    assert read == written


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seeds": range(4)}, "another seeds ([0, 1, 2] then, [0, 1, 2, 3] now)"),
        ({"baseline": FAST}, "another baseline (None then, "),
        ({"execution": Execution.resolve("cpu", "bf16", threads=1)}, "another execution ("),
    ],
)
def test_half_a_check_is_not_finished_as_another(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    kept(tmp_path).keep()
    with pytest.raises(UserError) as raised:
        kept(tmp_path, **changes).read()
    assert sentence in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"what": {}, "outcomes": {"0": {"seconds": 1}}}'])
def test_damaged_progress_is_refused_in_a_sentence(content: bytes, tmp_path: Path) -> None:
    progress = kept(tmp_path)
    progress.path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read; leave --resume out to start from scratch"):
        progress.read()


def test_without_an_interrupted_check_there_is_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not there, no check was interrupted"):
        kept(tmp_path).read()


# --- a check, its runs replaced -------------------------------------------------------------------


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Images that pass for the published ones."""
    made = generate_dataset("cifar10", train_size=60, test_size=10_000, seed=0)
    published = Dataset(**{**vars(made), "source": "parquet", "fingerprint": DATASETS["cifar10"].fingerprint})
    monkeypatch.setattr("resnet_bench.running.context.load_images", lambda name, images, progress: published)
    return published


class Seeds:
    """Stands in for training: how each seed ends, and which were trained."""

    def __init__(self) -> None:
        self.errors: dict[int, BaseException] = {}
        self.trained: list[int] = []

    def run(self, prepared: Prepared, context: Context) -> Iterator[Any]:
        seed = prepared.job.seed
        self.trained.append(seed)
        yield Opened(None, f"run {seed}", context.run_dir, warm_up_seconds=3.0)
        if seed in self.errors:
            raise self.errors[seed]
        yield Evaluated(2, 4, "test", 0.9, 1.0, 0.9, 1.0, images=10, seconds=1.0, snapshot=dict, accuracy_tta=0.91)
        yield EpochEnded(2, 4, 2.5, 2.4, 0.1, 0.5, 50.0, 80.0, peak_memory_bytes=1, snapshot=dict)


@pytest.fixture
def seeds(monkeypatch: pytest.MonkeyPatch, official: Dataset) -> Seeds:
    seeds = Seeds()
    monkeypatch.setattr("resnet_bench.running.run.run", seeds.run)
    monkeypatch.setattr("resnet_bench.running.record_check.whole_training_seconds", lambda *_: 700.0)
    return seeds


@pytest.fixture
def context(tmp_path: Path) -> Context:
    options = ExecutionOptions("cpu", precision="fp32", threads=1, autotune=False)
    return Context(Store.resolve(None, tmp_path), tmp_path / "runs", ImageLocation(tmp_path), options, Stop())


def checked(
    check: RecordCheck, context: Context, progress: RecordProgress | None = None
) -> tuple[list[tuple[int, Outcome]], Record]:
    progress = progress or check.new_progress(CPU, context.run_dir)
    *seeds, record = [copy.deepcopy(found) for found in check.measure(context, progress)]
    assert isinstance(record, Record)
    return seeds, record  # type: ignore[return-value]  # the last one alone is a record


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        UserError("the checkpoint cannot be written"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        MemoryError(),
        ValueError("an error of ours"),
    ],
)
def test_every_named_seed_is_there_once_with_how_it_ended(seeds: Seeds, context: Context, error: BaseException) -> None:
    seeds.errors[1] = error
    found, record = checked(RecordCheck(FAST, range(3)), context)
    assert [seed for seed, _ in found] == list(record.outcomes) == seeds.trained == [0, 1, 2]
    assert record.outcomes[1].failure
    assert record.verdict.failed == 1
    assert not record.verdict.holds


def test_resume_never_trains_a_failed_seed_again(seeds: Seeds, context: Context) -> None:
    check = RecordCheck(FAST, range(4), FAST)
    seeds.errors = {1: ValueError("it broke"), 2: KeyboardInterrupt()}
    progress = check.new_progress(CPU, context.run_dir)
    with pytest.raises(Stopped):
        list(check.measure(context, progress))
    assert progress.path.is_file()

    seeds.errors, seeds.trained = {}, []
    resumed = check.new_progress(CPU, context.run_dir)
    resumed.read()
    assert resumed.under_way == 2
    _, record = checked(check, context, resumed)
    assert seeds.trained == [2, 3]
    assert list(record.outcomes) == [0, 1, 2, 3]
    assert record.outcomes[1].failure == "it broke"
    assert record.baseline_seconds == (700.0,) * 3
    assert not resumed.path.exists()


def test_seeds_that_could_not_be_started_are_not_forgotten(
    seeds: Seeds, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = "the GPU takes no more work"
    monkeypatch.setattr("resnet_bench.running.launchers.child.device_problem", lambda _: problem)
    import multiprocessing

    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr("resnet_bench.running.launchers.child.context", lambda: fork)
    check = RecordCheck(FAST, range(3))
    progress = check.new_progress(CPU, context.run_dir)
    _, record = checked(check, context, progress)
    assert list(record.outcomes) == [0, 1, 2]
    assert record.outcomes[2].failure == f"not started: {problem}, not even from a new process"
    # They never ran, so that they may later.
    assert progress.path.is_file()
    assert 2 not in progress.outcomes


def test_generated_images_hold_no_record(context: Context) -> None:
    check = RecordCheck(FAST, range(2))
    generated = replace(context, images=ImageLocation(context.run_dir, generated=(60, 30)))
    with pytest.raises(UserError, match="a record needs the published images of cifar10"):
        next(check.measure(generated, check.new_progress(CPU, context.run_dir)))


def test_the_command_refuses_in_a_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["record", "check", "resnet18-step-decay", "--data", str(tmp_path)])
    assert isinstance(result.exception, UserError)
    assert "has no record to check" in str(result.exception)


# --- for real -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_seed_is_trained_tracked_and_timed(official: Dataset, context: Context) -> None:
    context.store.prepare()
    _, record = checked(RecordCheck(FAST, range(2), FAST), context)
    assert list(record.outcomes) == [0, 1]
    for outcome in record.outcomes.values():
        assert outcome.failure is None
        assert min(outcome.setup_seconds, outcome.train_seconds or 0.0, outcome.tta_seconds) > 0
    assert len(record.baseline_seconds) == 3
    assert record.warm_up_seconds > 0
    assert record.execution == resolve(FAST.recipe, context.options)
    client = context.store.client()
    runs = client.search_runs([client.get_experiment_by_name("resnet-bench").experiment_id])
    logged = {run.data.tags["resnet_bench.seed"]: 100 * run.data.metrics["final/test_accuracy_tta"] for run in runs}
    attempts = record.asdict()["attempts"]
    assert logged == {str(attempt["seed"]): pytest.approx(attempt["accuracy"]) for attempt in attempts}
