"""Pauses a whole suite in a phase of its work, and compares what it leaves with an undisturbed one.

    python -m tests.reliability.pauses step

It forks, so that it runs as a separate program, whose process has one thread.
"""

import functools
import itertools
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_bench.tracking.stale_runs import close_stale_runs
from resnet_bench.tracking.store import Store
from resnet_bench.training import checkpoint
from resnet_bench.training.steps import EagerStep
from tests.reliability import kills

PHASES: dict[str, tuple[Any, str]] = {"step": (EagerStep, "step"), "checkpoint": (checkpoint, "save")}
PAUSE_SECONDS = 1.0


def stopping_itself(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which at its second call pauses its process."""
    calls = itertools.count(1)

    @functools.wraps(function)
    def stop(*arguments: Any, **options: Any) -> Any:
        if next(calls) == 2:
            os.kill(os.getpid(), signal.SIGSTOP)
        return function(*arguments, **options)

    return stop


def pause_in(phase: str, folder: Path) -> None:
    """Pause a suite in a phase, try to replace it meanwhile, and check what it leaves.

    Raises:
        AssertionError: It was replaced or closed, or what it leaves differs from an undisturbed one.
    """
    patch = pytest.MonkeyPatch()
    template = kills.prepare(folder, patch)
    undisturbed = kills.new_project(folder / "undisturbed", template)
    kills.finish(undisturbed)
    expected = kills.left_behind(undisturbed)

    project = kills.new_project(folder / "paused", template)
    with patch.context() as also:
        owner, name = PHASES[phase]
        also.setattr(owner, name, stopping_itself(getattr(owner, name)))
        child = kills.start_child(project)
    _, status = os.waitpid(child, os.WUNTRACED)
    assert os.WIFSTOPPED(status), (project / "output.txt").read_text()[-3000:]
    try:
        time.sleep(PAUSE_SECONDS)
        assert close_stale_runs(Store.resolve(f"sqlite:///{project / 'mlflow.db'}")) == []
        second = kills.start_child(project)
        _, status = os.waitpid(second, 0)
        assert os.waitstatus_to_exitcode(status) == 1
        said = (project / "output.txt").read_text().replace("\n", " ")
        # Where it was paused within a transaction, SQLite's lock keeps the others out.
        assert "is training he-resnet20 seed 0 already" in said or "is locked by another process" in said
    finally:
        os.kill(child, signal.SIGCONT)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, (project / "output.txt").read_text()[-3000:]
    assert kills.differences(expected, kills.left_behind(project)) == []


def main() -> None:
    """Pause it in the phase that the command line names."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        pause_in(sys.argv[1], Path(folder))


if __name__ == "__main__":
    main()
