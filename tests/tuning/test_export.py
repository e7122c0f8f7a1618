"""What is taken away from a study: its tuned recipe, the plots, and what the command line prints."""

import csv
import dataclasses
import json
from pathlib import Path

import pytest

from resnet_bench.base.errors import UserError
from resnet_bench.recipe.changes import override
from resnet_bench.recipe.files import load_benchmark, load_benchmark_file
from resnet_bench.tuning.artifacts import write_artifacts, write_plots
from resnet_bench.tuning.export import export, smoke_repairs
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
    assert changed == {"optimizer.lr": 0.0123, "optimizer.momentum": 0.0}
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


def test_export_leaves_no_file_that_cannot_be_loaded(done: TinyStudy, tmp_path: Path) -> None:
    stored, result = _look(done)
    (tmp_path / "resnet18-step-decay.toml").write_text("broken")
    path = tmp_path / "tuned.toml"
    with pytest.raises(UserError, match=r"resnet18-step-decay\.toml: is not valid TOML"):
        export(stored, result, path)
    assert not path.exists()


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
