"""The studies of the reference results: the documentation and the tuned benchmarks say what their runs give."""

from pathlib import Path

import pytest

from resnet_bench.base.text import plural
from resnet_bench.recipe.files import load_benchmark
from resnet_bench.reporting.reference import read_reference
from resnet_bench.reporting.studies import StudyReport, accuracies
from resnet_bench.reporting.wording import mean_of, signed, signed_interval
from resnet_bench.tuning.plan import plan_study, scan_studies
from resnet_bench.tuning.space import retraining_recipe, trial_recipe

ROOT = Path(__file__).parents[2]
TUNED = sorted(path.stem for path in (ROOT / "benchmarks").glob("*-tuned.toml"))


@pytest.fixture(scope="module")
def published() -> dict[str, StudyReport]:
    return {study.name: study for study in read_reference().studies}


def documented_row(study: StudyReport) -> str:
    """The row of docs/studies.md for a study."""
    assert study.difference is not None
    assert study.difference.interval is not None
    cells = (
        f"`{study.name}`",
        plural(len(study.counted), "trial"),
        mean_of(accuracies(study.source)),
        mean_of(accuracies(study.tuned)),
        plural(len(study.tuned), "seed"),
        f"{signed(study.difference.value)} pp, {signed_interval(study.difference.interval)}",
    )
    return f"| {' | '.join(cells)} |"


def test_the_documentation_has_the_figures_of_each_study_and_of_no_other(published: dict[str, StudyReport]) -> None:
    page = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    _, _, results = page.partition("## What our studies found")
    documented = [line for line in results.splitlines() if line.startswith("| `")]
    assert documented == [documented_row(published[name]) for name in sorted(published)]


@pytest.mark.parametrize("name", TUNED)
def test_a_tuned_benchmark_has_the_best_hyperparameters_of_its_study_and_states_its_result(
    name: str, published: dict[str, StudyReport]
) -> None:
    benchmark = load_benchmark(name)
    assert benchmark.tuned is not None
    study, recipe = published[benchmark.tuned.study], benchmark.recipe.flat()
    assert {key: recipe[key] for key in study.best_params} == study.best_params
    assert study.parent.benchmark == benchmark.extends
    assert benchmark.tuned.trials == len(study.counted)
    assert benchmark.tuned.seeds == len(study.tuned) == len(study.source)
    stated = (benchmark.tuned.test_difference, benchmark.tuned.test_interval)
    assert study.difference is not None
    assert stated == (
        pytest.approx(study.difference.value, abs=0.001),
        pytest.approx(study.difference.interval, abs=0.001),
    )


@pytest.mark.parametrize("name", [name for name, study in scan_studies()[0].items() if study.made_for == "cpu"])
def test_a_study_and_its_tuned_benchmark_state_the_images_that_are_trained_on(name: str) -> None:
    plan = plan_study(scan_studies()[0][name], "full")
    trial = trial_recipe(plan.study, plan.base, plan.source_params)
    final = retraining_recipe(plan.study, plan.base, plan.source_params)
    counts = [f"{recipe.data.num_train:,}" for recipe in (trial, final)]
    texts = [plan.study.notes, *(load_benchmark(each).source.notes for each in TUNED if each == f"{name}-tuned")]
    assert [count for text in texts for count in counts if count not in str(text)] == []
