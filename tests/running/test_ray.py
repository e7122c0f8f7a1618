"""Runs on a Ray cluster of real daemons: as on one machine, whatever becomes of its nodes."""

import pickle
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resnet_bench.data.dataset import ImageLocation
from resnet_bench.running.context import Context
from resnet_bench.running.events import Event, JobFinished, JobStarted, Opened
from resnet_bench.running.job import Job, Task
from resnet_bench.running.launchers.event_log import decode
from resnet_bench.running.launchers.launcher import Place, find_launcher
from resnet_bench.running.launchers.options import RayOptions
from resnet_bench.running.stopping import Stop
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.ui import ui_command
from tests.reliability import tiny
from tests.running.clusters import Held, first_json, history, runs_in, same, wait_until
from tests.running.conftest import PLAIN
from tests.running.ray_daemons import ADDRESS, RayDaemons, why_not
from tests.weights import weights_in_store

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

PATIENCE = 600.0
PORT = 5000
"""Of MLflow's server, in the name space."""

DRIVER = """
import pickle, sys
from pathlib import Path

from resnet_bench.running.launchers.cluster import OnCluster
from resnet_bench.running.launchers.event_log import encode

work, told = map(Path, sys.argv[1:])
tasks, options, context = pickle.loads(work.read_bytes())
with told.open("w") as file:
    for task, event in OnCluster(options).run(tasks, context):
        file.write(f"{task.label}\\t{encode(event)}\\n")
        file.flush()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayDaemons]:
    # A socket's path has at most 107 bytes, and pytest's folders are long.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, RayDaemons(Path(folder)).up() as daemons:
        yield daemons


@pytest.fixture(autouse=True)
def all_nodes(cluster: RayDaemons) -> None:
    cluster.start_nodes()


class Watched:
    """Follows runs on the cluster in a process inside its name space, as a command does."""

    def __init__(
        self, cluster: RayDaemons, tasks: list[Task], options: RayOptions, context: Context, folder: Path
    ) -> None:
        work, self._told, script = folder / "work.pickle", folder / "told", folder / "driver.py"
        work.write_bytes(pickle.dumps((tasks, options, context)))
        script.write_text(DRIVER)
        self._told.touch()
        command = cluster.inside(sys.executable, str(script), str(work), str(self._told))
        self._process = subprocess.Popen(
            command, env=cluster.environment, cwd=folder, stderr=subprocess.PIPE, text=True
        )

    def told(self) -> dict[str, list[Event]]:
        """What was told of each run so far."""
        found: dict[str, list[Event]] = defaultdict(list)
        for line in self._told.read_text().splitlines(keepends=True):
            label, _, text = line.partition("\t")
            if line.endswith("\n") and (event := decode(text)) is not None:
                found[label].append(event)
        return found

    def end(self) -> dict[str, list[Event]]:
        """Wait until all has ended."""
        _, errors = self._process.communicate(timeout=PATIENCE)
        assert self._process.returncode == 0, errors
        return self.told()

    def wait_for(self, path: Path) -> str:
        """Wait for a file that a run writes; return what is in it."""

        def is_there() -> bool:
            assert self._process.poll() is None, self._process.communicate()[1]
            return path.exists()

        wait_until(is_there, f"{path.name}: {self.told()}", PATIENCE)
        return path.read_text()

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


def test_runs_that_lose_their_node_end_once_and_with_the_same_bits(
    cluster: RayDaemons, tmp_path: Path, job_for: Any
) -> None:
    jobs: list[Job] = [job_for(seed=seed, force=False) for seed in range(6)]

    def context(name: str) -> Context:
        (tmp_path / name).mkdir()
        store = Store.resolve(f"sqlite:///{tmp_path / name / 'mlflow.db'}")
        store.prepare()
        return Context(store, tmp_path / name / "runs", ImageLocation(tmp_path, generated=(64, 32)), PLAIN, Stop())

    there = context("disturbed")
    options = RayOptions(address=ADDRESS, gpus=0, cpus=1, shared=True)
    watched = Watched(cluster, [Held(jobs[0], tmp_path), *jobs[1:]], options, there, tmp_path)
    try:
        cluster.kill(watched.wait_for(tmp_path / "held-0"))
        told = watched.end()
    finally:
        watched.kill()
    for job in jobs:
        ends = [event for event in told[job.label] if isinstance(event, JobFinished)]
        assert ends == [JobFinished()], told[job.label]
    first, *later = [event for event in told[jobs[0].label] if isinstance(event, Opened)]
    assert [(event.run_id, event.step > 0) for event in later] == [(first.run_id, True)]
    assert sum(isinstance(event, JobStarted) for event in told[jobs[0].label]) == 2

    here = context("undisturbed")
    local = find_launcher("inline", [Place()])
    assert all(event.failure is None for _, event in local.run(jobs, here) if isinstance(event, JobFinished))
    disturbed, undisturbed = runs_in(there.store), runs_in(here.store)
    assert {status for _, status in disturbed.values()} == {"FINISHED"}
    assert disturbed.keys() == undisturbed.keys()
    assert len(disturbed) == 6
    for name, (run_id, _) in disturbed.items():
        assert same(weights_in_store(there.store, run_id), weights_in_store(here.store, undisturbed[name][0]))
        for key in ("train/loss", "test/accuracy"):
            assert history(there.store, run_id, key) == history(here.store, undisturbed[name][0], key), (name, key)


@pytest.fixture
def server(cluster: RayDaemons, tmp_path: Path) -> Iterator[str]:
    """An MLflow server in the name space: several hosts share no file."""
    database = Store.resolve(None, tmp_path)
    database.prepare()
    command, environment = ui_command(database, port=PORT)
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            cluster.inside(*command), env={**environment, "PATH": cluster.environment["PATH"]}, stdout=log, stderr=log
        )
    address = f"http://127.0.0.1:{PORT}"
    # It listens when it is ready; asking for a page would start an interpreter each time.
    asked = cluster.inside("bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{PORT}")
    try:
        wait_until(
            lambda: subprocess.run(asked, env=cluster.environment, capture_output=True, check=False).returncode == 0,
            "the server answers",
            PATIENCE,
        )
        yield address
    finally:
        process.kill()
        process.wait()


def test_nodes_that_see_no_folder_get_the_images_from_ray_and_jobs_are_seen_and_cancelled(
    cluster: RayDaemons, tmp_path: Path, server: str
) -> None:
    project = cluster.hidden / "project"
    tiny.write_images(project / "data")
    (project / "launchers").mkdir()
    (project / "launchers" / "never.toml").write_text('launcher = "ray"\ncpus = 1\nresources = { unheard_of = 1 }\n')

    def typed(*words: str, code: int = 0) -> str:
        done = subprocess.run(
            cluster.inside(sys.executable, "-m", "resnet_bench", *words),
            cwd=project,
            env={**cluster.environment, "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    changes = [f"--set={key}={value}" for key, value in tiny.CHANGES.items()]
    run = ["run", tiny.BENCHMARK, "--profile", "smoke", *changes, "--execution", "plain", "--threads", "1"]
    run += ["--device", "cpu", "--deterministic", "--data", "data"]
    run += ["--tracking", server]
    (project / "launchers" / "ray.toml").write_text(
        f'address = "{ADDRESS}"\ncpus = 1\nnode_dir = "{cluster.hidden}/runs"\n'
    )

    printed = typed(*run, "--seeds", "3", "--launcher", "ray")
    rows = re.findall(rf"^{tiny.BENCHMARK} +(\d) +{tiny.EPOCHS} +[\d.]+%", printed, re.MULTILINE)
    assert rows == list("012"), printed
    assert "mean of 3" in printed
    assert not (cluster.hidden / "runs").exists(), "the runs were not on the nodes"
    assert "GENERATED" not in printed

    detached = typed(*run, "--seeds", "2", "--launcher", "never", "--address", ADDRESS, "--detach")
    assert "no node of the Ray cluster has 1 CPU and 1 unheard_of" in detached
    assert "submitted 2 jobs" in detached
    seen = first_json(typed("status", "--json"))
    assert [task["state"] for task in seen["tasks"]] == ["waiting", "waiting"]
    assert "cancelled 2 jobs" in typed("cancel")

    def are_over() -> bool:
        seen = first_json(typed("status", "--all", "--json"))
        return [task["state"] for task in seen["tasks"]][-2:] == ["interrupted", "interrupted"]

    wait_until(are_over, "both have ended")
