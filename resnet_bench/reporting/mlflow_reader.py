"""Read one MLflow store into tables; what cannot be read is collected as sentences."""

import logging
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from resnet_bench.base.errors import UserError
from resnet_bench.base.text import plural
from resnet_bench.reporting.anonymize import public_name
from resnet_bench.reporting.run_artifacts import RunArtifacts
from resnet_bench.reporting.tables import (
    CONFUSION_DTYPES,
    GROUP_COLUMNS,
    METRIC_DTYPES,
    MISTAKE_DTYPES,
    RUN_COLUMNS,
    RUN_DTYPES,
    StoredRun,
    Tables,
    tidy,
)
from resnet_bench.tracking.mlflow_client import pages
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.vocabulary import (
    EPOCH_METRICS,
    LEARNING_RATE,
    ONCE_PREFIXES,
    PREFIX,
    SPLITS,
    current_metric,
    diverged_metric,
    restored,
)

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

STUDY_METRICS = frozenset(("validation/accuracy", "test/accuracy", "time/train_seconds"))
"""Read for trials and for retraining runs."""

_log = logging.getLogger(__name__)

MAX_STEP_POINTS = 400
HTTP_THREADS = 8


class StoreReader:
    """Reads one store; what cannot be read is collected as sentences."""

    def __init__(self, store: Store) -> None:
        """Open the store for reading; it stays as it is.

        Raises:
            UserError: There is no such store, or what is there is not an MLflow store.
        """
        self.store = store
        self.client = store.reader()
        self.problems: list[str] = []

    def read(self, start: datetime | None) -> Tables:
        """Read everything that a report needs.

        Args:
            start: Only runs started since then.

        Raises:
            UserError: The store does not answer.
        """
        found, experiments = self._search(start)
        name = public_name(self.store.redacted_uri)
        rows = [self._row(StoredRun(run, name, experiments.get(run.info.experiment_id, ""))) for run in found]
        latest = _latest_of_each_experiment(rows)
        finished = [row["run_id"] for row in rows if row["role"] == "run" and row["status"] == "FINISHED"]
        with (
            TemporaryDirectory(prefix="resnet-bench-report-") as scratch,
            ThreadPoolExecutor(HTTP_THREADS if self.store.is_server else 1) as pool,
        ):
            _log.info("reading %s: %s", name, plural(len(rows), "run"))
            artifacts = RunArtifacts(self.client, Path(scratch), self.problems)
            texts = dict(zip(latest, pool.map(artifacts.benchmark, latest), strict=True))
            confusion = chain.from_iterable(pool.map(artifacts.confusion, finished))
            pictured = [run_id for run_id in finished if run_id in texts]
            mistakes = chain.from_iterable(pool.map(artifacts.mistakes, pictured))
            wanted, once = _wanted_metrics(found, rows, texts)
            histories = []
            for history in pool.map(self._history, wanted):
                histories.append(history)
                done = f"{len(histories):,} of {len(wanted):,} metrics"
                _log.info("reading %s: %s, %s", name, plural(len(rows), "run"), done)
            metrics = chain(once, *histories)
            return Tables(
                runs=tidy([row | {"benchmark_json": texts.get(row["run_id"], "")} for row in rows], RUN_DTYPES),
                metrics=tidy(list(metrics), METRIC_DTYPES),
                confusion=tidy(list(confusion), CONFUSION_DTYPES),
                mistakes=tidy(list(mistakes), MISTAKE_DTYPES),
                stores=(name,),
                problems=tuple(self.problems),
            )

    def _search(self, start: datetime | None) -> tuple[list["MlflowRun"], dict[str, str]]:
        client = self.client
        filters = [f"tags.`{PREFIX}role` LIKE '%'"]
        if start is not None:
            filters.append(f"attributes.start_time >= {int(start.timestamp() * 1000)}")
        try:
            experiments = {e.experiment_id: e.name for e in pages(client.search_experiments)}
            found = list(pages(client.search_runs, list(experiments), " AND ".join(filters), max_results=1000))
        except Exception as error:  # whatever the database driver or the server's client raises
            raise UserError(f"{self.store.redacted_uri} cannot be read: {self.store.describe_error(error)}") from error
        return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id)), experiments

    def _row(self, stored: StoredRun) -> dict[str, Any]:
        """Return a run as a row of the table, and name the numbers that cannot be read."""
        row = {column.name: column.cell(stored) for column in RUN_COLUMNS}
        for name, cell in row.items():
            if cell is None and (text := stored.tag(name)):
                self.problems.append(f"run {row['run_id']}: its {name} {text!r} cannot be read and is left out")
        if row["status"] == "FINISHED" and (lost := diverged_metric(stored.run.data.metrics)):
            row |= {"status": "FAILED", "reason": f"diverged: {lost}"}
        return row

    def _history(self, wanted: tuple[str, str]) -> list[dict[str, Any]]:
        run_id, key = wanted
        try:
            history = self.client.get_metric_history(run_id, key)
        except Exception as error:  # whatever the database driver or the server's client raises
            self.problems.append(f"run {run_id}: the metric {key} cannot be read: {self.store.describe_error(error)}")
            return []
        # Where a run was resumed, a step may have been logged twice; the later value counts.
        values = {point.step: point.value for point in sorted(history, key=lambda point: point.timestamp)}
        axis = "step" if key == LEARNING_RATE else "epoch"
        return [_metric_row(run_id, key, axis, step, values[step]) for step in _thinned(sorted(values))]


def _latest_of_each_experiment(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the ids of the runs that speak for their experiment: the latest that finished, else the latest."""
    latest: dict[tuple[Any, ...], str] = {}
    for finished in (False, True):
        for row in rows:
            if row["role"] == "run" and (row["status"] == "FINISHED") == finished:
                latest[tuple(row[name] for name in GROUP_COLUMNS)] = row["run_id"]
    return list(latest.values())


def _wanted_metrics(
    runs: Sequence["MlflowRun"], rows: Sequence[Mapping[str, Any]], latest: Collection[str]
) -> tuple[list[tuple[str, str]], list[dict[str, Any]]]:
    """Return the metrics whose history is needed, by run and stored name, and the rows of those without history."""
    wanted: list[tuple[str, str]] = []
    once: list[dict[str, Any]] = []
    for run, row in zip(runs, rows, strict=True):
        run_id = row["run_id"]
        names = frozenset(EPOCH_METRICS) if row["role"] == "run" else STUDY_METRICS
        if run_id in latest:
            # It follows from the recipe, so that one run of each experiment is enough.
            names |= {LEARNING_RATE}
        for key, value in run.data.metrics.items():
            if current_metric(key) in names:
                wanted.append((run_id, key))
            elif key.startswith(ONCE_PREFIXES):
                once.append(_metric_row(run_id, key, "once", 0, value))
    return wanted, once


def _thinned(steps: Sequence[int]) -> Sequence[int]:
    if len(steps) <= MAX_STEP_POINTS:
        return steps
    places = np.linspace(0, len(steps) - 1, MAX_STEP_POINTS).round().astype(int)
    return [steps[place] for place in places]


def _metric_row(run_id: str, key: str, axis: str, step: int, value: float) -> dict[str, Any]:
    """Return a measurement as a row of the table; names and values pass through here, and nowhere else."""
    prefix = key.partition("/")[0]
    return {
        "run_id": run_id,
        "metric": current_metric(key),
        "split": prefix if prefix in SPLITS else "",
        "axis": axis,
        "step": step,
        "value": restored(value),
    }
