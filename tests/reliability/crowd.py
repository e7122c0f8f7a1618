"""Many processes do a whole suite in one project at once: one store, one data cache, one folder of runs.

    python -m tests.reliability.crowd --processes 8

Prints a JSON summary of what the project holds afterwards. The processes are forked from one that has everything
loaded, so that they really do start at once.
"""

import argparse
import json
import os
import sqlite3
import tempfile
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from resnet_bench.cli.run_all import run_all
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.vocabulary import EXPERIMENT, tag
from tests import forking
from tests.reliability import kills, tiny


def work(project: Path, seed: int) -> None:
    """One suite of two runs: its own seed, and one that all share."""
    with (project / f"output-{seed}.txt").open("w") as output:
        options = tiny.options(seeds=[seed, 1000], resume=True)
        summary = run_all(options, tiny.context(project), Console(file=output, width=160))
    failures = [outcome.failure for _, outcome in summary.results if outcome.failure]
    # The shared seed is one process's; those that come to it meanwhile say so.
    assert all("is training he-resnet20 seed 1000 already" in failure for failure in failures), failures
    assert not [outcome.not_uploaded for _, outcome in summary.results if outcome.not_uploaded]


def run_crowd(folder: Path, processes: int) -> dict[str, Any]:
    """Let them loose on a fresh project, and look at what is there afterwards."""
    patch = pytest.MonkeyPatch()
    tiny.speed_up(patch)
    warm, project = folder / "warm", folder / "project"
    for each in (warm, project):
        tiny.write_images(each / "data")
    kills.work(warm)
    forking.settle()

    children = [
        forking.start(partial(work, project, seed), project / f"errors-{seed}.txt") for seed in range(processes)
    ]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    complaints = "".join((project / f"errors-{seed}.txt").read_text() for seed in range(processes))

    client = Store.resolve(f"sqlite:///{project / 'mlflow.db'}").client()
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    runs = client.search_runs([experiment], f"tags.`{tag('role')}` = 'run'", max_results=1000)
    steps = [sorted(metric.step for metric in client.get_metric_history(run.info.run_id, "step/loss")) for run in runs]
    seeds = Counter(int(run.data.tags["resnet_bench.seed"]) for run in runs)
    said = [(project / f"output-{seed}.txt").read_text() for seed in range(processes)]
    with closing(sqlite3.connect(project / "mlflow.db")) as database:
        integrity = database.execute("PRAGMA integrity_check").fetchone()[0]
    return {
        "exit codes": codes,
        "statuses": sorted({run.info.status for run in runs}),
        "own seeds": [seeds[seed] for seed in range(processes)],
        "runs of the shared seed": seeds[1000],
        "runs with every step once": sum(found == list(range(1, tiny.STEPS + 1)) for found in steps),
        "runs": len(runs),
        "times the images were decoded": sum(text.count("decoding cifar10 from") for text in said),
        "locked": complaints.count("database is locked"),
        "complaints": complaints[-2000:],
        "integrity of the database": integrity,
    }


def main() -> None:
    """Run the crowd and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        print(json.dumps(run_crowd(Path(folder), arguments.processes), indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
