"""What a person sees of a study: trials of earlier runs and of other processes included."""

from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from resnet_bench.cli.live_study import LiveTable, Progress
from resnet_bench.data.dataset import Dataset
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.tuning.events import Retrained, RetrainingStarted, TrialEnded, TrialReported, TrialStarted
from resnet_bench.tuning.plan import Plan
from resnet_bench.tuning.run import StudyRequest, run_study
from resnet_bench.tuning.storage import StudyStorage
from resnet_bench.tuning.trial_queue import TrialQueue
from resnet_bench.tuning.watch import Watch
from tests.tuning.conftest import sgd

MakePlan = Callable[..., Plan]
MakeRequest = Callable[..., StudyRequest]

pytestmark = pytest.mark.usefixtures("without_plots")


@pytest.fixture
def ledger(tmp_path: Any, tiny_plan: MakePlan, dataset: Dataset) -> TrialQueue:
    return TrialQueue.begin("study", tiny_plan(), StudyStorage(f"sqlite:///{tmp_path / 'optuna.db'}").open(), dataset)


def test_what_was_through_before_is_told_once_as_earlier(ledger: TrialQueue) -> None:
    first = ledger.claim()
    assert first is not None
    ledger.end(first.trial, "COMPLETE", [0.5])
    interrupted = ledger.claim()
    assert interrupted is not None
    ledger.interrupt(interrupted.trial)
    watch = Watch(ledger)
    assert [(event.number, event.values) for event in watch.earlier] == [(0, (0.5,))]
    assert list(watch.look()) == []


def test_a_trial_is_told_from_its_settings_to_its_end(ledger: TrialQueue) -> None:
    watch = Watch(ledger)
    undecided = ledger.study.ask()
    assert list(watch.look()) == [], "its settings are not drawn yet"
    ledger.interrupt(undecided)
    list(watch.look())
    claimed = ledger.claim()
    assert claimed is not None
    number = claimed.trial.number
    assert list(watch.look()) == [TrialStarted(number, claimed.settings, claimed.is_source)]
    claimed.trial.report(0.25, 1)
    assert list(watch.look()) == [TrialReported(number, 1, 0.25)]
    ledger.end(claimed.trial, "COMPLETE", [0.25])
    (ended,) = watch.look()
    assert isinstance(ended, TrialEnded)
    assert (ended.number, ended.state, ended.values) == (number, "COMPLETE", (0.25,))
    assert list(watch.look()) == []


def test_best_so_far_counts_earlier_trials_and_those_of_other_processes(
    tiny_plan: MakePlan,
    request_for: MakeRequest,
    dataset: Dataset,
    scripted_training: list[Recipe],
    scripted_settings: Callable[..., None],
) -> None:
    scripted_settings([{}, sgd(0.01), sgd(0.3), sgd(0.4)])
    short = request_for(tiny_plan(budget="budget = { trials = 2 }", pruner='pruner = { name = "none" }'))
    list(run_study(short, dataset))

    request = request_for(tiny_plan(budget="budget = { trials = 4 }", pruner='pruner = { name = "none" }'))
    console = Console(record=True, width=200)
    progress = Progress(trial_epochs=3, final_runs=4, final_epochs=3)
    table = LiveTable(console, progress, list(request.plan.study.space))
    told = []
    for event in run_study(request, dataset):
        told.append(event)
        table.take(event)
        if isinstance(event, TrialReported) and (event.number, event.epoch) == (2, 1):
            assert progress.best is not None
            assert progress.best.number == 1, "what an earlier run of the study has found"
            assert progress.finished == 2
            other = TrialQueue.join(request.name, request.plan, request.storage.open())
            claimed = other.claim()
            assert claimed is not None
            other.end(claimed.trial, "COMPLETE", [0.99])
    assert progress.best.number == 3, "what another process has found meanwhile"
    assert progress.finished == 4
    ends = [event.number for event in told if isinstance(event, TrialEnded)]
    assert ends == [2, 3]
    final = [(event.arm, event.seed) for event in told if isinstance(event, Retrained)]
    assert len(final) == len(set(final))
    assert sum(isinstance(event, RetrainingStarted) for event in told) == 1
    text = console.export_text()
    assert "2 of 4 trials are through" in text
    assert "[4/4] trial 3" in text
    assert "best 99.00% in trial 3" in text
