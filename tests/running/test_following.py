"""What a command learns of its jobs from the scheduler's own commands, which are scripts here."""

import json
import os
from pathlib import Path

import pytest

from resnet_bench.running.events import JobFinished
from resnet_bench.running.launchers.event_log import write_to
from resnet_bench.running.launchers.launch import Handle, Launch, path_of
from resnet_bench.running.launchers.options import SlurmOptions
from resnet_bench.running.launchers.slurm import Slurm
from resnet_bench.running.stopping import Stop
from tests.golden import typed
from tests.running.conftest import tiny_job

HOURS = 4 * 3600.0


def scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripts: dict[str, str]) -> None:
    """Put commands of a scheduler first on the path."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, script in scripts.items():
        (commands / name).write_text(f"#!/bin/sh\n{script}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each command of Slurm that was given, in a file; ``squeue`` knows of a job that waits until it is cancelled, and
    of one that cannot be."""
    asked = tmp_path / "asked"
    does = {
        "scancel": f"case $* in *8_0*) echo no such cluster >&2; exit 1;; esac; touch {asked}-and-cancelled",
        "squeue": f"""
            echo '8_0|PENDING|'
            test -e {asked}-and-cancelled && echo '7_0|CANCELLED|' || echo '7_0|PENDING|'""",
    }
    scheduler(tmp_path, monkeypatch, {name: f"echo {name} >> {asked}\n{script}" for name, script in does.items()})
    return asked


def submitted(folder: Path, job: str = "7_0") -> Launch:
    launch = Launch.create(folder / "runs", SlurmOptions(gpus_per_node=0), [tiny_job()], None)
    return launch.submitted([Handle(job, (0,))])


def test_squeue_is_asked_at_once_when_jobs_are_cancelled(
    asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resnet_bench.running.launchers.slurm.ASK_SECONDS", HOURS)
    monkeypatch.setattr("resnet_bench.running.launchers.slurm.LOOKS_BEFORE_VERDICT", 1)
    monkeypatch.setattr("resnet_bench.running.launchers.slurm.CANCEL_SECONDS", 30.0)
    stop = Stop()
    stop.reason = "interrupted by SIGINT"
    events = Slurm(SlurmOptions()).events(submitted(tmp_path), stop)
    assert [*events] == [(0, JobFinished(interrupted=True))]
    assert asked.read_text().split() == ["scancel", "squeue"]


def test_jobs_that_cannot_be_cancelled_are_tried_again_and_named(
    asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("resnet_bench.running.launchers.slurm.READ_SECONDS", 0.05)
    monkeypatch.setattr("resnet_bench.running.launchers.slurm.CANCEL_SECONDS", 2.0)
    stop = Stop()
    stop.reason = "interrupted by SIGINT"
    launch = submitted(tmp_path, "8_0")
    assert [*Slurm(SlurmOptions()).events(launch, stop)] == [(0, JobFinished(interrupted=True))]
    assert asked.read_text().split().count("scancel") > 1
    said = "1 job could not be cancelled (scancel: no such cluster); try it again: resnet-bench cancel"
    assert f"{said} {launch.name}" in caplog.text


def test_the_jobs_of_all_arrays_together_are_no_more_than_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    scripts = tmp_path / "scripts"
    submits = f'cat "$1" >> {scripts}; echo Submitted batch job 7'
    scheduler(tmp_path, monkeypatch, {"sbatch": submits, "srun": ""})
    monkeypatch.setattr("resnet_bench.running.launchers.slurm.ARRAY_SIZE", 2)
    options = SlurmOptions(gpus_per_node=0, max_jobs=6)
    launch = Launch.create(tmp_path / "runs", options, 6 * [tiny_job()], None)
    assert len(Slurm(options).submit(launch, [(number,) for number in range(6)])) == 6
    arrays = [line for line in scripts.read_text().splitlines() if line.startswith("#SBATCH --array")]
    assert arrays == 3 * ["#SBATCH --array=0-1%2"]


def test_status_says_how_launches_that_have_ended_are_shown(tmp_path: Path) -> None:
    where = f"--run-dir {tmp_path / 'runs'}"
    (tmp_path / "runs").mkdir()
    assert typed(f"status {where}").out == "no job is waiting or running\n"
    write_to(path_of(submitted(tmp_path).events, 0, 0)).take(JobFinished("it broke"))
    assert typed(f"status {where}").out == "no job is waiting or running; --all shows how those before have ended\n"
    (task,) = json.loads(typed(f"status {where} --all --json").out)["tasks"]
    assert task["reason"] == "it broke"


def test_a_cluster_that_is_gone_keeps_no_other_launch_from_being_cancelled(asked: Path, tmp_path: Path) -> None:
    gone, live = submitted(tmp_path, "8_0"), submitted(tmp_path)
    found = typed(f"cancel --run-dir {tmp_path / 'runs'} --json")
    document = json.loads(found.out)
    assert found.code == 1
    assert document["cancelled"] == {live.name: ["7_0"]}
    assert len(document["problems"]) == 1
    assert document["problems"][0].startswith(f"{gone.name}: not cancelled: ")
    assert "no such cluster" in document["problems"][0]
    assert asked.read_text().split().count("scancel") == 2


@pytest.mark.parametrize("verb", ["cancel", "status", "tracking flush"])
def test_a_mistyped_folder_of_runs_is_refused(verb: str) -> None:
    found = typed(f"{verb} --run-dir rnus")
    assert (found.code, found.out) == (2, "")
    assert found.err == "error: --run-dir rnus: there is no such folder\n"
