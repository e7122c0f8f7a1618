"""What is taken away from a study: its tuned recipe, the plots, and what the command line prints."""

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_bench.base.errors import UserError
from resnet_bench.recipe.changes import override
from resnet_bench.recipe.files import load_benchmark, load_benchmark_file
from resnet_bench.recipe.settings import AdamW, MultiStep
from resnet_bench.recipe.toml_files import find_file, search_folders
from resnet_bench.tuning.artifacts import write_artifacts, write_plots
from resnet_bench.tuning.export import export, smoke_repairs
from resnet_bench.tuning.plan import Plan
from resnet_bench.tuning.results import StudyResult, study_result
from resnet_bench.tuning.stored_study import StoredStudy
from tests.tuning.conftest import TinyStudy


def _look(study: TinyStudy) -> tuple[StoredStudy, StudyResult]:
    stored = study.stored
    result = study_result(stored)
    assert result is not None
    return stored, result


def test_an_exported_benchmark_is_the_original_with_what_was_tuned(done: TinyStudy, tmp_path: Path) -> None:
    stored, result = _look(done)
    path = tmp_path / "resnet18-step-decay-tuned.toml"
    export(stored, result, path)
    loaded = load_benchmark_file(path)
    original = load_benchmark("resnet18-step-decay")

    assert loaded.extends == "resnet18-step-decay"
    assert loaded.source.kind == "tuned"
    assert "smoke profile" in str(loaded.source.notes)
    assert "generated images" in str(loaded.source.notes)
    assert loaded.claims == ()
    changed = {key: value for key, value in loaded.recipe.flat().items() if original.recipe.flat().get(key) != value}
    tuned_alone = {"optimizer.lr": 0.0123, "optimizer.momentum": 0.0}
    assert changed == {"model.name": "he_resnet20", "training.batch_size": 20, **tuned_alone}
    assert 'included, have model.name = "he_resnet20", training.batch_size = 20' in str(loaded.source.notes)
    assert loaded.recipe.data == original.recipe.data
    assert loaded.recipe.training.epochs == original.recipe.training.epochs
    tuned = loaded.tuned
    assert tuned is not None
    assert (tuned.study, tuned.trials, tuned.seeds) == ("tiny", 5, 2)
    assert tuned.validation_source == pytest.approx(65.0)
    assert tuned.test_source == pytest.approx(65.05)
    assert tuned.test_difference == pytest.approx(100 * result.comparison.difference.value, abs=1e-3)  # type: ignore[union-attr]
    assert tuned.test_interval is not None
    assert tuned.test_interval[0] < tuned.test_difference < tuned.test_interval[1]

    with pytest.raises(UserError, match="exists and is left as it is"):
        export(stored, result, path)


OPTIMIZER_ALONE = {"optimizer.momentum": "", "optimizer.nesterov": "", "budget": "budget = { trials = 2 }"}


@pytest.mark.usefixtures("scripted_training", "without_plots")
def test_export_keeps_what_the_studys_recipe_changes_at_the_length_of_the_benchmark(
    tiny_plan: Callable[..., Plan], study_of: Callable[..., TinyStudy], tmp_path: Path
) -> None:
    lines = 'optimizer = { name = "adamw", lr = 0.5 }\nschedule = { name = "multi_step", milestones = [1, 2] }'
    study = study_of(tiny_plan(optimizer=lines, **OPTIMIZER_ALONE))
    study.script({"optimizer.lr": 0.1})
    study.events()
    stored, result = _look(study)
    path = tmp_path / "tuned.toml"
    export(stored, result, path)
    recipe = load_benchmark_file(path).recipe
    # The rate is also that of the benchmark, whose optimizer it is not.
    assert recipe.optimizer == AdamW(name="adamw", lr=0.1)
    epochs = load_benchmark("resnet18-step-decay").recipe.training.epochs
    assert recipe.training.epochs == epochs
    assert recipe.schedule == MultiStep(name="multi_step", milestones=(epochs // 3, 2 * epochs // 3))


@pytest.mark.usefixtures("scripted_training", "without_plots")
@pytest.mark.parametrize(("dataset", "is_kept"), [("cifar10", True), ("cifar100", False)])
def test_export_keeps_how_the_studys_recipe_normalizes_the_benchmarks_images(
    tiny_plan: Callable[..., Plan], study_of: Callable[..., TinyStudy], tmp_path: Path, dataset: str, is_kept: bool
) -> None:
    data = f'data = {{ dataset = "{dataset}", train_images = 60, test_images = 20, mean = [0.5, 0.5, 0.5] }}'
    study = study_of(tiny_plan(data=data, **OPTIMIZER_ALONE))
    study.script({"optimizer.lr": 0.01})
    study.events()
    stored, result = _look(study)
    path = tmp_path / "tuned.toml"
    export(stored, result, path)
    exported, benchmark = load_benchmark_file(path).recipe.data, stored.plan.benchmark.recipe.data
    assert exported.mean == ((0.5, 0.5, 0.5) if is_kept else benchmark.mean)
    assert (exported.dataset, exported.num_train) == (benchmark.dataset, benchmark.num_train)


@pytest.mark.usefixtures("scripted_training", "without_plots")
def test_export_refuses_a_recipe_that_the_benchmarks_images_do_not_bear(
    tiny_plan: Callable[..., Plan], study_of: Callable[..., TinyStudy], tmp_path: Path
) -> None:
    data = 'data = { dataset = "cifar100", train_images = 60, test_images = 20 }'
    study = study_of(
        tiny_plan(data=data, model='model = { name = "he_resnet20", num_classes = 100 }', **OPTIMIZER_ALONE)
    )
    study.script({"optimizer.lr": 0.01})
    study.events()
    stored, result = _look(study)
    path = tmp_path / "tuned.toml"
    with pytest.raises(UserError, match=r"tuned\.toml: .*model\.num_classes = 100 on the 10 classes"):
        export(stored, result, path)
    assert not path.exists()


def test_export_leaves_no_file_that_cannot_be_loaded(done: TinyStudy, tmp_path: Path) -> None:
    stored, result = _look(done)
    (tmp_path / "resnet18-step-decay.toml").write_text("broken")
    path = tmp_path / "tuned.toml"
    with pytest.raises(UserError, match=r"resnet18-step-decay\.toml: is not valid TOML"):
        export(stored, result, path)
    assert not path.exists()


def test_export_extends_only_the_recipe_that_was_tuned(done: TinyStudy, tmp_path: Path) -> None:
    stored, result = _look(done)
    original = find_file("resnet18-step-decay", search_folders("benchmarks", None))
    assert original is not None
    text = original.read_text()
    edited = tmp_path / original.name
    edited.write_text(text.replace("weight_decay = 5e-4", "weight_decay = 1e-3"))
    assert edited.read_text() != text
    path = tmp_path / "tuned.toml"
    with pytest.raises(UserError, match=r"tuned\.toml: .* not the one that was tuned .*in optimizer\.weight_decay"):
        export(stored, result, path, tmp_path)
    assert not path.exists()
    edited.write_text(f"# a remark\n{text}")
    export(stored, result, path, tmp_path)
    assert path.exists()


@pytest.mark.parametrize("name", ["Not A Name.toml", f"{'a' * 81}.toml", "a--b.toml", "tuned.txt", ".toml"])
def test_export_refuses_a_name_that_no_benchmark_may_have(done: TinyStudy, tmp_path: Path, name: str) -> None:
    stored, result = _look(done)
    with pytest.raises(UserError, match="name the file after the new benchmark, in at most 80 lower-case"):
        export(stored, result, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_the_smoke_images_do_not_bear_is_taken_back_there(tmp_path: Path) -> None:
    original = load_benchmark("resnet18-step-decay")
    own_batch = original.profiles["smoke"].data.num_train
    assert smoke_repairs(original, {"training.batch_size": 2 * own_batch}) == {}, "its smoke profile has its own batch"
    smoke = override(original.profiles["smoke"], {"training.batch_size": original.recipe.training.batch_size})
    sharing = original.model_copy(update={"profiles": {"smoke": smoke}})
    assert smoke_repairs(sharing, {"training.batch_size": 2 * own_batch}) == {"training.batch_size": 128}
    assert smoke_repairs(sharing, {"training.batch_size": 64}) == {}


def test_nothing_is_exported_where_the_source_won(done: TinyStudy, tmp_path: Path) -> None:
    stored, result = _look(done)
    unchanged = dataclasses.replace(result, best_settings=result.source_settings, changed={})
    with pytest.raises(UserError, match="no hyperparameters were better than the source's"):
        export(stored, unchanged, tmp_path / "x.toml")


def test_the_plots_share_one_copy_of_plotly(done: TinyStudy, tmp_path: Path) -> None:
    stored, _ = _look(done)
    drawn = write_plots(stored, tmp_path)
    assert set(drawn) == {
        "optimization_history",
        "param_importances",
        "slice",
        "contour",
        "parallel_coordinate",
        "intermediate_values",
    }
    for name in drawn:
        page = (tmp_path / f"{name}.html").read_text()
        assert '<script charset="utf-8" src="plotly.min.js"></script>' in page or 'src="plotly.min.js"' in page
        assert len(page) < 200_000
    assert (tmp_path / "plotly.min.js").stat().st_size > 1_000_000


def test_the_artifacts_say_what_the_study_says(done: TinyStudy, tmp_path: Path) -> None:
    stored, result = _look(done)
    write_artifacts(stored, result, tmp_path)
    with (tmp_path / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["COMPLETE", "COMPLETE", "COMPLETE", "PRUNED", "COMPLETE"]
    assert rows[0]["source"] == "yes"
    assert float(rows[2]["optimizer.lr"]) == 0.0123
    assert float(rows[2]["validation_accuracy"]) == pytest.approx(result.best_validation)
    importances = json.loads((tmp_path / "importances.json").read_text())
    assert sum(importances.values()) == pytest.approx(1.0)
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["best_number"] == 2
    assert written["test_difference"]["value"] == pytest.approx(result.comparison.difference.value)  # type: ignore[union-attr]
