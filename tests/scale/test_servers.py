"""Studies and runs of several hosts on real servers: PostgreSQL, MLflow and S3, as docs/scaling.md sets them up."""

import json
import pickle
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import ViewType

from resnet_bench.running.events import JobFinished
from resnet_bench.running.launchers.launcher import Place, find_launcher
from resnet_bench.running.launchers.options import SlurmOptions
from resnet_bench.tracking.leases import LOST_SECONDS, LeaseWatch, close_lost_runs
from resnet_bench.tracking.store import Store
from resnet_bench.tuning.elsewhere import run_study_elsewhere
from resnet_bench.tuning.events import StudyFinished
from resnet_bench.tuning.trial_queue import TrialQueue
from resnet_bench.tuning.turns import take_turn
from tests import golden
from tests.running.slurm_daemons import SlurmDaemons, why_not
from tests.scale import rates
from tests.scale.daemons import Servers, mlflow_server, postgres
from tests.scale.scripted import HELD, ScriptedShare, held, make_study
from tools import write_rates

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TRIALS = 60
SECONDS_FOR_ANYTHING = 300.0


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with postgres() as found:
        yield found


@pytest.fixture
def tracked(servers: Servers, tmp_path: Path) -> Iterator[Servers]:
    with mlflow_server(servers, tmp_path) as found:
        yield found


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a Python script; it ends with the test."""
    processes: list[subprocess.Popen[str]] = []

    def start(text: str, *arguments: str) -> subprocess.Popen[str]:
        script = tmp_path / f"script-{len(processes)}.py"
        script.write_text(text)
        environment = {**golden.environment(), "OMP_NUM_THREADS": "1"}
        processes.append(
            subprocess.Popen(
                [sys.executable, str(script), *arguments], env=environment, stderr=subprocess.PIPE, text=True
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()


def until(condition: Callable[[], Any], what: str, *processes: subprocess.Popen[str]) -> Any:
    deadline = time.monotonic() + SECONDS_FOR_ANYTHING
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited for {what}"
        for process in processes:
            assert process.poll() in (None, 0), process.communicate()[1]
        time.sleep(0.2)
    return found


def test_run_report_resume_and_push_on_mlflow_postgresql_and_s3(
    tracked: Servers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tracked.tracking
    where = f"--tracking {tracked.tracking}"
    golden.interrupted(f"{golden.LONG} {where}", tmp_path)
    printed = golden.command(f"{golden.LONG} {where} --resume", tmp_path)
    (run,) = json.loads(golden.command(f"runs list {where} --json", tmp_path))["runs"]
    assert run["status"] == "FINISHED", printed
    shown = json.loads(golden.command(f"runs show {run['run_id']} {where} --json", tmp_path))["tags"]
    assert shown["resumed"] == "1"
    assert int(shown["beat"]) >= 1
    store = Store.resolve(tracked.tracking)
    history = store.client().get_metric_history(run["run_id"], "test/accuracy")
    steps = [point.step for point in history]
    assert max(steps) == 60
    assert len(steps) == len(set(steps)), "an epoch is there twice"
    golden.command(f"report --from {tracked.tracking} --output report", tmp_path)
    assert "golden-long" in (tmp_path / "report" / "report.md").read_text()
    printed = golden.command(
        f"tracking push --from {tracked.tracking} --to sqlite:///{tmp_path}/copy.db --json", tmp_path
    )
    # Notes come first, on standard error.
    # The database may also hold the trials of other tests; this one stands first, so that there are none to copy.
    pushed = {each["run_id"]: each for each in json.loads(printed[printed.index("{") :])["pushed"]}
    copy = Store.resolve(f"sqlite:///{tmp_path}/copy.db").client()
    copied = copy.get_run(pushed[run["run_id"]]["target_run_id"])
    assert len(copy.get_metric_history(copied.info.run_id, "test/accuracy")) == len(history)
    recipe = copy.download_artifacts(copied.info.run_id, "recipe.toml", str(tmp_path))
    assert "[recipe" in Path(recipe).read_text()
    assert close_lost_runs(store, LeaseWatch()) == []
    words = f"--clients 3 --every 1 --seconds 4 --like {run['run_id']}"
    with pytest.raises(SystemExit):
        # Whether it keeps up is no matter of this test.
        rates.write(tracked, words.split())
    printed = capsys.readouterr().out
    assert re.search(r"^3 clients, \d+ values every 1 s: 3.0 calls/s", printed, re.MULTILINE), printed
    assert re.search(r"^cores needed in .*: clients \d.*, MLflow \d.*, PostgreSQL \d", printed, re.MULTILINE), printed
    (left,) = store.client().search_experiments(
        filter_string=f"name LIKE '{write_rates.EXPERIMENT}%'", view_type=ViewType.ALL
    )
    assert left.lifecycle_stage == "deleted"
    written = store.client().search_runs([left.experiment_id], run_view_type=ViewType.ALL)
    assert {run.data.metrics.get("rate/0", 0.5) for run in written} == {0.5}
    assert len(written) == 3


def test_a_run_in_postgresql_without_a_server_shows_signs_of_life(servers: Servers, tmp_path: Path) -> None:
    # The database may also hold runs of other tests.
    words = f"{golden.LONG} --seed 5 --tracking {servers.mlflow_database}"
    golden.interrupted(words, tmp_path)
    found = json.loads(golden.command(f"runs list --tracking {servers.mlflow_database} --json", tmp_path))["runs"]
    (run,) = (each for each in found if each["seed"] == 5)
    store = Store.resolve(servers.mlflow_database)
    assert int(store.client().get_run(run["run_id"]).data.tags["resnet_bench.beat"]) >= 1
    store.client().update_run(run["run_id"], status="RUNNING")
    now = 0.0
    watch = LeaseWatch(lambda: now)
    assert close_lost_runs(store, watch) == []
    now = LOST_SECONDS + 1
    assert [lost.run_id for lost in close_lost_runs(store, watch)] == [run["run_id"]]
    golden.command(f"{words} --resume", tmp_path)
    resumed = store.client().get_run(run["run_id"])
    assert (resumed.info.status, resumed.data.tags["resnet_bench.attempt"]) == ("FINISHED", "2")


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_a_study_of_two_launchers_of_which_one_loses_a_host(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(
        tmp_path, Store.resolve(servers.mlflow_database, tmp_path), servers.optuna, TRIALS, "two-launchers"
    )
    study.context.store.prepare()
    run_dir = study.context.run_dir
    monkeypatch.setattr("resnet_bench.tuning.elsewhere.StudyShare", ScriptedShare)
    monkeypatch.setattr("resnet_bench.running.launchers.slurm.ASK_SECONDS", 1.0)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # Each node has room for one of them.
    options = SlurmOptions(time=30, gpus_per_node=0, cpus_per_gpu=3)
    given = (study.name, study.plan, study.storage)
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, SlurmDaemons(Path(folder)).up() as cluster:
        for name in ("PATH", "SLURM_CONF"):
            monkeypatch.setenv(name, cluster.environment[name])
        with ThreadPoolExecutor(1) as pool:
            told = pool.submit(lambda: list(run_study_elsewhere(*given, study.context, options, workers=HELD)))
            until(
                lambda: told.done() or all(held(run_dir, each).exists() for each in range(HELD)), "work on both nodes"
            )
            assert not told.done(), told.result()
            # The other launcher: two processes of this host.
            shares = [ScriptedShare(*given, 2 * HELD, HELD + number) for number in range(2)]
            ends = []
            for _, event in find_launcher("processes", [Place(), Place()]).run(shares, study.context):
                if isinstance(event, JobFinished):
                    ends.append(event)
                if not (run_dir / "go").exists() and study.stored.counts().finished >= TRIALS // 4:
                    assert study.stored.counts().running >= HELD
                    cluster.kill("n1")
                    (run_dir / "go").touch()
            assert ends == [JobFinished()] * 2
            assert isinstance(told.result(SECONDS_FOR_ANYTHING)[-1], StudyFinished)
    counts = study.stored.counts()
    assert (counts.finished, counts.running, counts.waiting) == (TRIALS, 0, 0)
    assert counts.interrupted >= 1
    assert {trial.user_attrs["worker"]["host"] for trial in study.stored.finished()} == {
        "n1",
        "n2",
        socket.gethostname(),
    }
    assert sorted(trial.user_attrs["slot"] for trial in study.stored.finished()) == list(range(TRIALS))
    study.assert_stores_agree()
    runs = [study.parent, *study.children("trial"), *study.children("retrain")]
    assert "RUNNING" not in {run.info.status for run in runs}
    assert study.parent.info.status == "FINISHED"
    assert len(study.children("retrain")) == 2


def test_a_retraining_run_is_one_processs_at_a_time_and_passes_on_when_it_is_silent(
    servers: Servers, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    study = make_study(tmp_path, Store.resolve(servers.mlflow_database, tmp_path), servers.optuna, 2, "turns")
    queue = TrialQueue.begin(
        study.name, study.plan, study.storage.open(), study.context.open_images(study.plan.base.data.facts)
    )
    told = tmp_path / "told"
    work = tmp_path / "work.pickle"
    work.write_bytes(pickle.dumps((study.name, study.storage)))
    holder = start(
        """
import pickle, socket, sys, time
from pathlib import Path

socket.gethostname = lambda: "elsewhere"
from resnet_bench.tuning.stored_study import StoredStudy
from resnet_bench.tuning.turns import take_turn

name, storage = pickle.loads(Path(sys.argv[1]).read_bytes())
stored = StoredStudy.read(name, storage.open())
told = Path(sys.argv[2])
with take_turn("abc-1", stored, told.parent) as turn:
    told.write_text("ours" if turn else "theirs")
    while not told.with_suffix(".go").exists():
        time.sleep(0.1)
    told.write_text("still ours" if turn.is_ours() else "lost")
""",
        str(work),
        str(told),
    )
    until(told.exists, "the turn", holder)
    with take_turn("abc-1", queue.stored, tmp_path) as turn:
        assert turn is None
    with take_turn("abc-2", queue.stored, tmp_path) as turn:
        assert turn is not None, "another seed is another turn"
    holder.send_signal(signal.SIGSTOP)

    def take() -> bool:
        with take_turn("abc-1", queue.stored, tmp_path) as turn:
            return turn is not None and turn.is_ours()

    until(take, "the turn of a process that stands still")
    holder.send_signal(signal.SIGCONT)
    told.with_suffix(".go").touch()
    _, errors = holder.communicate(timeout=SECONDS_FOR_ANYTHING)
    assert told.read_text() == "lost", errors
