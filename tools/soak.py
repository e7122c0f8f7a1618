"""A night's work in fast motion: many short runs, then many trials, in one process or in several.

After each run: the memory that the process holds, its open file handles and threads, the size of MLflow's database,
how long the run took, and how much processor time. A leak is a line that rises with the runs. Other work on the machine
lengthens a run, but hardly adds to its processor time, so that this is what says whether runs become slower.

    .venv/bin/python tools/soak.py --runs 500 --trials 200
    .venv/bin/python tools/soak.py --runs 500 --trials 200 --processes 4
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil

from resnet_bench.data.dataset import ImageLocation
from resnet_bench.execution.options import ExecutionOptions
from resnet_bench.recipe.changes import override
from resnet_bench.recipe.files import load_benchmark
from resnet_bench.running.context import Context
from resnet_bench.running.job import Job
from resnet_bench.running.prepare import prepare
from resnet_bench.running.run import run
from resnet_bench.tracking.store import Store
from resnet_bench.tuning.events import TrialEnded
from resnet_bench.tuning.plan import load_study_file, plan_study
from resnet_bench.tuning.run import run_study
from resnet_bench.tuning.storage import StudyStorage

BENCHMARK = "he-resnet20"
TRAIN_IMAGES, TEST_IMAGES = 32, 20
SETTLED = 0.2
"""The share of samples at the beginning that fit no line: caches fill, libraries are loaded."""

RUNS_SHARE = 0.7
"""The share of the time that runs may take, where it is limited; the rest is for trials."""

STUDY = f"""
benchmark = "{BENCHMARK}"
sampler = {{ name = "random" }}
pruner = {{ name = "none" }}
budget = {{ trials = 3 }}
retrain = {{ seeds = 1 }}
validation = {{ images = 10 }}

[space]
optimizer.lr = {{ type = "log-float", low = 1e-4, high = 0.2 }}

[recipe]
data = {{ train_images = {TRAIN_IMAGES}, test_images = {TEST_IMAGES} }}
training = {{ epochs = 1, batch_size = 11 }}
schedule = {{ name = "constant" }}

[profiles.smoke]
"""


@dataclass(frozen=True)
class Sample:
    """What a process holds behind a run."""

    process: int
    kind: str
    number: int
    seconds: float
    cpu_seconds: float
    memory_megabytes: float
    handles: int
    threads: int
    database_megabytes: float


class Sampler:
    """Looks at this process behind each run and writes a line to a file."""

    def __init__(self, folder: Path, process: int) -> None:
        self._process, self._folder = process, folder
        self._file = folder / f"samples-{process}.jsonl"
        self._this = psutil.Process()
        self._numbers = {"run": 0, "trial": 0}
        self.start()

    def start(self) -> None:
        """The clocks of the next run start here."""
        self._last = time.perf_counter()
        self._last_processor = time.process_time()

    def take(self, kind: str) -> None:
        """A run has ended."""
        seconds, cpu_seconds = time.perf_counter() - self._last, time.process_time() - self._last_processor
        self._numbers[kind] += 1
        sample = Sample(
            self._process,
            kind,
            self._numbers[kind],
            seconds,
            cpu_seconds,
            self._this.memory_info().rss / 1e6,
            self._this.num_fds(),
            self._this.num_threads(),
            (self._folder / "mlflow.db").stat().st_size / 1e6,
        )
        with self._file.open("a") as file:
            file.write(json.dumps(asdict(sample)) + "\n")
        self.start()


def work(folder: Path, process: int, runs: int, trials: int, seconds: float) -> None:
    """What one process does; no run begins later than ``RUNS_SHARE`` of the seconds, and no trial behind them."""
    began = time.monotonic()
    os.chdir(folder)
    store = Store.resolve(f"sqlite:///{folder / 'mlflow.db'}")
    store.prepare()
    context = Context(
        store,
        folder / "runs",
        ImageLocation(folder / "none", generated=(TRAIN_IMAGES, TEST_IMAGES)),
        ExecutionOptions("cpu", precision="fp32", threads=1, autotune=False),
    )
    benchmark = load_benchmark(BENCHMARK)
    recipe = override(
        benchmark.recipe,
        {
            "data.train_images": TRAIN_IMAGES,
            "data.test_images": TEST_IMAGES,
            "training.epochs": 1,
            "training.batch_size": 16,
            "schedule.name": "constant",
        },
    )
    sampler = Sampler(folder, process)
    for number in range(runs):
        if time.monotonic() - began > RUNS_SHARE * seconds:
            break
        seed = process * 1_000_000 + number
        # The export of the network takes ten times as long as all else of such a run.
        job = Job(benchmark=benchmark, recipe=recipe, profile="smoke", seed=seed, force=True, keep_model=False)
        for _ in run(prepare(job, context), context):
            pass
        sampler.take("run")
    if trials:
        study = folder / f"soak-{process}.toml"
        study.write_text(STUDY)
        plan = plan_study(load_study_file(study), "smoke", trials=trials)
        storage = StudyStorage(f"sqlite:///{folder / f'optuna-{process}.db'}")
        sampler.start()
        for event in run_study(f"soak-{process}", plan, storage, context):
            if isinstance(event, TrialEnded):
                sampler.take("trial")
                if time.monotonic() - began > seconds:
                    break


def read_samples(folder: Path) -> list[Sample]:
    """Every sample of every process."""
    lines = [line for file in sorted(folder.glob("samples-*.jsonl")) for line in file.read_text().splitlines()]
    return [Sample(**json.loads(line)) for line in lines]


def growth(samples: list[Sample], quantity: str) -> float:
    """By how much a quantity grows in a hundred runs, from a line through the samples of each process, the median.

    The samples at the beginning are left out.
    """
    slopes = []
    for process in {sample.process for sample in samples}:
        of_process = [sample for sample in samples if sample.process == process]
        settled = of_process[int(SETTLED * len(of_process)) :]
        values = [getattr(sample, quantity) for sample in settled]
        if len(values) > 2:
            slopes.append(100 * float(np.polyfit(range(len(values)), values, 1)[0]))
    return float(np.median(slopes)) if slopes else float("nan")


def fifths(samples: list[Sample], quantity: str) -> tuple[float, float]:
    """Medians of a quantity over the first fifth of each process's runs, and over the last."""
    first: list[float] = []
    last: list[float] = []
    for process in {sample.process for sample in samples}:
        values = [getattr(sample, quantity) for sample in samples if sample.process == process]
        count = max(1, len(values) // 5)
        first += values[:count]
        last += values[-count:]
    return float(np.median(first)), float(np.median(last))


QUANTITIES = {
    "memory_megabytes": "memory, MB",
    "handles": "open file handles",
    "threads": "threads",
    "database_megabytes": "MLflow's database, MB",
    "cpu_seconds": "CPU seconds a run",
    "seconds": "seconds a run",
}


def plot(samples: list[Sample], path: Path) -> None:
    """Each quantity against the runs that the process has done, a line a process."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.2 * len(QUANTITIES)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(QUANTITIES), 1, sharex=True)
    processes = sorted({sample.process for sample in samples})
    for panel, (quantity, name) in zip(axes, QUANTITIES.items(), strict=True):
        for process in processes:
            of_process = [sample for sample in samples if sample.process == process]
            panel.plot([getattr(sample, quantity) for sample in of_process], label=f"process {process + 1}", lw=1)
            first_trial = next((i for i, sample in enumerate(of_process) if sample.kind == "trial"), None)
            if first_trial is not None:
                panel.axvline(first_trial, color="grey", lw=0.5, ls=":")
        panel.set_ylabel(name)
        panel.set_ylim(bottom=0)
    axes[0].set_title("dotted: from here on trials of a study")
    if len(processes) > 1:
        axes[0].legend(loc="lower right")
    axes[-1].set_xlabel("runs that the process has done")
    figure.savefig(path)


def main() -> None:
    """Run, print what grew, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500, help="short runs of all processes together")
    parser.add_argument("--trials", type=int, default=200, help="trials of all processes together")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after about this long")
    parser.add_argument("--plot", type=Path, help="an SVG or PNG to draw")
    parser.add_argument("--samples", type=Path, help="where to keep the samples, one JSON object a line")
    arguments = parser.parse_args()
    count = arguments.processes
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        context = multiprocessing.get_context("spawn")
        shares = (arguments.runs // count, arguments.trials // count, 60 * arguments.minutes)
        children = [context.Process(target=work, args=(folder, process, *shares)) for process in range(count)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        samples = read_samples(folder)
        codes = [child.exitcode for child in children]
    if arguments.samples:
        arguments.samples.write_text("".join(json.dumps(asdict(sample)) + "\n" for sample in samples))
    summary: dict[str, object] = {
        "processes": count,
        "exit codes": codes,
        "minutes": round((time.monotonic() - began) / 60, 1),
    }
    for kind in ("run", "trial"):
        of_kind = [sample for sample in samples if sample.kind == kind]
        summary[f"{kind}s"] = len(of_kind)
        if of_kind:
            summary[f"growth in a hundred {kind}s"] = {name: round(growth(of_kind, name), 4) for name in QUANTITIES}
            summary[f"first and last fifth of the {kind}s"] = {
                name: [round(value, 3) for value in fifths(of_kind, name)] for name in QUANTITIES
            }
    print(json.dumps(summary, indent=1))
    if arguments.plot:
        plot(samples, arguments.plot)


if __name__ == "__main__":
    main()
