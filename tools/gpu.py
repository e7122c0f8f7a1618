"""What is to be tried and measured on a GPU, in one command.

    .venv/bin/python tools/gpu.py --data DIR
    .venv/bin/python tools/gpu.py --data DIR --part steps --benchmarks resnet18-step-decay --compile

Parts; each can be asked for alone, and they are done in this order:

    tests    the tests that need a GPU
    steps    training steps of each benchmark: the source's way, and ours plain, fast but uncaptured, and fast
    profile  the kernels that fast steps spend their time in
    epochs   whole epochs of each benchmark with their evaluations, as a run has them

Everything goes to the folder --out as it is measured; tables are printed. With --tiny it is tried on a CPU in seconds:
the numbers then mean nothing.
"""

import argparse
import dataclasses
import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import resnet_bench  # noqa: F401 - before torch: it sets how long threads spin

# isort: split
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from resnet_bench.data.dataset import Dataset, generate_dataset, load_dataset
from resnet_bench.execution.execution import Execution
from resnet_bench.measure.page import remarks, speed_table, stage_table
from resnet_bench.measure.speed import SpeedComparison, compare
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.changes import override
from resnet_bench.recipe.files import load_benchmark
from resnet_bench.training.events import EpochEnded, Evaluated, Started
from resnet_bench.training.loop import train

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("tests", "steps", "profile", "epochs")

TIMES_THE_SOURCE = {
    "resnet9-onecycle-adam": 15.0,
    "resnet34-sgd-224": 8.0,
    "resnet18-step-decay": 20.0,
    "cifar100-resnet": 8.0,
}
"""What each is to reach on one H200."""

EPOCH_FLOORS = {
    "resnet9-onecycle-adam": 0.22,
    "resnet34-sgd-224": 2.1,
    "resnet18-step-decay": 0.2,
    "cifar100-resnet": 0.2,
}
"""Seconds on one H200, by operations, bytes and launches (docs/performance.md)."""

TINY_RECIPE = {
    "data.train_images": 60,
    "data.test_images": 10,
    "training.batch_size": 20,
    "training.epochs": 2,
    "evaluation.batch_size": 10,
}
PROFILED_EPOCHS = 2
KERNELS_SHOWN = 25

console = Console(width=200, highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the parts that are asked for; the number of those that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="all by default; may be given again")
    parser.add_argument("--benchmarks", nargs="+", default=list(TIMES_THE_SOURCE), metavar="NAME")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with CIFAR; else images are generated")
    parser.add_argument("--out", type=Path, default=Path("reports/gpu"), help="folder for what is measured")
    parser.add_argument("--steps", type=int, default=100, help="measured in each turn")
    parser.add_argument("--repeats", type=int, default=2, help="turns of each way")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile, which takes a minute each")
    parser.add_argument("--tiny", action="store_true", help="a small network on the CPU")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    _look(options)
    done = {"tests": _tests, "steps": _steps, "profile": profile, "epochs": _epochs}
    failed = []
    for part in options.part or PARTS:
        console.rule(part)
        began = time.perf_counter()
        try:
            succeeded = done[part](options)
        except Exception:  # the other parts are worth having
            console.print_exception()
            succeeded = False
        failed += [] if succeeded else [part]
        console.print(f"{part}: {'done' if succeeded else 'FAILED'} in {time.perf_counter() - began:.0f} s\n")
    if failed:
        console.print(f"failed: {', '.join(failed)}")
    return len(failed)


def _look(options: argparse.Namespace) -> None:
    found = {
        "device": "cpu" if options.tiny else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
    }
    console.print(", ".join(f"{key} {value}" for key, value in found.items()))
    (options.out / "environment.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


# --- tests -----------------------------------------------------------------------------------------


def _tests(options: argparse.Namespace) -> bool:
    """Every test that is marked for it, the rest of the run's output cut short."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-rfEs", "--tb=short", "--durations=5"]
    # A file whose libraries are missing does not keep the others from running, and other versions warn of other things.
    command += ["--continue-on-collection-errors", "-W", "default", *files_with_tests()]
    with (options.out / "tests.txt").open("w", encoding="utf-8") as log:
        finished = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False)  # noqa: S603 - tests of ours
    lines = (options.out / "tests.txt").read_text(encoding="utf-8").splitlines()
    console.print("\n".join(lines[-40:]), markup=False)
    return finished.returncode == 0


def files_with_tests() -> list[str]:
    """The files in which there are tests for a GPU: to collect all the others takes longer than these tests."""
    return sorted(str(path) for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text("utf-8"))


# --- steps -----------------------------------------------------------------------------------------


def _executions(options: argparse.Namespace) -> dict[str, Execution]:
    device = "cpu" if options.tiny else "cuda"
    fast = dataclasses.replace(Execution.resolve(device, mode="fast"), cuda_graphs=True)
    found = {
        "plain": Execution.resolve(device, mode="plain"),
        "uncaptured": dataclasses.replace(fast, cuda_graphs=False),
        "fast": fast,
    }
    if options.compile:
        found["compiled"] = dataclasses.replace(fast, compile=True)
    return found


def _benchmarks(options: argparse.Namespace) -> list[tuple[Benchmark, Dataset]]:
    if options.tiny:
        shipped = load_benchmark("he-resnet20")
        benchmark = shipped.model_copy(update={"recipe": override(shipped.recipe, TINY_RECIPE)})
        return [(benchmark, generate_dataset("cifar10", train_size=60, test_size=10))]
    chosen = [load_benchmark(name) for name in options.benchmarks]
    return [
        (benchmark, load_dataset(benchmark.recipe.data.dataset, options.data, allow_generated=True))
        for benchmark in chosen
    ]


def _steps(options: argparse.Namespace) -> bool:
    found = []
    for benchmark, dataset in _benchmarks(options):
        comparison = compare(
            benchmark,
            dataset,
            _executions(options),
            steps=2 if options.tiny else options.steps,
            repeats=1 if options.tiny else options.repeats,
            progress=console.print,
        )
        found.append((benchmark, comparison))
        file = options.out / f"steps-{benchmark.name}.json"
        file.write_text(json.dumps(comparison.asdict(), indent=1) + "\n", encoding="utf-8")
        console.print(speed_table(comparison))
        console.print(stage_table(comparison))
        for remark in remarks(comparison):
            console.print(remark)
    console.print(_summary(found))
    return True


def _summary(found: Sequence[tuple[Benchmark, SpeedComparison]]) -> Table:
    """A line a benchmark: its fast steps, and how near they are to what is wanted."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    columns = (
        "benchmark",
        "source ms",
        "plain ms",
        "uncaptured ms",
        "fast ms",
        "times the source",
        "wanted",
        "of peak",
    )
    for column in (*columns, "an epoch, s", "floor, s"):
        table.add_column(column, justify="left" if column == "benchmark" else "right")
    for benchmark, comparison in found:
        arms = {arm.name: arm for arm in comparison.arms}
        fast = arms["fast"]
        table.add_row(
            benchmark.name,
            *(f"{arms[name].milliseconds.median:.2f}" for name in ("source", "plain", "uncaptured", "fast")),
            f"{fast.ratio.median:.1f}",
            _shown(TIMES_THE_SOURCE, benchmark.name),
            f"{fast.peak_share:.0%}",
            f"{benchmark.recipe.data.num_train / fast.images_per_second.median:.2f}",
            _shown(EPOCH_FLOORS, benchmark.name),
        )
    return table


def _shown(values: Mapping[str, float], name: str) -> str:
    return f"{values[name]:g}" if name in values else "–"


# --- profile ---------------------------------------------------------------------------------------


def profile(options: argparse.Namespace) -> bool:
    """The kernels of the second of two short epochs, and how much of that time the device had one to run."""
    execution = _executions(options)["fast"]
    activities = [torch.profiler.ProfilerActivity.CPU if options.tiny else torch.profiler.ProfilerActivity.CUDA]
    for benchmark, dataset in _benchmarks(options):
        recipe = benchmark.recipe
        if not options.tiny:
            held_out = recipe.data.validation.images if recipe.data.validation else 0
            images = min(recipe.data.available_images, options.steps * recipe.training.batch_size + held_out)
            recipe = override(recipe, {"data.train_images": images, "training.train_accuracy": "running"})
        profiler = torch.profiler.profile(activities=activities)
        for event in train(recipe, execution, 0, dataset):
            if isinstance(event, EpochEnded) and event.epoch == 1:
                profiler.start()
            if isinstance(event, Evaluated) and event.epoch == PROFILED_EPOCHS:
                break
            if isinstance(event, EpochEnded) and event.epoch == PROFILED_EPOCHS:
                break
        profiler.stop()
        key = "self_cpu_time_total" if options.tiny else "self_device_time_total"
        averages = profiler.key_averages()
        table = averages.table(sort_by=key, row_limit=KERNELS_SHOWN, max_name_column_width=90)
        (options.out / f"profile-{benchmark.name}.txt").write_text(table, encoding="utf-8")
        busy = sum(getattr(entry, key) for entry in averages) / 1e6
        calls = sum(entry.count for entry in averages)
        console.print(f"{benchmark.name}: {calls} kernels, {busy:.3f} s, in the second epoch and its first evaluation")
        for entry in sorted(averages, key=lambda entry: -getattr(entry, key))[:8]:
            console.print(
                f"  {getattr(entry, key) / 1e4 / busy:5.1f}% {entry.count:6d} × {entry.key[:120]}", markup=False
            )
    return True


# --- epochs ----------------------------------------------------------------------------------------


def _epochs(options: argparse.Namespace) -> bool:
    """Two epochs of each benchmark in full; the second is the one to look at."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    columns = (
        "set-up, s",
        "of it captures, s",
        "captures",
        "first epoch, s",
        "second epoch, s",
        "floor, s",
        "evaluation, s",
    )
    for column in ("benchmark", *columns, "train loss", "memory, GB"):
        table.add_column(column, justify="left" if column == "benchmark" else "right")
    rows = []
    for benchmark, dataset in _benchmarks(options):
        started, ended, evaluated = None, [], []
        for event in train(benchmark.recipe, _executions(options)["fast"], 0, dataset):
            if isinstance(event, Started):
                started = event
            elif isinstance(event, Evaluated) and event.epoch > 0:
                evaluated.append(event.seconds)
            elif isinstance(event, EpochEnded):
                ended.append(event)
                if event.epoch == PROFILED_EPOCHS:
                    break
        if started is None:
            raise RuntimeError(f"{benchmark.name}: training ended before it began")
        row = {
            "benchmark": benchmark.name,
            "setup_seconds": started.setup_seconds,
            "capture_seconds": started.capture_seconds,
            "captures": started.captures,
            "epoch_seconds": [event.seconds for event in ended],
            "evaluation_seconds": evaluated,
            "train_losses": [event.loss_mean for event in ended],
            "peak_memory_bytes": ended[-1].peak_memory_bytes,
        }
        rows.append(row)
        table.add_row(
            benchmark.name,
            f"{started.setup_seconds:.2f}",
            f"{started.capture_seconds:.2f}",
            str(started.captures),
            f"{ended[0].seconds:.3f}",
            f"{ended[-1].seconds:.3f}",
            _shown(EPOCH_FLOORS, benchmark.name),
            f"{evaluated[-1]:.3f}" if evaluated else "–",
            f"{ended[-1].loss_mean:.4f}",
            f"{ended[-1].peak_memory_bytes / 1e9:.2f}",
        )
        (options.out / "epochs.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    console.print(table)
    return all(row["captures"] for row in rows)


if __name__ == "__main__":
    sys.exit(main())
