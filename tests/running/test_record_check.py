"""What a record check trains and times, what its clock covers, and what becomes of a seed that fails."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from resnet_bench.base.errors import UserError
from resnet_bench.cli.app import app
from resnet_bench.data.dataset import Dataset, ImageLocation, generate_dataset
from resnet_bench.execution.execution import Execution
from resnet_bench.execution.options import ExecutionOptions
from resnet_bench.recipe.datasets import DATASETS, TEST_LABELS
from resnet_bench.running.context import Context
from resnet_bench.running.events import Closed, Event, Opened
from resnet_bench.running.job import Task
from resnet_bench.running.prepare import Prepared, resolve
from resnet_bench.running.record_bundle import (
    RECORD,
    Attempt,
    RecordBundle,
    clock_seconds,
    find_unfinished,
    new_bundle_folder,
)
from resnet_bench.running.record_check import BaselineTimed, RecordCheck
from resnet_bench.running.record_reading import read_bundle
from resnet_bench.running.stopping import Stop, Stopped
from resnet_bench.tracking.delivery import UploadReport
from resnet_bench.tracking.store import Store
from resnet_bench.training.events import EpochEnded, Evaluated, Finished, Predictions
from tests.forking import fork_context
from tests.judging.test_record import fast

CPU = Execution.resolve("cpu", "fp32", threads=1)
FAST = fast()


# --- the clock ------------------------------------------------------------------------------------


def test_the_clock_covers_set_up_training_and_the_augmented_test() -> None:
    attempt = Attempt(seed=0, setup_seconds=1.0, train_seconds=50.0, tta_seconds=2.0)
    assert clock_seconds(attempt, FAST.claims[0]) == 53.0
    assert clock_seconds(attempt, fast(claims=[{"at_least": 5.0}]).claims[0]) == 51.0


# --- what is kept ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seeds": range(4)}, "another seeds ([0, 1, 2] then, [0, 1, 2, 3] now)"),
        ({"baseline": FAST}, "another baseline (None then, "),
        ({"execution": Execution.resolve("cpu", "bf16", threads=1)}, "another execution ("),
    ],
)
def test_half_a_check_is_not_finished_as_another(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    RecordCheck(FAST, range(3)).create(tmp_path / "bundle", CPU)
    now = RecordCheck(FAST, changes.get("seeds", range(3)), changes.get("baseline"))
    with pytest.raises(UserError) as raised:
        now.resume(tmp_path / "bundle", changes.get("execution", CPU))
    assert sentence in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"plan": {}, "attempts": [{"seed": 1}]}'])
def test_damaged_progress_is_refused_in_a_sentence(content: bytes, tmp_path: Path) -> None:
    check = RecordCheck(FAST, range(3))
    bundle = check.create(tmp_path / "bundle", CPU)
    (bundle.path / RECORD).write_bytes(content)
    with pytest.raises(UserError, match="leave --resume out to start from scratch"):
        check.resume(bundle.path, CPU)


def test_without_an_interrupted_check_there_is_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no interrupted check"):
        RecordCheck(FAST, range(3)).resume(tmp_path, CPU)


def test_seeds_are_named_on_disk_before_the_first_run(tmp_path: Path) -> None:
    bundle = RecordCheck(FAST, range(3)).create(tmp_path / "bundle", CPU)
    written = json.loads((bundle.path / RECORD).read_text())
    assert written["plan"]["seeds"] == [0, 1, 2]
    assert written["attempts"] == []


# --- a check, its runs replaced -------------------------------------------------------------------


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Images that pass for the published ones."""
    made = generate_dataset("cifar10", train_size=60, test_size=10_000, seed=0)
    published = Dataset(**{**vars(made), "source": "parquet", "fingerprint": DATASETS["cifar10"].fingerprint})
    monkeypatch.setattr("resnet_bench.running.context.load", lambda facts, images, progress: published)
    return published


LABELS = np.arange(10_000, dtype=np.int64) % 10


def predictions(seed: int) -> tuple[Any, Any]:
    """Probabilities that are right for 9 of 10 images, and classes with TTA, right for 100 images more and a few."""
    predicted = np.where(np.arange(10_000) % 10 == 3, 4, LABELS)
    tta = predicted.copy()
    tta[3 : 3 + 10 * (100 + seed) : 10] = 3
    return np.eye(10, dtype=np.float32)[predicted], tta


class Seeds:
    """Stands in for training: how each seed ends, and which were trained."""

    def __init__(self) -> None:
        self.errors: dict[int, BaseException] = {}
        self.trained: list[int] = []

    def run(self, prepared: Prepared, context: Context) -> Iterator[Any]:
        seed = prepared.request.seed
        self.trained.append(seed)
        folder = context.run_dir / str(seed)
        yield Opened(None, f"run {seed}", folder, warm_up_seconds=3.0)
        if seed in self.errors:
            raise self.errors[seed]
        yield Evaluated(2, 4, "test", 0.9, 1.0, 0.9, 1.0, images=10, seconds=1.0, snapshot=dict, accuracy_tta=0.91)
        yield EpochEnded(2, 4, 2.5, 2.4, 0.1, 0.5, 50.0, 80.0, peak_memory_bytes=1, snapshot=dict)
        told = Predictions("test", LABELS, *predictions(seed))
        yield Finished(2, 4, 50.0, 1.0, {}, told, snapshot=dict)
        yield Closed(UploadReport(), joules=1000.0 + seed)


@pytest.fixture
def seeds(monkeypatch: pytest.MonkeyPatch, official: Dataset) -> Seeds:
    seeds = Seeds()
    monkeypatch.setattr("resnet_bench.running.job.run", seeds.run)
    monkeypatch.setattr("resnet_bench.running.record_check.time_steps", lambda *_: [3.0, *[1.5] * 7])
    return seeds


@pytest.fixture
def context(tmp_path: Path) -> Context:
    options = ExecutionOptions("cpu", precision="fp32", threads=1, autotune=False)
    return Context(Store.resolve(None, tmp_path), tmp_path / "runs", ImageLocation(tmp_path), options, Stop())


def checked(
    check: RecordCheck, context: Context, bundle: RecordBundle | None = None
) -> tuple[list[Attempt], RecordBundle]:
    bundle = bundle or check.create(context.run_dir / "bundle", CPU)
    return list(check.measure(context, bundle)), bundle


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
    found, bundle = checked(RecordCheck(FAST, range(3)), context)
    assert [attempt.seed for attempt in found] == list(bundle.attempts) == seeds.trained == [0, 1, 2]
    assert bundle.attempts[1].failure
    assert bundle.attempts[1].accuracy is None
    assert bundle.verdict.failed == 1
    assert not bundle.verdict.holds


def test_accuracies_are_counted_from_the_predictions(seeds: Seeds, context: Context) -> None:
    found, bundle = checked(RecordCheck(FAST, range(2), FAST), context)
    assert [(attempt.standard, attempt.accuracy) for attempt in found] == [(90.0, 91.0), (90.0, 91.01)]
    assert [attempt.joules for attempt in found] == [1000.0, 1001.0]
    # The median of its steps without the first two, times the 4 steps of its whole training.
    assert bundle.baseline_seconds == [6.0] * 3
    assert bundle.conclude().speedup == pytest.approx(6.0 / 50.0)
    assert seeds.trained == [0, 1]


def test_resume_never_trains_a_failed_seed_again(seeds: Seeds, context: Context) -> None:
    check = RecordCheck(FAST, range(4), FAST)
    seeds.errors = {1: ValueError("it broke"), 2: KeyboardInterrupt()}
    bundle = check.create(context.run_dir / "records" / "fast-20261128-120000", CPU)
    with pytest.raises(Stopped):
        list(check.measure(context, bundle))
    assert find_unfinished(context.run_dir, "fast") == bundle.path

    seeds.errors, seeds.trained = {}, []
    resumed = check.resume(bundle.path, CPU)
    assert resumed.record.under_way == 2
    checked(check, context, resumed)
    assert seeds.trained == [2, 3]
    assert list(resumed.attempts) == [0, 1, 2, 3]
    assert resumed.attempts[1].failure == "it broke"
    assert [timing.after_seeds for timing in resumed.record.baseline] == [0, 2, 4]
    assert find_unfinished(context.run_dir, "fast") is None


@pytest.mark.parametrize(
    ("task", "last_event", "left"),
    [("fast seed 0", Finished, [1]), ("fast seed 1", Finished, []), ("baseline fast", BaselineTimed, [0, 1])],
)
def test_a_check_stopped_between_two_tasks_is_not_complete_and_resumes_there(
    seeds: Seeds, context: Context, task: str, last_event: type[Event], left: list[int]
) -> None:
    """Where a task ends, nothing asks whether to stop but what begins the next."""

    def stop(of: Task, event: Event) -> None:
        if of.label == task and isinstance(event, last_event):
            context.stop.reason = "interrupted by SIGTERM"

    check = RecordCheck(FAST, range(2), FAST)
    bundle = check.create(context.run_dir / "records" / "fast-20261128-120000", CPU)
    with pytest.raises(Stopped, match="interrupted by SIGTERM"):
        list(check.measure(context, bundle, watch=stop))
    assert find_unfinished(context.run_dir, "fast") == bundle.path

    seeds.trained = []
    resumed = check.resume(bundle.path, CPU)
    assert resumed.record.under_way is None
    checked(check, replace(context, stop=Stop()), resumed)
    assert seeds.trained == left
    assert list(resumed.attempts) == [0, 1]
    assert [timing.after_seeds for timing in resumed.record.baseline] == [0, 1, 2]


def test_a_check_stopped_within_its_last_task_is_complete(seeds: Seeds, context: Context) -> None:
    def stop(_: Task, event: Event) -> None:
        if isinstance(event, Finished):
            context.stop.reason = "interrupted by SIGTERM"

    check = RecordCheck(FAST, range(1))
    bundle = check.create(context.run_dir / "bundle", CPU)
    assert [attempt.failure for attempt in check.measure(context, bundle, watch=stop)] == [None]
    assert bundle.record.result is not None


def test_checks_that_begin_within_one_second_have_bundles_of_their_own(tmp_path: Path) -> None:
    folders = [new_bundle_folder(tmp_path, "fast") for _ in range(12)]
    assert len(set(folders)) == 12
    for folder in folders:
        RecordCheck(FAST, range(3)).create(folder, CPU)
    assert find_unfinished(tmp_path, "fast") == folders[-1]


def test_seeds_that_could_not_be_started_are_not_forgotten(
    seeds: Seeds, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = "the GPU takes no more work"
    monkeypatch.setattr("resnet_bench.running.launchers.child.device_problem", lambda _: problem)
    fork = fork_context()
    monkeypatch.setattr("resnet_bench.running.launchers.child.context", lambda: fork)
    check = RecordCheck(FAST, range(3))
    _, bundle = checked(check, context)
    assert list(bundle.attempts) == [0, 1, 2]
    assert bundle.attempts[2].failure == f"not started: {problem}, not even from a new process"
    # They never ran, so that they may later.
    assert 2 not in check.resume(bundle.path, CPU).attempts


def test_generated_images_hold_no_record(context: Context) -> None:
    check = RecordCheck(FAST, range(2))
    generated = replace(context, images=ImageLocation(context.run_dir, generated=(60, 30)))
    with pytest.raises(UserError, match="a record needs the published images of cifar10"):
        next(check.measure(generated, check.create(context.run_dir / "bundle", CPU)))


def test_the_command_refuses_in_a_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["record", "check", "resnet18-step-decay", "--data", str(tmp_path)])
    assert isinstance(result.exception, UserError)
    assert "has no record to check" in str(result.exception)


def verified(bundle: RecordBundle, context: Context, *options: str) -> Any:
    typed = ["record", "verify", str(bundle.path), "--data", str(context.images.folder), "--execution", "plain"]
    typed += ["--device", "cpu", "--threads", "1", "--run-dir", str(context.run_dir), *options]
    return CliRunner().invoke(app, typed)


@pytest.mark.slow
def test_verify_repeats_some_seeds_and_says_whether_they_agree(
    seeds: Seeds, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(context.run_dir.parent)
    monkeypatch.setitem(TEST_LABELS, "cifar10", hashlib.sha256(LABELS.astype(np.uint8).tobytes()).hexdigest())
    _, bundle = checked(RecordCheck(FAST, range(10), FAST), context)
    seeds.trained = []
    found = verified(bundle, context, "--seeds", "2")
    assert found.exit_code == 0, found.output
    assert seeds.trained == [0, 1]
    assert "accuracy agrees: mean 91.005% of 2 repeated seeds" in found.output
    assert "time agrees: 0.12× the baseline's speed here" in found.output

    seeds.errors[0] = ValueError("it broke")
    found = verified(bundle, context, "--seeds", "1", "--json")
    assert found.exit_code == 1, found.output
    assert "accuracy does not agree: 1 of 1 repeated runs failed" in found.stderr
    document = json.loads(found.stdout)
    assert document["stated"]["holds"]
    assert not document["repeat"]["agrees"]
    assert document["repeat"]["attempts"][0]["failure"] == "it broke"


# --- for real -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_seed_is_trained_tracked_and_timed(
    official: Dataset, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    context.store.prepare()
    _, bundle = checked(RecordCheck(FAST, range(2), FAST), context)
    assert list(bundle.attempts) == [0, 1]
    for attempt in bundle.attempts.values():
        assert attempt.failure is None
        assert min(attempt.setup_seconds, attempt.train_seconds, attempt.tta_seconds) > 0
        assert attempt.warm_up_seconds > 0
    assert len(bundle.baseline_seconds) == 3
    assert bundle.record.plan.execution == resolve(FAST.recipe, context.options).asdict()
    client = context.store.client()
    experiment = client.get_experiment_by_name("resnet-bench").experiment_id
    runs = client.search_runs([experiment], "tags.`resnet_bench.role` = 'run'")
    for metric, stated in (("final/test_accuracy_tta", "accuracy"), ("final/test_accuracy_standard", "standard")):
        logged = {int(run.data.tags["resnet_bench.seed"]): 100 * run.data.metrics[metric] for run in runs}
        assert logged == {
            seed: pytest.approx(getattr(each, stated), abs=0.006) for seed, each in bundle.attempts.items()
        }
    labels = official.test.labels.numpy().astype(np.uint8).tobytes()
    monkeypatch.setitem(TEST_LABELS, "cifar10", hashlib.sha256(labels).hexdigest())
    assert read_bundle(bundle.path).conclude() == bundle.conclude()
