"""Real processes: work that is shared, workers and whole studies that are killed, and what is left afterwards."""

import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from resnet_bench.base.errors import UserError
from resnet_bench.training.memory import free_what_is_unused
from resnet_bench.tuning.events import StudyFinished, TrialEnded
from resnet_bench.tuning.plan import Plan
from resnet_bench.tuning.storage import StudyStorage
from resnet_bench.tuning.stored_study import StoredStudy
from tests.stub_cuda import needs_gpu
from tests.tuning.conftest import TinyStudy

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_plots")]

MakePlan = Callable[..., Plan]
MakeStudy = Callable[..., TinyStudy]

SECONDS_FOR_ANYTHING = 600.0


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that wait for one another's threads would be slow."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def tiny_plan(tiny_plan: MakePlan) -> MakePlan:
    """A study in which no draw is a bad combination, so that each trial trains long enough to be hit."""
    return lambda **replaced: tiny_plan(**{"optimizer.momentum": "", "optimizer.nesterov": "", **replaced})


def until(condition: Callable[[], Any], what: str, seconds: float = SECONDS_FOR_ANYTHING) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.1)
    return found


def runs(process: psutil.Process) -> bool:
    """Whether a process still runs; one that only waits to be collected by the system's first process does not."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def running_pids(stored: StoredStudy) -> list[int]:
    """The processes that have begun to train a trial."""
    return [
        int(trial.user_attrs["worker"]["pid"])
        for trial in stored.trials()
        if trial.state.name == "RUNNING" and "mlflow_run_id" in trial.user_attrs
    ]


def assert_complete(study: TinyStudy, trials: int) -> None:
    """The count of finished trials is exact, each slot is finished once, and the stores agree."""
    study.assert_stores_agree()
    counts = study.stored.counts()
    assert (counts.finished, counts.running, counts.waiting) == (trials, 0, 0)
    slots = [trial.user_attrs["slot"] for trial in study.stored.finished()]
    assert sorted(slots) == list(range(trials))


@pytest.fixture
def study_process(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a study in a separate process, with some code before it."""
    started: list[subprocess.Popen[str]] = []

    def start(study: TinyStudy, before: str = "") -> subprocess.Popen[str]:
        arguments = (study.name, study.plan, study.storage, study.context)
        (tmp_path / "study.pickle").write_bytes(pickle.dumps((arguments, study.workers)))
        script = tmp_path / "study_process.py"
        script.write_text(
            f"""\
{textwrap.dedent(before)}
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from resnet_bench.running.stopping import Stopped, stop_on_signals
from resnet_bench.tuning.run import run_study

if __name__ == "__main__":
    (name, plan, storage, context), workers = pickle.loads(Path({str(tmp_path / "study.pickle")!r}).read_bytes())
    try:
        with stop_on_signals() as stop:
            for event in run_study(name, plan, storage, replace(context, stop=stop), workers=workers):
                print(event, flush=True)
    except Stopped:
        sys.exit(130)
"""
        )
        process = subprocess.Popen(
            [sys.executable, str(script)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for_training(study: TinyStudy, trial: int) -> StoredStudy:
    """Wait until a trial of a study trains in some process."""

    def look() -> StoredStudy | None:
        try:
            return study.stored
        except UserError:
            return None

    found: StoredStudy = until(look, "the study")
    until(
        lambda: any(
            other.number == trial and other.state.name == "RUNNING" and "mlflow_run_id" in other.user_attrs
            for other in found.trials()
        ),
        f"trial {trial}",
    )
    return found


LONG_TRIALS = "training = { epochs = 40, batch_size = 20 }"
"""Seconds to hit a trial in, which then still ends soon."""


def test_two_workers_share_the_work(tiny_plan: MakePlan, study_of: MakeStudy) -> None:
    plan = tiny_plan(budget="budget = { trials = 6 }", pruner='pruner = { name = "none" }', training=LONG_TRIALS)
    study = study_of(plan, workers=2)
    events = study.events()
    assert isinstance(events[-1], StudyFinished)
    assert sorted(event.number for event in events if isinstance(event, TrialEnded)) == list(range(6))
    assert_complete(study, 6)
    workers = {int(trial.user_attrs["worker"]["pid"]) for trial in study.stored.finished()}
    assert len(workers) == 2
    assert os.getpid() not in workers
    drawn = [trial.params["optimizer.lr"] for trial in study.stored.finished()]
    assert len(set(drawn)) == 6, "no values are tried twice"
    finals = [
        (run.data.tags["resnet_bench.arm"], run.data.tags["resnet_bench.seed"]) for run in study.children("retrain")
    ]
    assert len(finals) == len(set(finals)), "no final run is done twice"
    assert not any(psutil.pid_exists(pid) for pid in workers)


def test_four_workers_share_one_storage_and_one_store(
    tiny_plan: MakePlan,
    study_of: MakeStudy,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    plan = tiny_plan(budget="budget = { trials = 24 }", pruner='pruner = { name = "none" }')
    study = study_of(plan, workers=4)
    events = study.events()
    # The workers inherit the console of this process.
    written = "".join(capfd.readouterr())
    assert "database is locked" not in written
    assert "Traceback" not in written
    assert sorted(event.number for event in events if isinstance(event, TrialEnded)) == list(range(24))
    assert_complete(study, 24)
    assert len(study.stored.trials()) == 24
    assert len({int(trial.user_attrs["worker"]["pid"]) for trial in study.stored.finished()}) == 4
    trials, finals = study.children("trial"), study.children("retrain")
    assert len(trials) == 24
    assert {run.info.status for run in trials + finals + [study.parent]} == {"FINISHED"}
    arms = [(run.data.tags["resnet_bench.arm"], run.data.tags["resnet_bench.seed"]) for run in finals]
    assert len(arms) == len(set(arms)) == 4
    for run in trials:
        steps = [
            metric.step for metric in study.context.store.client().get_metric_history(run.info.run_id, "step/loss")
        ]
        assert sorted(steps) == list(range(1, 7))
    for path in (tmp_path / "optuna.db", Path(study.context.store.uri.removeprefix("sqlite:///"))):
        with closing(sqlite3.connect(path)) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_worker_that_is_killed_is_replaced_by_the_other(tiny_plan: MakePlan, study_of: MakeStudy) -> None:
    plan = tiny_plan(budget="budget = { trials = 5 }", training=LONG_TRIALS)
    study = study_of(plan, workers=2)
    killed: list[int] = []
    interrupted = []
    for event in study.run():
        if not killed:
            killed = running_pids(study.stored)[-1:]
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
        if isinstance(event, TrialEnded) and event.state == "INTERRUPTED":
            interrupted.append(event.number)
    assert killed
    assert_complete(study, 5)
    assert len(interrupted) == study.stored.counts().interrupted == 1
    lost = study.stored.trial(interrupted[0])
    again = study.stored.trial(study.stored.retries()[lost.number])
    assert int(lost.user_attrs["worker"]["pid"]) in killed
    assert again.params == lost.params


def test_a_killed_study_resumes_at_once(tiny_plan: MakePlan, study_of: MakeStudy, study_process: Any) -> None:
    study = study_of(tiny_plan(training=LONG_TRIALS))
    process = study_process(study)
    wait_for_training(study, 1)
    process.kill()
    process.wait()
    assert study.stored.counts().running == 1
    study.events()
    assert_complete(study, 3)
    assert study.stored.counts().interrupted == 1
    assert study.parent.info.status == "FINISHED"


def test_a_study_on_another_machine_that_is_killed_is_missed_by_its_heartbeat(
    tiny_plan: MakePlan,
    study_of: MakeStudy,
    study_process: Any,
    tmp_path: Path,
) -> None:
    storage = StudyStorage(f"sqlite:///{tmp_path / 'optuna.db'}", heartbeat_seconds=1, grace_seconds=6)
    study = study_of(tiny_plan(training=LONG_TRIALS), storage=storage)
    process = study_process(study, "import socket\nsocket.gethostname = lambda: 'another-machine'")
    wait_for_training(study, 1)
    process.kill()
    process.wait()
    wait_for_silence(study)
    study.events()
    assert_complete(study, 3)
    assert study.stored.counts().interrupted == 1
    assert study.stored.trial(1).user_attrs["worker"]["host"] == "another-machine"


def wait_for_silence(study: TinyStudy) -> None:
    """Wait until a worker of another host is missed: until then, a file of its host takes no other host's worker."""
    queue = study.begin()
    until(queue.recover, "the end of a worker to be noticed")


def pause(process: subprocess.Popen[str], *databases: Path) -> None:
    """Stop a process where it holds no lock of a database: those that it holds keep everybody waiting."""

    def is_free(path: Path) -> bool:
        with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as database:
            try:
                database.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
        return True

    def look() -> bool:
        process.send_signal(signal.SIGSTOP)
        until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED, "the pause")
        if all(map(is_free, databases)):
            return True
        process.send_signal(signal.SIGCONT)
        return False

    until(look, "a moment between two transactions")


def short_study(tiny_plan: MakePlan) -> Plan:
    """Two trials, long enough to be paused within."""
    return tiny_plan(
        budget="budget = { trials = 2 }",
        retrain="retrain = { seeds = 1 }",
        training="training = { epochs = 15, batch_size = 20 }",
    )


def test_a_worker_that_is_paused_beyond_its_lease_writes_nothing_after_it_is_replaced(
    tiny_plan: MakePlan, study_of: MakeStudy, study_process: Any, tmp_path: Path
) -> None:
    """To the study the paused worker is on another machine: there its heartbeat is all that is known of it."""
    storage = StudyStorage(f"sqlite:///{tmp_path / 'optuna.db'}", heartbeat_seconds=1, grace_seconds=6)
    study = study_of(short_study(tiny_plan), storage=storage)
    process = study_process(study, "import socket\nsocket.gethostname = lambda: 'another-machine'")
    wait_for_training(study, 0)
    pause(process, tmp_path / "optuna.db", *filter(None, [study.context.store.path]))
    wait_for_silence(study)
    study.events()
    assert_complete(study, 2)
    before = {trial.number: (trial.state, trial.values, trial.user_attrs) for trial in study.stored.trials()}
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=SECONDS_FOR_ANYTHING)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert_complete(study, 2)
    assert {t.number: (t.state, t.values, t.user_attrs) for t in study.stored.trials()} == before
    assert study.stored.counts().interrupted == 1
    assert study.parent.info.status == "FINISHED"
    assert {run.info.status for run in [*study.children("trial"), *study.children("retrain")]} <= {"FINISHED", "KILLED"}


def test_a_worker_of_this_machine_is_never_replaced_however_long_it_is_paused(
    tiny_plan: MakePlan, study_of: MakeStudy, study_process: Any, tmp_path: Path
) -> None:
    storage = StudyStorage(f"sqlite:///{tmp_path / 'optuna.db'}", heartbeat_seconds=1, grace_seconds=2)
    study = study_of(short_study(tiny_plan), storage=storage)
    process = study_process(study)
    wait_for_training(study, 0)
    pause(process, tmp_path / "optuna.db")
    time.sleep(5)
    assert study.begin().recover() == []
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=SECONDS_FOR_ANYTHING)
    assert process.returncode == 0, errors
    assert_complete(study, 2)
    assert study.stored.counts().interrupted == 0


@pytest.mark.parametrize(
    ("workers", "number"), [(1, signal.SIGTERM), (1, signal.SIGHUP), (2, signal.SIGINT)], ids=["term", "hup", "int"]
)
def test_a_signal_ends_a_study_cleanly(
    number: signal.Signals, workers: int, tiny_plan: MakePlan, study_of: MakeStudy, study_process: Any
) -> None:
    """What each signal asks of a process is tested in tests/running/test_stopping.py."""
    study = study_of(tiny_plan(training=LONG_TRIALS), workers=workers)
    process = study_process(study)
    wait_for_training(study, 1)
    process.send_signal(number)
    assert process.wait(SECONDS_FOR_ANYTHING) == 130
    study.assert_stores_agree()
    counts = study.stored.counts()
    assert (counts.running, counts.finished + counts.waiting) == (0, 3), "the trial in progress is queued again"
    assert study.parent.info.status == "KILLED"
    assert study.parent.data.tags["resnet_bench.reason"] == f"interrupted by {number.name}"
    study.events()
    assert_complete(study, 3)


def test_two_workers_run_on_the_images_of_the_studys_recipe(tiny_plan: MakePlan, study_of: MakeStudy) -> None:
    data = 'data = { dataset = "cifar100", train_images = 60, test_images = 20 }'
    plan = tiny_plan(budget="budget = { trials = 2 }", retrain="retrain = { seeds = 1 }", data=data)
    study = study_of(plan, workers=2)
    study.events()
    runs = [*study.children("trial"), *study.children("retrain")]
    assert {run.data.tags["resnet_bench.dataset"] for run in runs} == {"cifar100"}
    assert {run.data.params["data.dataset"] for run in runs} == {"cifar100"}


def test_two_workers_do_not_train_the_same_hyperparameters_twice(tiny_plan: MakePlan, study_of: MakeStudy) -> None:
    plan = tiny_plan(
        budget="budget = { trials = 4 }", pruner='pruner = { name = "none" }', retrain="retrain = { seeds = 1 }"
    )
    study = study_of(plan, workers=2)
    study.script({"optimizer.lr": 0.01}, {"optimizer.lr": 0.01}, {"optimizer.lr": 0.01})
    ended = {event.number: event for event in study.events(TrialEnded)}
    assert [ended[number].reason for number in (2, 3)] == [
        "the same hyperparameters as trial 1, so not trained again"
    ] * 2
    assert ended[1].values == ended[2].values == ended[3].values
    assert_complete(study, 4)


def test_workers_do_not_outlive_their_parent(tiny_plan: MakePlan, study_of: MakeStudy, study_process: Any) -> None:
    plan = tiny_plan(budget="budget = { trials = 4 }", training="training = { epochs = 400, batch_size = 10 }")
    study = study_of(plan, workers=2)
    process = study_process(study)
    stored = wait_for_training(study, 1)
    workers = [psutil.Process(pid) for pid in running_pids(stored)]
    assert workers
    process.kill()
    process.wait()
    # Ten seconds are promised on a quiet machine; this one runs other tests beside.
    until(lambda: not any(runs(worker) for worker in workers), "the workers' end", seconds=40)


@pytest.mark.parametrize("url", ["journal:{}/optuna.log"])
def test_a_journal_file_serves_as_well(
    url: str,
    tiny_plan: MakePlan,
    study_of: MakeStudy,
    study_process: Any,
    tmp_path: Path,
) -> None:
    study = study_of(tiny_plan(training=LONG_TRIALS), storage=StudyStorage(url.format(tmp_path)))
    process = study_process(study)
    wait_for_training(study, 1)
    process.kill()
    process.wait()
    study.events()
    assert_complete(study, 3)


@pytest.mark.gpu
@needs_gpu
def test_memory_that_ran_out_is_free_for_the_next_trial(tiny_plan: MakePlan, study_of: MakeStudy) -> None:
    greedy = 'model = { name = "torchvision:resnet18" }\naugmentation = { resize = 512 }'
    space = 'training.batch_size = { type = "categorical", choices = [2, 40] }'
    plan = tiny_plan(
        model=greedy,
        training="training = { epochs = 1, batch_size = 2 }",
        pruner='pruner = { name = "none" }',
        **{"optimizer.lr": space, "optimizer.momentum": "", "optimizer.nesterov": ""},
    )
    total = torch.cuda.get_device_properties(0).total_memory
    free_what_is_unused()
    torch.cuda.set_per_process_memory_fraction(1.2e9 / total)
    try:
        study = study_of(plan, device="cuda")
        study.script({"training.batch_size": 40}, {"training.batch_size": 2})
        events = study.events()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    states = [event.state for event in events if isinstance(event, TrialEnded)]
    assert states == ["COMPLETE", "FAIL", "COMPLETE"]
    assert "ran out of memory" in study.stored.trial(1).user_attrs["reason"]
    assert torch.cuda.memory_allocated() < 1e6
