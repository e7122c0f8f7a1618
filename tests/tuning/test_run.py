"""A study from its first trial to its result, in one process, with scripted training."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from resnet_bench.base.errors import UserError
from resnet_bench.cli.live_study import StudyProgress
from resnet_bench.data.dataset import ImageLocation
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.running import run as run_module
from resnet_bench.running.stopping import Stop, Stopped
from resnet_bench.tracking.experiments import VIEW_KEY
from resnet_bench.tracking.vocabulary import PREFIX, TAGS, tag
from resnet_bench.training.errors import OutOfMemory
from resnet_bench.training.events import EpochEnded, Steps
from resnet_bench.tuning.events import (
    Retrained,
    SpaceExhausted,
    StudyEvent,
    StudyFinished,
    StudyOpened,
    TrialEnded,
    TrialProgressed,
    TrialReported,
)
from resnet_bench.tuning.plan import Plan
from resnet_bench.tuning.results import FIRST_RETRAINING_SEED
from resnet_bench.tuning.run import Watch
from resnet_bench.tuning.trial_queue import TrialQueue
from resnet_bench.tuning.trials_table import trial_rows
from tests.tuning.conftest import (
    DIVERGING_LR,
    IMAGES,
    MEMORY_EATING_LR,
    TinyStudy,
    scripted_accuracy,
    sgd,
)

MakePlan = Callable[..., Plan]
MakeStudy = Callable[..., TinyStudy]

UNPRUNED = 'pruner = { name = "none" }'

pytestmark = pytest.mark.usefixtures("without_plots")


def test_every_way_a_trial_can_end(tiny_plan: MakePlan, study_of: MakeStudy, scripted_training: list[Recipe]) -> None:
    study = study_of(tiny_plan(budget="budget = { trials = 6 }"))
    study.script(
        sgd(0.012), sgd(1e-4), sgd(DIVERGING_LR), sgd(MEMORY_EATING_LR), sgd(0.02, momentum=0.0, nesterov=True)
    )
    events = study.events()

    ended = [event for event in events if isinstance(event, TrialEnded)]
    assert [event.state for event in ended] == ["COMPLETE", "COMPLETE", "PRUNED", "PRUNED", "FAIL", "FAIL"]
    assert ended[0].is_source
    assert ended[0].params == {"optimizer.lr": 0.1, "optimizer.momentum": 0.9, "optimizer.nesterov": False}
    assert "pruned by median" in str(ended[2].reason)
    assert ended[2].epoch == 1
    assert "loss became nan at step 3" in str(ended[3].reason)
    assert ended[3].epoch == 2
    assert "ran out of memory" in str(ended[4].reason)
    assert "nesterov" in str(ended[5].reason)
    study.assert_stores_agree()
    assert any(isinstance(event, TrialProgressed) for event in events), "something is said within an epoch"

    result = events[-1].result
    assert result.best_number == 1
    assert result.changed == {"optimizer.lr": 0.012}
    assert result.counts.finished == 6
    assert (result.counts.pruned, result.counts.failed) == (2, 2)

    parent = study.parent
    assert parent.info.status == "FINISHED"
    expected = scripted_accuracy(scripted_training[1], 3, 0)
    metrics = parent.data.metrics
    assert metrics["study/best_validation_accuracy"] == pytest.approx(expected)
    assert metrics["study/source_validation_accuracy"] == pytest.approx(scripted_accuracy(scripted_training[0], 3, 0))
    assert metrics["study/trials_finished"] == 6
    assert (metrics["study/trials_pruned"], metrics["study/trials_failed"]) == (2, 2)
    assert metrics["study/epochs_saved"] == (3 - 1) + (3 - 2)
    tags = parent.data.tags
    runs = [parent, *study.children("trial"), *study.children("retrain")]
    ours = {key for run in runs for key in run.data.tags if key.startswith(PREFIX)}
    assert ours <= {tag(name) for name in TAGS}
    assert tags["resnet_bench.role"] == "study"
    assert "log-float" in tags["resnet_bench.search_space"]
    names = {item.path for item in study.context.store.client().list_artifacts(parent.info.run_id)}
    assert {"importances.json", "trials.csv", "tuned_benchmark.toml", "study.toml", "result.json"} <= names

    # What tells runs apart stands first, where MLflow's pages do not cut it off, and in columns.
    name = parent.info.run_name
    assert {run.info.run_name for run in study.children("trial")} >= {f"trial {i} of {name}" for i in range(6)}
    assert all(run.info.run_name.startswith(("source seed ", "tuned seed ")) for run in study.children("retrain"))
    assert all(float(run.data.params["optimizer.lr"]) > 0 for run in study.children("trial"))
    experiment = study.context.store.client().get_experiment(parent.info.experiment_id)
    columns = json.loads(experiment.tags[f"mlflow.sharedViewState.{VIEW_KEY}"])["selectedColumns"]
    assert columns[1] == "params.`optimizer.lr`"


def test_the_parent_run_has_the_definition_as_params(
    tiny_plan: MakePlan, study_of: MakeStudy, scripted_training: list[Recipe]
) -> None:
    study = study_of(tiny_plan(budget="budget = { trials = 1 }"))
    study.events()
    params = study.parent.data.params
    assert params["study.sampler"] == "random"
    assert params["study.pruner"] == "median (n_startup_trials = 1, n_warmup_steps = 0)"
    assert (params["study.trials"], params["study.epochs"], params["study.seeds"]) == ("1", "3", "1")
    assert params["space.optimizer.lr"] == "0.0001 … 1, log"
    assert params["space.optimizer.nesterov"] == "False | True"

    longer = study_of(tiny_plan(budget="budget = { trials = 2 }"))
    longer.events()
    assert longer.parent.data.params["study.trials"] == "1", "MLflow changes no parameter"
    assert longer.parent.data.tags["resnet_bench.budget"] == '{"trials": 2}'


# --- comparing with the source -----------------------------------------------------------------------


def test_the_final_runs_judge_once_with_fresh_seeds(
    tiny_plan: MakePlan, study_of: MakeStudy, scripted_training: list[Recipe]
) -> None:
    study = study_of(tiny_plan())
    study.script(sgd(0.01), sgd(0.03))
    events = study.events()

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
    # Welch by hand: two runs per side, 0.001 apart: s² = 5e-7, se = sqrt(5e-7), 2 degrees of freedom, t = 4.302653.
    half_width = 4.302653 * 5e-7**0.5
    assert comparison.difference.interval.low == pytest.approx(0.25 - half_width, rel=1e-5)
    assert comparison.difference.interval.high == pytest.approx(0.25 + half_width, rel=1e-5)

    runs = study.children("retrain")
    assert sorted(run.data.tags["resnet_bench.arm"] for run in runs) == ["source", "source", "tuned", "tuned"]
    assert {run.data.tags["resnet_bench.seed"] for run in runs} == {"1000", "1001"}
    assert study.parent.data.metrics["study/test_difference"] == pytest.approx(0.25)
    assert study.parent.data.metrics["study/test_difference_low"] == pytest.approx(0.25 - half_width, rel=1e-5)


def test_the_source_is_never_pruned_and_may_win(
    tiny_plan: MakePlan, study_of: MakeStudy, scripted_training: list[Recipe]
) -> None:
    pruner = 'pruner = { name = "median", options = { n_startup_trials = 0, n_warmup_steps = 0 } }'
    study = study_of(tiny_plan(pruner=pruner))
    study.script(sgd(1e-4), sgd(2e-4))
    events = study.events()
    states = {event.number: event.state for event in events if isinstance(event, TrialEnded)}
    assert states[0] == "COMPLETE"
    result = events[-1].result
    assert result.best_number == 0
    assert result.changed == {}
    assert result.comparison.same_settings
    assert len(scripted_training) == 3 + 2, "the source hyperparameters are retrained, nothing else"
    assert result.comparison.difference is None
    assert "study/test_difference" not in study.parent.data.metrics, "nothing was compared"


def test_a_source_that_cannot_be_trained_ends_the_study(
    tiny_plan: MakePlan, study_of: MakeStudy, scripted_training: list[Recipe]
) -> None:
    study = study_of(tiny_plan(optimizer="optimizer = { lr = 0.015 }"))
    with pytest.raises(UserError, match=r"source hyperparameters cannot be trained .*loss became nan"):
        study.events()
    study.assert_stores_agree()
    assert study.parent.info.status == "FAILED"
    with pytest.raises(UserError, match="source hyperparameters cannot be trained"):
        study.events()
    assert len(scripted_training) == 1


# --- faults of the place -----------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_fails_no_trial(
    tiny_plan: MakePlan, study_of: MakeStudy, scripted_training: list[Recipe]
) -> None:
    study = study_of(tiny_plan())
    study.context.run_dir.touch()
    with pytest.raises(UserError, match="cannot write the run's files here"):
        study.events()
    counts = study.stored.counts()
    assert (counts.finished, counts.waiting, counts.interrupted) == (0, 3, 1)
    study.context.run_dir.unlink()
    assert study.events(StudyFinished)
    assert study.stored.counts().finished == 3


def test_a_retraining_run_that_has_no_folder_is_done_again(
    tiny_plan: MakePlan, study_of: MakeStudy, scripted_training: list[Recipe]
) -> None:
    study = study_of(tiny_plan())
    study.script(sgd(0.01), sgd(0.03))
    in_the_way = study.context.run_dir / "studies" / study.name / ".acquire.lock"
    in_the_way.mkdir(parents=True)
    with pytest.raises(UserError, match="cannot write the run's files here"):
        study.events()
    assert study.stored.counts().finished == 3
    in_the_way.rmdir()
    comparison = study.events(StudyFinished)[0].result.comparison
    assert comparison.failures == ()
    assert len(comparison.source) == len(comparison.tuned) == 2


@pytest.mark.parametrize("runs_before", [0, 1, 4], ids=["source", "trial", "retraining"])
def test_a_gpu_that_breaks_is_not_the_hyperparameters_failure(
    runs_before: int,
    tiny_plan: MakePlan,
    study_of: MakeStudy,
    scripted_training: list[Recipe],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = study_of(tiny_plan(pruner=UNPRUNED))
    study.script(sgd(0.01), sgd(0.03))
    with monkeypatch.context() as broken:
        break_gpu(broken, after=runs_before)
        with pytest.raises(UserError, match="the GPU takes no more work"):
            study.events()
    trials_before = min(runs_before, 3)
    counts = study.stored.counts()
    assert (counts.finished, counts.failed, counts.waiting) == (trials_before, 0, 3 - trials_before)
    study.assert_stores_agree()

    comparison = study.events(StudyFinished)[0].result.comparison
    assert comparison.failures == ()
    assert len(comparison.source) == len(comparison.tuned) == 2
    assert study.stored.counts().finished == 3
    study.assert_stores_agree()


def break_gpu(monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """Let the device of this process break in the run that follows so many others."""
    train: Any = run_module.train
    begun: list[Recipe] = []

    def train_until_it_breaks(recipe: Recipe, *arguments: Any, **options: Any) -> Iterator[Any]:
        begun.append(recipe)
        for event in train(recipe, *arguments, **options):
            yield event
            if len(begun) > after and isinstance(event, Steps):
                raise RuntimeError("CUDA error: unspecified launch failure")

    problem = "the GPU takes no more work"
    monkeypatch.setattr(run_module, "train", train_until_it_breaks)
    monkeypatch.setattr("resnet_bench.tuning.trial.device_problem", lambda _: problem if len(begun) > after else None)


def test_a_network_that_hyperparameters_make_impossible_fails_its_trial(
    tiny_plan: MakePlan, study_of: MakeStudy, scripted_training: list[Recipe]
) -> None:
    depths = 'model.name = { type = "categorical", choices = ["he_resnet20", "no_such_network"] }'
    study = study_of(
        tiny_plan(
            budget="budget = { trials = 2 }",
            **{"optimizer.lr": depths, "optimizer.momentum": "", "optimizer.nesterov": ""},
        )
    )
    ended = study.events(TrialEnded)
    assert {event.params["model.name"]: event.state for event in ended} == {
        "he_resnet20": "COMPLETE",
        "no_such_network": "FAIL",
    }
    assert "no_such_network" in str(ended[1].reason)
    assert {recipe.model.name for recipe in scripted_training} == {"he_resnet20"}


# --- stopping and resuming ---------------------------------------------------------------------------


def test_a_stopped_study_resumes(tiny_plan: MakePlan, study_of: MakeStudy, scripted_training: list[Recipe]) -> None:
    study = study_of(tiny_plan(pruner=UNPRUNED))
    study.script(sgd(0.02), sgd(0.03))
    stop = Stop()
    events = study.run(stop)
    next(event for event in events if isinstance(event, TrialReported) and event.number == 1)
    stop.reason = "interrupted by SIGTERM"
    with pytest.raises(Stopped, match="interrupted by SIGTERM"):
        next(events)
    study.assert_stores_agree()
    assert study.parent.info.status == "KILLED"
    assert study.stored.counts().finished == 1
    assert study.stored.trial(1).state.name == "FAIL"
    parent = study.stored.get_attr("mlflow_run_id")

    opened = study.events()[0]
    assert isinstance(opened, StudyOpened)
    assert (len(opened.earlier), opened.wanted) == (1, 3)
    study.assert_stores_agree()
    counts = study.stored.counts()
    assert (counts.finished, counts.interrupted, counts.waiting) == (3, 1, 0)
    assert study.stored.get_attr("mlflow_run_id") == parent
    assert study.parent.info.status == "FINISHED"
    assert "resnet_bench.reason" not in study.parent.data.tags
    assert study.stored.trial(3).params == study.stored.trial(1).params, "the same values are tried again"

    trained = len(scripted_training)
    assert isinstance(study.events()[-1], StudyFinished)
    assert len(scripted_training) == trained, "a finished study trains nothing"


def test_a_consumer_that_goes_away_leaves_no_trial_running(
    tiny_plan: MakePlan, study_of: MakeStudy, scripted_training: list[Recipe]
) -> None:
    study = study_of(tiny_plan())
    events = study.run()
    next(event for event in events if isinstance(event, TrialReported))
    events.close()
    study.assert_stores_agree()
    counts = study.stored.counts()
    assert (counts.running, counts.interrupted) == (0, 1)
    assert study.parent.info.status == "KILLED"


def test_a_trial_that_was_given_to_another_process_is_left_to_it(
    tiny_plan: MakePlan, study_of: MakeStudy, scripted_training: list[Recipe]
) -> None:
    study = study_of(tiny_plan(pruner=UNPRUNED))
    study.script(sgd(0.02), sgd(0.03))
    ended = []
    for event in study.run():
        if isinstance(event, TrialReported) and event.number == 1 and event.epoch == 1:
            TrialQueue.join(study.name, study.storage.open()).interrupt(1)
        if isinstance(event, TrialEnded):
            ended.append((event.number, event.state))
    assert ended == [(0, "COMPLETE"), (1, "INTERRUPTED"), (2, "COMPLETE"), (3, "COMPLETE")]
    study.assert_stores_agree()
    assert study.stored.counts().finished == 3


def test_a_longer_budget_resumes_after_the_shorter_one(
    tiny_plan: MakePlan, study_of: MakeStudy, scripted_training: list[Recipe]
) -> None:
    short = study_of(tiny_plan(budget="budget = { trials = 2 }"))
    short.script(sgd(0.03))
    short.events()
    longer = study_of(tiny_plan())
    longer.script(sgd(0.03), sgd(0.01))
    assert longer.events(StudyFinished)[0].result.best_number == 2
    assert longer.stored.counts().finished == 3
    with pytest.raises(UserError, match="begun with 3 trials, which may become more, not fewer"):
        study_of(tiny_plan(budget="budget = { trials = 2 }")).events()


def test_another_definition_or_other_images_are_refused(
    tiny_plan: MakePlan, study_of: MakeStudy, scripted_training: list[Recipe]
) -> None:
    plan = tiny_plan(budget="budget = { trials = 1 }")
    study_of(plan).events()
    with pytest.raises(UserError, match=r"another definition \(changed since: sampler\)"):
        study_of(tiny_plan(sampler='sampler = { name = "tpe" }')).events()
    more = ImageLocation(IMAGES.folder, generated=(61, 20))
    with pytest.raises(UserError, match="begun on other images"):
        study_of(plan, images=more).events()


def test_a_wall_time_that_is_up_starts_no_trial(
    tiny_plan: MakePlan, study_of: MakeStudy, scripted_training: list[Recipe]
) -> None:
    study = study_of(tiny_plan(budget="budget = { trials = 3, wall_seconds = 1e-6 }"))
    with pytest.raises(UserError, match="the time was up"):
        study.events()
    assert not scripted_training
    assert study.stored.counts().waiting == 3


# --- stores ------------------------------------------------------------------------------------------


def test_another_tracking_store_than_the_studys_is_named(
    tiny_plan: MakePlan, study_of: MakeStudy, scripted_training: list[Recipe]
) -> None:
    study = study_of(tiny_plan(budget="budget = { trials = 1 }"))
    study.events()
    study.begin().stored.set_attr("mlflow_run_id", "0" * 32)
    with pytest.raises(UserError, match="has logged its runs to another tracking store"):
        study.events()


def test_a_storage_that_stops_working_is_one_sentence_and_leaves_the_parent_run_ended(
    tiny_plan: MakePlan, study_of: MakeStudy, scripted_training: list[Recipe]
) -> None:
    study = study_of(tiny_plan(pruner=UNPRUNED))
    events = study.run()
    next(event for event in events if isinstance(event, TrialReported))
    parent = study.parent
    assert study.storage.file is not None
    with closing(sqlite3.connect(study.storage.file)) as database:
        database.execute("DROP TABLE trial_values")
        database.execute("DROP TABLE trial_intermediate_values")
        database.commit()
    with pytest.raises(UserError, match=r"optuna.db stopped working: no such table") as caught:
        list(events)
    assert "\n" not in str(caught.value)
    assert study.context.store.client().get_run(parent.info.run_id).info.status == "FAILED"


def test_the_studys_recipe_decides_on_which_images_it_runs(
    tiny_plan: MakePlan, study_of: MakeStudy, scripted_training: list[Recipe]
) -> None:
    data = 'data = { dataset = "cifar100", train_images = 60, test_images = 20 }'
    study = study_of(tiny_plan(budget="budget = { trials = 1 }", data=data))
    study.events()
    (trial,) = study.children("trial")
    (final, _) = study.children("retrain")
    for run in (study.parent, trial, final):
        assert run.data.tags["resnet_bench.dataset"] == "cifar100"
    assert trial.data.params["data.dataset"] == final.data.params["data.dataset"] == "cifar100"
    assert {recipe.data.dataset for recipe in scripted_training} == {"cifar100"}


# --- spaces that end ---------------------------------------------------------------------------------


def test_hyperparameters_that_were_tried_before_are_not_trained_again(
    tiny_plan: MakePlan, study_of: MakeStudy, scripted_training: list[Recipe]
) -> None:
    study = study_of(tiny_plan(budget="budget = { trials = 5 }"))
    study.script(sgd(0.01), sgd(0.01), sgd(0.1), sgd(1e-4))
    ended = study.events(TrialEnded)
    assert [event.state for event in ended] == ["COMPLETE"] * 4 + ["PRUNED"]
    assert ended[2].values == ended[1].values
    assert ended[2].reason == "the same hyperparameters as trial 1, so not trained again"
    assert ended[3].values == ended[0].values
    assert "trial 0" in str(ended[3].reason)
    assert len(scripted_training) == 3 + 4
    runs = {run.data.tags["resnet_bench.trial_number"]: run for run in study.children("trial")}
    assert runs["2"].info.status == "FINISHED"
    assert runs["2"].data.metrics["study/value"] == ended[1].values[0]
    assert "trial 1" in runs["2"].data.tags["resnet_bench.reason"]


def test_a_failure_is_repeated_as_one(
    tiny_plan: MakePlan, study_of: MakeStudy, scripted_training: list[Recipe]
) -> None:
    study = study_of(tiny_plan(budget="budget = { trials = 5 }"))
    study.script(sgd(DIVERGING_LR), sgd(DIVERGING_LR), sgd(MEMORY_EATING_LR), sgd(MEMORY_EATING_LR))
    ended = study.events(TrialEnded)
    assert [event.state for event in ended] == ["COMPLETE", "PRUNED", "PRUNED", "FAIL", "FAIL"]
    assert "same hyperparameters as trial 3, so not trained again (a small device ran out" in str(ended[4].reason)


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_a_study_ends_when_every_point_was_tried(
    sampler: str, tiny_plan: MakePlan, study_of: MakeStudy, scripted_training: list[Recipe]
) -> None:
    two_points = 'training.batch_size = { type = "categorical", choices = [10, 20] }'
    plan = tiny_plan(
        sampler=f'sampler = {{ name = "{sampler}" }}',
        budget="budget = { trials = 20 }",
        **{"optimizer.lr": two_points, "optimizer.momentum": "", "optimizer.nesterov": ""},
    )
    study = study_of(plan)
    events = study.events()
    trials = [recipe for recipe in scripted_training if not recipe.evaluation.test_at_end]
    assert sorted(recipe.training.batch_size for recipe in trials) == [10, 20]
    result = events[-1].result
    (exhausted,) = (event for event in events if isinstance(event, SpaceExhausted))
    assert exhausted.wanted == result.counts.finished == result.counts.wanted < 20
    study.assert_stores_agree() if sampler == "grid" else None
    assert study.parent.info.status == "FINISHED"


# --- objectives and seeds ----------------------------------------------------------------------------


def test_several_objectives(tiny_plan: MakePlan, study_of: MakeStudy, scripted_training: list[Recipe]) -> None:
    objectives = 'objectives = ["validation_accuracy", "training_seconds"]\npruner = { name = "none" }'
    study = study_of(tiny_plan(pruner=objectives))
    study.script(sgd(0.01), sgd(DIVERGING_LR))
    events = study.events()
    ended = [event for event in events if isinstance(event, TrialEnded)]
    assert [event.state for event in ended] == ["COMPLETE", "COMPLETE", "FAIL"]
    assert ended[1].values == pytest.approx((0.9, 0.03))
    assert events[-1].result.best_number == 1
    study.assert_stores_agree()
    run = next(run for run in study.children("trial") if run.data.tags["resnet_bench.trial_number"] == "1")
    assert run.data.metrics["study/training_seconds"] == pytest.approx(0.03)


def test_wilcoxon_prunes_between_seeds(
    tiny_plan: MakePlan, study_of: MakeStudy, scripted_training: list[Recipe]
) -> None:
    pruner = 'seeds = 6\npruner = { name = "wilcoxon", options = { p_threshold = 0.2 } }'
    study = study_of(
        tiny_plan(
            pruner=pruner, budget="budget = { trials = 2 }", training="training = { epochs = 1, batch_size = 20 }"
        )
    )
    study.script(sgd(1e-4))
    source, worse = study.events(TrialEnded)
    assert source.state == "COMPLETE"
    assert source.values[0] == pytest.approx(0.65 + 0.001 * 2.5), "the mean over seeds 0 to 5"
    assert worse.state == "PRUNED"
    # The signed-rank test of n differences of one sign has p = 2^-n: 1/4 after two seeds, 1/8 after three.
    assert worse.epoch == 3
    study.assert_stores_agree()
    assert len(study.children("trial")) == 2, "further seeds are nested under their trial's run"


@pytest.mark.parametrize("objectives", ['["validation_accuracy"]', '["validation_accuracy", "training_seconds"]'])
def test_the_epochs_of_a_trial_are_those_of_all_its_seeds(
    objectives: str,
    tiny_plan: MakePlan,
    study_of: MakeStudy,
    scripted_training: list[Recipe],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = run_module.train

    def out_of_memory_in_the_second_seed(recipe: Recipe, *arguments: Any, **options: Any) -> Iterator[Any]:
        for event in train(recipe, *arguments, **options):
            yield event
            if recipe.optimizer.lr == 0.03 and arguments[1] == 1 and isinstance(event, EpochEnded):
                raise OutOfMemory("a small device", "resnet18", recipe.training.batch_size, None)

    monkeypatch.setattr(run_module, "train", out_of_memory_in_the_second_seed)
    more = f"seeds = 3\nobjectives = {objectives}\n{UNPRUNED}"
    study = study_of(tiny_plan(pruner=more, budget="budget = { trials = 5 }"))
    study.script(sgd(0.02), sgd(0.02), sgd(0.03), sgd(0.01))
    events = study.run()
    told: list[StudyEvent] = []
    for event in events:
        told.append(event)
        if isinstance(event, TrialReported) and (event.number, event.epoch) == (4, 7):
            break
    ended = [event for event in told if isinstance(event, TrialEnded)]
    assert [event.state for event in ended] == ["COMPLETE", "COMPLETE", "COMPLETE", "FAIL"]
    assert [event.epoch for event in ended] == [9, 9, 0, 4], "the third repeats the second, and is not trained"
    *_, seen_elsewhere = Watch(study.stored).look()
    assert seen_elsewhere == told[-1]
    events.close()
    assert [row["epochs"] for row in trial_rows(study.stored)][:5] == [9, 9, None, 4, 7]

    progress = StudyProgress(trial_epochs=9, retraining_runs=0, retraining_epochs=3, trials_per_retraining=1.0)
    progress.take(StudyOpened(study.name, "url", 5, Watch(study.stored).earlier))
    assert progress.seconds_left == pytest.approx((ended[0].seconds + ended[1].seconds) / 2)
