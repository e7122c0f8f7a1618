"""The command line, as a user types it."""

import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
import torch

from resnet_bench.recipe.files import load_benchmark, scan_benchmarks
from resnet_bench.recipe.writing import copy_benchmark
from resnet_bench.training import checkpoint
from tests.reliability import tiny
from tests.weights import Weights, weights_of_project

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = (
    "run resnet18-step-decay --profile smoke --offline --deterministic --device cpu --precision fp32 "
    "--set data.train_images=300 --set data.test_images=100 --set training.epochs=2 --set training.batch_size=10"
)
TINIER = (
    "run he-resnet20 --profile smoke --offline --deterministic --device cpu --precision fp32 --data data "
    "--set data.train_images=40 --set data.test_images=20 --set training.batch_size=8 --set evaluation.batch_size=20"
)
"""On images that :func:`tests.reliability.tiny.write_images` has written, five steps an epoch."""


def start(command: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "resnet_bench", *shlex.split(command)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1", "COLUMNS": "120"},
    )


# --- the registry's verbs ------------------------------------------------------------------------


def test_list_shows_every_shipped_benchmark(invoke) -> None:
    result = invoke("list")
    assert result.code == 0
    text = "".join(result.out.split())
    assert all(name in text for name in scan_benchmarks()[0])


def test_list_shows_the_good_files_beside_a_broken_one(invoke, tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "broken.toml").write_text("[recipe")
    result = invoke("list")
    assert result.code == 2
    assert "resnet9-onecycle-adam" in result.out
    assert "broken.toml" in result.err


def test_show_names_claims_recipe_and_the_status_of_facts(invoke) -> None:
    result = invoke("show resnet9-onecycle-adam")
    assert result.code == 0
    for part in ("≥ 90%", "in just 4 minutes”", "optimizer.lr", "0.01", "recovered", "stated", "one_cycle"):
        assert part in result.out


def test_a_copy_is_valid_and_is_found_as_a_recipe_of_ones_own(invoke, tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    assert invoke("copy resnet9-onecycle-adam benchmarks/mine.toml").code == 0
    validated = invoke("validate benchmarks/mine.toml")
    assert validated.code == 0
    assert load_benchmark("resnet9-onecycle-adam").recipe.fingerprint in validated.out
    assert "mine" in invoke("list").out
    again = invoke("copy resnet9-onecycle-adam benchmarks/mine.toml")
    assert again.code == 2
    assert "mine.toml" in again.err


def test_the_package_runs_as_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["resnet-bench", "list"])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_module("resnet_bench", run_name="__main__")
    assert not exit_.value.code
    assert "resnet9-onecycle-adam" in capsys.readouterr().out


# --- bad input: one sentence, exit code 2, nothing written ---------------------------------------


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("show resnet9-onecycle-adm", "did you mean 'resnet9-onecycle-adam'?"),
        ("run resnet9-onecycle-adm", "did you mean 'resnet9-onecycle-adam'?"),
        ("run resnet18-step-decay --profile smok", "'smok' is not one of 'full', 'smoke'"),
        ("run resnet18-step-decay --device tpu", "there is no such device"),
        ("run resnet18-step-decay --precision fp8", "'fp8' is not one of 'auto', 'fp32', 'tf32', 'bf16'"),
        ("run resnet18-step-decay --execution quick", "'quick' is not one of 'auto', 'plain', 'fast'"),
        ("run resnet18-step-decay --data nowhere", "--data: nowhere does not exist"),
        ("perf resnet18-step-decay --clock sun", "'sun' is not one of 'wall', 'cpu'"),
        ("run resnet18-step-decay --set optimizer.lr", "write a key and a value"),
        ("run resnet18-step-decay --offline --profile smoke --set optimizer.lrr=1", "did you mean 'optimizer.lr'?"),
        ("run resnet18-step-decay --offline --profile smoke --set optimizer.lr=fast", "must be a number"),
        ("run resnet18-step-decay --offline --profile full", "data prepare"),
        ("run resnet18-step-decay --seed 1 --seeds 2", "give one of them"),
        ("run resnet18-step-decay --seed 1 --seed 1", "given twice"),
        ("run resnet18-step-decay --tracking mlruns", "mlruns"),
        ("run resnet18-step-decay --benchmark-dir nowhere", "nowhere"),
        ("validate nothing.toml", "nothing.toml"),
        ("data prepare cifar12 --offline", "did you mean 'cifar10'?"),
        ("data prepare cifar10 --offline", "no cifar10"),
    ],
)
def test_bad_input_is_one_sentence(invoke, tmp_path: Path, command: str, sentence: str) -> None:
    result = invoke(command)
    assert result.code == 2
    assert sentence in " ".join(result.err.split())
    assert "Traceback" not in result.err + result.out
    assert [item.name for item in tmp_path.iterdir() if item.suffix == ".db" or item.name == "runs"] == []


def test_an_unknown_verb_is_no_traceback(invoke) -> None:
    result = invoke("runn")
    assert result.code == 2
    assert "Traceback" not in result.err


# --- the machine ---------------------------------------------------------------------------------


def test_doctor_names_what_is_there_and_what_to_type(invoke) -> None:
    result = invoke("doctor")
    assert result.code == 0
    assert torch.__version__ in result.out
    assert "resnet-bench data prepare cifar10" in result.out
    assert "mlflow.db" in result.out


def test_data_status_names_both_datasets(invoke) -> None:
    result = invoke("data status")
    assert result.code == 0
    assert "cifar10" in result.out
    assert "cifar100" in result.out


@pytest.mark.slow
def test_real_data_is_prepared_and_named(invoke, real_data_folder: Path, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    result = invoke(f"data prepare cifar10 --offline --data {shlex.quote(str(real_data_folder))}")
    assert result.code == 0
    assert "50000 + 10000 images" in result.out


# --- whole runs, in separate processes -------------------------------------------------------


def wait_for_steps(folder: Path, process: subprocess.Popen[str], steps: int, seconds: float = 600) -> None:
    """Wait until the run's journal holds this many optimizer steps."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        journals = list((folder / "runs").glob("*/journal.jsonl"))
        if journals and journals[0].read_text(errors="replace").count("step/loss") >= steps:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    raise AssertionError("the run did not get that far")


def last_checkpoint(folder: Path) -> dict:
    (path,) = (folder / "runs").glob("*/checkpoints/last.pt")
    return checkpoint.load(path)


@pytest.mark.slow
def test_a_run_killed_mid_epoch_resumes_in_place_with_the_same_bits(tmp_path: Path) -> None:
    from resnet_bench.tracking.store import Store

    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for folder in (undisturbed, killed):
        folder.mkdir()
    process = start(TINY, undisturbed)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    assert "not judged" in out
    assert "GENERATED IMAGES" in out

    process = start(TINY, killed)
    wait_for_steps(killed, process, 40)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    process = start(f"{TINY} --resume", killed)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    assert "resumed after step 30" in out

    ours, theirs = weights_of_project(killed)[0], weights_of_project(undisturbed)[0]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    histories = []
    for folder in (undisturbed, killed):
        client = Store.resolve(None, folder).client()
        (state,) = [json.loads(path.read_text()) for path in (folder / "runs").glob("*/run.json")]
        assert client.get_run(state["run_id"]).info.status == "FINISHED"
        histories.append([(m.step, m.value) for m in client.get_metric_history(state["run_id"], "step/loss")])
    assert histories[0] == histories[1]
    assert [step for step, _ in histories[0]] == list(range(1, 61))


@pytest.mark.slow
def test_an_interrupted_run_prints_the_command_that_resumes_it(tmp_path: Path) -> None:
    process = start(TINY, tmp_path)
    wait_for_steps(tmp_path, process, 5)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 130, out
    assert "Traceback" not in out
    printed = out.partition("resume with: ")[2].splitlines()[0]
    assert printed == f"resnet-bench {TINY} --resume"
    position = last_checkpoint(tmp_path)["position"]
    assert position["step"] >= 5

    process = start(printed.removeprefix("resnet-bench "), tmp_path)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    assert f"resumed after step {position['step']}" in out


@pytest.mark.slow
def test_one_failing_run_does_not_stop_the_suite(tmp_path: Path) -> None:
    """A learning rate at which one network diverges; the run behind it trains on."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    copy_benchmark("resnet18-step-decay", folder / "diverging.toml", None)
    text, changed = re.subn(r"^lr = .*$", "lr = 1e30", (folder / "diverging.toml").read_text(), flags=re.MULTILINE)
    # The recipe's and the smoke profile's.
    assert changed == 2
    (folder / "diverging.toml").write_text(text)
    process = start(TINY.replace("resnet18-step-decay", "diverging resnet18-step-decay"), tmp_path)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 1, out
    assert "at learning rate 1e+30" in out
    assert "epoch 2/2" in out
    assert "Traceback" not in out


@pytest.mark.slow
def test_seeds_at_once_are_the_seeds_in_turn_to_the_last_bit(tmp_path: Path) -> None:
    """With the processes that a user gets, each with the threads that a run in turn has."""
    from resnet_bench.tracking.store import Store

    states: list[dict[int, Weights]] = []
    histories: list[dict[int, list[tuple[int, float]]]] = []
    for how in ("--seeds-per-device 2 --threads 2", "--threads 1"):
        folder = tmp_path / f"project{len(states)}"
        tiny.write_images(folder / "data")
        process = start(f"{TINIER} --set training.epochs=2 --seeds 2 {how}", folder)
        out, _ = process.communicate(timeout=600)
        assert process.returncode == 0, out
        runs = [json.loads(path.read_text()) for path in (folder / "runs").glob("*/run.json")]
        seeds = [int(run["identity"]["seed"]) for run in runs]
        assert sorted(seeds) == [0, 1]
        client = Store.resolve(None, folder).client()
        for run in runs:
            tags = client.get_run(run["run_id"]).data.tags
            assert json.loads(tags["resnet_bench.execution"])["threads"] == 1
            assert tags.get("resnet_bench.seeds_per_device") == ("2" if "per-device" in how else None)
        states.append(weights_of_project(folder))
        histories.append(
            {
                seed: [(m.step, m.value) for m in client.get_metric_history(run["run_id"], "step/loss")]
                for seed, run in zip(seeds, runs, strict=True)
            }
        )
    assert histories[0] == histories[1]
    assert all(len(history) == 10 for history in histories[0].values())
    for seed in (0, 1):
        ours, theirs = states[0][seed], states[1][seed]
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_seeds_at_once_outlive_one_another_and_never_their_parent(tmp_path: Path) -> None:
    def wait_for_journals(count: int, steps: int) -> None:
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            journals = [path.read_text(errors="replace") for path in (tmp_path / "runs").glob("*/journal.jsonl")]
            if sum(journal.count("step/loss") >= steps for journal in journals) >= count:
                return
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.1)
        raise AssertionError("the runs did not get that far")

    tiny.write_images(tmp_path / "data")
    process = start(f"{TINIER} --set training.epochs=1000 --seeds 3 --seeds-per-device 2 --threads 2", tmp_path)
    wait_for_journals(2, 7)
    family = psutil.Process(process.pid).children(recursive=True)
    # Between a run's process and the command's stands the server that it was forked from.
    trainers = [child for child in family if child.ppid() != process.pid]
    assert len(trainers) == 2
    trainers[0].kill()
    wait_for_journals(3, 7)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 130, out
    assert "Traceback" not in out
    assert out.count("failed: its process was killed by SIGKILL") == 2, "once as it happens, once at the end"
    assert psutil.wait_procs(family, timeout=120)[1] == []
    printed = out.partition("resume with: ")[2].splitlines()[0]
    assert printed.endswith("--resume")

    steps_before = [path.read_text().count("step/loss") for path in (tmp_path / "runs").glob("*/journal.jsonl")]
    process = start(printed.removeprefix("resnet-bench "), tmp_path)
    wait_for_journals(2, max(steps_before) + 5)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    out, _ = process.communicate(timeout=600)
    assert "resumed after step" in out
    assert psutil.wait_procs(family, timeout=120)[1] == []
