"""Read one MLflow store into tables; what cannot be read is collected as sentences."""

import logging
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from itertools import chain, combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from resnet_bench.base.errors import UserError
from resnet_bench.base.text import plural
from resnet_bench.judging.networks import compare_networks
from resnet_bench.judging.seeds import one_per_seed
from resnet_bench.reporting.anonymize import public_name
from resnet_bench.reporting.run_artifacts import RunArtifacts
from resnet_bench.reporting.tables import (
    CHURN_DTYPES,
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
from resnet_bench.tracking.sql_rows import Point, read_points, read_runs
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.vocabulary import (
    EPOCH_METRICS,
    LARGEST_MEASUREMENT,
    LEARNING_RATE,
    ONCE_PREFIXES,
    PREFIX,
    SPLITS,
    current_metric,
    current_metrics,
    diverged_metric,
    restored,
)

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

STUDY_METRICS = frozenset(("validation/accuracy", "test/accuracy", "time/train_seconds"))
"""Read for trials and for retraining runs."""

MAX_STEP_POINTS = 400
MAX_CHURN_RUNS = 10
"""Runs of an experiment whose predictions are compared in pairs."""
HTTP_THREADS = 8
_log = logging.getLogger(__name__)


_EPOCH = pd.Timestamp(0, tz="UTC")


class _FinishedRun(NamedTuple):
    id: str
    seed: int | None
    device: str
    started: datetime


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
            reading = f"reading {name}: {plural(len(rows), 'run')}"
            _log.info("%s", reading)
            artifacts = RunArtifacts(
                self.client, Path(scratch), self.problems, {run.info.run_id: run.info.artifact_uri for run in found}
            )
            texts = dict(zip(latest, pool.map(artifacts.benchmark, latest), strict=True))
            confusion = chain.from_iterable(pool.map(artifacts.confusion, finished))
            pictured = [run_id for run_id in finished if run_id in texts]
            mistakes = chain.from_iterable(pool.map(artifacts.mistakes, pictured))
            churn = chain.from_iterable(pool.map(partial(_churn, artifacts), _seeds_of_each_experiment(rows)))
            wanted, once = _wanted_metrics(found, rows, texts)
            points = self._points(wanted, pool, reading)
            return Tables(
                runs=tidy([row | {"benchmark_json": texts.get(row["run_id"], "")} for row in rows], RUN_DTYPES),
                metrics=_metrics_table(points, once, [row["run_id"] for row in rows]),
                confusion=tidy(list(confusion), CONFUSION_DTYPES),
                mistakes=tidy(list(mistakes), MISTAKE_DTYPES),
                churn=tidy(list(churn), CHURN_DTYPES),
                stores=(name,),
                problems=tuple(self.problems),
            )

    def _search(self, start: datetime | None) -> tuple[list["MlflowRun"], dict[str, str]]:
        since = None if start is None else int(start.timestamp() * 1000)
        try:
            experiments = {e.experiment_id: e.name for e in pages(self.client.search_experiments)}
            found = self._runs_of(list(experiments), since)
        except Exception as error:  # whatever the database driver or the server's client raises
            raise UserError(f"{self.store.redacted_uri} cannot be read: {self.store.describe_error(error)}") from error
        return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id)), experiments

    def _runs_of(self, experiments: Sequence[str], since: int | None) -> list["MlflowRun"]:
        """Return the runs of the suite; a database is asked for all of them at once."""
        if not self.store.is_server:
            try:
                return read_runs(self.client, experiments, f"{PREFIX}role", since)
            except Exception as error:  # whatever the database driver raises
                _log.debug("the runs are read by MLflow: %s", self.store.describe_error(error))
        filters = [f"tags.`{PREFIX}role` LIKE '%'"]
        if since is not None:
            filters.append(f"attributes.start_time >= {since}")
        return list(pages(self.client.search_runs, experiments, " AND ".join(filters), max_results=1000))

    def _row(self, stored: StoredRun) -> dict[str, Any]:
        """Return a run as a row of the table, and name the numbers that cannot be read."""
        row = {column.name: column.cell(stored) for column in RUN_COLUMNS}
        for name, cell in row.items():
            if cell is None and (text := stored.tag(name)):
                self.problems.append(f"run {row['run_id']}: its {name} {text!r} cannot be read and is left out")
        if row["status"] == "FINISHED" and (lost := diverged_metric(stored.run.data.metrics)):
            row |= {"status": "FAILED", "reason": f"diverged: {lost}"}
        return row

    def _points(
        self, wanted: Mapping[frozenset[str], Sequence[str]], pool: ThreadPoolExecutor, reading: str
    ) -> list[Point]:
        """Return every value of the wanted metrics; a database is asked for many runs at once."""
        points: list[Point] = []
        if not self.store.is_server:
            try:
                for names, runs in wanted.items():
                    for some in read_points(self.client, runs, sorted(names)):
                        points += some
                        _log.info("%s, %s", reading, plural(len(points), "value"))
            except Exception as error:  # whatever the database driver raises
                _log.debug("the metrics are read one by one: %s", self.store.describe_error(error))
                points.clear()
            else:
                return points
        each = [(run_id, name) for names, runs in wanted.items() for run_id in runs for name in sorted(names)]
        for done, some in enumerate(pool.map(self._history, each), start=1):
            points += some
            _log.info("%s, %s", reading, f"{done:,} of {len(each):,} metrics")
        return points

    def _history(self, wanted: tuple[str, str]) -> list[Point]:
        run_id, key = wanted
        try:
            history = self.client.get_metric_history(run_id, key)
        except Exception as error:  # whatever the database driver or the server's client raises
            self.problems.append(f"run {run_id}: the metric {key} cannot be read: {self.store.describe_error(error)}")
            return []
        return [(run_id, key, point.timestamp, point.step, point.value) for point in history]


def _latest_of_each_experiment(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the ids of the runs that speak for their experiment: the latest that finished, else the latest."""
    latest: dict[tuple[Any, ...], str] = {}
    for finished in (False, True):
        for row in rows:
            if row["role"] == "run" and (row["status"] == "FINISHED") == finished:
                latest[tuple(row[name] for name in GROUP_COLUMNS)] = row["run_id"]
    return list(latest.values())


def _seeds_of_each_experiment(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return for each experiment the ids of its runs that count, one per seed and newest first, if it has several."""
    experiments: dict[tuple[Any, ...], list[_FinishedRun]] = defaultdict(list)
    for row in rows:
        if row["role"] == "run" and row["status"] == "FINISHED":
            started = _EPOCH if pd.isna(row["started"]) else row["started"]
            run = _FinishedRun(row["run_id"], row["seed"], row["device"], started)
            experiments[tuple(row[name] for name in GROUP_COLUMNS)].append(run)
    counted = [
        sorted(one_per_seed(runs), key=lambda run: (run.started, run.id), reverse=True) for runs in experiments.values()
    ]
    return [[run.id for run in seeds[:MAX_CHURN_RUNS]] for seeds in counted if len(seeds) > 1]


def _churn(artifacts: RunArtifacts, run_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Compare the predictions of each pair of some runs; those on other images are left out."""
    kept = [(run_id, kinds) for run_id in run_ids if (kinds := artifacts.predictions(run_id)) is not None]
    rows = []
    for (run_id, (labels, first)), (other_id, (other_labels, second)) in combinations(kept, 2):
        if not len(labels) or not np.array_equal(labels, other_labels):
            continue
        found = compare_networks(labels, first, second)
        rows.append(
            {
                "run_id": run_id,
                "other_id": other_id,
                "images": found.images,
                "only_first": found.only_first,
                "only_second": found.only_second,
                "differing": len(found.differing),
            }
        )
    return rows


def _wanted_metrics(
    runs: Sequence["MlflowRun"], rows: Sequence[Mapping[str, Any]], latest: Collection[str]
) -> tuple[dict[frozenset[str], list[str]], list[Point]]:
    """Return the runs by the stored names of the metrics whose history is needed, and the values without history."""
    wanted: dict[frozenset[str], list[str]] = {}
    once: list[Point] = []
    for run, row in zip(runs, rows, strict=True):
        run_id = row["run_id"]
        names = frozenset(EPOCH_METRICS) if row["role"] == "run" else STUDY_METRICS
        if run_id in latest:
            # It follows from the recipe, so that one run of each experiment is enough.
            names |= {LEARNING_RATE}
        stored = frozenset(key for key in run.data.metrics if current_metric(key) in names)
        wanted.setdefault(stored, []).append(run_id)
        once += [
            (run_id, key, 0, 0, value)
            for key, value in current_metrics(run.data.metrics).items()
            if key not in names and key.startswith(ONCE_PREFIXES)
        ]
    return wanted, once


def _metrics_table(points: Sequence[Point], once: Sequence[Point], runs: Sequence[str]) -> pd.DataFrame:
    """Return measurements as the table of metrics, in the order of the runs; names and values pass through here alone.

    Args:
        points: Values of every epoch or step.
        once: Values that were logged once.
        runs: Ids of the runs.
    """
    parts = []
    for axis, values in (("once", once), ("epoch", points)):
        part = pd.DataFrame(values, columns=["run_id", "metric", "moment", "step", "value"])
        part["axis"] = axis
        parts.append(part.astype({"run_id": "str", "metric": "str", "step": "int64", "value": "float64"}))
    frame = pd.concat(parts, ignore_index=True)
    names = {name: current_metric(name) for name in frame["metric"].unique()}
    frame["metric"] = frame["metric"].map(names)
    frame.loc[(frame["axis"] == "epoch") & (frame["metric"] == LEARNING_RATE), "axis"] = "step"
    splits = {name: prefix if (prefix := name.partition("/")[0]) in SPLITS else "" for name in names.values()}
    frame["split"] = frame["metric"].map(splits)
    large = frame["value"].abs() >= LARGEST_MEASUREMENT
    frame.loc[large, "value"] = frame.loc[large, "value"].map(restored)
    frame["run"] = frame["run_id"].map({run_id: place for place, run_id in enumerate(runs)})
    key = ["run", "axis", "metric", "step"]
    # Where a run was resumed, a step may have been logged twice; the later value counts.
    frame = frame.sort_values([*key, "moment", "value"]).drop_duplicates(key, keep="last", ignore_index=True)
    steps = frame.index[frame["axis"] == "step"]
    kept = [
        places[place]
        for places in frame.loc[steps].groupby(["run", "metric"]).indices.values()
        for place in _thinned(range(len(places)))
    ]
    frame = frame.drop(index=steps.difference(steps[sorted(kept)]))
    return frame[list(METRIC_DTYPES)].astype(dict(METRIC_DTYPES)).reset_index(drop=True)


def _thinned(steps: Sequence[int]) -> Sequence[int]:
    if len(steps) <= MAX_STEP_POINTS:
        return steps
    places = np.linspace(0, len(steps) - 1, MAX_STEP_POINTS).round().astype(int)
    return [steps[place] for place in places]
