"""Train seeds of each recipe by stock PyTorch in fp32 and by our executions, to see whether they end alike.

    python tools/executions.py --data data --seeds 10
    resnet-bench results

Seeds are trained one after another, each by every execution in turn, on one thread; what an earlier call finished is
kept. `speedrun-90` is trained in full; the four recipes of the articles have a short schedule, stated in SCHEDULES.
After each run the tables in --out are written again, so that it may be stopped at any time.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from resnet_bench.base.files import write_together
from resnet_bench.reporting import reading
from resnet_bench.reporting.report import table_files

SCHEDULES: Mapping[str, Sequence[str]] = {
    "speedrun-90": (),
    "resnet18-step-decay": ("data.train_images=10000", "training.epochs=9", "optimizer.lr=0.02"),
    # A quarter of the batch bears half of Adam's rate.
    "resnet9-onecycle-adam": (
        *("data.train_images=6000", "training.epochs=6", "training.batch_size=100", "optimizer.lr=0.005"),
        *("evaluation.before_training=false", "evaluation.every=6"),
    ),
    "cifar100-resnet": (
        *("data.train_images=10000", "training.epochs=6", "training.batch_size=64", "schedule.name=linear"),
        "evaluation.every=6",
    ),
    # 250 steps on 2,000 images: with the source's batch of 64 there would be 62.
    "resnet34-sgd-224": (
        *("data.train_images=2100", "data.validation.images=100", "data.test_images=1500"),
        *("training.epochs=2", "training.batch_size=16", "schedule.name=linear", "evaluation.every=2"),
    ),
}
"""What is changed in each recipe, so that one core trains a seed by stock PyTorch in 4 to 12 minutes.

Executions that agree near chance show little, so that time goes into steps: batches are smaller than the source's and
only the end is evaluated. Where the source's rate is constant it decays here: seeds that stop at a high rate lie
further apart, and the difference to be seen is half a point. Stock PyTorch trains 60 images/s of ResNet-9, 100 of the
CIFAR-100 network and 6.8 of ResNet-34 on a core of an AMD EPYC (Zen 5), and evaluates about three times as many. The
schedule of ResNet-18 stays as it is because seeds of it are published.
"""

EXECUTIONS: Mapping[str, Sequence[str]] = {
    "plain-fp32": ("--execution", "plain", "--precision", "fp32"),
    "fast-bf16": ("--execution", "fast", "--precision", "bf16"),
    "fast-fp32": ("--execution", "fast", "--precision", "fp32"),
    "plain-bf16": ("--execution", "plain", "--precision", "bf16"),
}
"""By the name of the folder: with kernels of ours and without, in both precisions."""

KEPT = ("runs.parquet", "metrics.parquet")
"""Tables that are published; predictions are not."""


@dataclass(frozen=True)
class Training:
    """One seed of one recipe by one execution."""

    benchmark: str
    execution: str
    seed: int

    def command(self, store: Path, data: Path) -> list[str]:
        """Return the command that trains it, unless a run of it is finished."""
        changes = [word for change in SCHEDULES[self.benchmark] for word in ("--set", change)]
        return [
            *(sys.executable, "-m", "resnet_bench", "run", self.benchmark, "--seed", str(self.seed)),
            *("--profile", "full", "--device", "cpu", "--threads", "1", "--offline", "--yes", "--resume"),
            *("--data", str(data), "--tracking", database(store, self.execution)),
            *("--run-dir", str(store / self.execution / "runs"), *EXECUTIONS[self.execution], *changes),
        ]


def database(store: Path, execution: str) -> str:
    """Return the MLflow store of an execution; each has one, as runs of one precision count as the same elsewhere."""
    return f"sqlite:///{(store / execution).resolve()}/mlflow.db"


def trainings(benchmarks: Sequence[str], executions: Sequence[str], seeds: int) -> Iterator[Training]:
    """Return everything to train: a seed of every recipe by every execution, then the next seed."""
    for seed in range(seeds):
        for benchmark in benchmarks:
            for execution in executions:
                yield Training(benchmark, execution, seed)


def publish(store: Path, execution: str, out: Path) -> None:
    """Write the tables of an execution's finished runs, with those that the folder holds already."""
    folder = out / execution
    # What is published comes first, and counts: somebody may have marked that its runs shared their machine.
    sources: list[reading.Source] = [folder] if (folder / "runs.parquet").is_file() else []
    sources.append(database(store, execution))
    read = reading.read(sources)
    files = table_files(read.keep(read.runs[read.runs["status"] == "FINISHED"]))
    folder.mkdir(parents=True, exist_ok=True)
    write_together(folder, {name: files[name] for name in KEPT})


def main(words: list[str] | None = None) -> None:
    """Train what is missing, and publish after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder that holds CIFAR")
    parser.add_argument("--seeds", type=int, default=10, metavar="N", help="of each recipe by each execution")
    parser.add_argument("--benchmarks", nargs="+", choices=SCHEDULES, default=list(SCHEDULES))
    parser.add_argument("--executions", nargs="+", choices=EXECUTIONS, default=list(EXECUTIONS))
    parser.add_argument(
        "--store", type=Path, default=Path("runs/executions"), metavar="DIR", help="for runs and MLflow"
    )
    parser.add_argument("--out", type=Path, default=Path("reports/reference/executions"), metavar="DIR")
    given = parser.parse_args(words)
    for each in trainings(given.benchmarks, given.executions, given.seeds):
        (given.store / each.execution).mkdir(parents=True, exist_ok=True)
        subprocess.run(each.command(given.store, given.data), check=True)  # noqa: S603 - a command line of ours
        publish(given.store, each.execution, given.out)


if __name__ == "__main__":
    main()
