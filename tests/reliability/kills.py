"""Kills a whole suite at random moments, resumes it, and compares what it leaves with an undisturbed one.

Starting Python and its libraries takes ten seconds, so this process loads everything once, by running a suite
itself, and forks: what is killed is a child that begins with the work. The parent has one thread, so that a fork
copies no lock that another thread holds.

    python -m tests.reliability.kills --kills 50 --seconds 90

Prints a JSON summary; the exit status is 1 where anything differs or where fewer kills landed than were planned.
"""

import argparse
import contextlib
import functools
import hashlib
import json
import mmap
import os
import random
import re
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from resnet_bench.base import files
from resnet_bench.cli.run_all import run_all
from resnet_bench.data.cache import CacheEntry
from resnet_bench.reporting import report
from resnet_bench.tracking.delivery import Delivery
from resnet_bench.tracking.journal import Damage, read
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.vocabulary import EXPERIMENT
from resnet_bench.training import checkpoint
from resnet_bench.training.steps import EagerStep
from tests import forking
from tests.reliability import tiny

PHASES = ("cache", "step", "checkpoint", "shipping", "report")
"""What a kill is aimed at; the sixth target is any moment at all."""
KILLS_A_SUITE = 6
CHILD_SECONDS = 600
TIMED = (
    "time/",
    "memory/",
    "system/",
    "final/train_seconds",
    "final/evaluation_seconds",
    "final/images_per_second",
)
"""Metrics that no two runs share the values of."""


class Phases:
    """Which phases a child is in, in memory that it shares with the parent."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, len(PHASES))

    def clear(self) -> None:
        self._memory[:] = bytes(len(PHASES))

    def now(self) -> list[str]:
        return [phase for phase, inside in zip(PHASES, self._memory[:], strict=True) if inside]

    def mark(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, said to be the phase while it runs."""
        index = PHASES.index(phase)

        @functools.wraps(function)
        def marked(*arguments: Any, **options: Any) -> Any:
            self._memory[index] = 1
            try:
                return function(*arguments, **options)
            finally:
                self._memory[index] = 0

        return marked


def mark_phases(phases: Phases, patch: pytest.MonkeyPatch) -> None:
    """Have every phase say that it has begun; nothing else of the product changes."""
    patch.setattr(CacheEntry, "write", phases.mark("cache", CacheEntry.write))
    patch.setattr(EagerStep, "step", phases.mark("step", EagerStep.step))
    patch.setattr(checkpoint, "save", phases.mark("checkpoint", checkpoint.save))
    patch.setattr(Delivery, "deliver", phases.mark("shipping", Delivery.deliver))
    patch.setattr(files, "write_together", phases.mark("report", files.write_together))


def work(project: Path) -> None:
    """What ``make bench`` does: the suite, then the report."""
    with (project / "output.txt").open("a") as output:
        summary = run_all(tiny.options(resume=True), tiny.context(project), Console(file=output, width=160))
        assert not summary.failures, [outcome.failure for _, outcome in summary.results]
        report.write([f"sqlite:///{project / 'mlflow.db'}"], project / "report")


def prepare(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Make a template for projects, and do the work once in this process, which loads everything."""
    tiny.speed_up(patch)
    template = folder / "template"
    tiny.write_images(template / "data")
    shutil.copytree(template / "data", folder / "warm" / "data")
    work(folder / "warm")
    make_empty_database(template)
    forking.settle()
    return template


def new_project(folder: Path, template: Path) -> Path:
    """A project with images, not decoded yet, and an empty database, which takes seconds to make."""
    shutil.copytree(template, folder)
    return folder


# --- children ------------------------------------------------------------------------------------


def start_child(project: Path) -> int:
    """Fork a process that does the work and exits with 0, or leaves a traceback and exits with 1."""
    return forking.start(lambda: work(project), project / "output.txt")


def has_ended(child: int) -> int | None:
    """The child's exit status, or None while it runs."""
    ended, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def kill_in(phase: str | None, child: int, phases: Phases, wait: float, generator: random.Random) -> list[str] | None:
    """Kill a child: in a phase, or after a time; gives the phases it was in, or None where it ended before."""
    began = time.monotonic()
    while True:
        now = time.monotonic() - began
        if (phase in phases.now()) if phase else (now >= wait):
            break
        if (status := has_ended(child)) is not None:
            assert status == 0, "the child failed by itself"
            return None
        assert now < CHILD_SECONDS, "the child hangs"
        time.sleep(0.0002)
    if phase:
        time.sleep(generator.uniform(0, 0.01))
    inside = phases.now()
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
        return None
    return inside


def finish(project: Path) -> None:
    """Resume the work to its end."""
    child, began = start_child(project), time.monotonic()
    while (status := has_ended(child)) is None:
        if time.monotonic() - began > CHILD_SECONDS:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"the child hangs: {(project / 'output.txt').read_text()[-2000:]}")
        time.sleep(0.005)
    assert status == 0, (project / "output.txt").read_text()[-3000:]


# --- what is left behind ---------------------------------------------------------------------------


def left_behind(project: Path) -> dict[str, Any]:
    """Everything about a project that must not depend on how often it was killed."""
    store = Store.resolve(f"sqlite:///{project / 'mlflow.db'}")
    client = store.client()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id])
    if len(runs) != 1:
        return {"runs": [(run.info.status, run.data.tags) for run in runs]}
    (run,) = runs
    found: dict[str, Any] = {"runs": [run.info.status]}
    found["params"] = run.data.params
    found["metrics"] = {
        key: [
            (metric.step, None if key.startswith(TIMED) else metric.value)
            for metric in sorted(client.get_metric_history(run.info.run_id, key), key=lambda metric: metric.step)
        ]
        for key in run.data.metrics
        # How often the machine was looked at depends on how long a run took.
        if not key.startswith("system/")
    }
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    found["artifacts"] = {
        path.relative_to(artifacts).as_posix(): digest(path) for path in sorted(artifacts.rglob("*")) if path.is_file()
    }
    folder = project / "runs" / run.data.tags["resnet_bench.folder"]
    found["state"] = json.loads((folder / "run.json").read_text())["status"]
    found["damage"] = [entry for entry in read(folder / "journal.jsonl", final=True) if isinstance(entry, Damage)]
    found["files"] = sorted(name_of(path, project, run.info.run_id) for path in project.rglob("*") if path.is_file())
    return found


def digest(path: Path) -> str:
    """SHA-256 of a file; of a checkpoint, of all that is in it but times."""
    if path.suffix != ".pt" or path.name == "weights.pt":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    state = checkpoint.load(path)
    for timed in ("train_seconds", "epoch_seconds", "evaluation_seconds", "tta_seconds"):
        state.get("position", {}).pop(timed, None)
    for timed in ("throughput_by_epoch", "setup_seconds"):
        state.get("told", {}).pop(timed, None)
    return hashlib.sha256(b"".join(flat(state))).hexdigest()


def flat(value: Any) -> Iterator[bytes]:
    """A state as bytes, tensors by their values."""
    if isinstance(value, torch.Tensor):
        yield f"{value.dtype}{tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes()
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield str(key).encode()
            yield from flat(value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from flat(item)
    else:
        yield repr(value).encode()


def name_of(path: Path, project: Path, run_id: str) -> str:
    """A file's name in the project without what every run names differently."""
    parts = list(path.relative_to(project).parts)
    if parts[0] == "runs":
        parts[1] = "…" if (path.parents[len(parts) - 3] / "run.json").is_file() else "a folder without its state"
    # The data cache names an entry after the place of its images.
    return re.sub(r"cifar10-[0-9a-f]{12}", "cifar10-…", "/".join(parts).replace(run_id, "…"))


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What differs, in words."""
    said = []
    for key in expected.keys() & found.keys():
        if expected[key] != found.get(key):
            here, there = expected[key], found.get(key)
            if isinstance(here, dict) and isinstance(there, dict):
                names = [name for name in {**here, **there} if here.get(name) != there.get(name)]
                said += [f"{key} {name}: {here.get(name)} became {there.get(name)}" for name in names]
            elif key == "files" and isinstance(there, list):
                said.append(f"files: lacks {sorted(set(here) - set(there))}, has {sorted(set(there) - set(here))}")
            else:
                said.append(f"{key}: {here} became {there}")
    return said


# --- the harness -----------------------------------------------------------------------------------


def run_harness(folder: Path, *, kills: int, seconds: float, seed: int) -> dict[str, Any]:
    """Kill until so many kills have landed or the time is up.

    Args:
        folder: Where projects are made.
        kills: How many kills are planned.
        seconds: No suite is begun behind this time.
        seed: Of the moments.

    Returns:
        A summary: kills that landed and in which phases, suites compared, differences found.
    """
    patch = pytest.MonkeyPatch()
    template = prepare(folder, patch)
    phases = Phases()
    mark_phases(phases, patch)
    undisturbed = new_project(folder / "undisturbed", template)
    began = time.monotonic()
    finish(undisturbed)
    usual = time.monotonic() - began
    expected = left_behind(undisturbed)
    assert expected["runs"] == ["FINISHED"]
    assert [step for step, _ in expected["metrics"]["step/loss"]] == list(range(1, tiny.STEPS + 1))

    generator = random.Random(seed)
    landed: Counter[str] = Counter()
    suites, found = 0, []
    deadline = time.monotonic() + seconds
    while landed.total() < kills and time.monotonic() < deadline:
        project = new_project(folder / f"disturbed-{suites}", template)
        moments = []
        for _ in range(min(KILLS_A_SUITE, kills - landed.total())):
            phases.clear()
            phase = generator.choice([*PHASES, None])
            child = start_child(project)
            inside = kill_in(phase, child, phases, generator.uniform(0, usual), generator)
            if inside is None:
                break
            moments.append("+".join(inside) or "between")
            landed[moments[-1]] += 1
        if not moments:
            shutil.rmtree(project)
            continue
        phases.clear()
        finish(project)
        suites += 1
        found += [f"killed in {', '.join(moments)}: {text}" for text in differences(expected, left_behind(project))]
        shutil.rmtree(project)
    return {
        "planned": kills,
        "landed": landed.total(),
        "by phase": dict(landed),
        "suites": suites,
        "seconds of an undisturbed suite": round(usual, 2),
        "differences": found,
    }


def make_empty_database(template: Path) -> None:
    """MLflow's tables and our experiments, and no run."""
    Store.resolve(f"sqlite:///{template / 'mlflow.db'}").prepare()
    # The experiments name the folder of their artifacts: each project's own database must name its own.
    with contextlib.closing(sqlite3.connect(template / "mlflow.db")) as database:
        database.execute("DELETE FROM experiment_tags")
        database.execute("DELETE FROM experiments WHERE experiment_id != 0")
        database.commit()


def verdict(summary: dict[str, Any]) -> int:
    """The exit status: too few kills prove as little as a difference does."""
    return 1 if summary["differences"] or summary["landed"] < summary["planned"] else 0


def main() -> None:
    """Run the harness and print its summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        summary = run_harness(Path(folder), kills=arguments.kills, seconds=arguments.seconds, seed=arguments.seed)
    print(json.dumps(summary, indent=1, ensure_ascii=False))
    sys.exit(verdict(summary))


if __name__ == "__main__":
    main()
