"""Studies, rebuilt from their runs."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from resnet_bench.base.files import write_together
from resnet_bench.judging.intervals import welch
from resnet_bench.judging.power import smallest_difference
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.reporting import claims, report, runs, studies
from resnet_bench.reporting.page import render_markdown
from resnet_bench.reporting.sections import studies as section
from resnet_bench.reporting.sections.section import Results
from resnet_bench.reporting.studies import StudyReport, accuracies, named
from resnet_bench.reporting.study_plots import plots as plots_of
from resnet_bench.reporting.tables import Tables


@pytest.fixture(scope="module")
def study(store_tables: Tables) -> StudyReport:
    (found,) = studies.find(runs.load(store_tables)[0])
    return found


@pytest.fixture
def known(study: StudyReport, benchmarks: dict[str, Benchmark]) -> StudyReport:
    """The same study where the file of its benchmark is known."""
    return replace(study, definition=benchmarks["nine-onecycle"])


def test_a_study_has_its_trials_in_order_and_its_retrained_runs(study: StudyReport) -> None:
    assert (study.name, study.parent.benchmark, named(study.parent.sampler), named(study.parent.pruner)) == (
        "nine-study",
        "nine-onecycle",
        "tpe",
        "median",
    )
    assert [trial.trial_number for trial in study.trials] == list(range(10))
    assert (study.count("COMPLETE"), study.count("PRUNED"), study.count("FAIL")) == (7, 2, 1)
    assert (len(study.source), len(study.tuned)) == (3, 3)
    assert study.parent.number("study/epochs_saved") == 12
    assert not study.apart


def test_the_difference_is_welchs_over_the_retrained_runs(study: StudyReport) -> None:
    assert accuracies(study.source) == pytest.approx([87.8, 88.0, 88.2])
    assert study.difference == welch(accuracies(study.source), accuracies(study.tuned))
    assert study.difference is not None
    assert study.difference.value == pytest.approx(1.4)


def test_without_retrained_runs_the_logged_difference_stands(study: StudyReport) -> None:
    bare = replace(study, source=(), tuned=())
    assert bare.difference is not None
    assert bare.difference.value == pytest.approx(1.4)
    assert bare.difference.interval == pytest.approx((0.9, 1.9))
    unknown = replace(bare, parent=replace(study.parent, once={}))
    assert unknown.difference is None


def test_source_and_best_are_compared_at_the_same_budget(study: StudyReport) -> None:
    values = [100 * trial.once["study/value"] for trial in study.trials if trial.trial_state == "COMPLETE"]
    assert study.validation_source == pytest.approx(values[0])
    assert study.validation_best == pytest.approx(max(values))
    best = max((t for t in study.trials if t.trial_state == "COMPLETE"), key=lambda t: t.once["study/value"])
    assert study.best_params == best.trial_params


def test_optuna_sees_the_same_study(study: StudyReport) -> None:
    rebuilt = study.rebuilt
    assert [trial.state.name for trial in rebuilt.trials] == [trial.trial_state for trial in study.trials]
    assert (
        rebuilt.best_trial.number
        == max(
            (t for t in study.trials if t.trial_state == "COMPLETE"), key=lambda t: t.once["study/value"]
        ).trial_number
    )
    lr = rebuilt.best_trial.distributions["optimizer.lr"]
    assert (lr.low, lr.high, lr.log) == (1e-4, 1e-1, True)
    assert rebuilt.best_trial.distributions["training.batch_size"].choices == (128, 256, 400)


def test_importances_are_optunas(study: StudyReport) -> None:
    assert set(study.plotted.importances) == {"optimizer.lr", "optimizer.weight_decay", "training.batch_size"}
    assert sum(study.plotted.importances.values()) == pytest.approx(1.0)
    few = replace(study, trials=study.trials[:3])
    assert few.plotted.importances == {}


def test_every_plot_of_a_study(study: StudyReport) -> None:
    plots = {plot.title: plot for plot in plots_of(study.plotted)}
    assert list(plots) == ["History", "Importances", "Intermediate values", "Slices", "Parallel coordinates"]
    lines = plots["Parallel coordinates"].spec["data"]
    assert all(trace["type"] == "scatter" for trace in lines)
    assert len(lines) == 7
    assert all(0 <= y <= 1 for trace in lines for y in trace["y"])
    pruned = [trace for trace in plots["Intermediate values"].spec["data"] if trace["name"] == "pruned"]
    assert len(pruned) == 2


def test_a_study_of_two_objectives_shows_both(study: StudyReport) -> None:
    trials = tuple(
        replace(trial, once={**trial.once, "study/training_seconds": 10.0 + (trial.trial_number or 0)})
        for trial in study.trials
    )
    plots = plots_of(replace(study, trials=trials).plotted)
    assert plots[-1].title == "Both objectives"


def test_a_study_without_a_completed_trial_has_no_plots(study: StudyReport) -> None:
    unfinished = replace(study, trials=tuple(t for t in study.trials if t.trial_state != "COMPLETE"))
    assert plots_of(unfinished.plotted) == ()
    assert unfinished.best_params == {}
    assert unfinished.validation_best == pytest.approx(88.1), "as the study logged it"


def test_keys_without_a_range_take_the_values_that_were_tried(study: StudyReport) -> None:
    bare = replace(study, parent=replace(study.parent, search_space={}))
    distributions = bare.rebuilt.best_trial.distributions
    assert type(distributions["training.batch_size"]).__name__ == "IntDistribution"
    assert type(distributions["optimizer.lr"]).__name__ == "FloatDistribution"
    words = tuple(replace(t, trial_params={**t.trial_params, "schedule.name": "cosine"}) for t in study.trials)
    named = replace(study, trials=words).rebuilt.best_trial.distributions["schedule.name"]
    assert named.choices == ("cosine",)


def test_an_interrupted_trial_is_neither_counted_nor_taken_for_the_sources(study: StudyReport) -> None:
    first, *others = study.trials
    interrupted = replace(first, status="KILLED", trial_state="FAIL", once={})
    again = replace(first, trial_number=10)
    resumed = replace(study, trials=(interrupted, *others, again))
    assert len(resumed.trials) - len(resumed.counted) == 1
    assert (len(resumed.counted), resumed.count("FAIL")) == (10, study.count("FAIL"))
    assert resumed.validation_source == study.validation_source, "its settings were run again as trial 10"


def test_of_settings_that_were_retrained_twice_the_latest_count_and_each_seed_once(study: StudyReport) -> None:
    parent = study.parent
    earlier = [replace(run, fingerprint="0" * 16, started=parent.started, once={}) for run in study.tuned]
    doubled = replace(study.tuned[0], status="FAILED", once={}, id="x")
    (found,) = studies.find([parent, *earlier, *study.source, *study.tuned, doubled])
    assert [run.id for run in found.tuned] == [run.id for run in study.tuned]
    assert found.difference == study.difference


def test_a_better_trial_that_is_not_retrained_yet_has_no_earlier_ones_test_accuracy(study: StudyReport) -> None:
    best = max(study.trials, key=lambda trial: trial.number("study/value") or 0.0)
    better = replace(
        best,
        trial_number=10,
        trial_params={**best.trial_params, "optimizer.lr": 0.0123},
        once={**best.once, "study/value": 0.99},
    )
    (found,) = studies.find([study.parent, *study.trials, better, *study.source, *study.tuned])
    assert found.validation_best == pytest.approx(99.0)
    assert accuracies(found.source) == accuracies(study.source)
    assert found.tuned == ()
    assert found.difference is None, "what the study logged is the earlier trial's"


@pytest.mark.parametrize("arm", ["source", "tuned"])
def test_runs_of_two_retrainings_are_not_compared(study: StudyReport, arm: str) -> None:
    (last, *_) = {"source": study.source, "tuned": study.tuned}[arm]
    longer = replace(
        last,
        id="longer",
        recipe={**last.recipe, "training.epochs": "30"},
        fingerprint="0" * 16,
        started=study.tuned[-1].started + timedelta(hours=1),
    )
    (found,) = studies.find([study.parent, *study.trials, *study.source, *study.tuned, longer])
    assert [run.id for run in (*found.source, *found.tuned)] == ["longer"]
    assert found.difference is None


def test_arms_of_two_optimizers_are_compared(study: StudyReport) -> None:
    trials = tuple(
        replace(trial, trial_params={"optimizer.name": "sgd" if trial.trial_number else "adam"})
        for trial in study.trials
        if trial.trial_number in {0, 1}
    )
    tuned = [
        replace(run, recipe={**run.recipe, "optimizer.name": "sgd", "optimizer.momentum": "0.9"}) for run in study.tuned
    ]
    best = replace(trials[1], once={**trials[1].once, "study/value": 0.99})
    (found,) = studies.find([study.parent, trials[0], best, *study.source, *tuned])
    assert (len(found.source), len(found.tuned)) == (3, 3)


def test_a_study_that_the_source_has_won_says_so(study: StudyReport) -> None:
    assert not study.source_won
    only_source = replace(study, trials=study.trials[:1], tuned=())
    assert only_source.source_won


def test_a_study_whose_space_makes_no_sense_is_named_and_the_others_are_reported(study: StudyReport) -> None:
    space = {"training.batch_size": {"choices": [[128], [256]]}}
    forged = replace(study, parent=replace(study.parent, study="forged", search_space=space))
    studies_left, problems = studies.usable([forged, study])
    assert studies_left == [study]
    assert len(problems) == 1
    assert problems[0].startswith("study forged is left out: TypeError: ")


def test_a_smoke_study_tunes_nothing_that_a_claim_is_compared_with(study: StudyReport, known: StudyReport) -> None:
    smoke = replace(known, parent=replace(known.parent, profile="smoke"))
    assert studies.tuned_accuracies([smoke]) == {}
    assert studies.tuned_accuracies([study]) == {}, "what its benchmark claims is unknown"
    assert studies.tuned_accuracies([known]) == {"nine-onecycle": accuracies(study.tuned)}


def test_tuned_accuracies_are_measured_as_the_claim_is(known: StudyReport) -> None:
    definition = known.definition
    assert definition is not None
    claim, *others = definition.claims
    with_views = definition.model_copy(
        update={"claims": (claim.model_copy(update={"metric": "accuracy_tta"}), *others)}
    )
    tuned = tuple(replace(run, once={**run.once, "final/test_accuracy_tta": 0.95}) for run in known.tuned)
    study = replace(known, definition=with_views, tuned=tuned)
    assert studies.tuned_accuracies([study]) == {"nine-onecycle": pytest.approx([95.0] * 3)}
    assert studies.tuned_accuracies([replace(study, tuned=known.tuned)]) == {}, "they have no accuracy with TTA"


@pytest.mark.parametrize(
    ("changed", "counts"),
    [
        ({"model.options.width1": "32"}, False),
        ({"evaluation.mode": "batch_statistics"}, False),
        ({"training.epochs": "2"}, False),
        ({"evaluation.splits": "[]", "training.train_accuracy": "separate_pass"}, True),
    ],
)
def test_only_a_study_of_the_benchmarks_own_recipe_stands_beside_its_claim(
    known: StudyReport, changed: dict[str, str], *, counts: bool
) -> None:
    source, tuned = (
        tuple(replace(run, recipe={**run.recipe, **changed}) for run in arm) for arm in (known.source, known.tuned)
    )
    study = replace(known, source=source, tuned=tuned)
    assert bool(studies.tuned_accuracies([study])) == counts
    # Where only the tuned hyperparameters were retrained, those do not count as a change.
    only_tuned = tuple(replace(run, recipe={**run.recipe, "optimizer.lr": "0.5"}) for run in tuned)
    assert bool(studies.tuned_accuracies([replace(study, source=(), tuned=only_tuned)])) == counts


def test_a_study_of_shorter_runs_says_how_short_they_are(known: StudyReport, benchmarks: Any) -> None:
    assert known.budget == {}
    source, tuned = (
        tuple(replace(run, recipe={**run.recipe, "training.epochs": "2"}) for run in arm)
        for arm in (known.source, known.tuned)
    )
    short = replace(known, source=source, tuned=tuned)
    assert short.budget == {"training.epochs": "2"}
    assert studies.tuned_accuracies([short]) == {}
    rows = claims.build([], benchmarks)
    view = section.build(Results(tables=None, runs=(), claims=rows, studies=(short,)))  # type: ignore[arg-type]
    assert view.values["studies"][0]["budget"] == "training.epochs = 2"


def test_reference_studies_stand_beside_ones_own(
    study: StudyReport, store_tables: Tables, benchmarks_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "reference" / "device"
    folder.mkdir(parents=True)
    write_together(folder, report.table_files(store_tables))
    monkeypatch.setattr("resnet_bench.reporting.reference.reference_folder", lambda: folder.parent)
    without = store_tables.keep(store_tables.runs[store_tables.runs["role"] == "run"])

    def text(tables: Tables) -> str:
        return render_markdown(report.build(tables, benchmarks_folder=benchmarks_folder))

    assert study.difference is not None
    row = f"| {study.name} (of nine-onecycle) | 10 trials |"
    assert row in text(without)
    assert "+1.40 pp" in text(without)
    # Those of the report itself are shown once, with all that is known.
    assert row not in text(store_tables)
    assert f"### {study.name}" in text(store_tables)


def test_a_gain_that_is_unclear_says_what_could_have_been_seen(study: StudyReport, benchmarks: Any) -> None:
    def sentence(found: StudyReport) -> str:
        rows = claims.build([], benchmarks)
        view = section.build(Results(tables=None, runs=(), claims=rows, studies=(found,)))  # type: ignore[arg-type]
        return str(view.values["studies"][0]["sentence"])

    assert "unclear" not in sentence(study)
    same = replace(study, tuned=study.source)
    seen = smallest_difference(accuracies(study.source), accuracies(study.source))
    assert seen is not None
    assert f"That is unclear: gains below {seen:.2f} pp are seen with less than 80% power." in sentence(same)
