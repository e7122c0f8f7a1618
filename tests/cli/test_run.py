"""Runs from options to results: what is cached, what runs again and why, and what a failure costs."""

import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from resnet_bench.base.describe_error import describe_error
from resnet_bench.base.errors import UserError
from resnet_bench.cli import run_all as running
from resnet_bench.cli.app import app
from resnet_bench.cli.closing import beside_the_article
from resnet_bench.cli.run_all import RunsSummary
from resnet_bench.measure.estimate import Costs, estimate_seconds
from resnet_bench.recipe.benchmark import ProfileName
from resnet_bench.recipe.files import load_benchmark
from resnet_bench.running.context import Context
from resnet_bench.running.events import Opened
from resnet_bench.running.job import Job
from resnet_bench.running.launchers import child as children
from resnet_bench.running.outcome import Outcome
from resnet_bench.running.prepare import Prepared
from resnet_bench.running.stopping import Stop
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.tracker import Tracker
from resnet_bench.tracking.vocabulary import EXPERIMENT, tag
from tests.forking import fork_context
from tests.reliability import tiny
from tests.weights import weights_in_store

RunAll = Callable[..., tuple[RunsSummary, str]]


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
def run_all(project: Path, monkeypatch: pytest.MonkeyPatch) -> RunAll:
    """Run tiny runs; gives the summary and what was printed."""
    tiny.speed_up(monkeypatch)

    def run_it(
        *,
        tracking: str | None = None,
        executed: dict[str, Any] | None = None,
        ask: bool = False,
        dry_run: bool = False,
        **options: Any,
    ) -> tuple[RunsSummary, str]:
        output = io.StringIO()
        context = tiny.context(project, tracking=tracking, **(executed or {}))
        summary = running.run_all(
            tiny.options(**options), context, Console(file=output, width=180), ask=ask, dry_run=dry_run
        )
        return summary, output.getvalue()

    return run_it


def tracked_runs(project: Path) -> list[Any]:
    """The training runs, without the summary over seeds."""
    client = Store.resolve(f"sqlite:///{project / 'mlflow.db'}").client()
    found = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    return [run for run in found if tag("summary") not in run.data.tags]


def one_epoch(**changes: Any) -> dict[str, Any]:
    """The assignments of a run of a single epoch."""
    return {**tiny.CHANGES, "training.epochs": 1, **changes}


def test_an_interrupted_suite_trains_what_is_left_and_shows_the_rest_as_cached(
    run_all: RunAll, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = [0, 1]
    open_tracker = Tracker.open

    def interrupt_the_second(store: Store, facts: Any, *rest: Any, **options: Any) -> Tracker:
        if facts.seed == 1:
            raise KeyboardInterrupt
        return open_tracker(store, facts, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "open", interrupt_the_second)
        outcome, text = run_all(seeds=seeds, changes=one_epoch())
    assert outcome.interrupted
    assert "[1/2]" in text
    _, first = outcome.results[0]

    with monkeypatch.context() as patch:
        patch.chdir(project)
        _, text = run_all(seeds=seeds, changes=one_epoch(), resume=True, dry_run=True)
    assert re.search(r"about .* in all, less what is done already", text)

    outcome, text = run_all(seeds=seeds, changes=one_epoch())
    assert re.search(r"about .* in all\n", text)
    assert [result.cached for _, result in outcome.results] == [True, False]
    assert "1 of them was finished before" in text
    assert "1 left to train" in text
    # Progress counts what is left.
    assert "[1/1] he-resnet20 seed 1" in text
    assert "seed 0  epoch" not in text
    _, cached = outcome.results[0]
    for name in ("accuracy", "accuracy_standard", "epochs", "accuracy_by_epoch", "url"):
        assert getattr(cached, name) == getattr(first, name), name
    assert cached.train_seconds == pytest.approx(first.train_seconds)
    assert first.evaluation_seconds_by_epoch
    assert cached.evaluation_seconds_by_epoch == pytest.approx(first.evaluation_seconds_by_epoch)
    rows = [line.split() for line in text.splitlines() if line.strip().startswith("he-resnet20 ")]
    assert rows[0][-1] == "cached"
    assert rows[1][-1] == "new"
    assert len(tracked_runs(project)) == 2

    outcome, text = run_all(seeds=seeds, changes=one_epoch())
    assert outcome.cached == 2
    assert "All of them were finished before" in text
    assert "0 left to train" in text
    assert len(tracked_runs(project)) == 2

    outcome, text = run_all(seeds=[1], changes=one_epoch())
    assert "1 planned seed finished before and is left out (0)" in text
    assert "did not finish" not in text

    outcome, text = run_all(seeds=[1], changes=one_epoch(), force=True)
    assert outcome.cached == 0
    assert "finished before" not in text
    assert len(tracked_runs(project)) == 3


def test_it_says_why_something_runs_again(
    run_all: RunAll, project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_all(changes=one_epoch())

    def why(**changes: Any) -> str:
        with monkeypatch.context() as patch:
            # Nothing is trained: the reason is what is asked for.
            patch.setattr(running, "run_plan", lambda *_: RunsSummary())
            _, text = run_all(**{"changes": one_epoch(), **changes})
        return next((line for line in text.splitlines() if "is trained again" in line), "")

    label = "he-resnet20 seed 0 is trained again:"
    assert why() == ""
    assert why(seeds=[5]) == "", "another seed never ran"
    assert why(executed={"precision": "bf16"}) == f"{label} precision differs (fp32 then, bf16 now)"
    assert (
        why(executed={"deterministic": False})
        == f"{label} determinism differs (deterministic then, not deterministic now)"
    )
    assert why(changes=one_epoch(**{"optimizer.lr": 0.05})) == f"{label} recipe differs (optimizer.lr)"
    with monkeypatch.context() as patch:
        patch.setattr("resnet_bench.tracking.facts.code_fingerprint", lambda: "other")
        assert why(executed={"precision": "bf16"}) == f"{label} precision differs (fp32 then, bf16 now), code changed"
    next((project / "data" / "cifar10" / "train" / "cat").iterdir()).unlink()
    assert why() == f"{label} images differ"

    # What was deleted in MLflow is not remembered.
    store = Store.resolve(f"sqlite:///{project / 'mlflow.db'}")
    store.client().delete_run(tracked_runs(project)[0].info.run_id)
    assert why() == ""


def test_a_store_that_does_not_answer_means_no_cache_and_no_failure(
    run_all: RunAll, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    requests: list[Job] = []

    def train(prepared: Prepared, context: Context) -> Any:
        requests.append(prepared.request)
        yield Opened(None, "", Path())

    monkeypatch.setattr("resnet_bench.running.job.run", train)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    outcome, text = run_all(tracking="http://ann:t0psecret@127.0.0.1:9", seeds=[0, 1])
    assert len(requests) == 2
    assert outcome.failures == 0
    assert "was not searched for finished runs" in caplog.text
    assert caplog.text.count("was not searched for finished runs") == 1
    assert "t0psecret" not in text + caplog.text


def test_a_failing_run_costs_itself_alone(run_all: RunAll, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, a loader's and a device's error: each is one sentence, and the runs behind it continue."""
    errors = {
        0: OSError(28, "No space left on device", "/runs/journal.jsonl"),
        1: RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later"),
        2: ValueError(""),
        3: UserError("the images do not fit"),
    }

    def train(prepared: Prepared, context: Context) -> Any:
        yield Opened(None, "", Path())
        if prepared.request.seed in errors:
            raise errors[prepared.request.seed]

    monkeypatch.setattr("resnet_bench.running.job.run", train)
    outcome, text = run_all(seeds=[0, 1, 2, 3, 4])
    assert [result.failure for _, result in outcome.results] == [
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
    fork = fork_context()
    monkeypatch.setattr(children, "context", lambda: fork)


def test_a_gpu_that_is_lost_to_the_process_costs_one_run(
    run_all: RunAll, monkeypatch: pytest.MonkeyPatch, forked: None
) -> None:
    lost_in: set[int] = set()

    def train(prepared: Prepared, context: Context) -> Any:
        yield Opened(None, "", Path())
        if prepared.request.seed == 0:
            lost_in.add(os.getpid())
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("resnet_bench.running.job.run", train)
    monkeypatch.setattr(
        "resnet_bench.running.launchers.child.device_problem",
        lambda _: "the GPU is lost" if os.getpid() in lost_in else None,
    )
    outcome, text = run_all(seeds=[0, 1, 2])
    assert [result.failure is None for _, result in outcome.results] == [False, True, True]
    assert outcome.abandoned is None
    assert "he-resnet20 seed 0 failed: CUDA error: an illegal memory access was encountered" in text


def test_a_gpu_that_no_process_can_use_ends_the_suite_with_a_sentence(
    run_all: RunAll, monkeypatch: pytest.MonkeyPatch, forked: None
) -> None:
    def train(prepared: Prepared, context: Context) -> Any:
        yield Opened(None, "", Path())
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("resnet_bench.running.job.run", train)
    monkeypatch.setattr("resnet_bench.running.launchers.child.device_problem", lambda _: "the GPU takes no more work")
    outcome, text = run_all(seeds=[0, 1, 2])
    # The second run is the one that a new process was tried for.
    assert [job.seed for job, _ in outcome.results] == [0, 1]
    assert outcome.failures == 2
    assert "the runs after it were not started: the GPU takes no more work, not even from a new process" in text


@pytest.mark.slow
def test_seeds_at_once_are_the_seeds_one_after_another_to_the_last_bit(run_all: RunAll, project: Path) -> None:
    together, text = run_all(seeds=[0, 1], seeds_per_device=2)
    assert "2 seeds in parallel" in text
    assert [result.failure for _, result in together.results] == [None, None]
    store = Store.resolve(f"sqlite:///{project / 'mlflow.db'}")
    in_turn, _ = run_all(seeds=[0, 1], force=True)
    for (_, ours), (_, theirs) in zip(together.results, in_turn.results, strict=True):
        assert ours.accuracy_by_epoch == theirs.accuracy_by_epoch
        assert_same(*(weights_in_store(store, str(result.run_id)) for result in (ours, theirs)))
    runs = {run.info.run_id: run for run in tracked_runs(project)}
    assert len(runs) == 4
    for results, mark in ((together.results, "2"), (in_turn.results, None)):
        for _, result in results:
            run = runs[result.url.rpartition("/")[2].partition("?")[0]]
            assert run.info.status == "FINISHED"
            assert run.data.tags.get("resnet_bench.seeds_per_device") == mark
            assert ("resnet_bench.peak_flops" in run.data.tags) == (mark is None)
            assert not any(key.startswith("device/") for key in run.data.metrics)

    # What was trained at once is finished for every later request, and marked; a seed alone shares nothing.
    outcome, text = run_all(seeds=[0])
    assert outcome.cached == 1
    outcome, _ = run_all(seeds=[5], seeds_per_device=8, changes=one_epoch())
    assert outcome.results[0][1].sharing == 1


def assert_same(ours: Any, theirs: Any) -> None:
    """Two states hold the same values."""
    if isinstance(theirs, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
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

    def sentences(profile: ProfileName, *, generated: bool = False, **told: Any) -> list[str]:
        job = Job(benchmark=benchmark, recipe=benchmark.recipe_for(profile), profile=profile, seed=7)
        outcome = Outcome(
            device="a processor",
            generated=generated,
            epochs=5,
            train_seconds=131.0,
            accuracy_by_epoch={5: 0.89},
            **{"accuracy_tta": 0.9034, "tta_seconds": 4.0, **told},
        )
        return beside_the_article([(job, outcome)])

    theirs = "“Residual Neural network on CIFAR10” says ≥ 90% in 4 min 0 s (evaluation included), on a GPU."
    assert sentences("full", evaluation_seconds_by_epoch={0: 60.0, 5: 5.0}) == [
        f"speedrun-90 seed 7: 90.34% after 2 min 20 s (evaluation included) on a processor; {theirs}"
    ]
    # A run of an earlier version may not tell how long its evaluations took.
    assert sentences("full") == [
        f"speedrun-90 seed 7: 90.34% after 2 min 11 s (training alone) on a processor; {theirs}"
    ]
    assert sentences("smoke") == []
    assert sentences("full", generated=True) == []
    assert sentences("full", accuracy_tta=None) == []


# --- the command -----------------------------------------------------------------------------------


LONG = (
    "run he-resnet20 --profile smoke --offline --device cpu --threads 1 --execution plain --yes "
    "--set training.epochs=200 --set data.train_images=32 --set data.test_images=20 --set training.batch_size=8"
)


@pytest.fixture
def type_command(project: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Types a command in the project, in a separate process, which does not outlive the test."""
    started: list[subprocess.Popen[str]] = []

    def type_command(command: str, **options: Any) -> "subprocess.Popen[str]":
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": "1"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        arguments = [sys.executable, "-m", "resnet_bench", *shlex.split(command)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(arguments, cwd=project, env=environment, **{**pipes, **options}))
        return started[-1]

    yield type_command
    for process in started:
        process.kill()
        process.communicate()


def until_line(process: "subprocess.Popen[str]", text: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return line
    raise AssertionError(f"{text!r} was never printed: {process.stderr and process.stderr.read()}")


def statuses_of(project: Path) -> list[str]:
    return [run.info.status for run in tracked_runs(project)]


@pytest.mark.slow
def test_a_closed_pipe_costs_no_run(type_command: Any, project: Path) -> None:
    command = LONG.replace("training.epochs=200", "training.epochs=3")
    process = type_command(command)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    # Its output is closed, so that only its errors are left to read.
    errors = process.stderr.read()
    assert process.wait(timeout=600) == 0, errors
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors
    assert statuses_of(project) == ["FINISHED"]


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_resume_and_does(type_command: Any, project: Path) -> None:
    """By SIGHUP and by SIGTERM; SIGINT is sent in test_cli.py."""
    process = type_command(LONG)
    until_line(process, "epoch 2/200")
    process.send_signal(signal.SIGHUP)
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "stopping, writing a checkpoint" in errors
    assert "--resume" in out
    (run,) = tracked_runs(project)
    assert run.info.status == "KILLED"
    assert run.data.tags["resnet_bench.reason"] == "interrupted by SIGHUP"
    process = type_command(f"{LONG} --resume")
    until_line(process, "resumed after step")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=600)
    assert process.returncode == 130
    (run,) = tracked_runs(project)
    assert run.data.tags["resnet_bench.reason"] == "interrupted by SIGTERM"


@pytest.mark.slow
def test_a_run_without_a_checkpoint_is_not_told_to_resume(run_all: RunAll, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(prepared: Prepared, context: Context) -> Any:
        context.run_dir.mkdir(exist_ok=True)
        yield Opened(None, "", context.run_dir)
        raise KeyboardInterrupt

    monkeypatch.setattr("resnet_bench.running.job.run", interrupted)
    summary, _ = run_all()
    assert summary.interrupted
    assert not summary.is_resumable


@pytest.mark.slow
def test_two_that_resume_one_run_train_it_once(type_command: Any, project: Path) -> None:
    process = type_command(LONG)
    until_line(process, "epoch 2/200")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=600)
    first = type_command(f"{LONG} --resume")
    until_line(first, "resumed after step")
    second = type_command(f"{LONG} --resume")
    out, errors = second.communicate(timeout=600)
    assert second.returncode == 1, errors
    assert f"process {first.pid} on" in out
    assert "is training he-resnet20 seed 0 already" in out
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=600)
    assert len(tracked_runs(project)) == 1


@pytest.mark.slow
def test_a_closed_standard_input_is_asked_nothing(project: Path) -> None:
    command = shlex.join([sys.executable, "-m", "resnet_bench", *shlex.split(LONG.replace("=200", "=1"))])
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        ["bash", "-c", f"{command.replace(' --yes', '')} <&-"],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "Continue?" not in done.stdout


@pytest.mark.parametrize(("seconds", "starts"), [(3600.0, True), (8 * 3600.0, False)])
def test_enter_starts_long_runs_but_no_day_of_them(
    run_all: RunAll, monkeypatch: pytest.MonkeyPatch, seconds: float, starts: bool
) -> None:
    monkeypatch.setattr("resnet_bench.running.plan.estimate_seconds", lambda recipe, costs: seconds)
    monkeypatch.setattr(running, "run_plan", lambda *_: RunsSummary())
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    if starts:
        run_all(ask=True)
    else:
        with pytest.raises(UserError, match="nothing was started"):
            run_all(ask=True)


@pytest.mark.parametrize("seed", ["-1", str(2**63), "9" * 40])
def test_a_seed_out_of_range_is_refused_on_the_command_line(seed: str) -> None:
    result = CliRunner().invoke(app, ["run", "he-resnet20", "--seed", seed])
    assert result.exit_code == 2
    assert "--seed" in result.output


def test_a_run_whose_time_is_used_up_is_resumed_by_its_last_sentence(
    run_all: RunAll, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time ends at the first event behind the run's start; the second seed is not even begun."""
    monkeypatch.chdir(project)
    monkeypatch.setattr("sys.argv", ["resnet-bench", "run", tiny.BENCHMARK, "--max-minutes", "30"])
    changes = [f"--set={key}={value}" for key, value in tiny.CHANGES.items()]
    executed = shlex.split("--device cpu --threads 1 --execution plain --offline")
    options = ["--profile", "smoke", "--seeds", "2", "--max-minutes", "30", *executed]
    bool_of_stop = Stop.__bool__

    def late(stop: Stop) -> bool:
        # Only the copy of the context's is looked at: the time is up as soon as something runs.
        if stop.deadline is not None and any((project / "runs").glob("*/journal.jsonl")):
            stop.deadline = 0.0
        return bool_of_stop(stop)

    monkeypatch.setattr(Stop, "__bool__", late)
    result = CliRunner().invoke(app, ["run", tiny.BENCHMARK, *options, *changes])
    assert result.exit_code == 124, result.output
    last = result.output.rstrip().splitlines()[-1]
    assert last == f"--max-minutes is used up; resume with: resnet-bench run {tiny.BENCHMARK} --max-minutes 30 --resume"
    (run,) = tracked_runs(project)
    assert (run.info.status, run.data.tags["resnet_bench.reason"]) == (
        "KILLED",
        "the time of --max-minutes was used up",
    )


def test_time_that_is_used_up_before_the_first_run_ends_with_the_command(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setattr("sys.argv", ["resnet-bench", "run", tiny.BENCHMARK, "--max-minutes", "1e-9"])
    options = shlex.split("--profile smoke --max-minutes 1e-9 --device cpu --threads 1 --execution plain --offline")
    result = CliRunner().invoke(app, ["run", tiny.BENCHMARK, *options])
    assert result.exit_code == 124, result.output
    last = result.output.rstrip().splitlines()[-1]
    assert last == f"--max-minutes is used up; resume with: resnet-bench run {tiny.BENCHMARK} --max-minutes 1e-9"


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf"])
def test_max_minutes_is_a_positive_number(minutes: str) -> None:
    result = CliRunner().invoke(app, ["run", tiny.BENCHMARK, f"--max-minutes={minutes}"])
    assert isinstance(result.exception, UserError)
    assert "--max-minutes: must be above 0" in str(result.exception)


def test_a_smoke_run_that_is_shortened_is_announced_and_counts_the_next_time(
    run_all: RunAll, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resnet_bench.running.plan.estimate_seconds", estimate_seconds)
    slow = Costs({32: 100.0}, 1e-9)
    monkeypatch.setattr("resnet_bench.running.plan.measure_costs", lambda recipe, execution: slow)
    changes = {key: value for key, value in tiny.CHANGES.items() if key != "data.train_images"}
    summary, text = run_all(profile=None, changes=changes)
    assert "shortened to fit into the time: he-resnet20 (8 of 2,000 images); --profile smoke" in text
    assert [(job.profile, job.recipe.data.num_train) for job, _ in summary.results] == [("smoke", 8)]
    # As if the machine had become faster, or less time had passed.
    monkeypatch.setattr("resnet_bench.running.plan.measure_costs", lambda recipe, execution: Costs({32: 1.0}, 1e-9))
    again, _ = run_all(profile=None, changes=changes)
    assert again.cached == 1


# --- dry runs --------------------------------------------------------------------------------------


def test_dry_run_says_what_a_run_needs_and_leaves_pictures_alone(
    run_all: RunAll, project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    before, store = set(project.rglob("*")), (project / "mlflow.db").read_bytes()
    # A whole run would not end within the hour.
    outcome, text = run_all(seeds=[0, 1], changes={**tiny.CHANGES, "training.epochs": 500_000}, dry_run=True)
    assert outcome.results == []
    assert "2 runs in the smoke profile" in text
    (row,) = [line.split() for line in text.splitlines() if line.startswith("he-resnet20 ")]
    # 32 images in batches of 8; 269,722 parameters (0.27 M in table 6 of the paper); SGD has momentum.
    assert row[1:3] == ["2,000,000", "269,722"]
    assert row[-4:] == ["2.2", "MB", "1.1", "MB"]
    assert "nothing was trained or tracked" in text
    assert re.search(r" (d|h) \d+ (h|min) ", " ".join(row)), row
    assert {path.name for path in (tmp_path / "elsewhere").iterdir()} == {"dry-run-he-resnet20.png"}
    with Image.open(tmp_path / "elsewhere" / "dry-run-he-resnet20.png") as picture:
        # 32 of the 64 images that there is room for, eight per row, enlarged threefold with two pixels between them.
        assert picture.size == (3 * (8 * 34 + 2), 3 * (4 * 34 + 2))
    new = {path.relative_to(project).parts[:2] for path in set(project.rglob("*")) - before}
    assert new <= {("data", ".resnet-bench-cache"), ("mlflow.db.lock",)}
    assert (project / "mlflow.db").read_bytes() == store
