"""Made-up runs, logged to a real MLflow database the way the tracker logs real ones.

Nothing here was trained: curves are smooth functions plus noise, so that a test knows what a report must say.
"""

import base64
import io
import json
import math
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.datasets import DATASETS
from resnet_bench.recipe.schema import parse

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
EXPERIMENT = "resnet-bench"
STUDIES = "resnet-bench studies"
START = 1_790_000_000_000
"""Milliseconds since 1970 of the first run; a run starts a minute after the one before it."""

ENVIRONMENT = {
    "python": "3.11.7",
    "torch": "2.15.0",
    "torchvision": "0.29.2",
    "cuda": None,
    "gpu": None,
    "cpu": "Test CPU",
    "cores": 2,
    "threads": 2,
    "os": "Linux",
}


def benchmark(name: str, claims: Sequence[Mapping[str, Any]] = (), epochs: int = 8, **changes: Any) -> Benchmark:
    """A benchmark with a small, valid recipe."""
    source = {
        "title": changes.pop("title", f"The article behind {name}"),
        "kind": "tutorial",
        "url": "https://example.org/article",
        "facts": [
            {"fact": "batch size 400", "status": "stated", "keys": ["training.batch_size"]},
            {
                "fact": "learning rate 0.01",
                "status": "ambiguous",
                "keys": ["optimizer.lr"],
                "alternative": "0.1 in the summary",
            },
        ],
    }
    recipe = {
        "data": {
            "dataset": changes.pop("dataset", "cifar10"),
            "mean": [0.4914, 0.4822, 0.4465],
            "std": [0.2023, 0.1994, 0.2010],
        },
        "augmentation": {"crop_padding": 4, "padding_mode": "reflect", "flip": True},
        "model": {"name": "resnet9"},
        "optimizer": {"name": "adam", "lr": 0.01, "weight_decay": 1e-4},
        "schedule": {"name": "one_cycle"},
        "training": {"epochs": epochs, "batch_size": 400},
        "evaluation": {"batch_size": 800},
    }
    recipe |= changes
    return parse(Benchmark, {"name": name, "source": source, "claims": claims, "recipe": recipe}, where=name)


@dataclass(frozen=True)
class FakeRun:
    """Everything about a made-up run that a test may want to choose."""

    benchmark: Benchmark
    seed: int = 0
    final: float = 90.0
    """Test accuracy in percent at the last epoch."""
    profile: str = "full"
    generated: bool = False
    status: str = "FINISHED"
    reason: str = ""
    role: str = "run"
    name: str = ""
    device: str = "Test GPU"
    device_type: str = "cuda"
    epoch_seconds: float = 2.0
    commit: str = "a" * 40
    dirty: bool = False
    data_fingerprint: str = DATASETS["cifar10"].fingerprint
    overrides: Mapping[str, str] = field(default_factory=dict)
    """Params that differ from the benchmark's recipe."""
    fingerprint: str = ""
    environment: Mapping[str, Any] = field(default_factory=lambda: dict(ENVIRONMENT))
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Metrics logged once."""
    artifacts: Mapping[str, bytes | str] = field(default_factory=dict)
    """Files that replace or join the usual ones; an empty one is left out."""
    parent: str = ""
    test_by_epoch: bool = True
    validation: bool = False
    spread: float = 0.35
    steps: int = 0
    """Learning rates logged, one a step."""


def log(client: Any, run: FakeRun, minute: int) -> str:
    """Log one run.

    Args:
        client: An ``MlflowClient`` of a database with both experiments.
        run: What to log.
        minute: Minutes after the first run at which this one starts.

    Returns:
        Its MLflow id.
    """
    experiment = client.get_experiment_by_name(EXPERIMENT if run.role == "run" else STUDIES)
    started = START + 60_000 * minute
    made = client.create_run(
        experiment.experiment_id,
        start_time=started,
        tags=_tags(run),
        run_name=run.name or f"{run.benchmark.name} seed {run.seed}",
    )
    run_id: str = made.info.run_id
    _log_params_and_metrics(client, run, run_id, started)
    if run.role in {"run", "retrain"} and run.status == "FINISHED":
        _write_artifacts(Path(made.info.artifact_uri.removeprefix("file://")), run)
    client.set_terminated(run_id, run.status, end_time=started + 50_000)
    return run_id


def log_all(uri: str, *runs: FakeRun) -> list[str]:
    """Log runs to a store, a minute after one another; returns their MLflow ids."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    return [log(client, run, minute) for minute, run in enumerate(runs)]


def curve(run: FakeRun) -> dict[int, float]:
    """Test accuracy of a made-up run in percent by epoch; the last one is ``run.final`` exactly."""
    noise = random.Random(f"{run.benchmark.name} {run.seed} {run.role}")
    epochs = _epochs(run)
    rise = {epoch: 1 - math.exp(-4 * epoch / epochs) for epoch in range(1, epochs + 1)}
    values = {
        epoch: 10 + (run.final - 10) * share / rise[epochs] + noise.gauss(0, run.spread)
        for epoch, share in rise.items()
    }
    return values | {epochs: run.final}


def png(color: tuple[int, int, int] = (200, 60, 40), size: int = 32) -> str:
    """A small PNG in base64."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), color).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def confusion_csv(accuracy: float, classes: Sequence[str] = CLASSES) -> str:
    """A confusion matrix with one accuracy for every class, the mistakes going to the next class."""
    lines = [",".join(classes)]
    for row in range(len(classes)):
        right = round(10 * accuracy)
        counts = [0] * len(classes)
        counts[row] = right
        counts[(row + 1) % len(classes)] = 1000 - right
        lines.append(",".join(map(str, counts)))
    return "\n".join(lines) + "\n"


def study_runs(bench: Benchmark, name: str, trials: int = 10) -> tuple[FakeRun, list[FakeRun]]:
    """A study's parent run, and its trials and retrained runs (their ``parent`` is still to be set)."""
    space = {
        "optimizer.lr": {"type": "log-float", "low": 1e-4, "high": 1e-1},
        "optimizer.weight_decay": {"type": "log-float", "low": 1e-6, "high": 1e-2},
        "training.batch_size": {"type": "categorical", "choices": [128, 256, 400]},
    }
    random_numbers = random.Random(name)
    children = []
    for number in range(trials):
        params = {
            "optimizer.lr": 0.01 if number == 0 else 10 ** random_numbers.uniform(-4, -1),
            "optimizer.weight_decay": 1e-4 if number == 0 else 10 ** random_numbers.uniform(-6, -2),
            "training.batch_size": 400 if number == 0 else random_numbers.choice([128, 256, 400]),
        }
        value = 88 - 2.5 * (math.log10(params["optimizer.lr"]) + 2.3) ** 2 + random_numbers.gauss(0, 0.2)
        state = "PRUNED" if number % 4 == 3 else "FAIL" if number == 6 else "COMPLETE"
        status = {"PRUNED": "KILLED", "FAIL": "FAILED", "COMPLETE": "FINISHED"}[state]
        metrics = {"study/value": value / 100} if state == "COMPLETE" else {}
        if state == "PRUNED":
            metrics["study/pruned_epoch"] = 2.0
        children.append(
            FakeRun(
                bench,
                seed=0,
                final=value,
                role="trial",
                name=f"{name} trial {number}",
                status=status,
                reason="loss is not finite at step 12" if state == "FAIL" else "",
                validation=True,
                test_by_epoch=False,
                tags={
                    "resnet_bench.study": name,
                    "resnet_bench.trial_number": str(number),
                    "resnet_bench.trial_state": state,
                    "resnet_bench.trial_params": json.dumps(params),
                },
                metrics=metrics,
            )
        )
    complete = [child for child in children if child.metrics.keys() & {"study/value"}]
    best = max(complete, key=lambda child: child.metrics["study/value"])
    best_params = json.loads(best.tags["resnet_bench.trial_params"])
    for arm, final in (("source", 88.0), ("tuned", 89.4)):
        children += [
            FakeRun(
                bench,
                seed=100 + seed,
                final=final + 0.2 * (seed - 1),
                role="retrain",
                name=f"{name} {arm} seed {seed}",
                test_by_epoch=False,
                overrides={key: json.dumps(value) for key, value in best_params.items()} if arm == "tuned" else {},
                tags={"resnet_bench.study": name, "resnet_bench.arm": arm},
            )
            for seed in range(3)
        ]
    parent = FakeRun(
        bench,
        role="study",
        name=name,
        tags={
            "resnet_bench.study": name,
            "resnet_bench.sampler": json.dumps({"name": "tpe", "options": {}}),
            "resnet_bench.pruner": json.dumps({"name": "median", "options": {}}),
            "resnet_bench.search_space": json.dumps(space),
        },
        metrics={
            "study/best_validation_accuracy": 0.881,
            "study/source_validation_accuracy": 0.877,
            "study/test_difference": 0.014,
            "study/test_difference_low": 0.009,
            "study/test_difference_high": 0.019,
            "study/trials_finished": float(trials),
            "study/trials_pruned": 2.0,
            "study/epochs_saved": 12.0,
        },
    )
    return parent, children


def log_study(client: Any, bench: Benchmark, name: str, minute: int, trials: int = 10) -> str:
    """Log a whole study; returns the id of its parent run."""
    parent, children = study_runs(bench, name, trials)
    parent_id = log(client, parent, minute)
    for place, child in enumerate(children):
        log(client, replace(child, parent=parent_id), minute + 1 + place)
    return parent_id


def database(template: Path, folder: Path) -> str:
    """A copy of an empty MLflow database with both experiments; returns its tracking URI."""
    from mlflow import MlflowClient

    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(template, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(uri)
    for name in (EXPERIMENT, STUDIES):
        client.create_experiment(name, artifact_location=(folder / "mlartifacts" / name.replace(" ", "-")).as_uri())
    return uri


def _epochs(run: FakeRun) -> int:
    return run.benchmark.recipe.training.epochs if run.profile == "full" else 2


def _tags(run: FakeRun) -> dict[str, str]:
    bench = run.benchmark
    fingerprint = run.fingerprint or (bench.recipe.fingerprint if not run.overrides else "f" * 16)
    tags = {
        "benchmark": bench.name,
        "role": run.role,
        "profile": run.profile,
        "seed": str(run.seed),
        "fingerprint": fingerprint,
        "execution": json.dumps({"device": "cuda:0", "precision": "bf16", "channels_last": True}),
        "device": run.device,
        "device_type": run.device_type,
        "precision": "bf16",
        "dataset": bench.recipe.data.dataset,
        "data_source": "generated" if run.generated else "parquet",
        "data_fingerprint": run.data_fingerprint,
        "generated": "true" if run.generated else "false",
        "code_commit": run.commit,
        "code_dirty": "true" if run.dirty else "false",
        "version": "0.1.0",
        "environment": json.dumps(dict(run.environment)),
        "host": "test-host",
        "parameters": "6575370",
        "macs": "379261952",
        "source_title": bench.source.title,
        "reason": run.reason,
    }
    named = {f"resnet_bench.{key}": value for key, value in tags.items() if value}
    parent = {"mlflow.parentRunId": run.parent} if run.parent else {}
    return {**named, **parent, **run.tags}


def _log_params_and_metrics(client: Any, run: FakeRun, run_id: str, started: int) -> None:
    from mlflow.entities import Metric, Param

    flat = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in run.benchmark.recipe.flat().items()
    }
    flat |= run.overrides
    metrics = []

    def add(key: str, value: float, step: int) -> None:
        metrics.append(Metric(key, value, started + 1000 * step, step))

    accuracies = curve(run) if run.role != "study" else {}
    stopped = len(accuracies) if run.status == "FINISHED" else max(1, len(accuracies) // 3)
    for epoch, accuracy in list(accuracies.items())[:stopped]:
        share = accuracy / 100
        add("train/loss", 2.3 * (1 - share) + 0.05, epoch)
        add("train/accuracy", min(1.0, share + 0.02), epoch)
        add("time/epoch_seconds", run.epoch_seconds * (2.0 if epoch == 1 else 1.0 + 0.01 * (epoch % 3)), epoch)
        add("time/train_seconds", run.epoch_seconds * (epoch + 1), epoch)
        add("time/images_per_second", 50_000 / run.epoch_seconds / (2.0 if epoch == 1 else 1.0), epoch)
        add("memory/peak_bytes", 2.5e9, epoch)
        for split, wanted in (("test", run.test_by_epoch), ("validation", run.validation)):
            if wanted:
                add(f"{split}/accuracy", share, epoch)
                add(f"{split}/accuracy_plain", share - 0.001, epoch)
                add(f"{split}/loss", 2.3 * (1 - share), epoch)
    for step in range(1, run.steps + 1):
        add("step/learning_rate", 0.01 * math.sin(math.pi * step / run.steps), step)
    if run.status == "FINISHED" and run.role not in {"trial", "study"}:
        add("final/test_accuracy", run.final / 100, 0)
        add("final/test_accuracy_plain", run.final / 100 - 0.001, 0)
        add("final/train_seconds", run.epoch_seconds * (len(accuracies) + 1), 0)
    for key, value in run.metrics.items():
        add(key, value, 0)
    params = [Param(key, value) for key, value in flat.items()]
    client.log_batch(run_id, metrics=metrics[:900], params=params)
    for start in range(900, len(metrics), 900):
        client.log_batch(run_id, metrics=metrics[start : start + 900])


def _write_artifacts(folder: Path, run: FakeRun) -> None:
    wrong = [
        {"index": i, "label": CLASSES[i % 10], "predicted": CLASSES[(i + 3) % 10], "confidence": 0.99 - i / 100}
        | {"png_base64": png((20 * i % 256, 90, 250 - 20 * i % 256)), "image": f"test/cat/{i} & more.png"}
        for i in range(6)
    ]
    files: dict[str, bytes | str] = {
        "benchmark.json": run.benchmark.model_dump_json(),
        "confusion_matrix.csv": confusion_csv(run.final),
        "confident_mistakes.json": json.dumps(wrong),
        **run.artifacts,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if content:
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
