"""Measure the throughput of several seeds trained in parallel on one device, one process each, against one alone.

    python tools/seeds_per_device.py resnet18-step-decay --max-parallel 1 2 4 8

One, two, four and eight processes take turns. A turn begins when every process in it has warmed up, and ends when
the last has done its steps; on a CPU the threads are divided among them. Images are generated.
"""

import argparse
import contextlib
import json
import statistics
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from resnet_bench.data.dataset import Dataset, ImageLocation, load_images
from resnet_bench.execution.choices import ExecutionMode
from resnet_bench.execution.execution import Execution
from resnet_bench.recipe.changes import cut_short, override
from resnet_bench.recipe.files import load_benchmark
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.running.launchers import child as processes
from resnet_bench.training.events import Steps
from resnet_bench.training.loop import train


@dataclass
class Worker:
    """A process that trains one seed when it is its turn."""

    process: BaseProcess
    connection: Connection


@dataclass(frozen=True)
class Turn:
    """What a worker trains in its turn.

    Attributes:
        recipe: The recipe, cut short.
        warm_up: The step behind which images count.
        end: The last step.
    """

    recipe: Recipe
    warm_up: int
    end: int

    @classmethod
    def of(cls, recipe: Recipe, *, warm_up: int | None, steps: int) -> "Turn":
        """Cut a recipe short to some steps and those of a warm-up; None warms up for a whole epoch.

        Where CUDA graphs replay hundreds of steps, these are told at once, and a part of an epoch is not seen.
        """
        short = cut_short(recipe, steps + (warm_up or 0))
        if warm_up is not None:
            return cls(short, warm_up, short.steps_per_epoch)
        if short.training.epochs == 1:
            short = override(short, {"training.epochs": 2})
        return cls(short, short.steps_per_epoch, 2 * short.steps_per_epoch)


def serve(connection: Connection, images: ImageLocation, turn: Turn, seed: int) -> None:
    """In a worker: train whenever an execution comes."""
    processes.stop_without_parent()
    dataset = load_images(turn.recipe.data.dataset, images)
    with contextlib.suppress(EOFError, OSError):
        while (execution := connection.recv()) is not None:
            connection.send(train_in_step(connection, turn, execution, seed, dataset))


def train_in_step(connection: Connection, turn: Turn, execution: Execution, seed: int, dataset: Dataset) -> int:
    """Train a turn, waiting for the others behind the warm-up; returns the images behind it."""
    counted, is_warm = 0, False
    with contextlib.closing(train(turn.recipe, execution, seed, dataset)) as events:
        for event in events:
            if not isinstance(event, Steps):
                continue
            if is_warm:
                counted += event.images
            elif event.last_step >= turn.warm_up:
                is_warm = True
                connection.send("warm")
                connection.recv()
            if event.last_step >= turn.end:
                break
    return counted


def start(images: ImageLocation, turn: Turn, seed: int) -> Worker:
    """Start a worker."""
    context = processes.context()
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, images, turn, seed), daemon=True)
    processes.start(process)
    theirs.close()
    return Worker(process, ours)


def total_images_per_second(workers: list[Worker], execution: Execution) -> float:
    """Measure the throughput of all workers together."""
    for worker in workers:
        worker.connection.send(execution)
    for worker in workers:
        # It is warm.
        worker.connection.recv()
    started = time.perf_counter()
    for worker in workers:
        worker.connection.send("go")
    images: int = sum(worker.connection.recv() for worker in workers)
    return images / (time.perf_counter() - started)


def measure(
    recipe: Recipe, execution: Execution, max_parallel: list[int], *, warm_up: int | None, steps: int, repeats: int
) -> list[dict[str, Any]]:
    """The rates of each number of processes, all of them taking turns, and their ratios to the first number's."""
    turn = Turn.of(recipe, warm_up=warm_up, steps=steps)
    images = ImageLocation(Path(), generated=(turn.recipe.data.available_images, 2))
    workers = [start(images, turn, seed) for seed in range(max(max_parallel))]
    rates: dict[int, list[float]] = {number: [] for number in max_parallel}
    try:
        for _ in range(repeats):
            for number in max_parallel:
                shared = replace(execution, threads=max(1, execution.threads // number))
                rates[number].append(total_images_per_second(workers[:number], shared))
    finally:
        processes.end([worker.process for worker in workers])
    rows = []
    for number in max_parallel:
        ratios = [ours / alone for ours, alone in zip(rates[number], rates[max_parallel[0]], strict=True)]
        rows.append(
            {
                "processes": number,
                "threads": max(1, execution.threads // number),
                "images_per_second": rates[number],
                "ratio": statistics.median(ratios),
                "ratio_low": min(ratios),
                "ratio_high": max(ratios),
            }
        )
    return rows


def main() -> None:
    """Measure, print a line for each number of processes, and write it all down where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark")
    parser.add_argument("--max-parallel", "--at-once", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--execution", choices=list(ExecutionMode), default=ExecutionMode.AUTO)
    parser.add_argument("--threads", type=int, help="of all processes together")
    parser.add_argument("--steps", type=int, help="measured in each turn; else 20 on a CPU, 500 on a GPU")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a JSON file")
    arguments = parser.parse_args()
    execution = Execution.resolve(arguments.device, threads=arguments.threads, mode=arguments.execution)
    on_cpu = execution.device_type == "cpu"
    recipe = load_benchmark(arguments.benchmark).recipe
    rows = measure(
        recipe,
        execution,
        arguments.max_parallel,
        warm_up=2 if on_cpu else None,
        steps=arguments.steps or (20 if on_cpu else 500),
        repeats=arguments.repeats,
    )
    print(f"{arguments.benchmark} on {execution.device_name} ({execution.describe()}), batches of one seed each")
    for row in rows:
        rate = statistics.median(row["images_per_second"])
        spread = f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}"
        print(f"{row['processes']:>3} in parallel  {rate:>10,.0f} images/s in all  ratio {row['ratio']:.2f} ({spread})")
    if arguments.out:
        arguments.out.write_text(json.dumps({"benchmark": arguments.benchmark, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
