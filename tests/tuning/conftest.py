"""A study small enough to be run many times, and training that follows a script."""

import json
import math
import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from resnet_bench.data.dataset import Dataset, ImageLocation, load_images
from resnet_bench.execution.options import ExecutionOptions
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.running.context import Context
from resnet_bench.running.stopping import Stop
from resnet_bench.tracking.store import Store
from resnet_bench.training.errors import Diverged, OutOfMemory
from resnet_bench.training.events import EpochEnded, Evaluated, Finished, Started, Steps
from resnet_bench.tuning.events import StudyEvent
from resnet_bench.tuning.plan import Plan, load_study_file, plan_study
from resnet_bench.tuning.run import run_study
from resnet_bench.tuning.storage import StudyStorage
from resnet_bench.tuning.stored_study import StoredStudy
from resnet_bench.tuning.trial_queue import TrialQueue

TRAIN_IMAGES, TEST_IMAGES = 60, 20

TINY = """
benchmark = "resnet18-step-decay"
sampler = { name = "random" }
pruner = { name = "median", options = { n_startup_trials = 1, n_warmup_steps = 0 } }
budget = { trials = 3 }
retrain = { seeds = 2 }
validation = { images = 20 }

[space]
optimizer.lr = { type = "log-float", low = 1e-4, high = 1.0 }
optimizer.momentum = { type = "categorical", choices = [0.0, 0.9] }
optimizer.nesterov = { type = "categorical", choices = [false, true] }

[recipe]
model = { name = "he_resnet20" }
data = { train_images = 60, test_images = 20 }
training = { epochs = 3, batch_size = 20 }
optimizer = { lr = 0.1 }

[profiles.smoke]
"""


IMAGES = ImageLocation(Path("nowhere"), generated=(TRAIN_IMAGES, TEST_IMAGES))


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    return load_images("cifar10", IMAGES)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One MLflow database for all tests: making it takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    store = Store.resolve(f"sqlite:///{folder / 'mlflow.db'}", folder)
    store.prepare()
    return store


def write_tiny(folder: Path, name: str = "tiny", more: str = "", **replaced: str) -> Path:
    """Write the tiny study with some lines replaced, and more at its end."""
    lines = [replaced.pop(line.partition(" =")[0], line) for line in TINY.splitlines()]
    assert not replaced
    path = folder / f"{name}.toml"
    path.write_text("\n".join(lines) + "\n" + more)
    return path


@dataclass
class TinyStudy:
    """A study that can be run: its arguments, and what its two stores have afterwards."""

    plan: Plan
    name: str
    storage: StudyStorage
    context: Context
    workers: int = 1

    def run(self, stop: Stop | None = None) -> Generator[StudyEvent, None, None]:
        """Run it, as an iterator of its events."""
        # A stop that was not asked for yet is false.
        context = self.context if stop is None else replace(self.context, stop=stop)
        return run_study(self.name, self.plan, self.storage, context, workers=self.workers)

    def events(self, kind: type | None = None) -> list[Any]:
        """Run it to its end; return its events, or those of one kind."""
        return [event for event in self.run() if kind is None or isinstance(event, kind)]

    def begin(self) -> TrialQueue:
        """Lay it out without running it."""
        images = load_images(self.plan.base.data.dataset, self.context.images)
        return TrialQueue.begin(self.name, self.plan, self.storage.open(), images)

    def script(self, *params: dict[str, Any]) -> None:
        """Decide what each slot behind the source's tries."""
        queue = self.begin()
        for trial in queue.stored.trials(TrialState.WAITING):
            slot = trial.user_attrs["slot"]
            if 0 < slot <= len(params):
                queue.stored.storage.optuna.set_trial_system_attr(trial._trial_id, "fixed_params", params[slot - 1])

    @property
    def stored(self) -> StoredStudy:
        """What Optuna has of it now."""
        return StoredStudy.read(self.name, self.storage.read())

    # --- the two stores, compared ------------------------------------------------------------------

    @property
    def parent(self) -> Any:
        """Its run in MLflow."""
        return self.context.store.client().get_run(self.stored.get_attr("mlflow_run_id"))

    def children(self, role: str) -> list[Any]:
        """The runs of this role that are nested in it."""
        client, parent = self.context.store.client(), self.parent
        runs = client.search_runs(
            [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'", max_results=1000
        )
        return [run for run in runs if run.data.tags["resnet_bench.role"] == role]

    def assert_stores_agree(self) -> None:
        """Status, params, objective and pruning epoch of every trial are the same in both stores."""
        stored = self.stored
        runs = {run.info.run_id: run for run in self.children("trial")}
        finished = [
            trial for trial in stored.trials() if trial.state.is_finished() and "surplus" not in trial.user_attrs
        ]
        assert {trial.user_attrs["mlflow_run_id"] for trial in finished} == set(runs)
        for trial in finished:
            self._assert_trial_agrees(trial, runs[trial.user_attrs["mlflow_run_id"]], stored)

    def _assert_trial_agrees(self, trial: Any, run: Any, stored: StoredStudy) -> None:
        retries = stored.retries()
        tags, metrics = run.data.tags, run.data.metrics
        failed = "KILLED" if trial.number in retries else "FAILED"
        assert run.info.status == {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": failed}[trial.state.name]
        assert tags["resnet_bench.trial_state"] == trial.state.name
        assert tags["resnet_bench.trial_number"] == str(trial.number)
        assert json.loads(tags["resnet_bench.trial_params"]) == trial.params
        for key, value in trial.params.items():
            assert json.loads(run.data.params[key]) == value
        assert metrics.get("study/value") == (trial.values[0] if trial.values else None)
        assert metrics.get("study/pruned_epoch") == (trial.last_step if trial.state.name == "PRUNED" else None)
        if trial.state.name != "COMPLETE":
            assert tags["resnet_bench.reason"]
        history = self.context.store.client().get_metric_history(run.info.run_id, "validation/accuracy")
        scores = {point.step: point.value for point in history}
        reported = {step: value for step, value in trial.intermediate_values.items() if not math.isnan(value)}
        if trial.number in retries:
            # The last score of an interrupted trial may have reached one store only.
            assert len(scores.items() ^ reported.items()) <= 1
        elif stored.definition.seeds == 1 and len(stored.definition.objectives) == 1:
            assert scores == reported


def tiny_study(plan: Plan, name: str, folder: Path, store: Store, **fields: Any) -> TinyStudy:
    """A study with its own Optuna storage."""
    options = ExecutionOptions(device=fields.pop("device", "cpu"), precision="fp32", autotune=False)
    images = fields.pop("images", IMAGES)
    given = {
        "storage": StudyStorage(f"sqlite:///{folder / 'optuna.db'}"),
        "context": Context(store, folder / "runs", images, options),
    }
    return TinyStudy(plan, name, **{**given, **fields})


@pytest.fixture
def write_study(tmp_path: Path) -> Callable[..., Path]:
    return lambda *arguments, **replaced: write_tiny(tmp_path, *arguments, **replaced)


@pytest.fixture
def tiny_plan(write_study: Callable[..., Path]) -> Callable[..., Plan]:
    return lambda **replaced: plan_study(load_study_file(write_study(**replaced)), "smoke")


@pytest.fixture
def study_of(tmp_path: Path, store: Store, request: pytest.FixtureRequest) -> Callable[..., TinyStudy]:
    """A study of a plan, named after the test."""
    name = re.sub("[^a-z0-9]+", "-", request.node.name).strip("-")
    return lambda plan, **fields: tiny_study(plan, fields.pop("name", name), tmp_path, store, **fields)


def skip_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes seconds, and is tested by itself."""
    monkeypatch.setattr("resnet_bench.tuning.artifacts.write_plots", lambda *_: [])


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_plots(monkeypatch)


# --- training by a script ---------------------------------------------------------------------------


def scripted_accuracy(recipe: Recipe, epoch: int, seed: int) -> float:
    """Best near a learning rate of 0.01, rising with the epoch, a little different for each seed."""
    distance = abs(math.log10(recipe.optimizer.lr) + 2)
    return max(0.05, 0.9 - 0.25 * distance) * epoch / recipe.training.epochs + 0.001 * (seed % 10)


DIVERGING_LR = 0.015
MEMORY_EATING_LR = 0.017


def script_training(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """Train without a network; returns the recipes that are trained, as they come."""
    trained: list[Recipe] = []

    def train(recipe: Recipe, execution: Any, seed: int, dataset: Dataset, *, resume: Any = None) -> Iterator[Any]:
        trained.append(recipe)
        steps = recipe.steps_per_epoch
        yield Started(1, 1, steps, recipe.training.epochs, recipe.data.num_train, snapshot=dict)
        for epoch in range(1, recipe.training.epochs + 1):
            last = epoch * steps
            if recipe.optimizer.lr == DIVERGING_LR and epoch == 2:
                raise Diverged(last - steps + 1, recipe.optimizer.lr, math.nan)
            if recipe.optimizer.lr == MEMORY_EATING_LR:
                raise OutOfMemory("a small device", "resnet18", recipe.training.batch_size, None)
            losses = [1 / epoch] * steps
            yield Steps(epoch, last - steps + 1, losses, [recipe.optimizer.lr] * steps, 40, 20, 0.01, dict)
            accuracy = scripted_accuracy(recipe, epoch, seed)
            for split in recipe.evaluation.splits:
                yield Evaluated(epoch, last, split, accuracy, 1.0, accuracy / 2, 1.0, 20, 0.01, snapshot=dict)
            yield EpochEnded(epoch, last, 1.0, 1.0, 0.5, 0.01, 0.01 * epoch, 100.0, 1, dict)
        metrics = {}
        if recipe.evaluation.test_at_end:
            accuracy = scripted_accuracy(recipe, recipe.training.epochs, seed)
            yield Evaluated(
                recipe.training.epochs, last, "test", accuracy, 1.0, accuracy / 2, 1.0, 20, 0.01, snapshot=dict
            )
            metrics = {"test/accuracy": accuracy, "test/accuracy_standard": accuracy / 2}
        yield Finished(recipe.training.epochs, last, 0.03, 0.01, metrics, None, dict)

    monkeypatch.setattr("resnet_bench.running.run.train", train)
    return trained


@pytest.fixture
def scripted_training(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    return script_training(monkeypatch)


def sgd(lr: float, *, momentum: float = 0.9, nesterov: bool = False) -> dict[str, Any]:
    return {"optimizer.lr": lr, "optimizer.momentum": momentum, "optimizer.nesterov": nesterov}


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory, store: Store) -> TinyStudy:
    """A finished study whose third trial is the best."""
    folder = tmp_path_factory.mktemp("done")
    plan = plan_study(load_study_file(write_tiny(folder, budget="budget = { trials = 5 }")), "smoke")
    study = tiny_study(plan, "tiny", folder, store)
    with pytest.MonkeyPatch.context() as monkeypatch:
        script_training(monkeypatch)
        skip_plots(monkeypatch)
        study.script(sgd(0.03), sgd(0.0123, momentum=0.0), sgd(1e-4), sgd(0.02))
        study.events()
    return study
