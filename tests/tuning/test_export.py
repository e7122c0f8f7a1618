"""What is taken away from a study: its tuned recipe, the plots, and what the command line prints."""

import csv
import dataclasses
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from resnet_bench.base.errors import UserError
from resnet_bench.cli import study
from resnet_bench.cli.study import app
from resnet_bench.data.dataset import Dataset
from resnet_bench.recipe.changes import override
from resnet_bench.recipe.files import load_benchmark, load_benchmark_file
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.tracking.store import Store
from resnet_bench.tuning.artifacts import write_artifacts, write_plots
from resnet_bench.tuning.export import export, smoke_repairs
from resnet_bench.tuning.plan import load_study_file, plan_study
from resnet_bench.tuning.results import StudyResult, study_result
from resnet_bench.tuning.run import StudyRequest
from resnet_bench.tuning.trial_queue import TrialQueue
from tests.tuning.conftest import events_of, script_settings, script_training, sgd, skip_plots, tiny_request, write_tiny


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, store: Store, dataset: Dataset) -> Iterator[StudyRequest]:
    """A finished study whose third trial is the best."""
    folder = tmp_path_factory.mktemp("done")
    plan = plan_study(load_study_file(write_tiny(folder, budget="budget = { trials = 5 }")), "smoke")
    request = tiny_request(plan, "tiny", folder, store)
    with pytest.MonkeyPatch.context() as monkeypatch:
        script_training(monkeypatch)
        script_settings(monkeypatch, [{}, sgd(0.03), sgd(0.0123, momentum=0.0), sgd(1e-4), sgd(0.02)])
        skip_plots(monkeypatch)
        events_of(request, dataset)
        monkeypatch.chdir(folder)
        yield request


def _look(request: StudyRequest) -> tuple[TrialQueue, StudyResult]:
    ledger = TrialQueue.read(request.name, request.storage.open())
    result = study_result(ledger)
    assert result is not None
    return ledger, result


def test_an_exported_benchmark_is_the_original_with_what_was_tuned(done: StudyRequest, tmp_path: Path) -> None:
    ledger, result = _look(done)
    path = tmp_path / "resnet18-step-decay-tuned.toml"
    export(ledger, result, path)
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
        export(ledger, result, path)
    with pytest.raises(UserError, match="name the file after the new benchmark"):
        export(ledger, result, tmp_path / "Not A Name.toml")


def test_a_batch_that_the_smoke_images_do_not_bear_is_taken_back_there(tmp_path: Path) -> None:
    original = load_benchmark("resnet18-step-decay")
    own_batch = original.profiles["smoke"].data.num_train
    assert smoke_repairs(original, {"training.batch_size": 2 * own_batch}) == {}, "its smoke profile has its own batch"
    smoke = override(original.profiles["smoke"], {"training.batch_size": original.recipe.training.batch_size})
    sharing = original.model_copy(update={"profiles": {"smoke": smoke}})
    assert smoke_repairs(sharing, {"training.batch_size": 2 * own_batch}) == {"training.batch_size": 128}
    assert smoke_repairs(sharing, {"training.batch_size": 64}) == {}


def test_nothing_is_exported_where_the_source_won(done: StudyRequest, tmp_path: Path) -> None:
    ledger, result = _look(done)
    unchanged = dataclasses.replace(result, best_settings=result.source_settings, changed={})
    with pytest.raises(UserError, match="no settings were better than the source's own"):
        export(ledger, unchanged, tmp_path / "x.toml")


def test_the_plots_share_one_copy_of_plotly(done: StudyRequest, tmp_path: Path) -> None:
    ledger, _ = _look(done)
    drawn = write_plots(ledger, tmp_path)
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


def test_the_artifacts_say_what_the_study_says(done: StudyRequest, tmp_path: Path) -> None:
    ledger, result = _look(done)
    write_artifacts(ledger, result, tmp_path)
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


# --- the command line ------------------------------------------------------------------------------


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, store: Store) -> Callable[..., str]:
    """Types a command in the test's folder; returns what it prints."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    monkeypatch.setattr(study, "console", Console(width=200))

    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, list(arguments))
        if isinstance(result.exception, UserError):
            raise result.exception
        assert result.exit_code == code, result.output
        return result.output

    return run


def test_list_names_every_study(invoke: Callable[..., str]) -> None:
    output = invoke("list")
    assert "resnet18-step-decay-cpu" in output
    assert "resnet9-onecycle-adam" in output


def test_show_tells_the_space_and_the_trials(done: StudyRequest, invoke: Callable[..., str]) -> None:
    output = invoke("show", "tiny", "--studies", ".", "--profile", "smoke")
    assert re.search(r"optimizer.lr +0.0001 … 1, log +0.1", output)
    assert "scored on 20 held out" in output
    output = invoke("show", "tiny", "--studies", ".")
    assert "5 of 5 trials are through, 1 pruned, 0 failed" in output
    assert "★ 2" in output


def test_best_prints_a_recipe_that_can_be_read(done: StudyRequest, invoke: Callable[..., str]) -> None:
    output = invoke("best", "tiny")
    assert "final runs of 3 epochs on 60 images" in output
    assert "points, 95% interval" in output
    recipe = Recipe.model_validate(tomllib.loads(output[output.index("[recipe") :])["recipe"])
    assert recipe.optimizer.lr == 0.0123


def test_export_says_when_it_is_no_result(done: StudyRequest, invoke: Callable[..., str]) -> None:
    output = invoke("export", "tiny")
    assert "this is no result" in output
    path = Path("benchmarks") / "resnet18-step-decay-tuned.toml"
    assert f"wrote {path}" in output
    assert load_benchmark_file(path).tuned is not None


def test_best_of_an_unknown_study_brings_the_nearest(done: StudyRequest, invoke: Callable[..., str]) -> None:
    with pytest.raises(UserError, match="unknown study 'tinny'; did you mean 'tiny'"):
        invoke("best", "tinny")


def test_run_on_the_command_line(
    write_study: Callable[..., Path],
    invoke: Callable[..., str],
    scripted_training: list[Recipe],
    without_plots: None,
    monkeypatch: pytest.MonkeyPatch,
    dataset: Dataset,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("resnet_bench.data.dataset.load_dataset", lambda *arguments, **options: dataset)
    monkeypatch.setattr("resnet_bench.measure.estimate.measure_flops_per_second", lambda execution: 1e11)
    write_study()
    command = ("run", "tiny", "--studies", str(tmp_path), "--device", "cpu", "--yes", "--offline", "--name", "cli")
    output = invoke(*command)
    assert "in the smoke profile: there is no real CIFAR here" in output
    assert "GENERATED IMAGES" in output
    assert output.count("trial ") >= 3
    assert "on the test set" in output or "no settings were better" in output
    assert "optuna-dashboard sqlite:///" in output
    assert "3 of 3 trials are through" in invoke(*command)
