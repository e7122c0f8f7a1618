"""Measure what surrounds training: CPU seconds of verbs, and of a run by its parts.

    python tools/around_training.py --data DIR --repeats 3

Verbs take turns with ``python -c "import typer"``; the ratio of CPU times in one run compares machines and commits,
whatever else a machine does. A short run in a new folder prints the CPU seconds from the command to its first step,
from the first step to the last event of training, and from there to the end of the command.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

BASELINE = ("-c", "import typer")
VERBS = ("--help", "list", "doctor")

RUN = """
import resource, sys
from resnet_bench.cli import app, live_runs
from resnet_bench.training.events import Finished, Started
def cpu(): return sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
take = live_runs.RunDisplay.take
def timed(self, event):
    if isinstance(event, (Started, Finished)):
        print("@", cpu(), file=sys.stderr)
    take(self, event)
live_runs.RunDisplay.take = timed
sys.argv = ["resnet-bench", *sys.argv[1:]]
try:
    app.main()
finally:
    print("@", cpu(), file=sys.stderr)
"""


def cpu_seconds(arguments: tuple[str, ...]) -> float:
    """CPU seconds of a Python process, user and system."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, *arguments]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)  # noqa: S603 - our own
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def time_verbs(verbs: tuple[str, ...], repeats: int) -> None:
    """Print a row per verb: its CPU seconds, and their ratio to the baseline's."""
    commands = [BASELINE, *(("-m", "resnet_bench", verb) for verb in verbs)]
    for command in commands:
        # Writes byte code.
        cpu_seconds(command)
    seconds = [[cpu_seconds(command) for command in commands] for _ in range(repeats)]
    for i, verb in enumerate(verbs, 1):
        ratio = statistics.median(row[i] / row[0] for row in seconds)
        print(
            f"{verb:<8} {statistics.median(row[i] for row in seconds):6.2f} s of CPU time, {ratio:5.1f} × import typer"
        )


def time_run(benchmark: str, data: list[str]) -> None:
    """Print the CPU seconds of the parts of a short run."""
    sizes = ["--set", "training.epochs=1", "--set", "data.train_images=256", "--set", "data.test_images=100"]
    command = ["run", benchmark, "--profile", "smoke", "--device", "cpu", "--offline", "--yes", *sizes, *data]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(  # noqa: S603 - our own
            [sys.executable, "-c", RUN, *command], cwd=folder, capture_output=True, text=True, check=False
        )
    marks = [float(line.split()[1]) for line in done.stderr.splitlines() if line.startswith("@ ")]
    if done.returncode or len(marks) != 3:
        sys.exit(done.stderr)
    started, finished, end = marks
    print(f"{benchmark}: CPU time {started:.1f} s to the first step, {finished - started:.1f} s of training, ", end="")
    print(f"{end - finished:.1f} s to the end of the command")


def main() -> None:
    """Measure, and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", default="resnet18-step-decay")
    parser.add_argument("--data", type=Path, help="folder with images; generated ones without it")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    time_verbs(VERBS, arguments.repeats)
    time_run(arguments.benchmark, ["--data", str(arguments.data.resolve())] if arguments.data else [])


if __name__ == "__main__":
    main()
