"""Runs on a Slurm cluster of real daemons: as on one machine, whatever the cluster does to their jobs."""

import os
import re
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resnet_bench.running.context import Context
from resnet_bench.running.events import Event, JobFinished, JobStarted, Opened
from resnet_bench.running.job import Task
from resnet_bench.running.launchers.cluster import OnCluster
from resnet_bench.running.launchers.event_log import Suspended
from resnet_bench.running.launchers.launch import find_launches
from resnet_bench.running.launchers.launcher import Place, find_launcher
from resnet_bench.running.launchers.options import SlurmOptions
from resnet_bench.tracking.store import Store
from tests.reliability import tiny
from tests.running.clusters import Held, assert_undisturbed, make_context, run_command, runs_in, wait_until
from tests.running.slurm_daemons import SlurmDaemons, why_not
from tests.tracking.conftest import Server, free_port

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

ROOT = Path(__file__).parents[2]
PATIENCE = 900.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmDaemons]:
    # A socket's path has at most 107 bytes, and pytest's folders are long.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, SlurmDaemons(Path(folder)).up() as daemons:
        yield daemons


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An MLflow server: several hosts share no file."""
    database = Store.resolve(None, tmp_path_factory.mktemp("server"))
    database.prepare()
    started = Server(database, free_port())
    started.start()
    yield started
    started.stop()


@pytest.fixture(autouse=True)
def on_the_cluster(cluster: SlurmDaemons, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, cluster.environment[name])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr("resnet_bench.running.launchers.slurm.ASK_SECONDS", 1.0)


# --- the command -----------------------------------------------------------------------------------


def test_six_runs_end_in_the_closing_table_of_a_local_command(tmp_path: Path, server: Server) -> None:
    tiny.write_images(tmp_path / "data")
    command = [sys.executable, "-m", "resnet_bench", *run_command(), "--seeds", "6", "--tracking", server.uri]
    command += ["--launcher", "slurm", "--runs-per-job", "3", "--gpus-per-node", "1", "--time", "30m"]
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(rf"^{tiny.BENCHMARK} +(\d) +{tiny.EPOCHS} +[\d.]+%", done.stdout, re.MULTILINE)
    assert rows == list("012345"), done.stdout
    assert "mean of 6" in done.stdout, done.stdout
    assert "in the smoke profile: as asked" in done.stdout
    (launch,) = find_launches(tmp_path / "runs")
    assert [handle.tasks for handle in launch.handles] == [(0, 1, 2), (3, 4, 5)]
    script = next(launch.logs.glob("*_submission.sh")).read_text()
    for asked in ("--gpus-per-node=1", "--cpus-per-task=4", "--time=30", "--requeue", "--array=0-1%2", "USR2@120"):
        assert asked in script, script
    assert re.search(r"^srun .*--cpus-per-task=4", script, re.MULTILINE), script
    assert sorted(status for _, status in runs_in(Store.resolve(server.uri)).values()) == ["FINISHED"] * 6


# --- what a cluster does to jobs -------------------------------------------------------------------


class Watched:
    """Follows runs on the cluster in a thread, as a command does."""

    def __init__(self, tasks: list[Task], context: Context) -> None:
        self.told: dict[str, list[Event]] = defaultdict(list)
        options = SlurmOptions(time=30, gpus_per_node=0, cpus_per_gpu=2, runs_per_job=1)
        self._tasks, self._context, self._launcher = tasks, context, OnCluster(options)
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        for task, event in self._launcher.run(self._tasks, self._context):
            self.told[task.label].append(event)

    def end(self, label: str) -> JobFinished:
        """Wait for the end of a task."""
        wait_until(lambda: self._end_of(label) is not None, f"{label} ends: {self.told[label]}", PATIENCE)
        end = self._end_of(label)
        assert end is not None
        return end

    def join(self) -> None:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def _end_of(self, label: str) -> JobFinished | None:
        ends = [event for event in self.told[label] if isinstance(event, JobFinished)]
        assert len(ends) < 2
        return ends[0] if ends else None


def test_runs_that_are_preempted_cancelled_or_lose_their_node_end_once_and_with_the_same_bits(
    cluster: SlurmDaemons, tmp_path: Path, job_for: Any
) -> None:
    jobs = [job_for(seed=seed, force=False) for seed in range(3)]

    there = make_context(tmp_path / "disturbed")
    watched = Watched([Held(job, tmp_path) for job in jobs], there)
    for job in jobs:
        wait_until((tmp_path / f"held-{job.seed}").exists, f"{job.label} has trained an epoch", PATIENCE)
    (launch,) = find_launches(there.run_dir)
    ids = {handle.tasks[0]: handle.id for handle in launch.handles}
    nodes = {seed: cluster.node_of(job_id) for seed, job_id in ids.items()}
    # Each node has room for two of them: one is alone on its node.
    lonely = next(seed for seed, node in nodes.items() if [*nodes.values()].count(node) == 1)
    cancelled, preempted = (seed for seed in nodes if seed != lonely)

    cluster.kill(nodes[lonely])
    cluster.ask("scancel", ids[cancelled])
    assert watched.end(jobs[cancelled].label) == JobFinished(interrupted=True)
    wait_until(lambda: cluster.state_of(ids[cancelled]) == "CANCELLED", "the cancelled job is gone")
    urgent = ["sbatch", "-p", "urgent", "-w", nodes[preempted], "-c", "4", "-o", "/dev/null", "--wrap", "true"]
    assert "Submitted" in cluster.ask(*urgent)
    for seed in (preempted, lonely):
        assert watched.end(jobs[seed].label) == JobFinished(), watched.told[jobs[seed].label]
    watched.join()

    told = watched.told[jobs[preempted].label]
    assert [event.reason for event in told if isinstance(event, Suspended)] == ["interrupted by SIGUSR2"]
    opened = {
        seed: [event for event in watched.told[job.label] if isinstance(event, Opened)] for seed, job in enumerate(jobs)
    }
    assert len(opened[cancelled]) == 1
    for seed in (preempted, lonely):
        # What lost its node may have been preempted as well, before or after it resumed.
        first, *later = opened[seed]
        assert later
        assert all(event.step > 0 and event.run_id == first.run_id for event in later)
        assert sum(isinstance(event, JobStarted) for event in watched.told[jobs[seed].label]) >= 2

    # What was cancelled is resumed by hand.
    resumed = [*find_launcher("inline", [Place()]).run([replace(jobs[cancelled], resume=True)], there)]
    assert [event for _, event in resumed if isinstance(event, JobFinished)] == [JobFinished()]
    assert_undisturbed(there, jobs, make_context(tmp_path / "undisturbed"))


def test_what_slurm_refuses_is_one_sentence_and_a_detached_launch_is_seen_and_cancelled(
    cluster: SlurmDaemons, tmp_path: Path, server: Server
) -> None:
    command = [sys.executable, "-m", "resnet_bench"]
    run = ["run", "he-resnet20", "--launcher", "slurm", "--seeds", "2", "--detach", "--profile", "smoke"]
    tracked = ["--tracking", server.uri]

    def typed(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            env={**os.environ, "COLUMNS": "200"},
        )

    refused = typed(*run, *tracked, "--partition", "gpuu")
    assert refused.returncode == 2
    assert "error: Slurm refuses the jobs: " in refused.stderr
    assert "invalid partition" in refused.stderr
    by_file = typed(*run)
    assert by_file.returncode == 2
    assert "which several hosts cannot share" in by_file.stderr
    # The jobs wait until they are cancelled.
    cluster.ask("scontrol", "update", "nodename=n1,n2", "state=drain", "reason=test")
    detached = typed(*run, *tracked, "--runs-per-job", "1", "--time", "5m")
    assert detached.returncode == 0, detached.stderr
    assert "submitted 2 jobs" in detached.stdout
    seen = typed("status", "--json")
    assert seen.returncode == 0
    assert '"task": "he-resnet20 seed 1"' in seen.stdout
    watch = [*command, "status", "--watch"]
    with (tmp_path / "watch.out").open("w") as file:
        watching = subprocess.Popen(watch, cwd=tmp_path, stdout=file, env={**os.environ, "COLUMNS": "200"})
    try:
        wait_until(lambda: "seed 1" in (tmp_path / "watch.out").read_text(), "the first table", PATIENCE)
        assert "cancelled 2 jobs" in typed("cancel").stdout
        assert watching.wait(PATIENCE) == 0
    finally:
        watching.kill()
        watching.wait()
    last = (tmp_path / "watch.out").read_text().rpartition("accuracy")[2]
    # Slurm may forget at once what never ran.
    assert len(re.findall(r"he-resnet20 seed [01] .* (?:cancelled|gone) ", last)) == 2, last
    cluster.ask("scontrol", "update", "nodename=n1,n2", "state=resume")
