"""Measure how other work on the machine slows a training step, by threads and by how long waiting threads spin.

    python tools/busy.py resnet18-step-decay --threads 1 2 --beside 0 2 --spins 300000 20000 10000 2000

300000 is what GNU OpenMP does by default. Each measurement is a process; beside it, processes of the lowest priority
keep the cores busy. The default of resnet-bench stands in ``resnet_bench/__init__.py``.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator

WARM_UP_STEPS = 2


def main(words: list[str] | None = None) -> None:
    """Measure every combination and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark")
    parser.add_argument("--batch-size", type=int, help="the recipe's by default")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--beside", type=int, nargs="+", default=[0, 2], help="busy processes beside the step")
    parser.add_argument("--spins", type=int, nargs="+", default=[300_000, 20_000, 10_000, 2_000])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--measure-here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.measure_here:
        print(json.dumps(step_seconds(given.benchmark, given.batch_size, given.threads[0], given.steps)))
        return
    print("beside  threads    spins   ms per step (median, range)")
    for beside, threads, spins in itertools.product(given.beside, given.threads, given.spins):
        if threads == 1 and spins != given.spins[0]:
            # One thread waits for nobody.
            continue
        with busy(beside):
            found = _measure_in_a_process(given, threads, spins)
        low, median, high = (1000 * value for value in (min(found), statistics.median(found), max(found)))
        print(f"{beside:>6} {threads:>8} {spins:>8}   {median:.0f} ({low:.0f} to {high:.0f})", flush=True)


def step_seconds(benchmark: str, batch_size: int | None, threads: int, steps: int) -> list[float]:
    """Time steps on noise in this process, in seconds."""
    from resnet_bench.execution.execution import Execution
    from resnet_bench.measure.workload import Workload
    from resnet_bench.recipe.files import load_benchmark

    execution = Execution.resolve("cpu", threads=threads, mode="fast")
    with execution.applied():
        workload = Workload(load_benchmark(benchmark).recipe, execution, batch_size=batch_size)
        return [workload.step().total for _ in range(WARM_UP_STEPS + steps)][WARM_UP_STEPS:]


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep processes of the lowest priority busy while the context is open."""
    started = [multiprocessing.get_context("spawn").Process(target=_compute, daemon=True) for _ in range(count)]
    for process in started:
        process.start()
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.join()


def _compute() -> None:
    os.nice(19)
    while True:
        sum(range(100_000))


def _measure_in_a_process(given: argparse.Namespace, threads: int, spins: int) -> list[float]:
    words = [given.benchmark, "--measure-here", "--threads", str(threads), "--steps", str(given.steps)]
    if given.batch_size is not None:
        words += ["--batch-size", str(given.batch_size)]
    # OpenMP reads its environment when torch is loaded, once.
    own = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")}
    done = subprocess.run(  # noqa: S603 - this script
        [sys.executable, __file__, *words],
        env={**own, "GOMP_SPINCOUNT": str(spins)},
        capture_output=True,
        text=True,
        check=True,
    )
    return list(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
