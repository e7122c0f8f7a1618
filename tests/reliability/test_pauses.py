"""Processes that are paused (SIGSTOP) and continue (SIGCONT): nobody takes them for dead, and nothing is done twice.

A laptop that sleeps, a container that is frozen and a debugger do this. What a study's worker that another machine has
replaced must not write is tested in tests/tuning/test_workers.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("phase", ["step", "checkpoint"])
def test_a_paused_trainer_is_neither_replaced_nor_closed_and_finishes_as_if_nothing_was(phase: str) -> None:
    """In a separate process, which has one thread and may fork."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.reliability.pauses", phase],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
