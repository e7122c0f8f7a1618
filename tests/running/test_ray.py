"""Runs on a Ray cluster of real daemons: as on one machine, whatever becomes of its nodes."""

import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resnet_bench.data.dataset import ImageLocation
from resnet_bench.running.context import Context
from resnet_bench.running.events import Event, JobFinished, JobStarted, Opened
from resnet_bench.running.job import Job
from resnet_bench.running.launchers.event_log import Suspended, decode
from resnet_bench.running.launchers.options import RayOptions
from resnet_bench.running.stopping import Stop
from resnet_bench.tracking.run_files import CHECKPOINTS
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.vocabulary import EXPERIMENT, POSTS, tag
from tests.reliability import tiny
from tests.running.clusters import (
    Hasty,
    HastyOptions,
    Held,
    assert_undisturbed,
    first_json,
    history,
    make_context,
    run_command,
    wait_until,
)
from tests.running.conftest import PLAIN
from tests.running.ray_daemons import ADDRESS, NODES, RayDaemons, why_not
from tests.scale.daemons import postgres
from tests.scale.scripted import HELD, held, make_study

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

PATIENCE = 600.0
NOBODY = "127.0.0.1:6399"
"""Where no cluster is."""

RUNS = """
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

STUDY = """
import pickle, sys
from pathlib import Path

from resnet_bench.tuning import elsewhere
from tests.scale import scripted

work, told = map(Path, sys.argv[1:])
elsewhere.StudyShare = scripted.EarlyHeldShare
arguments = pickle.loads(work.read_bytes())
*_, last = elsewhere.run_study_elsewhere(*arguments, workers=scripted.HELD)
told.write_text(type(last).__name__)
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
    """Follows tasks on the cluster in a process inside its name space, as a command does."""

    def __init__(self, cluster: RayDaemons, folder: Path, text: str, *work: Any) -> None:
        pickled, self._told, script = folder / "work.pickle", folder / "told", folder / "driver.py"
        pickled.write_bytes(pickle.dumps(work))
        script.write_text(text)
        self._told.touch()
        command = cluster.inside(sys.executable, str(script), str(pickled), str(self._told))
        self._process = subprocess.Popen(
            command, env=cluster.environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def told(self) -> dict[str, list[Event]]:
        """What was told of each run so far."""
        found: dict[str, list[Event]] = defaultdict(list)
        for line in self._told.read_text().splitlines(keepends=True):
            label, _, text = line.partition("\t")
            if line.endswith("\n") and (event := decode(text)) is not None:
                found[label].append(event)
        return found

    def end(self, seconds: float = PATIENCE) -> str:
        """Wait until all has ended; return what it has said last."""
        printed, errors = self._process.communicate(timeout=seconds)
        assert self._process.returncode == 0, errors
        assert printed == "", "Ray has written where a document may be"
        return self._told.read_text()

    def wait_for(self, path: Path) -> str:
        """Wait for a file that a task writes; return what is in it."""

        def is_there() -> bool:
            assert self._process.poll() is None, self._process.communicate()[1]
            return path.exists()

        wait_until(is_there, f"{path.name}: {self._told.read_text()}", PATIENCE)
        return path.read_text()

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store.resolve(None, tmp_path_factory.mktemp("server"))
    store.prepare()
    return store


@pytest.fixture(scope="module")
def server(cluster: RayDaemons, database: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An MLflow server on the database, in the name space."""
    with cluster.serving(database, tmp_path_factory.mktemp("log")) as address:
        yield address


def test_nodes_that_see_no_folder_get_the_images_from_ray_and_jobs_are_seen_and_cancelled(
    cluster: RayDaemons, tmp_path: Path, database: Store, server: str
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

    run = [*run_command(), "--tracking", server]
    (project / "launchers" / "ray.toml").write_text(
        f'address = "{ADDRESS}"\ncpus = 2\nnode_dir = "{cluster.hidden}/runs"\n'
    )

    printed = typed(*run, "--seeds", "3", "--launcher", "ray")
    rows = re.findall(rf"^{tiny.BENCHMARK} +(\d) +{tiny.EPOCHS} +[\d.]+%", printed, re.MULTILINE)
    assert rows == list("012"), printed
    assert "mean of 3" in printed
    assert not (cluster.hidden / "runs").exists(), "the runs were not on the nodes"
    assert "GENERATED" not in printed

    def posts() -> set[str]:
        tags = database.client().get_experiment_by_name(EXPERIMENT).tags
        return {tags.get(post, "") for post in POSTS}

    before = posts()
    detached = typed(*run, "--seeds", "2", "--launcher", "never", "--address", ADDRESS, "--detach")
    assert "no node of the Ray cluster has 1 CPU and 1 unheard_of" in detached
    assert "submitted 2 jobs" in detached
    seen = first_json(typed("status", "--json"))
    assert [task["state"] for task in seen["tasks"]] == ["waiting", "waiting"]
    # A launch on a second cluster, which is gone, is not asked of the first.
    *_, launch = sorted(project.glob("runs/launches/*"))
    other = shutil.copytree(launch, launch.with_name("other"))
    state = (other / "launch.json").read_text()
    (other / "launch.json").write_text(state.replace(ADDRESS, NOBODY))
    seen = first_json(typed("status", "--json"))
    assert len(seen["tasks"]) == 4
    (problem,) = seen["problems"]
    assert f"no Ray cluster answers at {NOBODY}" in problem
    shutil.rmtree(other)
    # No command is left that could notice a lost run: the actor on the head does.
    here = f"{socket.gethostname()} "
    wait_until(lambda: any(each.startswith(here) for each in posts() - before), "somebody watches", PATIENCE)
    assert "cancelled 2 jobs" in typed("cancel")

    def are_over() -> bool:
        seen = first_json(typed("status", "--all", "--json"))
        return [task["state"] for task in seen["tasks"]][-2:] == ["interrupted", "interrupted"]

    wait_until(are_over, "both have ended")


def test_runs_that_lose_their_node_end_once_and_with_the_same_bits(
    cluster: RayDaemons, tmp_path: Path, job_for: Any
) -> None:
    jobs: list[Job] = [job_for(seed=seed, force=False) for seed in range(6)]

    there = make_context(tmp_path / "disturbed")
    options = RayOptions(address=ADDRESS, gpus=0, cpus=2, shared=True)
    watched = Watched(cluster, tmp_path, RUNS, [Held(jobs[0], tmp_path), *jobs[1:]], options, there)
    try:
        cluster.kill(watched.wait_for(tmp_path / "held-0"))
        watched.end()
        told = watched.told()
    finally:
        watched.kill()
    for job in jobs:
        ends = [event for event in told[job.label] if isinstance(event, JobFinished)]
        assert ends == [JobFinished()], told[job.label]
    first, *later = [event for event in told[jobs[0].label] if isinstance(event, Opened)]
    assert [(event.run_id, event.step > 0) for event in later] == [(first.run_id, True)]
    assert sum(isinstance(event, JobStarted) for event in told[jobs[0].label]) == 2

    assert_undisturbed(there, jobs, make_context(tmp_path / "undisturbed"))


def test_a_study_whose_workers_are_tasks_ends_with_exactly_its_trials(
    cluster: RayDaemons, tmp_path: Path, database: Store, server: str
) -> None:
    trials = 6
    with postgres() as servers:
        # Its port is outside of the name space; a socket in a folder is on both sides.
        where, port = servers.environment["SERVER"], servers.environment["PG_PORT"]
        url = f"{servers.optuna.partition('@')[0]}@/optuna?host={where}&port={port}"
        study = make_study(tmp_path, database, url, trials, "on-ray")
        there = replace(study.context, store=Store.resolve(server))
        # Each node has room for one worker.
        options = RayOptions(address=ADDRESS, gpus=0, cpus=2, shared=True)
        watched = Watched(cluster, tmp_path, STUDY, study.name, study.plan, study.storage, there, options)
        try:
            for number in range(HELD):
                watched.wait_for(held(there.run_dir, number))
            (there.run_dir / "go").touch()
            assert watched.end() == "StudyFinished"
        finally:
            watched.kill()
        counts = study.stored.counts()
        assert (counts.finished, counts.running, counts.waiting) == (trials, 0, 0)
        assert {trial.user_attrs["worker"]["host"] for trial in study.stored.finished()} == {*NODES}
        study.assert_stores_agree()
        runs = [study.parent, *study.children("trial"), *study.children("retrain")]
        assert "RUNNING" not in {run.info.status for run in runs}
        assert study.parent.info.status == "FINISHED"
        assert len(study.children("retrain")) == 2


def test_runs_resume_elsewhere_when_one_node_is_killed_and_one_falls_silent(
    cluster: RayDaemons, tmp_path: Path, job_for: Any, database: Store, server: str
) -> None:
    jobs: list[Job] = [job_for(seed=seed, force=False) for seed in range(3)]
    there = Context(
        Store.resolve(server), tmp_path / "runs", ImageLocation(tmp_path, generated=(64, 32)), PLAIN, Stop()
    )
    options = HastyOptions(address=ADDRESS, gpus=1, cpus=1, node_dir=f"{cluster.hidden}/runs")
    watched = Watched(cluster, tmp_path, RUNS, [Hasty(job, tmp_path) for job in jobs], options, there)
    try:
        hosts = [watched.wait_for(tmp_path / f"held-{job.seed}") for job in jobs]
        # One of three is alone on its node, and leaves room there.
        silent, killed = sorted(NODES, key=hosts.count)
        wait_until(lambda: all(has_position(database, each) for each in ids(watched)), "all have arrived", PATIENCE)
        # Nothing overtakes a position on its way to the store.
        before = beats(database, ids(watched))
        wait_until(lambda: not beats(database, ids(watched)) & before, "each has shown a beat", PATIENCE)
        cluster.send(silent, signal.SIGSTOP)
        # What is started again finds room on the node that does not answer alone, for which Ray waits seven minutes.
        cluster.kill(killed)
        cluster.start_nodes()
        watched.end()
        told, finished = watched.told(), values(database, ids(watched))
        assert cluster.does_work(silent)
        cluster.send(silent, signal.SIGCONT)
        wait_until(lambda: not cluster.does_work(silent), "the old process has heard of it", PATIENCE)
        assert values(database, ids(watched)) == finished
    finally:
        watched.kill()
        cluster.kill(silent)
    for job, host in zip(jobs, hosts, strict=True):
        reasons = [event.reason for event in told[job.label] if isinstance(event, Suspended)]
        # Of a node that is killed, Ray may hear of the process first.
        expected = (
            [f"its node {silent} fell silent"] if host == silent else ["its node was lost", "its process was killed"]
        )
        assert len(reasons) == 1, told[job.label]
        assert reasons[0] in expected
        first, *later = [event for event in told[job.label] if isinstance(event, Opened)]
        assert [(event.run_id, event.step > 0) for event in later] == [(first.run_id, True)]
        assert [event for event in told[job.label] if isinstance(event, JobFinished)] == [JobFinished()]
    assert {database.client().get_run(each).info.status for each in ids(watched)} == {"FINISHED"}
    for (run_id, key), points in finished.items():
        assert len(points) == len({step for step, _ in points}), f"{run_id}: {key} has a value twice"
    places = [(tmp_path / f"places-{job.seed}").read_text().splitlines()[-1].split() for job in jobs]
    assert {host for host, _, _ in places} == {killed}
    assert len({process for _, process, _ in places}) == 3, "a process had a GPU and was used again"
    assert {gpu for _, _, gpu in places} <= {"0", "1"}, "each sees the GPU that it has"


def ids(watched: Watched) -> list[str]:
    """The runs that were opened."""
    return sorted({str(each.run_id) for told in watched.told().values() for each in told if isinstance(each, Opened)})


def has_position(store: Store, run_id: str) -> bool:
    client = store.client()
    return any(client.list_artifacts(run_id, place.path) for place in client.list_artifacts(run_id, CHECKPOINTS))


def beats(store: Store, run_ids: list[str]) -> set[tuple[str, str | None]]:
    return {(run_id, store.client().get_run(run_id).data.tags.get(tag("beat"))) for run_id in run_ids}


def values(store: Store, run_ids: list[str]) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """Each value of each metric of runs."""
    client = store.client()
    return {
        (run_id, key): history(store, run_id, key) for run_id in run_ids for key in client.get_run(run_id).data.metrics
    }
