"""How long until a run whose Ray node falls silent trains on elsewhere, with the limits that users have.

    python -m tests.scale.take_over
    python -m tests.scale.take_over --rounds 3 --detach
    python -m tests.scale.take_over --apart

Sets a Ray cluster of a head and two nodes and an MLflow server up in a network name space. Each round has the command
train a run there, stops all that runs on its node, and prints the seconds from then on. Needs what the tests of Ray
need.
"""

import argparse
import contextlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from resnet_bench.running.events import Event, JobStarted, Opened
from resnet_bench.running.launchers.event_log import Suspended, decode
from resnet_bench.running.launchers.launch import find_launches
from resnet_bench.tracking.leases import attempt_of
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.vocabulary import EXPERIMENT, STEP_LOSS, tag
from resnet_bench.training.events import Steps
from tests.running.clusters import wait_until
from tests.running.ray_daemons import ADDRESS, RayDaemons, why_not

PATIENCE = 900.0
SETTLING_SECONDS = 20.0, 35.0
"""What a run trains before its node falls silent, at random: longer than from one beat to the next."""
RUN = (
    "run he-resnet20 --profile smoke --device cpu --threads 1 --offline --launcher ray "
    "--set data.train_images=512 --set data.test_images=128 --set training.epochs=2000"
)
STAGES = {JobStarted: "started elsewhere", Opened: "opened there", Steps: "told of a step there"}


@contextlib.contextmanager
def command(cluster: RayDaemons, folder: Path, *words: str) -> Iterator["subprocess.Popen[bytes]"]:
    """The command that a person types; it is interrupted at the end."""
    with (folder / "printed").open("ab") as printed:
        process = subprocess.Popen(
            cluster.inside(sys.executable, "-m", "resnet_bench", *words),
            env=cluster.environment,
            cwd=folder,
            stdout=printed,
            stderr=printed,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def measure(
    cluster: RayDaemons, store: Store, address: str, folder: Path, given: argparse.Namespace
) -> dict[str, float]:
    """Train a run, stop its node, and return the seconds from then to what follows."""
    seed = str(random.randrange(10**6))
    words = [*RUN.split(), "--tracking", address, "--seed", seed, *(["--detach"] if given.detach else [])]

    def run() -> Any:
        client = store.client()
        experiment = client.get_experiment_by_name(EXPERIMENT)
        found = client.search_runs(
            [experiment.experiment_id], f"tags.`{tag('seed')}` = '{seed}' and tags.`{tag('role')}` = 'run'"
        )
        return found[0] if found else None

    def trains(process: "subprocess.Popen[bytes]") -> bool:
        assert process.poll() in (None, 0), (folder / "printed").read_text()
        return (found := run()) is not None and found.info.status == "RUNNING" and STEP_LOSS in found.data.metrics

    if given.apart:
        # A position goes to the artifact store every ten minutes, and when a run is stopped.
        with command(cluster, folder, *words) as process:
            wait_until(lambda: trains(process), "the run trains", PATIENCE)
        words.append("--resume")
    with command(cluster, folder, *words) as process:
        wait_until(lambda: trains(process), "the run trains", PATIENCE)
        time.sleep(random.uniform(*SETTLING_SECONDS))
        before = run()
        node = before.data.tags[tag("host")]
        began = time.time()
        cluster.send(node, signal.SIGSTOP)
        try:
            return follow(run, before, began, folder, store)
        finally:
            cluster.kill(node)
            if given.detach:
                cancelled = cluster.inside(sys.executable, "-m", "resnet_bench", "cancel")
                subprocess.run(cancelled, env=cluster.environment, cwd=folder, capture_output=True, check=True)
            cluster.start_nodes()


def follow(run: Callable[[], Any], before: Any, began: float, folder: Path, store: Store) -> dict[str, float]:
    """Watch a run until it trains on elsewhere."""
    found: dict[str, float] = {}

    def note(what: str) -> None:
        found.setdefault(what, time.time() - began)

    deadline = began + PATIENCE
    while "first value beyond where it was lost" not in found and time.time() < deadline:
        now = run()
        if now.info.status != "RUNNING" or attempt_of(now.data.tags) != attempt_of(before.data.tags):
            note("closed, or its attempt raised")
        for event in told_again(folder):
            if isinstance(event, Suspended):
                note("given up by the launch")
            elif (stage := STAGES.get(type(event))) is not None:
                note(stage)
        if now.data.tags[tag("host")] != before.data.tags[tag("host")]:
            note("running there, by the store")
            points = store.client().get_metric_history(now.info.run_id, STEP_LOSS)
            later = [point.timestamp / 1000 - began for point in points if point.timestamp / 1000 > began + 1]
            if later:
                found["first value beyond where it was lost"] = min(later)
        time.sleep(0.2)
    return found


def told_again(folder: Path) -> list[Event]:
    """What the attempts after the first have told, as far as a command has fetched it."""
    launch = find_launches(folder / "runs")[-1]
    paths = [path for path in sorted(launch.events.glob("*.jsonl")) if not path.stem.endswith("-000")]
    lines = [line for path in paths for line in path.read_bytes().splitlines(keepends=True)]
    return [event for line in lines if line.endswith(b"\n") and (event := decode(line)) is not None]


def main() -> None:
    """Measure so many rounds; print each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", metavar="N", type=int, default=1)
    parser.add_argument("--detach", action="store_true", help="no command watches the run")
    parser.add_argument("--apart", action="store_true", help="nodes share no folder")
    given = parser.parse_args()
    if problem := why_not():
        sys.exit(problem)
    with (
        tempfile.TemporaryDirectory(prefix="ray-") as folder,
        RayDaemons(Path(folder)).up() as cluster,
        tempfile.TemporaryDirectory(prefix="take-over-") as project,
    ):
        store = Store.resolve(None, Path(project))
        store.prepare()
        (Path(project) / "launchers").mkdir()
        where = f'node_dir = "{cluster.hidden}/runs"' if given.apart else "shared = true"
        (Path(project) / "launchers" / "ray.toml").write_text(f'address = "{ADDRESS}"\ncpus = 2\n{where}\n')
        with cluster.serving(store, Path(project)) as address:
            for number in range(1, given.rounds + 1):
                seconds = measure(cluster, store, address, Path(project), given)
                print(f"round {number}, seconds after the node fell silent:")
                for what, when in sorted(seconds.items(), key=lambda each: each[1]):
                    print(f"  {when:6.1f}  {what}", flush=True)


if __name__ == "__main__":
    main()
