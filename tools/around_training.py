"""Measure what surrounds training, in CPU time and in wall time, and compare it with what it may take.

    python tools/around_training.py --data DIR

Five rows: the verbs `--help`, `list` and `doctor`; a command that trains several benchmarks, up to the first step of
its first run; and a short run, from the last event of training to the end of the command. The first of the repeats
writes byte code, decodes images and compiles kernels, and is not counted. The lesser of both times has to hold: other
work lengthens wall time, and threads CPU time; divided by that of ``import typer``, CPU time compares machines.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SUITE = ("resnet9-onecycle-adam", "resnet34-sgd-224", "resnet18-step-decay", "cifar100-resnet", "speedrun-90")
"""What ``make bench`` trains."""
SHORT = ("training.epochs=1", "data.train_images=256", "data.test_images=100")
"""Changes that leave a run a few steps."""
RUN = ("--device", "cpu", "--offline", "--yes")

MARKING = """
import os, resource, sys, time
from resnet_bench.cli import app, live_runs
from resnet_bench.training.events import Finished, Started
last = {"Started": Started, "Finished": Finished}[sys.argv.pop(1)]
def mark():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print("@", sum(each.ru_utime + each.ru_stime for each in used), time.time(), file=sys.stderr, flush=True)
take = live_runs.RunDisplay.take
def marking(self, event):
    if isinstance(event, last):
        mark()
        if last is Started:
            os._exit(0)
    take(self, event)
live_runs.RunDisplay.take = marking
sys.argv[0] = "resnet-bench"
try:
    app.main()
finally:
    mark()
"""
"""Prints CPU and wall time at an event of a run, and at the end of the command."""


@dataclass(frozen=True)
class Seconds:
    """What a part takes."""

    cpu: float
    wall: float


@dataclass(frozen=True)
class Row:
    """A part, the seconds that it may take, and how it is measured."""

    name: str
    limit: float | None
    measure: Callable[[], Seconds]


def time_command(arguments: Sequence[str]) -> Seconds:
    """Time a Python process: CPU time of user and system."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, *arguments]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)  # noqa: S603 - our own
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Seconds(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall)


def time_start(names: Sequence[str], options: Sequence[str]) -> Seconds:
    """Time a command that trains benchmarks, up to the first step of the first."""
    began = time.time()
    (started,) = marks("Started", ["run", *names, *RUN, *options])
    return Seconds(started.cpu, started.wall - began)


def time_end(name: str, options: Sequence[str]) -> Seconds:
    """Time what comes after the last event of a short run's training."""
    changes = [word for change in SHORT for word in ("--set", change)]
    finished, end = marks("Finished", ["run", name, *RUN, "--profile", "smoke", *changes, *options])
    return Seconds(end.cpu - finished.cpu, end.wall - finished.wall)


def marks(event: str, command: list[str]) -> list[Seconds]:
    """Run a command; return its CPU time and the clock at an event of training, and at the end unless it ends there."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(  # noqa: S603 - our own
            [sys.executable, "-c", MARKING, event, *command], cwd=folder, capture_output=True, text=True, check=False
        )
    lines = [line.split() for line in done.stderr.splitlines() if line.startswith("@ ")]
    if done.returncode or not lines:
        sys.exit(done.stderr)
    return [Seconds(float(cpu), float(wall)) for _, cpu, wall in lines]


def measure(rows: Sequence[Row], repeats: int) -> list[str]:
    """Measure the rows in turns, and return the lines of a table: medians, and which are over their limit."""
    turns = [[row.measure() for row in rows] for _ in range(1 + repeats)][1:]
    lines = [f"{'':<44} {'limit':>6} {'CPU s':>7} {'wall s':>7}"]
    for i, row in enumerate(rows):
        cpu = statistics.median(turn[i].cpu for turn in turns)
        wall = statistics.median(turn[i].wall for turn in turns)
        limit = "" if row.limit is None else f"{row.limit:g}"
        over = "  over" if row.limit is not None and min(cpu, wall) > row.limit else ""
        lines.append(f"{row.name:<44} {limit:>6} {cpu:>7.2f} {wall:>7.2f}{over}")
    return lines


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", nargs="+", default=SUITE, help="the benchmarks of the command; the last one is run")
    parser.add_argument("--data", type=Path, help="folder with images; generated ones without it")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    options = ["--data", str(given.data.resolve())] if given.data else []

    def verb(*words: str) -> Callable[[], Seconds]:
        return lambda: time_command(words)

    rows = [
        Row("python -c 'import typer'", None, verb("-c", "import typer")),
        Row("--help", 0.3, verb("-m", "resnet_bench", "--help")),
        Row("list", 0.3, verb("-m", "resnet_bench", "list")),
        Row("doctor", 3, verb("-m", "resnet_bench", "doctor")),
        Row(f"run of {len(given.suite)} benchmarks, to the first step", 10, lambda: time_start(given.suite, options)),
        Row("end of training to end of the command", 2, lambda: time_end(given.suite[-1], options)),
    ]
    print("\n".join(measure(rows, given.repeats)))


if __name__ == "__main__":
    main()
