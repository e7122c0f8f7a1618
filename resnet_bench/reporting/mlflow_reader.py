"""Reads one MLflow store into tables; what cannot be read is collected as sentences."""

import base64
import binascii
import csv
import io
import json
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from resnet_bench.base.errors import UserError
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.reporting.schema import (
    CONFUSION_DTYPES,
    METRIC_DTYPES,
    MISTAKE_DTYPES,
    RUN_DTYPES,
    SPLITS,
    TAG,
    Tables,
    first_line,
    public_name,
    tidy,
)
from resnet_bench.tracking.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EPOCH_METRICS = (
    *(
        f"{split}/{name}"
        for split in SPLITS
        for name in ("accuracy", "accuracy_plain", "accuracy_augmented", "loss", "loss_plain")
    ),
    "train/loss_mean",
    "time/epoch_seconds",
    "time/train_seconds",
    "time/images_per_second",
    "time/evaluation_seconds",
    "memory/peak_bytes",
)
STUDY_METRICS = ("validation/accuracy", "test/accuracy", "time/train_seconds")
"""Read for trials and for the runs that a study trains again."""
STEP_METRICS = ("step/learning_rate",)
"""Read for the latest run of each recipe only: they follow from the recipe."""
ONCE_PREFIXES = ("final/", "study/", "energy/", "device/", "time/to_claim_seconds", "time/setup_seconds")

MAX_STEP_POINTS = 400
MAX_ARTIFACT_BYTES = 4_000_000
MAX_MISTAKES = 24
IMAGE_SIDES = range(8, 65)
HTTP_THREADS = 8


class StoreReader:
    """Reads one store; what cannot be read is collected as sentences."""

    def __init__(self, store: Store) -> None:
        """Open the store, but only if it is there: opening would make a database where there is none.

        Raises:
            UserError: There is no such store, or what is there is no MLflow store.
        """
        if store.is_server:
            if problem := store.check():
                raise UserError(f"{store.shown} cannot be read: {problem}")
        else:
            _require_mlflow_database(store)
        self.store = store
        self.client = store.client()
        self.problems: list[str] = []

    def read(self, start: datetime | None) -> Tables:
        """Read everything that a report needs.

        Raises:
            UserError: The store does not answer.
        """
        runs, experiments = self._search(start)
        latest = self._latest_of_each_recipe(runs)
        finished = [run.info.run_id for run in runs if _is_benchmark_run(run) and run.info.status == "FINISHED"]
        with (
            TemporaryDirectory(prefix="resnet-bench-report-") as scratch,
            ThreadPoolExecutor(HTTP_THREADS if self.store.is_server else 1) as pool,
        ):
            artifacts = _Artifacts(self.client, Path(scratch), self.problems)
            texts = dict(zip(latest, pool.map(artifacts.benchmark, latest), strict=True))
            confusion = chain.from_iterable(pool.map(artifacts.confusion, finished))
            mistakes = chain.from_iterable(
                pool.map(artifacts.mistakes, [run_id for run_id in latest if run_id in finished])
            )
            wanted, once = _wanted_metrics(runs, latest)
            metrics = chain(once, *pool.map(self._history, wanted))
            name = public_name(self.store.shown)
            return Tables(
                runs=tidy(
                    [
                        _run_row(run, name, experiments.get(run.info.experiment_id, ""), texts.get(run.info.run_id, ""))
                        for run in runs
                    ],
                    RUN_DTYPES,
                ),
                metrics=tidy(list(metrics), METRIC_DTYPES),
                confusion=tidy(list(confusion), CONFUSION_DTYPES),
                mistakes=tidy(list(mistakes), MISTAKE_DTYPES),
                stores=(name,),
                problems=tuple(self.problems),
            )

    def _search(self, start: datetime | None) -> tuple[list["Run"], dict[str, str]]:
        client = self.client
        filters = [f"tags.`{TAG}role` LIKE '%'"]
        if start is not None:
            filters.append(f"attributes.start_time >= {int(start.timestamp() * 1000)}")
        try:
            experiments = {e.experiment_id: e.name for e in _pages(client.search_experiments)}
            found = list(
                _pages(
                    lambda page_token: client.search_runs(
                        list(experiments), " AND ".join(filters), max_results=1000, page_token=page_token
                    )
                )
            )
        except Exception as error:  # whatever the database driver or the server's client raises
            raise UserError(f"{self.store.shown} cannot be read: {self.store.sentence(error)}") from error
        return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id)), experiments

    def _latest_of_each_recipe(self, runs: Sequence["Run"]) -> list[str]:
        latest: dict[tuple[str, ...], str] = {}
        for finished in (False, True):
            for run in runs:
                tags = run.data.tags
                if _is_benchmark_run(run) and (run.info.status == "FINISHED") == finished:
                    key = tuple(tags.get(f"{TAG}{name}", "") for name in ("benchmark", "profile", "fingerprint"))
                    latest[key] = run.info.run_id
        return list(latest.values())

    def _history(self, wanted: tuple[str, str]) -> list[dict[str, Any]]:
        run_id, key = wanted
        axis = "step" if key in STEP_METRICS else "epoch"
        try:
            history = self.client.get_metric_history(run_id, key)
        except Exception as error:  # whatever the database driver or the server's client raises
            self.problems.append(f"run {run_id}: the metric {key} cannot be read: {self.store.sentence(error)}")
            return []
        # Where a run was resumed, a step may have been logged twice; the later value counts.
        values = {point.step: point.value for point in sorted(history, key=lambda point: point.timestamp)}
        return [_metric_row(run_id, key, axis, step, values[step]) for step in _thinned(sorted(values))]


def _require_mlflow_database(store: Store) -> None:
    import sqlalchemy

    path = store.uri.removeprefix("sqlite:///")
    if store.uri.startswith("sqlite:") and not Path(path).is_file():
        raise UserError(f"{store.shown} does not exist; the first run makes it, or name another store with --from")
    engine = sqlalchemy.create_engine(store.uri)
    try:
        tables = set(sqlalchemy.inspect(engine).get_table_names())
    except Exception as error:  # whatever the database driver raises
        raise UserError(f"{store.shown} cannot be read: {store.sentence(error)}") from error
    finally:
        engine.dispose()
    if not {"experiments", "runs", "metrics", "tags"} <= tables:
        raise UserError(f"{store.shown} is no MLflow database; name one with --from")


def _pages(fetch: Callable[..., Any]) -> Iterable[Any]:
    token = None
    while True:
        page = fetch(page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _is_benchmark_run(run: "Run") -> bool:
    return bool(run.data.tags[f"{TAG}role"] == "run")


def _wanted_metrics(runs: Sequence["Run"], latest: Sequence[str]) -> tuple[list[tuple[str, str]], list[dict[str, Any]]]:
    """The metrics whose history is needed, by run and key, and the rows of those that have none."""
    wanted: list[tuple[str, str]] = []
    rows: list[dict[str, Any]] = []
    for run in runs:
        keys = EPOCH_METRICS if _is_benchmark_run(run) else STUDY_METRICS
        if run.info.run_id in latest:
            keys = (*keys, *STEP_METRICS)
        wanted += [(run.info.run_id, key) for key in keys if key in run.data.metrics]
        rows += [
            _metric_row(run.info.run_id, key, "once", 0, value)
            for key, value in run.data.metrics.items()
            if key.startswith(ONCE_PREFIXES)
        ]
    return wanted, rows


def _thinned(steps: Sequence[int]) -> Sequence[int]:
    if len(steps) <= MAX_STEP_POINTS:
        return steps
    places = np.linspace(0, len(steps) - 1, MAX_STEP_POINTS).round().astype(int)
    return [steps[place] for place in places]


def _metric_row(run_id: str, key: str, axis: str, step: int, value: float) -> dict[str, Any]:
    prefix = key.partition("/")[0]
    return {
        "run_id": run_id,
        "metric": key,
        "split": prefix if prefix in SPLITS else "",
        "axis": axis,
        "step": step,
        "value": value,
    }


def _run_row(run: "Run", store: str, experiment: str, benchmark_json: str) -> dict[str, Any]:
    info, tags = run.info, run.data.tags
    own = {key.removeprefix(TAG): value for key, value in tags.items() if key.startswith(TAG)}
    row: dict[str, Any] = {name: own.get(name, "") for name in RUN_DTYPES}
    others = {key: value for key, value in tags.items() if not key.startswith("mlflow.")}
    for name in RUN_DTYPES:
        others.pop(f"{TAG}{name}", None)
    row |= {
        "run_id": info.run_id,
        "store": store,
        "experiment": experiment,
        "name": info.run_name or "",
        "status": info.status,
        "parent_run_id": tags.get("mlflow.parentRunId", ""),
        "started": pd.Timestamp(info.start_time, unit="ms", tz="UTC"),
        "ended": pd.Timestamp(info.end_time, unit="ms", tz="UTC") if info.end_time else pd.NaT,
        "recipe": json.dumps(run.data.params, sort_keys=True),
        "tags": json.dumps(others, sort_keys=True),
        "benchmark_json": benchmark_json,
    }
    for name in ("seed", "parameters", "macs", "trial_number"):
        row[name] = int(own[name]) if re.fullmatch(r"-?\d{1,18}", own.get(name, "")) else None
    for name in ("generated", "code_dirty"):
        row[name] = own.get(name) == "true"
    return row


# --- artifacts -----------------------------------------------------------------------------------


class Mistake(BaseModel):
    """One entry of the artifact ``confident_mistakes.json``."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    index: int = Field(ge=0)
    label: str | int
    predicted: str | int
    confidence: float = Field(ge=0, le=1)
    png_base64: str = Field(max_length=40_000)


class _Artifacts:
    """Reads the small artifacts of runs, none of which is trusted to be what it should be."""

    def __init__(self, client: "MlflowClient", scratch: Path, problems: list[str]) -> None:
        self.client = client
        self.scratch = scratch
        self.problems = problems
        self._sizes: dict[str, dict[str, int]] = {}

    def benchmark(self, run_id: str) -> str:
        """The benchmark that a run was made from, as JSON; empty where there is none or it is damaged."""
        text = self._text(run_id, "benchmark.json")
        if text is None:
            return ""
        try:
            Benchmark.model_validate_json(text)
        except ValidationError as error:
            self._report(run_id, "benchmark.json", first_line(error))
            return ""
        return text

    def confusion(self, run_id: str) -> list[dict[str, Any]]:
        """The confusion matrix of a run as rows."""
        text = self._text(run_id, "confusion_matrix.csv")
        if text is None:
            return []
        try:
            names, *rows = csv.reader(io.StringIO(text))
            counts = np.array([[int(count) for count in row] for row in rows], dtype=np.int64)
        except (ValueError, OverflowError, csv.Error) as error:
            self._report(run_id, "confusion_matrix.csv", first_line(error))
            return []
        if counts.shape != (len(names), len(names)) or counts.min() < 0:
            self._report(run_id, "confusion_matrix.csv", "it is not a square of counts")
            return []
        return [
            {
                "run_id": run_id,
                "label": names[label],
                "predicted": names[predicted],
                "label_index": label,
                "predicted_index": predicted,
                "images": counts[label, predicted],
            }
            for label, predicted in np.argwhere(counts > 0)
        ]

    def mistakes(self, run_id: str) -> list[dict[str, Any]]:
        """The most confidently wrong images of a run, most confident first."""
        text = self._text(run_id, "confident_mistakes.json")
        if text is None:
            return []
        try:
            entries = TypeAdapter(list[Mistake]).validate_json(text)
            entries = sorted(entries, key=lambda entry: -entry.confidence)[:MAX_MISTAKES]
            return [
                {
                    "run_id": run_id,
                    "index": entry.index,
                    "label": str(entry.label),
                    "predicted": str(entry.predicted),
                    "confidence": entry.confidence,
                    "png_base64": redrawn_png(entry.png_base64),
                }
                for entry in entries
            ]
        except (ValidationError, ValueError) as error:
            self._report(run_id, "confident_mistakes.json", first_line(error))
            return []

    def _text(self, run_id: str, name: str) -> str | None:
        """The text of an artifact, or None where it is missing or cannot be read."""
        try:
            size = self._listed(run_id).get(name)
            if size is None:
                return None
            if size > MAX_ARTIFACT_BYTES:
                self._report(run_id, name, f"it has {size:,} bytes, more than {MAX_ARTIFACT_BYTES:,}")
                return None
            folder = self.scratch / run_id
            folder.mkdir(exist_ok=True)
            return Path(self.client.download_artifacts(run_id, name, str(folder))).read_text("utf-8")
        except Exception as error:  # whatever the artifact store's client raises
            self._report(run_id, name, first_line(error))
            return None

    def _listed(self, run_id: str) -> dict[str, int]:
        if run_id not in self._sizes:
            self._sizes[run_id] = {}
            listing = self.client.list_artifacts(run_id)
            self._sizes[run_id] = {entry.path: entry.file_size or 0 for entry in listing if not entry.is_dir}
        return self._sizes[run_id]

    def _report(self, run_id: str, name: str, why: str) -> None:
        self.problems.append(f"run {run_id}: the artifact {name} cannot be read: {why}")


def redrawn_png(encoded: str) -> str:
    """Decode a small PNG in base64 and encode its pixels anew, so that nothing else of the file is kept.

    Raises:
        ValueError: It is not base64, not a PNG, or not a small square-ish picture.
    """
    from PIL import Image

    try:
        data = base64.b64decode(encoded, validate=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                if image.width not in IMAGE_SIDES or image.height not in IMAGE_SIDES:
                    raise ValueError(f"an image has {image.width}×{image.height} pixels, not 8 to 64 a side")
                pixels = image.convert("RGB")
    except (binascii.Error, OSError, SyntaxError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"an image is no PNG in base64 ({first_line(error)})") from error
    buffer = io.BytesIO()
    pixels.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
