"""Processes that are paused (SIGSTOP) and continue (SIGCONT): nobody takes them for dead, and nothing is done twice.

A laptop that sleeps, a container that is frozen and a debugger do this. What a study's worker that another machine has
replaced must not write is tested in tests/tuning/test_workers.py.
"""

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from resnet_bench.tracking.stale_runs import close_stale_runs
from resnet_bench.tracking.store import Store
from tests.reliability import kills, tiny

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]

PAUSE_SECONDS = 3.0


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        tiny.speed_up(patch)
        yield patch


@contextlib.contextmanager
def paused(child: int) -> Iterator[None]:
    """Stop a process meanwhile, for certain."""
    os.kill(child, signal.SIGSTOP)
    os.waitpid(child, os.WUNTRACED)
    try:
        yield
    finally:
        os.kill(child, signal.SIGCONT)


@pytest.mark.parametrize("phase", ["step", "checkpoint"])
def test_a_paused_trainer_is_neither_replaced_nor_closed_and_finishes_as_if_nothing_was(
    phase: str, tmp_path: Path, patch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    template = tmp_path / "template"
    tiny.write_images(template / "data")
    (tmp_path / "warm").mkdir()
    shutil.copytree(template / "data", tmp_path / "warm" / "data")
    kills.work(tmp_path / "warm")
    kills.make_empty_database(template)
    kills.settle()
    phases = kills.Phases()
    kills.mark_phases(phases, patch)
    undisturbed = kills.new_project(tmp_path / "undisturbed", template)
    kills.finish(undisturbed)
    expected = kills.left_behind(undisturbed)

    project = kills.new_project(tmp_path / "paused", template)
    phases.clear()
    child = kills.start_child(project)
    deadline = time.monotonic() + kills.CHILD_SECONDS
    while phase not in phases.now():
        assert kills.has_ended(child) is None, (project / "output.txt").read_text()[-2000:]
        assert time.monotonic() < deadline, "the child hangs"
        time.sleep(0.0002)
    with paused(child):
        time.sleep(PAUSE_SECONDS)
        assert close_stale_runs(Store.resolve(f"sqlite:///{project / 'mlflow.db'}")) == []
        second = kills.start_child(project)
        _, status = os.waitpid(second, 0)
        assert os.waitstatus_to_exitcode(status) == 1
        said = (project / "output.txt").read_text().replace("\n", " ")
        # Where it was paused within a transaction, SQLite's lock keeps the others out.
        assert (
            "is training he-resnet20 seed 0 already" in said or "is locked by another process" in capfd.readouterr().err
        )
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, (project / "output.txt").read_text()[-3000:]
    assert kills.differences(expected, kills.left_behind(project)) == []
