"""What a command learns of its jobs from the scheduler's own commands, which are scripts here."""

import os
from pathlib import Path

import pytest

from resnet_bench.running.events import JobFinished
from resnet_bench.running.launchers.launch import Handle, Launch
from resnet_bench.running.launchers.options import SlurmOptions
from resnet_bench.running.launchers.slurm import Slurm
from resnet_bench.running.stopping import Stop
from tests.running.conftest import tiny_job

HOURS = 4 * 3600.0


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each command of Slurm that was given, in a file; ``squeue`` knows of a job that waits until it is cancelled."""
    commands, asked = tmp_path / "bin", tmp_path / "asked"
    commands.mkdir()
    for name, does in {
        "scancel": "",
        "squeue": f"grep -q scancel {asked} && echo '7_0|CANCELLED|' || echo '7_0|PENDING|'",
    }.items():
        (commands / name).write_text(f"#!/bin/sh\necho {name} >> {asked}\n{does}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    return asked


def test_squeue_is_asked_at_once_when_jobs_are_cancelled(
    asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resnet_bench.running.launchers.slurm.ASK_SECONDS", HOURS)
    monkeypatch.setattr("resnet_bench.running.launchers.slurm.LOOKS_BEFORE_VERDICT", 1)
    monkeypatch.setattr("resnet_bench.running.launchers.slurm.CANCEL_SECONDS", 30.0)
    launch = Launch.create(tmp_path / "runs", SlurmOptions(gpus_per_node=0), [tiny_job()], None)
    launch = launch.submitted([Handle("7_0", (0,))])
    stop = Stop()
    stop.reason = "interrupted by SIGINT"
    assert [*Slurm(SlurmOptions()).events(launch, stop)] == [(0, JobFinished(interrupted=True))]
    assert asked.read_text().split() == ["scancel", "squeue"]
