"""Processes that are paused (SIGSTOP) and continue (SIGCONT): nobody takes them for dead, and nothing is done twice.

A laptop that sleeps, a container that is frozen and a debugger do this. What a study's worker that another machine has
replaced must not write is tested in tests/tuning/test_workers.py.
"""

import os

import pytest

from tests.reliability.tiny import run_alone


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("phase", ["step", "checkpoint"])
def test_a_paused_trainer_is_neither_replaced_nor_closed_and_finishes_as_if_nothing_was(phase: str) -> None:
    """In a separate process, which has one thread and may fork."""
    done = run_alone("pauses", phase)
    assert done.returncode == 0, done.stderr[-3000:]
