"""Trained networks, found by a run's id or name, by a run's folder, or by a folder that was exported."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from resnet_bench.base.describe_error import describe_error
from resnet_bench.base.errors import UserError
from resnet_bench.base.files import expanded
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.files import load_benchmark_file
from resnet_bench.running.classifier import Classifier, classifier_of
from resnet_bench.running.run_folder import STATE_FILE, read_state
from resnet_bench.running.safetensors import read_safetensors
from resnet_bench.tracking.cursor import JOURNAL
from resnet_bench.tracking.finished_runs import find_run, finished_runs
from resnet_bench.tracking.journal import last_values, read
from resnet_bench.tracking.mlflow_client import pages
from resnet_bench.tracking.model import PROGRAM, load_weights
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.summaries import counted
from resnet_bench.tracking.vocabulary import current_metrics, final_metric, tag
from resnet_bench.training.events import State

RECIPE_FILE = "recipe.toml"
SAFETENSORS_FILE = "model.safetensors"
TORCH_FILE = "model.pt2"

ACCURACIES = ("accuracy", "accuracy_standard", "accuracy_tta")


@dataclass(frozen=True)
class TrainedRun:
    """A run that was trained to its end, and its network.

    Attributes:
        name: The run's name.
        run_id: Its id in MLflow; None for one that never reached a store.
        benchmark: The benchmark with the recipe as it was run.
        tags: Its tags, under their stored names.
        accuracies: Test accuracies of :data:`ACCURACIES`, as fractions, as far as they were measured.
        weights: The network's state at the end.
        repeats: Standard accuracies of all finished runs of the same recipe and images in the store, by seed.
    """

    name: str
    run_id: str | None
    benchmark: Benchmark
    tags: Mapping[str, str]
    accuracies: Mapping[str, float]
    weights: State
    repeats: Mapping[int, float] = field(default_factory=dict)

    def tag(self, name: str) -> str:
        """Return one of our tags; empty where the run has none of that name."""
        return self.tags.get(tag(name), "")

    @property
    def classifier(self) -> Classifier:
        """The network with its preprocessing."""
        return classifier_of(self.benchmark.recipe, self.weights)


def load_classifier(name: str, store: Store) -> Classifier:
    """Load a trained network with its preprocessing, on the CPU and in eval mode.

    Args:
        name: The id of an MLflow run, the beginning of one, a run's name, a run's folder, or an exported folder.
        store: The store that has the run.

    Raises:
        UserError: There is no such run, it is not finished, or it kept no model.
    """
    folder = expanded(name)
    if not (folder / RECIPE_FILE).is_file():
        return find_trained(name, store).classifier
    recipe = load_benchmark_file(folder / RECIPE_FILE).recipe
    if (weights := folder / SAFETENSORS_FILE).is_file():
        return classifier_of(recipe, read_safetensors(weights))
    return classifier_of(recipe, load_weights(folder / TORCH_FILE))


def find_trained(name: str, store: Store) -> TrainedRun:
    """Find a run that was trained to its end, and read its network.

    Args:
        name: The id of an MLflow run, the beginning of one, a run's name, or a run's folder.
        store: The store that has the run.

    Raises:
        UserError: There is no such run, it is not finished, or it kept no model.
    """
    folder = expanded(name)
    if not folder.is_dir():
        return _in_store(name, store)
    state = read_state(folder / STATE_FILE)
    if state is None:
        raise UserError(f"{folder} is not the folder of a run; name one below runs/, or the id of a run")
    if state["status"] != "finished":
        raise UserError(f"{folder}: this run is not finished; resume it with the command that began it and --resume")
    local = _in_folder(folder, state)
    if local is not None:
        return local
    if state["run_id"] is None:
        raise UserError(f"{folder}: this run kept no model")
    return _in_store(state["run_id"], store)


def _in_folder(folder: Path, state: Mapping[str, Any]) -> TrainedRun | None:
    """Read a run from its folder alone; None where the store has taken its files over."""
    recipe, model, journal = folder / "artifacts" / RECIPE_FILE, folder / "model" / PROGRAM, folder / JOURNAL
    if not (recipe.is_file() and model.is_file() and journal.is_file()):
        return None
    tags = state["tags"]
    return TrainedRun(
        name=folder.name,
        run_id=state["run_id"],
        benchmark=_benchmark(recipe, tags),
        tags=tags,
        accuracies=_accuracies(last_values(read(journal, final=True))),
        weights=load_weights(model),
    )


def _in_store(name: str, store: Store) -> TrainedRun:
    client = store.reader()
    try:
        run_id, tags = find_run(finished_runs(client), name)
        run = client.get_run(run_id)
        same = " and ".join(
            f"tags.`{tag(key)}` = '{tags.get(tag(key), '')}'" for key in ("fingerprint", "data_fingerprint", "role")
        )
        alike = pages(client.search_runs, [run.info.experiment_id], f"attributes.status = 'FINISHED' and {same}")
        repeats = counted(list(alike))
        with TemporaryDirectory(prefix="resnet-bench-model-") as scratch:
            recipe = client.download_artifacts(run_id, RECIPE_FILE, scratch)
            model = client.download_artifacts(run_id, f"model/{PROGRAM}", scratch)
            benchmark, weights = _benchmark(Path(recipe), tags), load_weights(Path(model))
    except UserError:
        raise
    except Exception as error:  # whatever the database driver, the server's client or the artifact store raises
        reason = describe_error(error, store.uri, limit=160)
        raise UserError(f"{name}: the trained model cannot be read from {store.redacted_uri} ({reason})") from None
    return TrainedRun(
        name=tags["name"],
        run_id=run_id,
        benchmark=benchmark,
        tags=tags,
        accuracies=_accuracies(run.data.metrics),
        weights=weights,
        repeats={
            int(other.data.tags[tag("seed")]): accuracies["accuracy_standard"]
            for other in repeats
            if "accuracy_standard" in (accuracies := _accuracies(other.data.metrics))
        },
    )


def _accuracies(metrics: Mapping[str, float]) -> dict[str, float]:
    current = current_metrics(metrics)
    return {name: current[key] for name in ACCURACIES if (key := final_metric("test", name)) in current}


def _benchmark(recipe: Path, tags: Mapping[str, str]) -> Benchmark:
    # The file of every run has the same name.
    benchmark = load_benchmark_file(recipe)
    return benchmark.model_copy(update={"name": tags.get(tag("benchmark"), benchmark.name)})
