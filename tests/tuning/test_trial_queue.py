"""Slots and trials: taken once each, given back when their process is gone, counted exactly."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from resnet_bench.base.errors import UserError
from resnet_bench.data.dataset import Dataset
from resnet_bench.tuning import trial_queue as ledgers
from resnet_bench.tuning.plan import Plan
from resnet_bench.tuning.storage import StudyStorage
from resnet_bench.tuning.trial_queue import TrialQueue

MakePlan = Callable[..., Plan]


@pytest.fixture(params=["sqlite:///{}/optuna.db", "journal:{}/optuna.log"], ids=["sqlite", "journal"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> StudyStorage:
    return StudyStorage(request.param.format(tmp_path))


@pytest.fixture
def ledger(storage: StudyStorage, tiny_plan: MakePlan, dataset: Dataset) -> TrialQueue:
    plan = tiny_plan(budget="budget = { trials = 4 }")
    return TrialQueue.begin("study", plan, storage.open(), dataset)


def test_the_budget_is_laid_out_once(ledger: TrialQueue, tiny_plan: MakePlan, dataset: Dataset) -> None:
    again = TrialQueue.begin("study", tiny_plan(budget="budget = { trials = 4 }"), ledger.storage, dataset)
    assert len(again.trials()) == 4
    assert again.counts().waiting == 4


def test_the_first_trial_runs_the_sources_settings(ledger: TrialQueue) -> None:
    claimed = ledger.claim()
    assert claimed is not None
    assert claimed.is_source
    assert claimed.trial.number == 0
    assert claimed.settings == {"optimizer.lr": 0.1, "optimizer.momentum": 0.9, "optimizer.nesterov": False}
    second = ledger.claim()
    assert second is not None
    assert not second.is_source


def test_each_slot_is_taken_once_and_no_more_than_there_are(ledger: TrialQueue) -> None:
    numbers = []
    while (claimed := ledger.claim()) is not None:
        numbers.append(claimed.trial.number)
        ledger.end(claimed.trial, "COMPLETE", [0.5])
    assert numbers == [0, 1, 2, 3]
    counts = ledger.counts()
    assert (counts.finished, counts.running, counts.waiting) == (4, 0, 0)


def test_many_takers_at_once(storage: StudyStorage, tiny_plan: MakePlan, dataset: Dataset) -> None:
    plan = tiny_plan(budget="budget = { trials = 12 }")
    TrialQueue.begin("study", plan, storage.open(), dataset)

    def take(_: int) -> list[int]:
        ledger = TrialQueue.join("study", plan, storage.open())
        taken = []
        while (claimed := ledger.claim()) is not None:
            taken.append(claimed.trial.number)
            ledger.end(claimed.trial, "COMPLETE", [0.5])
        return taken

    with ThreadPoolExecutor(4) as pool:
        taken = [number for numbers in pool.map(take, range(4)) for number in numbers]
    assert sorted(taken) == list(range(12))


def test_an_interrupted_trial_waits_again_with_its_values(ledger: TrialQueue) -> None:
    ledger.claim()
    claimed = ledger.claim()
    assert claimed is not None
    ledger.interrupt(claimed.trial)
    counts = ledger.counts()
    assert (counts.finished, counts.interrupted, counts.waiting) == (0, 1, 3)
    assert ledger.retries() == {1: 4}
    last = [ledger.claim() for _ in range(3)][-1]
    assert last is not None
    assert last.trial.number == 4
    assert last.settings == claimed.settings


def test_a_trial_that_failed_by_itself_is_not_run_again(ledger: TrialQueue) -> None:
    claimed = ledger.claim()
    assert claimed is not None
    ledger.end(claimed.trial, "FAIL", reason="it did not fit")
    ledger.recover()
    counts = ledger.counts()
    assert (counts.finished, counts.failed, counts.interrupted, counts.waiting) == (1, 1, 0, 3)


def _dead_process() -> dict[str, Any]:
    """What a worker that was killed has written of itself."""
    code = "import os; from resnet_bench.base.machine import process_start; print(process_start(os.getpid()))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    start = process.communicate()[0].strip()
    return {"host": socket.gethostname(), "pid": process.pid, "pid_start": start}


def test_a_dead_process_of_this_machine_is_noticed_at_once(ledger: TrialQueue) -> None:
    claimed = ledger.claim()
    assert claimed is not None
    alive = ledger.claim()
    assert alive is not None
    claimed.trial.set_user_attr("worker", _dead_process())
    assert ledger.recover() == [0]
    assert ledger.trial(0).state.name == "FAIL"
    assert ledger.trial(alive.trial.number).state.name == "RUNNING", "the trial of a living process is left alone"
    assert ledger.recover() == []
    assert ledger.retries() == {0: 4}
    assert ledger.trial(4).user_attrs["source"], "the source's settings stay the source's"


def test_a_process_that_died_before_it_could_queue_its_trial_again(ledger: TrialQueue, monkeypatch: Any) -> None:
    claimed = ledger.claim()
    assert claimed is not None
    monkeypatch.setattr(ledgers, "retry", lambda study, trial: None)
    ledger.interrupt(claimed.trial)
    monkeypatch.undo()
    assert ledger.retries() == {}
    ledger.recover()
    assert ledger.retries() == {0: 4}
    ledger.recover()
    assert len(ledger.trials()) == 5


def test_a_trial_beyond_the_slots_is_not_run(ledger: TrialQueue) -> None:
    import optuna

    ledger.study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.WAITING))
    claimed = 0
    while ledger.claim() is not None:
        claimed += 1
    assert claimed == 4
    assert ledger.trial(4).state.name == "FAIL"
    assert ledger.counts().finished == 0


def test_of_two_trials_for_one_slot_the_earlier_stays(ledger: TrialQueue) -> None:
    ledger.claim()
    claimed = ledger.claim()
    assert claimed is not None
    ledger.interrupt(claimed.trial)
    # Two machines that noticed the same end have both queued the slot again.
    ledgers.retry(ledger.study, ledger.trial(claimed.trial.number))
    first = next(trial for trial in iter(ledger.claim, None) if trial.trial.user_attrs["slot"] == 1)
    twin = ledger.trial(first.trial.number + 1)
    assert twin.user_attrs["slot"] == 1
    assert not ledger._is_surplus(first.trial), "were each to give way, nobody would have the slot"
    assert ledger.claim() is None
    assert "surplus" in ledger.trial(twin.number).user_attrs


def test_a_study_of_another_version_is_read_with_defaults_or_refused(
    ledger: TrialQueue, tiny_plan: MakePlan, dataset: Dataset
) -> None:
    plan = tiny_plan(budget="budget = { trials = 4 }")
    base = json.loads(ledger.recall("base"))
    del base["training"]["label_smoothing"]
    ledger.remember("base", json.dumps(base))
    assert TrialQueue.begin("study", plan, ledger.storage, dataset).counts().wanted == 4
    base["training"]["from_the_future"] = True
    ledger.remember("base", json.dumps(base))
    with pytest.raises(UserError, match=r"another version .*recipe: training\.from_the_future"):
        TrialQueue.begin("study", plan, ledger.storage, dataset)


def test_a_worker_of_another_machine_is_missed_by_its_heartbeat(
    tmp_path: Path, tiny_plan: MakePlan, dataset: Dataset, monkeypatch: Any
) -> None:
    storage = StudyStorage(f"sqlite:///{tmp_path / 'optuna.db'}", heartbeat_seconds=1, grace_seconds=1)
    ledger = TrialQueue.begin("study", tiny_plan(), storage.open(), dataset)
    claimed = ledger.claim()
    assert claimed is not None
    claimed.trial.set_user_attr("worker", {"host": "elsewhere", "pid": os.getpid(), "pid_start": ""})
    with ledger.storage.beating(claimed.trial._trial_id):
        time.sleep(2.5)
        ledger.recover()
        assert ledger.trial(0).state.name == "RUNNING", "a beating heart is left alone"
    time.sleep(2.5)
    ledger.recover()
    assert ledger.trial(0).state.name == "FAIL"
    assert ledger.retries() == {0: 3}
    ledger.end(claimed.trial, "COMPLETE", [0.5])
    assert ledger.trial(0).state.name == "FAIL", "the paused worker has lost its trial"


def test_each_process_draws_other_values(tiny_plan: MakePlan, dataset: Dataset, tmp_path: Path) -> None:
    storage, plan = StudyStorage(f"sqlite:///{tmp_path / 'optuna.db'}"), tiny_plan()
    first = TrialQueue.begin("study", plan, storage.open(), dataset)
    first.claim()
    second = TrialQueue.join("study", plan, storage.open())
    left, right = first.claim(), second.claim()
    assert left is not None
    assert right is not None
    assert left.settings["optimizer.lr"] != right.settings["optimizer.lr"]


def test_a_study_is_reproducible(tiny_plan: MakePlan, dataset: Dataset, tmp_path: Path) -> None:
    drawn = []
    for name in ("a", "b"):
        ledger = TrialQueue.begin(name, tiny_plan(), StudyStorage(f"sqlite:///{tmp_path / 'o.db'}").open(), dataset)
        ledger.claim()
        claimed = ledger.claim()
        assert claimed is not None
        drawn.append(claimed.settings)
    assert drawn[0] == drawn[1]


def test_a_grid_is_walked_through_to_its_end(tiny_plan: MakePlan, dataset: Dataset, tmp_path: Path) -> None:
    lr = 'optimizer.lr = { type = "categorical", choices = [0.1, 0.01] }'
    plan = tiny_plan(sampler='sampler = { name = "grid" }', budget="budget = { trials = 9 }", **{"optimizer.lr": lr})
    ledger = TrialQueue.begin("study", plan, StudyStorage(f"sqlite:///{tmp_path / 'o.db'}").open(), dataset)
    seen = []
    while (claimed := ledger.claim()) is not None:
        seen.append(tuple(sorted(claimed.settings.items())))
        ledger.end(claimed.trial, "COMPLETE", [0.5])
    assert len(seen) == 9
    assert len(set(seen[1:])) == 8, "every point of the grid once, besides the source's settings"


def test_reading_an_unknown_study_brings_the_nearest_name(ledger: TrialQueue) -> None:
    with pytest.raises(UserError, match="unknown study 'studi'; did you mean 'study'"):
        TrialQueue.read("studi", ledger.storage)
