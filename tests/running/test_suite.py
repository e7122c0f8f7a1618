"""A suite as a whole: what is cached, what runs again and why, and what a failure costs."""

import io
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from resnet_bench.base.describe_error import describe_error
from resnet_bench.base.errors import UserError
from resnet_bench.cli import suite
from resnet_bench.cli.suite import SuiteOutcome
from resnet_bench.data.dataset import Dataset, generate_dataset
from resnet_bench.execution.execution import Execution
from resnet_bench.recipe.benchmark import ProfileName
from resnet_bench.recipe.files import load_benchmark
from resnet_bench.running import processes
from resnet_bench.running.outcome import RunResult
from resnet_bench.running.run import RunOpened, RunRequest
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.tracker import Tracker
from resnet_bench.tracking.vocabulary import EXPERIMENT
from resnet_bench.training import checkpoint
from tests.reliability import tiny

Suite = Callable[..., tuple[SuiteOutcome, str]]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with images and an empty database, which takes seconds to make."""
    folder = tmp_path_factory.mktemp("template")
    tiny.write_images(folder / "data")
    Store.resolve(f"sqlite:///{folder / 'mlflow.db'}").client()
    return folder


@pytest.fixture
def project(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "project"))


@pytest.fixture
def run_suite(project: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """Run a suite of tiny runs; gives the outcome and what was printed."""
    tiny.speed_up(monkeypatch)

    def run_it(**changes: Any) -> tuple[SuiteOutcome, str]:
        output = io.StringIO()
        outcome = suite.run_suite(tiny.suite_request(project, **changes), Console(file=output, width=180))
        return outcome, output.getvalue()

    return run_it


def tracked_runs(project: Path) -> list[Any]:
    client = Store.resolve(f"sqlite:///{project / 'mlflow.db'}").client()
    return list(client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id]))


def one_epoch(**changes: Any) -> dict[str, Any]:
    """The assignments of a run of a single epoch."""
    return {**tiny.suite_request(Path()).assignments, "training.epochs": 1, **changes}


def test_an_interrupted_suite_trains_what_is_left_and_shows_the_rest_as_cached(
    run_suite: Suite, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = [0, 1]
    open_tracker = Tracker.open

    def interrupt_the_second(store: Store, description: Any, *rest: Any, **options: Any) -> Tracker:
        if description.seed == 1:
            raise KeyboardInterrupt
        return open_tracker(store, description, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "open", interrupt_the_second)
        outcome, text = run_suite(seeds=seeds, assignments=one_epoch())
    assert outcome.interrupted
    assert "[1/2]" in text
    first = outcome.results[0]

    outcome, text = run_suite(seeds=seeds, assignments=one_epoch())
    assert [result.cached for result in outcome.results] == [True, False]
    assert "1 of them was finished before" in text
    assert "1 left to train" in text
    # Progress counts what is left.
    assert "[1/1] he-resnet20 seed 1" in text
    assert "seed 0  epoch" not in text
    cached = outcome.results[0]
    for name in ("accuracy", "accuracy_plain", "epochs", "accuracy_by_epoch", "url"):
        assert getattr(cached, name) == getattr(first, name), name
    assert cached.train_seconds == pytest.approx(first.train_seconds)
    rows = [line.split() for line in text.splitlines() if line.strip().startswith("he-resnet20 ")]
    assert rows[0][-1] == "cached"
    assert rows[1][-1] == "new"
    assert len(tracked_runs(project)) == 2

    outcome, text = run_suite(seeds=seeds, assignments=one_epoch())
    assert outcome.cached == 2
    assert "All of them were finished before" in text
    assert "0 left to train" in text
    assert len(tracked_runs(project)) == 2

    outcome, text = run_suite(seeds=[1], assignments=one_epoch(), again=True)
    assert outcome.cached == 0
    assert "finished before" not in text
    assert len(tracked_runs(project)) == 3


def test_it_says_why_something_runs_again(
    run_suite: Suite, project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_suite(assignments=one_epoch())

    def why(**changes: Any) -> str:
        with monkeypatch.context() as patch:
            # Nothing is trained: the reason is what is asked for.
            patch.setattr(suite, "_run_all", lambda *_: SuiteOutcome())
            _, text = run_suite(**{"assignments": one_epoch(), **changes})
        return next((line for line in text.splitlines() if "is trained again" in line), "")

    label = "he-resnet20 seed 0 is trained again:"
    assert why() == ""
    assert why(seeds=[5]) == "", "another seed never ran"
    assert why(precision="bf16") == f"{label} precision differs (fp32 then, bf16 now)"
    assert why(deterministic=False) == f"{label} determinism differs (deterministic then, not deterministic now)"
    assert why(assignments=one_epoch(**{"optimizer.lr": 0.05})) == f"{label} recipe differs (optimizer.lr)"
    with monkeypatch.context() as patch:
        patch.setattr("resnet_bench.tracking.facts.code_fingerprint", lambda: "other")
        assert why(precision="bf16") == f"{label} precision differs (fp32 then, bf16 now), code changed"
    next((project / "data" / "cifar10" / "train" / "cat").iterdir()).unlink()
    assert why() == f"{label} images differ"

    # What was deleted in MLflow is not remembered.
    store = Store.resolve(f"sqlite:///{project / 'mlflow.db'}")
    store.client().delete_run(tracked_runs(project)[0].info.run_id)
    assert why() == ""


def test_a_store_that_does_not_answer_means_no_cache_and_no_failure(
    run_suite: Suite, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    requests: list[RunRequest] = []

    def train(request: RunRequest, *_: Any, **__: Any) -> Any:
        requests.append(request)
        yield RunOpened(None, "", Path())

    monkeypatch.setattr("resnet_bench.running.series.run", train)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    outcome, text = run_suite(tracking="http://ann:t0psecret@127.0.0.1:9", seeds=[0, 1])
    assert len(requests) == 2
    assert outcome.failures == 0
    assert "was not searched for finished runs" in caplog.text
    assert caplog.text.count("was not searched for finished runs") == 1
    assert "t0psecret" not in text + caplog.text


def test_a_failing_run_costs_itself_alone(run_suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, a loader's and a device's error: each is one sentence, and the runs behind it go on."""
    errors = {
        0: OSError(28, "No space left on device", "/runs/journal.jsonl"),
        1: RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later"),
        2: ValueError(""),
        3: UserError("the images do not fit"),
    }

    def train(request: RunRequest, *_: Any, **__: Any) -> Any:
        yield RunOpened(None, "", Path())
        if request.seed in errors:
            raise errors[request.seed]

    monkeypatch.setattr("resnet_bench.running.series.run", train)
    outcome, text = run_suite(seeds=[0, 1, 2, 3, 4])
    assert [result.failure for result in outcome.results] == [
        "/runs/journal.jsonl: No space left on device",
        "CUDA error: device-side assert triggered",
        "ValueError",
        "the images do not fit",
        None,
    ]
    assert outcome.failures == 4
    assert "he-resnet20 seed 1 failed: CUDA error: device-side assert triggered" in text
    assert "Traceback" not in text


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Child processes are forks of the test, so that they start at once and hold what the test has replaced.

    They cannot train: torch refuses gradients in the fork of a process that has computed some.
    """
    monkeypatch.setattr(processes, "context", lambda: multiprocessing.get_context("fork"))


def test_a_gpu_that_is_lost_to_the_process_costs_one_run(
    run_suite: Suite, monkeypatch: pytest.MonkeyPatch, forked: None
) -> None:
    lost_in: set[int] = set()

    def train(request: RunRequest, *_: Any, **__: Any) -> Any:
        yield RunOpened(None, "", Path())
        if request.seed == 0:
            lost_in.add(os.getpid())
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("resnet_bench.running.series.run", train)
    monkeypatch.setattr(
        "resnet_bench.running.series.device_problem", lambda _: "the GPU is lost" if os.getpid() in lost_in else None
    )
    outcome, text = run_suite(seeds=[0, 1, 2])
    assert [result.failure is None for result in outcome.results] == [False, True, True]
    assert outcome.abandoned is None
    assert "he-resnet20 seed 0 failed: CUDA error: an illegal memory access was encountered" in text


def test_a_gpu_that_no_process_can_use_ends_the_suite_with_a_sentence(
    run_suite: Suite, monkeypatch: pytest.MonkeyPatch, forked: None
) -> None:
    def train(request: RunRequest, *_: Any, **__: Any) -> Any:
        yield RunOpened(None, "", Path())
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("resnet_bench.running.series.run", train)
    monkeypatch.setattr("resnet_bench.running.series.device_problem", lambda _: "the GPU takes no more work")
    outcome, text = run_suite(seeds=[0, 1, 2])
    # The second run is the one that a new process was tried for.
    assert [result.request.seed for result in outcome.results] == [0, 1]
    assert outcome.failures == 2
    assert "the runs behind it were not started: the GPU takes no more work, not even from a new process" in text


@pytest.mark.slow
def test_seeds_at_once_are_the_seeds_one_after_another_to_the_last_bit(run_suite: Suite, project: Path) -> None:
    together, text = run_suite(seeds=[0, 1], seeds_per_device=2)
    assert "2 seeds at once" in text
    assert [result.failure for result in together.results] == [None, None]
    in_turn, _ = run_suite(seeds=[0, 1], again=True)
    for ours, theirs in zip(together.results, in_turn.results, strict=True):
        assert ours.accuracy_by_epoch == theirs.accuracy_by_epoch
        ours_state, theirs_state = (
            checkpoint.load(Path(result.folder) / "checkpoints" / "last.pt") for result in (ours, theirs)
        )
        for part in ("network", "optimizer"):
            assert_same(ours_state[part], theirs_state[part])
    runs = {run.info.run_id: run for run in tracked_runs(project)}
    assert len(runs) == 4
    for results, mark in ((together.results, "2"), (in_turn.results, None)):
        for result in results:
            run = runs[result.url.rpartition("/")[2]]
            assert run.info.status == "FINISHED"
            assert run.data.tags.get("resnet_bench.seeds_per_device") == mark
            assert ("device/peak_flops" in run.data.metrics) == (mark is None)

    # What was trained at once is finished for whoever asks for it, and marked; a seed alone shares nothing.
    outcome, text = run_suite(seeds=[0])
    assert outcome.cached == 1
    outcome, _ = run_suite(seeds=[5], seeds_per_device=8, assignments=one_epoch())
    assert outcome.results[0].seeds_per_device == 1


def assert_same(ours: Any, theirs: Any) -> None:
    """Two states hold the same values."""
    if isinstance(theirs, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for each, other in zip(ours, theirs, strict=True):
            assert_same(each, other)
    else:
        assert ours == theirs


def test_an_operator_that_apples_gpu_lacks_is_named_with_what_helps() -> None:
    error = NotImplementedError(
        "The operator 'aten::_upsample_bilinear2d_aa.out' is not currently implemented for the MPS device. If you "
        "want this op to be considered for addition please comment on an issue."
    )
    assert describe_error(error).startswith("the Apple GPU lacks aten::_upsample_bilinear2d_aa.out; set PYTORCH_ENABLE")


def test_a_recipe_of_our_own_is_set_beside_the_article_that_reaches_for_the_same() -> None:
    benchmark = load_benchmark("speedrun-90")
    execution = Execution.resolve("cpu", "fp32", threads=2)
    images = generate_dataset("cifar10", train_size=4, test_size=4)
    published = Dataset(**{**vars(images), "source": "parquet"})

    def sentences(profile: ProfileName, dataset: Dataset, augmented: float | None = 0.9034) -> list[str]:
        request = RunRequest(benchmark, benchmark.recipe_for(profile), profile, 7, execution)
        result = RunResult(request, epochs=5, train_seconds=131.0, accuracy=0.89, accuracy_augmented=augmented)
        return suite._own_recipes([result], {"cifar10": dataset})

    (sentence,) = sentences("full", published)
    assert sentence == (
        f"speedrun-90 seed 7: 90.34% after 2 min 11 s of training on this machine ({execution.device_name}); "
        "“Residual Neural network on CIFAR10” says ≥ 90% in 4 min 0 s, on a GPU."
    )
    assert sentences("smoke", published) == []
    assert sentences("full", images) == []
    assert sentences("full", published, augmented=None) == []
