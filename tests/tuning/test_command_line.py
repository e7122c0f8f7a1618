"""The verbs of ``resnet-bench study``, typed."""

import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from resnet_bench.base.errors import UserError
from resnet_bench.cli import study
from resnet_bench.cli.screen import console
from resnet_bench.data.dataset import Dataset, generate_dataset
from resnet_bench.measure.estimate import Costs
from resnet_bench.recipe.files import load_benchmark_file
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.running.context import Context
from resnet_bench.running.stopping import Stopped
from resnet_bench.tracking.store import Store
from tests.tuning.conftest import TEST_IMAGES, TRAIN_IMAGES, TinyStudy

Invoke = Callable[..., str]
Write = Callable[..., Path]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, store: Store, tmp_path: Path) -> Invoke:
    """Types a command in the test's folder; returns what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    monkeypatch.setattr(console, "width", 200)

    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(study.app, list(arguments))
        if isinstance(result.exception, UserError):
            raise result.exception
        assert result.exit_code == code, result.output
        return result.output

    return run


@pytest.fixture
def storage(done: TinyStudy) -> tuple[str, str]:
    """The options that lead to the study that is done."""
    return "--storage", done.storage.url


def test_list_names_every_study(invoke: Invoke) -> None:
    output = invoke("list")
    assert "resnet18-step-decay-cpu" in output
    assert "resnet9-onecycle-adam" in output


def test_show_tells_the_space_and_the_trials(invoke: Invoke, write_study: Write, storage: tuple[str, str]) -> None:
    write_study()
    output = invoke("show", "tiny", "--study-dir", ".", "--profile", "smoke")
    assert re.search(r"optimizer.lr +0.0001 … 1, log +0.1", output)
    assert "scored on 20 validation images" in output
    output = invoke("show", "tiny", "--studies", ".", *storage)
    assert "5 of 5 trials are finished, 1 pruned, 0 failed" in output
    assert "★ 2" in output


def test_best_prints_a_recipe_that_can_be_read(invoke: Invoke, storage: tuple[str, str]) -> None:
    output = invoke("best", "tiny", *storage)
    assert "retraining runs of 3 epochs on 60 images" in output
    assert "pp, 95% CI" in output
    recipe = Recipe.model_validate(tomllib.loads(output[output.index("[recipe") :])["recipe"])
    assert recipe.optimizer.lr == 0.0123


def test_export_says_when_it_is_not_a_result(invoke: Invoke, storage: tuple[str, str]) -> None:
    output = invoke("export", "tiny", *storage)
    assert "this is not a result" in output
    path = Path("benchmarks") / "resnet18-step-decay-tuned.toml"
    assert f"wrote {path}" in output
    assert load_benchmark_file(path).tuned is not None


def test_best_of_an_unknown_study_brings_the_nearest(invoke: Invoke, storage: tuple[str, str]) -> None:
    with pytest.raises(UserError, match="unknown study 'tinny'; did you mean 'tiny'"):
        invoke("best", "tinny", *storage)


@pytest.mark.parametrize("verb", ["best", "export", "show"])
def test_a_storage_of_another_application_is_refused(invoke: Invoke, verb: str, tmp_path: Path) -> None:
    other = Store.resolve(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path)
    other.prepare()
    names = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"mlflow\.db belongs to another application"):
        invoke(verb, "resnet18-step-decay-cpu", "--storage", "sqlite:///mlflow.db")
    assert sorted(tmp_path.iterdir()) == names


def test_best_says_why_the_source_could_not_be_trained(
    invoke: Invoke, study_of: Callable[..., TinyStudy], tiny_plan: Any, scripted_training: list[Recipe]
) -> None:
    study = study_of(tiny_plan(optimizer="optimizer = { lr = 0.015 }"))
    with pytest.raises(UserError) as running:
        study.events()
    with pytest.raises(UserError) as reading:
        invoke("best", study.name, "--storage", study.storage.url)
    assert "loss became nan" in str(reading.value)
    assert str(reading.value) == str(running.value)


# --- running -----------------------------------------------------------------------------------------


@pytest.fixture
def run_offline(
    invoke: Invoke, scripted_training: list[Recipe], without_plots: None, monkeypatch: pytest.MonkeyPatch
) -> Invoke:
    """Runs a study on a machine without CIFAR."""

    def few_images(name: str, *_: Any, **__: Any) -> Dataset:
        return generate_dataset(name, train_size=TRAIN_IMAGES, test_size=TEST_IMAGES, seed=0)

    monkeypatch.setattr("resnet_bench.data.dataset.load_dataset", few_images)
    monkeypatch.setattr("resnet_bench.measure.costs.measure_costs", lambda recipe, execution: Costs({32: 1e-3}, 1e-3))
    return lambda *arguments: invoke("run", *arguments, "--device", "cpu", "--yes", "--offline")


def test_run_says_what_it_does_and_does_nothing_twice(run_offline: Invoke, write_study: Write, tmp_path: Path) -> None:
    write_study()
    output = run_offline("tiny", "--study-dir", str(tmp_path), "--study-name", "cli")
    assert "in the smoke profile: there is no real CIFAR here" in output
    assert "GENERATED IMAGES" in output
    assert output.count("trial ") >= 3
    assert "on the test set" in output or "no hyperparameters were better" in output
    assert "optuna-dashboard sqlite:///" in output
    again = run_offline("tiny", "--studies", str(tmp_path), "--name", "cli")
    assert "3 of 3 trials are finished" in again, "the options of 0.1.0 mean the same"


@pytest.mark.parametrize("trials", [2, 4], ids=["fewer than its file says", "more"])
def test_a_study_keeps_its_trials_until_another_number_is_typed(
    run_offline: Invoke, invoke: Invoke, write_study: Write, trials: int
) -> None:
    write_study()
    where = ("tiny", "--study-dir", ".", "--profile", "smoke", "--study-name", f"kept-{trials}")
    run_offline(*where, "--trials", str(trials))
    again = run_offline(*where)
    assert f"{trials} of {trials} trials are finished" in again
    assert f"kept-{trials} has {trials} trials, as it was last run; its file says 3" in again
    worked = invoke("work", *where, "--device", "cpu", "--offline")
    assert f"{trials} of {trials} trials are finished" in worked
    assert "trials are finished" in run_offline(*where, "--trials", "5")
    assert "5 of 5 trials are finished" in run_offline(*where)


def test_run_says_that_the_space_is_exhausted(run_offline: Invoke, write_study: Write, tmp_path: Path) -> None:
    two_points = 'training.batch_size = { type = "categorical", choices = [10, 20] }'
    write_study(
        name="two",
        sampler='sampler = { name = "grid" }',
        **{"optimizer.lr": two_points, "optimizer.momentum": "", "optimizer.nesterov": ""},
    )
    output = run_offline("two", "--study-dir", str(tmp_path))
    assert "every point of the search space was tried: the study ends after 2 trials" in output
    assert "every point of the search space was tried: 2 trials of 3" in output
    assert "too few complete trials" in output


def test_a_profile_may_run_on_other_images(
    run_offline: Invoke, write_study: Write, scripted_training: list[Recipe], tmp_path: Path
) -> None:
    write_study(name="other", more='\n[profiles.smoke.recipe.data]\ndataset = "cifar100"\n')
    output = run_offline("other", "--study-dir", str(tmp_path), "--study-name", "other-images")
    assert "cifar100: GENERATED IMAGES" in output
    assert {recipe.data.dataset for recipe in scripted_training} == {"cifar100"}


@pytest.mark.parametrize(("time_is_up", "code", "why"), [(False, 130, "interrupted"), (True, 124, "--max-minutes is")])
def test_a_worker_that_is_interrupted_says_how_to_go_on(
    invoke: Invoke,
    write_study: Write,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    time_is_up: bool,
    code: int,
    why: str,
) -> None:
    write_study()
    words = ["work", "tiny", "--study-dir", ".", "--profile", "smoke", "--max-minutes", "30"]

    def stopped(name: str, plan: object, address: object, context: Context, **_: object) -> Iterator[None]:
        if time_is_up:
            context.stop.deadline = 0.0
        assert bool(context.stop) == time_is_up
        raise Stopped("killed", "stopped")
        yield

    monkeypatch.setattr("resnet_bench.tuning.run.work_on_study", stopped)
    monkeypatch.setattr("sys.argv", ["resnet-bench", "study", *words])
    last = invoke(*words, code=code).rstrip().splitlines()[-1]
    assert last.startswith(why)
    assert last.endswith(f"resume with: resnet-bench study {' '.join(words)}")
