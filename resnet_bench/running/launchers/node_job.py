"""What a scheduler starts on a node. It imports little, so that signals are heard before torch is imported."""

import os
import signal
import subprocess  # the scheduler's own commands  # nosec B404
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

REQUEUE_SECONDS = 60.0
"""What the scheduler gets to answer."""
END_SECONDS = 600.0
"""A job that SIGTERM has reached waits so long to be killed; schedulers do it within minutes."""


@dataclass(frozen=True)
class SlurmWork:
    """Some tasks of a launch, as a job of Slurm; submitit calls it.

    Attributes:
        folder: The launch's folder.
        tasks: Numbers of the tasks.
    """

    folder: Path
    tasks: tuple[int, ...]

    def __call__(self) -> None:
        """Do the tasks. When asked to make room, checkpoint; then requeue this job, or wait to be killed.

        SIGUSR2 comes before preemption and before the limit of the job: a job that exits by itself is not requeued, so
        it asks for that. After SIGTERM the scheduler decides: it kills a job that was cancelled for good, and starts
        a preempted one again if it had to be killed.
        """
        # torch counts the cores of the node, whatever part of it the job has.
        if "SLURM_CPUS_PER_TASK" in os.environ:
            os.environ.setdefault("OMP_NUM_THREADS", os.environ["SLURM_CPUS_PER_TASK"])

        from resnet_bench.running.stopping import stop_on_signals

        with stop_on_signals() as stop:
            from resnet_bench.running.launchers.on_node import do_tasks

            attempt = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
            if do_tasks(self.folder, self.tasks, attempt, stop):
                return
            if stop.signal == signal.SIGUSR2 and _requeue():
                _exit(0)
            if stop.signal == signal.SIGTERM:
                _wait_to_be_killed()
        _exit(1)

    def checkpoint(self) -> object:
        """Return what submitit starts again, where it is told to stop before this job hears signals itself."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _requeue() -> bool:
    """Ask Slurm to start this job again; it sends SIGTERM at once."""
    command = ["scontrol", "requeue", _job_id(os.environ)]
    try:
        done = subprocess.run(  # noqa: S603 - the same  # nosec B603
            command, timeout=REQUEUE_SECONDS, check=False, capture_output=True, text=True
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        sys.stderr.write(f"{' '.join(command)}: {error}\n")
        return False
    sys.stderr.write(done.stderr)
    return done.returncode == 0


def _job_id(environment: Mapping[str, str]) -> str:
    """The id of this job alone: the last task of an array has the array's as its SLURM_JOB_ID."""
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment["SLURM_JOB_ID"]


def _wait_to_be_killed() -> None:
    until = time.monotonic() + END_SECONDS
    while time.monotonic() < until:
        time.sleep(1)


def _exit(code: int) -> None:
    """End without a word to submitit, which would note a result: the job may be started again."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
