"""The Python interface: what the verbs of the command line do, as functions. ``import resnet_bench as rb``.

Each function calls what its verb calls, so a script and the command line give the same numbers and share stores, run
folders and caches. Bad input raises :class:`UserError`, in one sentence.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from resnet_bench.base.errors import UserError as UserError
from resnet_bench.base.files import expanded
from resnet_bench.data.dataset import Dataset, ImageLocation, load_images
from resnet_bench.data.dataset import load as load_dataset
from resnet_bench.execution.choices import ExecutionMode, PrecisionChoice
from resnet_bench.execution.options import ExecutionOptions
from resnet_bench.models.of_recipe import check_benchmark
from resnet_bench.recipe.benchmark import Benchmark, ProfileName
from resnet_bench.recipe.changes import override
from resnet_bench.recipe.files import load_benchmark, scan_benchmarks
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.reporting import reading, runs
from resnet_bench.reporting.claims import ClaimRow, read_claims
from resnet_bench.running.classifier import Classifier
from resnet_bench.running.context import Context
from resnet_bench.running.events import JobFinished, update
from resnet_bench.running.export import Format, export_run
from resnet_bench.running.outcome import Outcome
from resnet_bench.running.plan import RunOptions, open_plan
from resnet_bench.running.prepare import resolve
from resnet_bench.running.stopping import stop_on_signals
from resnet_bench.running.trained import find_trained, load_classifier
from resnet_bench.tracking.stale_runs import close_stale_runs
from resnet_bench.tracking.store import Store
from resnet_bench.training.events import Event
from resnet_bench.training.loop import train as training
from resnet_bench.tuning.storage import StudyStorage
from resnet_bench.tuning.stored_study import StoredStudy

RESULT_COLUMNS = (
    "run_id",
    "name",
    "role",
    "status",
    "benchmark",
    "profile",
    "seed",
    "dataset",
    "generated",
    "device",
    "precision",
    "fingerprint",
    "study",
    "started",
)
"""Columns of :func:`results` that are as the store has them; those that are measured follow."""


def benchmarks(folder: str | Path | None = None) -> dict[str, Benchmark]:
    """Load every benchmark, as ``resnet-bench list`` shows them.

    Args:
        folder: Folder of benchmark files to search before ``./benchmarks`` and the shipped ones.

    Returns:
        The benchmarks by name; files that are wrong are left out.

    Examples:
        >>> import resnet_bench as rb
        >>> known = rb.benchmarks()
        >>> known["speedrun-90"].test_claim.text
        '≥ 90% (TTA)'
    """
    return scan_benchmarks(_path(folder))[0]


def benchmark(name: str, folder: str | Path | None = None) -> Benchmark:
    """Load a benchmark: its source, claims and recipe.

    Args:
        name: Its name, or the path of its TOML file.
        folder: Folder of benchmark files to search first.

    Raises:
        UserError: There is no such benchmark (with the nearest name), or its file is wrong.

    Examples:
        >>> import resnet_bench as rb
        >>> recipe = rb.benchmark("resnet9-onecycle-adam").recipe
        >>> recipe.optimizer.name, recipe.training.epochs
        ('adam', 8)
        >>> smoke = rb.benchmark("resnet9-onecycle-adam").recipe_for("smoke")
    """
    found = load_benchmark(name, _path(folder))
    check_benchmark(found)
    return found


def change(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Change some values of a recipe, as ``--set`` does. The recipe that is given stays as it is.

    Args:
        recipe: The recipe to start from.
        changes: Values by dotted key. With another number of epochs the schedule is scaled.

    Raises:
        UserError: An unknown key (with the nearest one), a wrong value, or an impossible combination.

    Examples:
        >>> import resnet_bench as rb
        >>> recipe = rb.benchmark("he-resnet20").recipe
        >>> rb.change(recipe, {"optimizer.lr": 0.05}).optimizer.lr
        0.05
        >>> rb.change(recipe, {"optimizer.rate": 0.05})
        Traceback (most recent call last):
            ...
        resnet_bench.base.errors.UserError: change: unknown recipe key 'optimizer.rate'...
    """
    return override(_recipe(recipe), changes, where="change")


def images(
    dataset: str | Recipe = "cifar10",
    folder: str | Path = "data",
    *,
    download: bool = False,
    generated: tuple[int, int] | None = None,
) -> Dataset:
    """Open a dataset: decoded, verified and cached.

    Args:
        dataset: Its name, or a recipe, which names one.
        folder: Where its files are.
        download: Download the published archive there if no source is there.
        generated: Generate this many training and test images instead, to try the software.

    Raises:
        UserError: There are no images, or they are damaged.

    Examples:
        >>> import resnet_bench as rb
        >>> tiny = rb.images("cifar10", generated=(64, 32))
        >>> tiny.train.images.shape, tiny.class_names[0]
        (torch.Size([64, 3, 32, 32]), 'airplane')
        >>> rb.images(rb.benchmark("cifar100-resnet").recipe, generated=(64, 32)).name
        'cifar100'
    """
    location = ImageLocation(Path(folder), download=download, generated=_counts(generated))
    if isinstance(dataset, str):
        return load_images(dataset, location)
    return load_dataset(_recipe(dataset).data.facts, location)


def train(
    recipe: Recipe,
    images: Dataset,
    *,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    execution: str = "auto",
    threads: int | None = None,
    deterministic: bool = False,
) -> Generator[Event, None, None]:
    """Train a recipe once, as a generator of events. Nothing is tracked or written; to stop it, stop iterating.

    Args:
        recipe: What to train.
        images: The images of the dataset that the recipe names.
        seed: Decides initialization, order, augmentation and dropout.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        precision: ``auto``, ``fp32``, ``tf32`` or ``bf16``.
        execution: ``auto``, ``plain`` (stock PyTorch) or ``fast``.
        threads: CPU threads; the fastest number by default.
        deterministic: The same seed gives the same bits on the same machine.

    Yields:
        ``Started``, ``Steps``, ``Evaluated``, ``EpochEnded`` and ``Finished``; see
        :mod:`resnet_bench.training.events`. Accuracies are fractions.

    Raises:
        TrainingError: Training cannot continue.
        UserError: The device does not exist here, or the images do not fit the recipe.

    Examples:
        >>> import resnet_bench as rb
        >>> short = {"data.train_images": 64, "data.test_images": 32, "training.epochs": 2, "training.batch_size": 16}
        >>> recipe = rb.change(rb.benchmark("he-resnet20").recipe_for("smoke"), short)
        >>> for event in rb.train(recipe, rb.images(generated=(64, 32)), execution="plain"):
        ...     if type(event).__name__ == "EpochEnded":
        ...         print(event.epoch, event.loss < 5)
        1 True
        2 True
    """
    if images.name != _recipe(recipe).data.dataset:
        raise UserError(f"the recipe trains on {recipe.data.dataset}; these images are of {images.name}")
    options = _execution(device, precision, execution, threads, deterministic=deterministic)
    yield from training(recipe, resolve(recipe, options), seed, images)


def run(
    names: str | Sequence[str],
    *,
    seeds: int | Sequence[int] = 1,
    profile: ProfileName | None = None,
    changes: Mapping[str, Any] | None = None,
    tracking: str | None = None,
    run_dir: str | Path = "runs",
    data: str | Path = "data",
    download: bool = False,
    generated: tuple[int, int] | None = None,
    device: str = "auto",
    precision: str = "auto",
    execution: str = "auto",
    threads: int | None = None,
    deterministic: bool = False,
    resume: bool = False,
    force: bool = False,
    benchmark_dir: str | Path | None = None,
) -> list[Outcome]:
    """Train benchmarks and track them in MLflow, as ``resnet-bench run`` does. Finished runs are not trained again.

    Args:
        names: Benchmarks, by name or file.
        seeds: How many, or which.
        profile: ``full`` or ``smoke``; by default what this machine can do.
        changes: Values by dotted recipe key, for every benchmark.
        tracking: MLflow store or database file; ``MLFLOW_TRACKING_URI``, else ``./mlflow.db``, by default.
        run_dir: Folder of the runs' journals and checkpoints.
        data: Where CIFAR is. Without it the smoke profile generates images.
        download: Download CIFAR there if it is missing.
        generated: Generate this many training and test images, whatever is there.
        device: As in :func:`train`.
        precision: As in :func:`train`.
        execution: As in :func:`train`.
        threads: As in :func:`train`.
        deterministic: As in :func:`train`.
        resume: Resume interrupted runs.
        force: Train finished runs again.
        benchmark_dir: Folder of benchmark files to search first.

    Returns:
        One outcome per benchmark and seed. That of a run that could not be trained has its ``failure``.

    Raises:
        UserError: Something asked for does not exist or does not fit; nothing was started.
        KeyboardInterrupt: Ctrl-C, SIGTERM or the like asked to stop, which only the main thread hears. The run's
            position is checkpointed, unless a second Ctrl-C came before the end of its step.

    Examples:
        >>> import resnet_bench as rb
        >>> short = {"data.train_images": 64, "data.test_images": 32, "training.epochs": 2, "training.batch_size": 16}
        >>> outcomes = rb.run("he-resnet20", profile="smoke", changes=short, generated=(64, 32), device="cpu")
        >>> outcomes[0].is_finished, outcomes[0].epochs
        (True, 2)
    """
    options = RunOptions(
        names=_names(names),
        seeds=range(seeds) if isinstance(seeds, int) else seeds,
        profile=profile,
        changes=changes or {},
        resume=resume,
        force=force,
        benchmark_dir=_path(benchmark_dir),
    )
    context = Context(
        store=_store(tracking),
        run_dir=Path(run_dir),
        images=ImageLocation(
            Path(data), allow_generated=profile != "full", download=download, generated=_counts(generated)
        ),
        options=_execution(device, precision, execution, threads, deterministic=deterministic),
    )
    plan, _ = open_plan(options, context)
    context.store.prepare()
    close_stale_runs(context.store)
    outcomes = {job.label: Outcome(sharing=plan.sharing) for job in plan.jobs}
    left, interrupted, problem = set(outcomes), False, None
    with stop_on_signals(announce="stopping, writing a checkpoint; again to stop without it") as stop:
        for task, event in plan.events(replace(context, stop=stop)):
            update(outcomes[task.label], event)
            if isinstance(event, JobFinished):
                left.discard(task.label)
                interrupted |= event.interrupted
                problem = event.device_problem or problem
    if problem is not None:
        for label in left:
            outcomes[label].failure = f"not started: {problem}"
    # It may also have been asked to stop between two runs.
    elif stop and left:
        interrupted = True
    if interrupted:
        raise KeyboardInterrupt
    return list(outcomes.values())


def study(name: str, storage: str | None = None, tracking: str | None = None) -> StoredStudy:
    """Open a study that was begun with ``resnet-bench study run``, to read.

    Args:
        name: Its name in the storage.
        storage: Optuna's storage: a URL, or the path of a database; ``./optuna.db`` by default.
        tracking: MLflow's store, which must be another database.

    Returns:
        The study: ``trials()``, ``best_trial()``, ``counts()``, and ``study``, which is Optuna's.

    Raises:
        UserError: There is no such study (with the nearest name), or another program made it.

    Examples:
        >>> import resnet_bench as rb
        >>> study = rb.study("learning-rate", "optuna.db")
        >>> study.counts().finished
        3
        >>> study.best_trial().state.name
        'COMPLETE'
    """
    file = expanded(storage) if storage is not None else None
    url = f"sqlite:///{file.resolve()}" if file is not None and file.is_file() else storage
    found = StudyStorage.resolve(url, Path.cwd(), tracking_uri=_store(tracking).uri)
    if not found.exists:
        raise UserError(f"{found.redacted_url} does not exist; start a study with: resnet-bench study run NAME")
    return StoredStudy.read(name, found.read())


def results(
    *sources: str | Path, benchmarks: str | Sequence[str] | None = None, since: str | None = None
) -> pd.DataFrame:
    """Read tracked runs as a table with one row per run, oldest first.

    Args:
        sources: MLflow stores, database files, or folders of a report's tables; the default store without any.
        benchmarks: Only runs of these.
        since: Only runs started since a date (``2026-11-01``) or for an age (``7d``).

    Returns:
        What the runs are, and what they measured: ``epochs``, ``accuracy``, ``accuracy_standard`` and ``accuracy_tta``
        (test set, percent), ``train_seconds`` and ``images_per_second``. What was not measured is NaN.

    Raises:
        UserError: No source could be read, or none holds a run.

    Examples:
        >>> import resnet_bench as rb
        >>> table = rb.results("reports/reference", benchmarks="speedrun-90")
        >>> print(f"{table.accuracy_tta.mean():.1f}% over {len(table)} seeds")
        90.2% over 10 seeds
    """
    tables = reading.read(
        _sources(sources), benchmarks=_names(benchmarks) if benchmarks is not None else None, since=since
    )
    loaded, _ = runs.load(tables)
    rows = [
        {
            **{name: getattr(found, "id" if name == "run_id" else name) for name in RESULT_COLUMNS},
            "epochs": found.epochs,
            **{name: found.last_accuracy("test", name) for name in ("accuracy", "accuracy_standard", "accuracy_tta")},
            "train_seconds": found.train_seconds,
            "images_per_second": found.images_per_second,
        }
        for found in loaded
    ]
    numbers = ("accuracy", "accuracy_standard", "accuracy_tta", "train_seconds", "images_per_second")
    return pd.DataFrame(rows).astype({**dict.fromkeys(numbers, "float64"), "seed": "UInt64", "epochs": "Int64"})


def judge(*sources: str | Path, benchmarks: str | Sequence[str] | None = None) -> list[ClaimRow]:
    """Judge what runs say about the claims of their sources, by the rules of a report.

    Args:
        sources: As in :func:`results`.
        benchmarks: Only runs of these.

    Returns:
        A row per claim: ``benchmark``, ``claim``, ``seeds``, and ``verdict`` with its ``word``, ``reason`` and numbers
        in percent. Runs that try the software come last, and are not judged.

    Raises:
        UserError: No source could be read, or none holds a run.

    Examples:
        >>> import resnet_bench as rb
        >>> for row in rb.judge("reports/reference", benchmarks="speedrun-90"):
        ...     print(row.benchmark, row.claim_text, row.verdict.word, row.verdict.n)
        speedrun-90 ≥ 90% (TTA) reproduced 10
    """
    found = read_claims(_sources(sources), _names(benchmarks) if benchmarks is not None else None)
    return [*found.rows, *found.apart]


def load(run: str | Path, tracking: str | None = None) -> Classifier:
    """Load a trained network with its preprocessing: images as they are stored in, logits out.

    Args:
        run: The id of an MLflow run (its beginning is enough), its name, its folder, or an exported folder.
        tracking: The store that has the run, as in :func:`run`.

    Returns:
        A ``torch.nn.Module`` on the CPU, in eval mode. It takes RGB images ``[N, 3, H, W]``, uint8 or floats from 0
        to 1. ``class_names`` says what its outputs mean; ``network`` is the network alone.

    Raises:
        UserError: There is no such run, it is not finished, or it kept no model.

    Examples:
        >>> import resnet_bench as rb
        >>> network = rb.load("he-resnet20 smoke seed 0 (--set)")
        >>> images = rb.images(generated=(64, 32)).test.images
        >>> network(images).shape
        torch.Size([32, 10])
    """
    return load_classifier(str(run), _store(tracking))


def export(
    run: str | Path,
    folder: str | Path,
    format: Format = "safetensors",  # noqa: A002 - as the option is called
    tracking: str | None = None,
) -> list[Path]:
    """Export a trained network with a model card, as ``resnet-bench export`` does.

    Args:
        run: As in :func:`load`.
        folder: Folder to write.
        format: ``safetensors`` holds the weights; ``torch`` and ``onnx`` hold the network with its preprocessing.
        tracking: As in :func:`run`.

    Returns:
        The files.

    Raises:
        UserError: There is no such run, a package is missing, or the folder cannot be written.

    Examples:
        >>> import resnet_bench as rb
        >>> files = rb.export("he-resnet20 smoke seed 0 (--set)", "exported")
        >>> sorted(file.name for file in files)
        ['README.md', 'config.json', 'model.safetensors', 'recipe.toml']
    """
    return export_run(find_trained(str(run), _store(tracking)), format, Path(folder))


def _recipe(given: object) -> Recipe:
    """Refuse what is easily taken for a recipe: a benchmark, or its name."""
    if isinstance(given, Recipe):
        return given
    raise UserError(f"a recipe is needed, and this is a {type(given).__name__}; write rb.benchmark(NAME).recipe")


def _names(given: str | Sequence[str]) -> Sequence[str]:
    """Take a name for a list of it: a text is also a sequence, of its letters."""
    names = [given] if isinstance(given, str) else list(given)
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError("name one benchmark or more, as rb.benchmarks() has them; a recipe is trained by rb.train")
    return names


def _counts(given: tuple[int, int] | None) -> tuple[int, int] | None:
    if given is None or (isinstance(given, Sequence) and len(given) == 2 and min(given) > 0):
        return given
    raise UserError(f"generated = {given!r}: give how many training and test images, such as (64, 32)")


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)


def _store(tracking: str | None) -> Store:
    return Store.resolve(_address(tracking), Path.cwd())


def _sources(given: Sequence[str | Path]) -> list[reading.Source]:
    return [_address(str(source)) or "" for source in given] or [_store(None)]


def _address(source: str | None) -> str | None:
    """Turn the path of a database that exists into its address; others are left as they are."""
    path = expanded(source) if source is not None else None
    return f"sqlite:///{path.resolve()}" if path is not None and path.is_file() else source


def _execution(
    device: str, precision: str, execution: str, threads: int | None, *, deterministic: bool
) -> ExecutionOptions:
    choices: dict[str, Any] = {}
    for name, text, kind in (("precision", precision, PrecisionChoice), ("mode", execution, ExecutionMode)):
        known = [choice.value for choice in kind]
        if text not in known:
            raise UserError(f"{name} = {text!r} is not one of {', '.join(known)}")
        choices[name] = kind(text)
    return ExecutionOptions(device=device, threads=threads, deterministic=deterministic, **choices)
