"""Slots and trials: taken once each, given back when their process is gone, counted exactly."""

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from resnet_bench.base.errors import UserError
from resnet_bench.base.machine import this_process
from resnet_bench.data.dataset import Dataset
from resnet_bench.tuning import space
from resnet_bench.tuning.estimate import StudyEstimate
from resnet_bench.tuning.plan import Plan
from resnet_bench.tuning.slots import MIN_AHEAD
from resnet_bench.tuning.storage import StudyStorage, retry
from resnet_bench.tuning.stored_study import StoredStudy
from resnet_bench.tuning.trial_queue import AcquiredTrial, TrialQueue

MakePlan = Callable[..., Plan]
Begin = Callable[..., TrialQueue]


@pytest.fixture(params=["sqlite:///{}/optuna.db", "journal:{}/optuna.log"], ids=["sqlite", "journal"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> StudyStorage:
    return StudyStorage(request.param.format(tmp_path))


@pytest.fixture
def begin(tmp_path: Path, dataset: Dataset) -> Begin:
    """Lays a study out and joins it."""

    def begin(plan: Plan, storage: StudyStorage | None = None, name: str = "study") -> TrialQueue:
        address = storage or StudyStorage(f"sqlite:///{tmp_path / 'optuna.db'}")
        TrialQueue.begin(name, plan, address.open(), dataset)
        return TrialQueue.join(name, address.open())

    return begin


@pytest.fixture
def queue(storage: StudyStorage, tiny_plan: MakePlan, begin: Begin) -> TrialQueue:
    return begin(tiny_plan(budget="budget = { trials = 4 }"), storage)


def acquire(queue: TrialQueue) -> AcquiredTrial:
    acquired = queue.acquire()
    assert acquired is not None
    return acquired


def test_the_budget_is_laid_out_once(queue: TrialQueue, tiny_plan: MakePlan, dataset: Dataset) -> None:
    again = TrialQueue.begin("study", tiny_plan(budget="budget = { trials = 4 }"), queue.stored.storage, dataset)
    assert len(again.stored.trials()) == 4
    assert again.stored.counts().waiting == 4


def test_the_first_trial_runs_the_source_hyperparameters(queue: TrialQueue) -> None:
    acquired = acquire(queue)
    assert acquired.is_source
    assert acquired.trial.number == 0
    assert acquired.params == {"optimizer.lr": 0.1, "optimizer.momentum": 0.9, "optimizer.nesterov": False}
    assert not acquire(queue).is_source


def test_each_slot_is_taken_once_and_no_more_than_there_are(queue: TrialQueue) -> None:
    numbers = []
    while (acquired := queue.acquire()) is not None:
        numbers.append(acquired.trial.number)
        queue.end(acquired.trial, "COMPLETE", [0.5])
    assert numbers == [0, 1, 2, 3]
    counts = queue.stored.counts()
    assert (counts.finished, counts.running, counts.waiting) == (4, 0, 0)


def test_many_takers_at_once(storage: StudyStorage, tiny_plan: MakePlan, dataset: Dataset) -> None:
    TrialQueue.begin("study", tiny_plan(budget="budget = { trials = 12 }"), storage.open(), dataset)

    def take(_: int) -> list[int]:
        queue = TrialQueue.join("study", storage.open())
        taken = []
        while (acquired := queue.acquire()) is not None:
            taken.append(acquired.trial.number)
            queue.end(acquired.trial, "COMPLETE", [0.5])
        return taken

    with ThreadPoolExecutor(4) as pool:
        taken = [number for numbers in pool.map(take, range(4)) for number in numbers]
    assert sorted(taken) == list(range(12))


# --- interruptions -----------------------------------------------------------------------------------


def test_an_interrupted_trial_waits_again_with_its_values(queue: TrialQueue) -> None:
    acquire(queue)
    interrupted = acquire(queue)
    queue.interrupt(interrupted.trial.number)
    counts = queue.stored.counts()
    assert (counts.finished, counts.interrupted, counts.waiting) == (0, 1, 3)
    assert queue.stored.retries() == {1: 4}
    last = [acquire(queue) for _ in range(3)][-1]
    assert last.trial.number == 4
    assert last.params == interrupted.params


def test_a_trial_that_failed_by_itself_is_not_run_again(queue: TrialQueue) -> None:
    queue.end(acquire(queue).trial, "FAIL", reason="it did not fit")
    queue.recover()
    counts = queue.stored.counts()
    assert (counts.finished, counts.failed, counts.interrupted, counts.waiting) == (1, 1, 0, 3)


def _dead_process() -> dict[str, str]:
    """What a worker that was killed has written of itself."""
    code = "import json; from resnet_bench.base.machine import this_process; print(json.dumps(this_process()))"
    found: dict[str, str] = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True).stdout)
    return found


def test_a_dead_process_of_this_machine_is_noticed_at_once(queue: TrialQueue) -> None:
    dead, alive = acquire(queue), acquire(queue)
    dead.trial.set_user_attr("worker", _dead_process())
    assert queue.recover() == [0]
    stored = queue.stored
    assert stored.trial(0).state.name == "FAIL"
    assert stored.trial(alive.trial.number).state.name == "RUNNING", "the trial of a living process is left alone"
    assert queue.recover() == []
    assert stored.retries() == {0: 4}
    assert stored.trial(4).user_attrs["source"], "the source hyperparameters stay the source's"


def test_a_process_that_died_before_it_could_queue_its_trial_again(queue: TrialQueue) -> None:
    acquire(queue)
    queue.stored.study.tell(0, state=optuna.trial.TrialState.FAIL)
    assert queue.stored.retries() == {}
    queue.recover()
    assert queue.stored.retries() == {0: 4}
    queue.recover()
    assert len(queue.stored.trials()) == 5


def test_a_trial_beyond_the_slots_is_not_run(queue: TrialQueue) -> None:
    queue.stored.study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.WAITING))
    assert len(list(iter(queue.acquire, None))) == 4
    assert queue.stored.trial(4).state.name == "FAIL"
    assert queue.stored.counts().finished == 0


def test_of_two_trials_for_one_slot_the_earlier_stays(queue: TrialQueue) -> None:
    acquire(queue)
    number = acquire(queue).trial.number
    queue.interrupt(number)
    # Two machines that noticed the same end have both queued the slot again.
    retry(queue.stored.study, queue.stored.trial(number))
    first = next(trial for trial in iter(queue.acquire, None) if trial.trial.user_attrs["slot"] == 1)
    assert queue.acquire() is None
    later = queue.stored.trial(first.trial.number + 1)
    assert later.user_attrs["slot"] == 1
    assert "surplus" in later.user_attrs
    kept = queue.stored.trial(first.trial.number)
    assert kept.state.name == "RUNNING", "were both to give way, nobody would have the slot"


def miss_heartbeats(path: Path) -> None:
    """Have an hour pass since the last heartbeat."""
    with closing(sqlite3.connect(path, timeout=60)) as database, database:
        database.execute("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 hour')")


def wait_for_heartbeat(path: Path) -> None:
    deadline = time.monotonic() + 120
    with closing(sqlite3.connect(path, timeout=60)) as database:
        recent = "SELECT count(*) FROM trial_heartbeats WHERE heartbeat > datetime('now', '-30 minutes')"
        while database.execute(recent).fetchone() == (0,):
            assert time.monotonic() < deadline, "no heart beats"
            time.sleep(0.02)


def test_a_worker_of_another_machine_is_missed_by_its_heartbeat(
    tmp_path: Path, tiny_plan: MakePlan, begin: Begin
) -> None:
    path = tmp_path / "optuna.db"
    storage = StudyStorage(f"sqlite:///{path}", heartbeat_seconds=1, grace_seconds=600)
    queue = begin(tiny_plan(), storage)
    acquired = acquire(queue)
    acquired.trial.set_user_attr("worker", {**this_process(), "host": "elsewhere"})
    with queue.stored.storage.beating(acquired.trial._trial_id):
        for _ in range(2):
            wait_for_heartbeat(path)
            queue.recover()
            assert queue.stored.trial(0).state.name == "RUNNING", "a beating heart is left alone"
            miss_heartbeats(path)
    miss_heartbeats(path)
    queue.recover()
    assert queue.stored.trial(0).state.name == "FAIL"
    assert queue.stored.retries() == {0: 3}
    queue.end(acquired.trial, "COMPLETE", [0.5])
    assert queue.stored.trial(0).state.name == "FAIL", "the paused worker has lost its trial"


def test_a_trial_given_away_while_it_is_taken_is_left_to_the_other(
    tiny_plan: MakePlan, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where this process is paused between taking a trial and storing its id, for longer than the grace period."""
    queue = begin(tiny_plan())
    ask, asked = queue.stored.study.ask, []

    def paused() -> Any:
        trial = ask()
        if not asked:
            queue.stored.study.tell(trial.number, state=TrialState.FAIL)
            retry(queue.stored.study, queue.stored.trial(trial.number))
        asked.append(trial.number)
        return trial

    monkeypatch.setattr(queue.stored.study, "ask", paused)
    acquired = acquire(queue)
    assert acquired.trial.number == asked[1]
    assert queue.stored.trial(asked[0]).state == TrialState.FAIL


# --- drawing -----------------------------------------------------------------------------------------


def test_each_process_draws_other_values(tiny_plan: MakePlan, begin: Begin) -> None:
    first = begin(tiny_plan())
    acquire(first)
    second = TrialQueue.join("study", first.stored.storage)
    assert acquire(first).params["optimizer.lr"] != acquire(second).params["optimizer.lr"]


def test_a_study_is_reproducible(tiny_plan: MakePlan, begin: Begin) -> None:
    drawn = []
    for name in ("a", "b"):
        queue = begin(tiny_plan(), name=name)
        acquire(queue)
        drawn.append(acquire(queue).params)
    assert drawn[0] == drawn[1]


LEARNING_RATES = 'optimizer.lr = { type = "categorical", choices = [0.1, 0.01] }'
TWO_POINTS = {"optimizer.lr": LEARNING_RATES, "optimizer.momentum": "", "optimizer.nesterov": ""}


def _run_to_the_end(queue: TrialQueue) -> list[space.Params]:
    tried = []
    while (acquired := queue.acquire()) is not None:
        tried.append(acquired.params)
        queue.end(acquired.trial, "COMPLETE", [0.5])
    return tried


def test_a_grid_tries_every_point_once_the_sources_first(tiny_plan: MakePlan, begin: Begin) -> None:
    plan = tiny_plan(
        sampler='sampler = { name = "grid" }', budget="budget = { trials = 12 }", **{"optimizer.lr": LEARNING_RATES}
    )
    tried = _run_to_the_end(queue := begin(plan))
    assert tried[0] == plan.source_params
    assert len({space.identity(params) for params in tried}) == len(tried) == 8
    counts = queue.stored.counts()
    assert (counts.wanted, counts.finished, counts.exhausted, counts.waiting) == (8, 8, 4, 0)


def test_a_grid_without_the_sources_values_has_one_point_more(tiny_plan: MakePlan, begin: Begin) -> None:
    sampler = 'sampler = { name = "grid", options = { points = 2 } }'
    plan = tiny_plan(sampler=sampler, budget="budget = { trials = 12 }")
    tried = _run_to_the_end(queue := begin(plan))
    assert len({space.identity(params) for params in tried}) == len(tried) == 1 + 2 * 2 * 2
    assert queue.stored.counts().wanted == 9
    assert StudyEstimate(trial=1.0, retraining=0.0).total(plan) == 9.0, "its time is that of these points"


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_a_space_whose_points_were_all_tried_ends_the_study(sampler: str, tiny_plan: MakePlan, begin: Begin) -> None:
    plan = tiny_plan(sampler=f'sampler = {{ name = "{sampler}" }}', budget="budget = { trials = 30 }", **TWO_POINTS)
    tried = _run_to_the_end(queue := begin(plan))
    assert {params["optimizer.lr"] for params in tried} == {0.1, 0.01}
    counts = queue.stored.counts()
    assert (counts.wanted, counts.waiting) == (counts.finished, 0)
    assert len(tried) < 30
    assert _run_to_the_end(begin(plan)) == [], "a second command finds nothing to do either"


def test_a_point_that_may_have_to_be_run_again_is_not_taken_for_a_free_one(tiny_plan: MakePlan, begin: Begin) -> None:
    plan = tiny_plan(sampler='sampler = { name = "grid" }', budget="budget = { trials = 3 }", **TWO_POINTS)
    queue = begin(plan)
    interrupted, other = acquire(queue), acquire(queue)
    queue.interrupt(interrupted.trial.number)
    assert acquire(queue).params == interrupted.params
    assert queue.acquire() is None
    queue.end(other.trial, "COMPLETE", [0.5])
    assert queue.stored.counts().exhausted == 1


def test_a_twin_is_an_earlier_trial_with_the_same_hyperparameters(tiny_plan: MakePlan, begin: Begin) -> None:
    plan = tiny_plan(sampler='sampler = { name = "grid" }', budget="budget = { trials = 2 }", **TWO_POINTS)
    queue = begin(plan)
    source, other = acquire(queue), acquire(queue)
    assert queue.find_twin(source) is None
    assert queue.find_twin(other) is None
    queue.stored.study.enqueue_trial(other.params, user_attrs={"slot": 2})
    repeated = acquire(queue)
    running = queue.find_twin(repeated)
    assert running is not None
    assert (running.number, running.state.name) == (other.trial.number, "RUNNING")
    assert queue.find_twin(other) is None, "of two that run at the same time the later one waits"
    queue.end(other.trial, "COMPLETE", [0.5])
    finished = queue.find_twin(repeated)
    assert finished is not None
    assert finished.values == [0.5]


def test_an_interrupted_trial_is_no_twin(tiny_plan: MakePlan, begin: Begin) -> None:
    queue = begin(tiny_plan(sampler='sampler = { name = "grid" }', budget="budget = { trials = 2 }", **TWO_POINTS))
    acquire(queue)
    queue.interrupt(acquire(queue).trial.number)
    assert queue.find_twin(acquire(queue)) is None


def test_the_source_hyperparameters_are_not_failed_for_a_trial_that_was_pruned(
    tiny_plan: MakePlan, begin: Begin
) -> None:
    queue = begin(tiny_plan(sampler='sampler = { name = "grid" }', budget="budget = { trials = 1 }", **TWO_POINTS))
    queue.interrupt(acquire(queue).trial.number)
    queue.stored.study.enqueue_trial({"optimizer.lr": 0.1}, user_attrs={"slot": 7})
    source, pruned = acquire(queue), acquire(queue)
    assert source.is_source
    queue.end(pruned.trial, "PRUNED", reason="pruned by median")
    assert queue.find_twin(source) is None


# --- reading -----------------------------------------------------------------------------------------


def test_a_study_of_another_version_is_read_with_defaults_or_refused(
    queue: TrialQueue, tiny_plan: MakePlan, dataset: Dataset
) -> None:
    plan, stored = tiny_plan(budget="budget = { trials = 4 }"), queue.stored
    base = json.loads(stored.get_attr("base"))
    del base["training"]["label_smoothing"]
    stored.set_attr("base", json.dumps(base))
    assert TrialQueue.begin("study", plan, stored.storage, dataset).stored.counts().wanted == 4
    base["training"]["from_the_future"] = True
    stored.set_attr("base", json.dumps(base))
    with pytest.raises(UserError, match=r"another version .*recipe: training\.from_the_future"):
        TrialQueue.begin("study", plan, stored.storage, dataset)


def test_reading_an_unknown_study_brings_the_nearest_name(queue: TrialQueue) -> None:
    with pytest.raises(UserError, match="unknown study 'studi'; did you mean 'study'"):
        StoredStudy.read("studi", queue.stored.storage)


# --- slots ---------------------------------------------------------------------------------------------


def test_few_slots_are_waiting_at_a_time_and_each_is_laid_out_once(tiny_plan: MakePlan, begin: Begin) -> None:
    queue = begin(tiny_plan(budget="budget = { trials = 20 }"))
    waiting = []
    while (acquired := queue.acquire()) is not None:
        waiting.append(len(queue.stored.trials(TrialState.WAITING)))
        queue.end(acquired.trial, "COMPLETE", [0.5])
    assert max(waiting) <= MIN_AHEAD
    assert [trial.user_attrs["slot"] for trial in queue.stored.trials()] == list(range(20))
    assert queue.stored.counts().waiting == 0


def test_more_processes_than_slots_were_laid_out_for_find_work(tiny_plan: MakePlan, begin: Begin) -> None:
    queue = begin(tiny_plan(budget="budget = { trials = 20 }"))
    taken = [acquire(queue).trial.user_attrs["slot"] for _ in range(20)]
    assert sorted(taken) == list(range(20))
    assert queue.acquire() is None


def test_a_process_that_died_before_it_laid_the_next_slot_out_leaves_none_out(
    tiny_plan: MakePlan, begin: Begin
) -> None:
    queue = begin(tiny_plan(budget="budget = { trials = 12 }"))
    # As if it had died right after Optuna gave it the trial.
    queue.stored.study.ask()
    slots = [trial.trial.user_attrs["slot"] for trial in iter(queue.acquire, None)]
    assert sorted(slots) == list(range(12))


def test_a_file_on_which_another_host_works_is_refused(tiny_plan: MakePlan, begin: Begin) -> None:
    queue = begin(tiny_plan())
    acquire(queue).trial.set_user_attr("worker", {**this_process(), "host": "elsewhere"})
    with pytest.raises(UserError, match=r"elsewhere is working on it, and sqlite:.*use PostgreSQL"):
        queue.acquire()
