"""A study from its first trial to its result, in one process, with scripted training."""

from collections.abc import Callable
from typing import Any

import pytest

from resnet_bench.base.errors import UserError
from resnet_bench.data.dataset import Dataset
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.running.stopping import Stop, Stopped
from resnet_bench.tracking.store import Store
from resnet_bench.tuning.events import Retrained, StudyFinished, StudyOpened, TrialEnded, TrialReported
from resnet_bench.tuning.plan import Plan
from resnet_bench.tuning.results import FIRST_RETRAINING_SEED
from resnet_bench.tuning.run import StudyRequest, run_study
from resnet_bench.tuning.trial_queue import TrialQueue
from tests.tuning.conftest import (
    DIVERGING_LR,
    MEMORY_EATING_LR,
    Stores,
    events_of,
    scripted_accuracy,
    sgd,
)

Script = Callable[[list[dict[str, Any]]], None]
MakePlan = Callable[..., Plan]
MakeRequest = Callable[..., StudyRequest]
Look = Callable[[StudyRequest], Stores]


pytestmark = pytest.mark.usefixtures("without_plots")


def test_every_way_a_trial_can_end(
    tiny_plan: MakePlan,
    request_for: MakeRequest,
    dataset: Dataset,
    scripted_training: list[Recipe],
    scripted_settings: Script,
    stores_of: Look,
) -> None:
    scripted_settings(
        [
            {},
            sgd(0.012),
            sgd(1e-4),
            sgd(DIVERGING_LR),
            sgd(MEMORY_EATING_LR),
            sgd(0.02, momentum=0.0, nesterov=True),
        ]
    )
    request = request_for(tiny_plan(budget="budget = { trials = 6 }"))
    events = events_of(request, dataset)
    stores = stores_of(request)

    ended = [event for event in events if isinstance(event, TrialEnded)]
    assert [event.state for event in ended] == ["COMPLETE", "COMPLETE", "PRUNED", "PRUNED", "FAIL", "FAIL"]
    assert ended[0].is_source
    assert ended[0].settings == {"optimizer.lr": 0.1, "optimizer.momentum": 0.9, "optimizer.nesterov": False}
    assert "pruned by median" in str(ended[2].reason)
    assert ended[2].epoch == 1
    assert "loss became nan at step 3" in str(ended[3].reason)
    assert ended[3].epoch == 2
    assert "ran out of memory" in str(ended[4].reason)
    assert "nesterov" in str(ended[5].reason)
    stores.assert_agree()

    result = events[-1].result
    assert result.best_number == 1
    assert result.changed == {"optimizer.lr": 0.012}
    assert result.counts.finished == 6
    assert (result.counts.pruned, result.counts.failed) == (2, 2)

    parent = stores.parent
    assert parent.info.status == "FINISHED"
    expected = scripted_accuracy(scripted_training[1], 3, 0)
    metrics = parent.data.metrics
    assert metrics["study/best_validation_accuracy"] == pytest.approx(expected)
    assert metrics["study/source_validation_accuracy"] == pytest.approx(scripted_accuracy(scripted_training[0], 3, 0))
    assert metrics["study/trials_finished"] == 6
    assert (metrics["study/trials_pruned"], metrics["study/trials_failed"]) == (2, 2)
    assert metrics["study/epochs_saved"] == (3 - 1) + (3 - 2)
    tags = parent.data.tags
    assert tags["resnet_bench.role"] == "study"
    assert "log-float" in tags["resnet_bench.search_space"]
    names = {item.path for item in request.store.client().list_artifacts(parent.info.run_id)}
    assert {"importances.json", "trials.csv", "tuned_benchmark.toml", "study.toml", "result.json"} <= names


def test_the_final_runs_judge_once_with_fresh_seeds(
    tiny_plan: MakePlan,
    request_for: MakeRequest,
    dataset: Dataset,
    scripted_training: list[Recipe],
    scripted_settings: Script,
    stores_of: Look,
) -> None:
    scripted_settings([{}, sgd(0.01), sgd(0.03)])
    request = request_for(tiny_plan())
    events = events_of(request, dataset)

    trials, finals = scripted_training[:3], scripted_training[3:]
    for recipe in trials:
        assert recipe.evaluation.splits == ("validation",)
        assert not recipe.evaluation.test_at_end
        assert recipe.data.num_train == 40
    for recipe in finals:
        assert recipe.evaluation.splits == ()
        assert recipe.evaluation.test_at_end
        assert recipe.data.validation is None
        assert recipe.data.num_train == 60

    retrained = [event for event in events if isinstance(event, Retrained)]
    assert [(event.arm, event.seed) for event in retrained] == [
        ("source", FIRST_RETRAINING_SEED),
        ("tuned", FIRST_RETRAINING_SEED),
        ("source", FIRST_RETRAINING_SEED + 1),
        ("tuned", FIRST_RETRAINING_SEED + 1),
    ]
    comparison = events[-1].result.comparison
    assert comparison.source == pytest.approx([0.65, 0.651])
    assert comparison.tuned == pytest.approx([0.9, 0.901])
    assert comparison.difference.value == pytest.approx(0.25)
    # Welch by hand: two runs a side, 0.001 apart: s² = 5e-7, se = sqrt(5e-7), 2 degrees of freedom, t = 4.302653.
    half_width = 4.302653 * 5e-7**0.5
    assert comparison.difference.interval.low == pytest.approx(0.25 - half_width, rel=1e-5)
    assert comparison.difference.interval.high == pytest.approx(0.25 + half_width, rel=1e-5)

    stores = stores_of(request)
    runs = stores.children("retrain")
    assert sorted(run.data.tags["resnet_bench.arm"] for run in runs) == ["source", "source", "tuned", "tuned"]
    assert {run.data.tags["resnet_bench.seed"] for run in runs} == {"1000", "1001"}
    assert stores.parent.data.metrics["study/test_difference"] == pytest.approx(0.25)
    assert stores.parent.data.metrics["study/test_difference_low"] == pytest.approx(0.25 - half_width, rel=1e-5)


def test_the_source_is_never_pruned_and_may_win(
    tiny_plan: MakePlan,
    request_for: MakeRequest,
    dataset: Dataset,
    scripted_training: list[Recipe],
    scripted_settings: Script,
) -> None:
    scripted_settings([{}, sgd(1e-4), sgd(2e-4)])
    pruner = 'pruner = { name = "median", options = { n_startup_trials = 0, n_warmup_steps = 0 } }'
    events = events_of(request_for(tiny_plan(pruner=pruner)), dataset)
    states = {event.number: event.state for event in events if isinstance(event, TrialEnded)}
    assert states[0] == "COMPLETE"
    result = events[-1].result
    assert result.best_number == 0
    assert result.changed == {}
    assert result.comparison.same_settings
    assert result.comparison.difference.value == 0
    assert len(scripted_training) == 3 + 2, "the source's settings are trained again, nothing else"


def test_a_source_that_cannot_be_trained_ends_the_study(
    tiny_plan: MakePlan,
    request_for: MakeRequest,
    dataset: Dataset,
    scripted_training: list[Recipe],
    stores_of: Look,
) -> None:
    request = request_for(tiny_plan(optimizer="optimizer = { lr = 0.015 }"))
    with pytest.raises(UserError, match=r"source's own settings cannot be trained .*loss became nan"):
        events_of(request, dataset)
    stores = stores_of(request)
    stores.assert_agree()
    assert stores.parent.info.status == "FAILED"
    with pytest.raises(UserError, match="source's own settings cannot be trained"):
        events_of(request, dataset)
    assert len(scripted_training) == 1


def test_stopped_and_taken_up_again(
    tiny_plan: MakePlan,
    request_for: MakeRequest,
    dataset: Dataset,
    scripted_training: list[Recipe],
    scripted_settings: Script,
    stores_of: Look,
) -> None:
    settings = [{}, sgd(0.02), sgd(0.03), sgd(0.04)]
    scripted_settings(settings)
    request = request_for(tiny_plan(pruner='pruner = { name = "none" }'))
    stop = Stop()
    events = run_study(request, dataset, stop)
    next(event for event in events if isinstance(event, TrialReported) and event.number == 1)
    stop.reason = "interrupted by SIGTERM"
    with pytest.raises(Stopped):
        next(events)
    stores = stores_of(request)
    stores.assert_agree()
    assert stores.parent.info.status == "KILLED"
    assert stores.ledger.counts().finished == 1
    assert stores.ledger.trial(1).state.name == "FAIL"

    opened = events_of(request, dataset)[0]
    assert isinstance(opened, StudyOpened)
    assert (len(opened.earlier), opened.wanted) == (1, 3)
    again = stores_of(request)
    again.assert_agree()
    counts = again.ledger.counts()
    assert (counts.finished, counts.interrupted, counts.waiting) == (3, 1, 0)
    assert again.ledger.recall("mlflow_run_id") == stores.ledger.recall("mlflow_run_id")
    assert again.parent.info.status == "FINISHED"
    assert "resnet_bench.reason" not in again.parent.data.tags
    assert again.ledger.trial(3).params == again.ledger.trial(1).params, "the same values are tried again"

    trained = len(scripted_training)
    assert isinstance(events_of(request, dataset)[-1], StudyFinished)
    assert len(scripted_training) == trained, "a finished study trains nothing"


def test_a_consumer_that_goes_away_leaves_no_trial_running(
    tiny_plan: MakePlan, request_for: MakeRequest, dataset: Dataset, scripted_training: list[Recipe], stores_of: Look
) -> None:
    request = request_for(tiny_plan())
    events = run_study(request, dataset)
    for event in events:
        if isinstance(event, TrialReported):
            break
    events.close()
    stores = stores_of(request)
    stores.assert_agree()
    assert stores.ledger.counts().running == 0
    assert stores.ledger.counts().interrupted == 1
    assert stores.parent.info.status == "KILLED"


def test_a_trial_that_was_given_to_another_process_is_left_to_it(
    tiny_plan: MakePlan,
    request_for: MakeRequest,
    dataset: Dataset,
    scripted_training: list[Recipe],
    scripted_settings: Script,
    stores_of: Look,
) -> None:
    scripted_settings([{}, sgd(0.02), sgd(0.03)])
    request = request_for(tiny_plan(pruner='pruner = { name = "none" }'))
    ended = []
    for event in run_study(request, dataset):
        if isinstance(event, TrialReported) and event.number == 1 and event.epoch == 1:
            other = stores_of(request).ledger
            other._fail_and_retry(1)
        if isinstance(event, TrialEnded):
            ended.append((event.number, event.state))
    assert ended == [(0, "COMPLETE"), (1, "INTERRUPTED"), (2, "COMPLETE"), (3, "COMPLETE")]
    stores = stores_of(request)
    stores.assert_agree()
    assert stores.ledger.counts().finished == 3


def test_a_longer_budget_goes_on_where_the_shorter_ended(
    tiny_plan: MakePlan,
    request_for: MakeRequest,
    dataset: Dataset,
    scripted_training: list[Recipe],
    scripted_settings: Script,
    stores_of: Look,
) -> None:
    scripted_settings([{}, sgd(0.03), sgd(0.01)])
    events_of(request_for(tiny_plan(budget="budget = { trials = 2 }")), dataset)
    longer = request_for(tiny_plan())
    assert events_of(longer, dataset, StudyFinished)[0].result.best_number == 2
    assert stores_of(longer).ledger.counts().finished == 3
    with pytest.raises(UserError, match="begun with 3 trials and may grow, not shrink"):
        events_of(request_for(tiny_plan(budget="budget = { trials = 2 }")), dataset)


def test_another_definition_or_other_images_are_refused(
    tiny_plan: MakePlan, request_for: MakeRequest, dataset: Dataset, scripted_training: list[Recipe]
) -> None:
    one = request_for(tiny_plan(budget="budget = { trials = 1 }"))
    events_of(one, dataset)
    changed = request_for(tiny_plan(sampler='sampler = { name = "tpe" }'))
    with pytest.raises(UserError, match=r"another definition \(changed since: sampler\)"):
        events_of(changed, dataset)
    from resnet_bench.data.dataset import generate_dataset

    with pytest.raises(UserError, match="begun on other images"):
        events_of(one, generate_dataset("cifar10", train_size=60, test_size=20, seed=1))


def test_several_objectives(
    tiny_plan: MakePlan,
    request_for: MakeRequest,
    dataset: Dataset,
    scripted_training: list[Recipe],
    scripted_settings: Script,
    stores_of: Look,
) -> None:
    scripted_settings([{}, sgd(0.01), sgd(DIVERGING_LR)])
    objectives = 'objectives = ["validation_accuracy", "training_seconds"]\npruner = { name = "none" }'
    request = request_for(tiny_plan(pruner=objectives))
    events = events_of(request, dataset)
    ended = [event for event in events if isinstance(event, TrialEnded)]
    assert [event.state for event in ended] == ["COMPLETE", "COMPLETE", "FAIL"]
    assert ended[1].values == pytest.approx((0.9, 0.03))
    assert events[-1].result.best_number == 1
    stores = stores_of(request)
    stores.assert_agree()
    run = next(run for run in stores.children("trial") if run.data.tags["resnet_bench.trial_number"] == "1")
    assert run.data.metrics["study/training_seconds"] == pytest.approx(0.03)


def test_wilcoxon_prunes_between_seeds(
    tiny_plan: MakePlan,
    request_for: MakeRequest,
    dataset: Dataset,
    scripted_training: list[Recipe],
    scripted_settings: Script,
    stores_of: Look,
) -> None:
    scripted_settings([{}, sgd(1e-4)])
    pruner = 'seeds = 6\npruner = { name = "wilcoxon", options = { p_threshold = 0.2 } }'
    request = request_for(
        tiny_plan(
            pruner=pruner, budget="budget = { trials = 2 }", training="training = { epochs = 1, batch_size = 20 }"
        )
    )
    events = events_of(request, dataset)
    source, worse = [event for event in events if isinstance(event, TrialEnded)]
    assert source.state == "COMPLETE"
    assert source.values[0] == pytest.approx(0.65 + 0.001 * 2.5), "the mean over seeds 0 to 5"
    assert worse.state == "PRUNED"
    # The signed-rank test of n differences of one sign has p = 2^-n: 1/4 after two seeds, 1/8 after three.
    assert worse.epoch == 3
    stores = stores_of(request)
    stores.assert_agree()
    repeats = stores.children("trial")
    assert len(repeats) == 2, "further seeds are nested under their trial's run"


def test_a_wall_time_that_is_up_starts_no_trial(
    tiny_plan: MakePlan, request_for: MakeRequest, dataset: Dataset, scripted_training: list[Recipe], stores_of: Look
) -> None:
    request = request_for(tiny_plan(budget="budget = { trials = 3, wall_seconds = 1e-6 }"))
    with pytest.raises(UserError, match="the time was up"):
        events_of(request, dataset)
    assert not scripted_training
    assert stores_of(request).ledger.counts().waiting == 3


def test_another_tracking_store_than_the_studys_is_named(
    tiny_plan: MakePlan, request_for: MakeRequest, dataset: Dataset, scripted_training: list[Recipe], store: Store
) -> None:
    request = request_for(tiny_plan(budget="budget = { trials = 1 }"))
    events_of(request, dataset)
    ledger = TrialQueue.read(request.name, request.storage.open())
    ledger.remember("mlflow_run_id", "0" * 32)
    with pytest.raises(UserError, match="has logged its runs to another tracking store"):
        events_of(request, dataset)
