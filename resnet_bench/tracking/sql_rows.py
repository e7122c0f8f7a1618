"""Read many runs and their metrics from a SQL store at once.

MLflow's client asks for each metric of each run by itself, and makes an object of every tag and param on the way.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RUNS_PER_QUERY = 500
"""Databases limit how many values a query may name; SQLite at 999 in older versions."""

Point = tuple[str, str, int, int, float]
"""A value that was logged: run, metric, milliseconds since 1970, step, value."""


def read_runs(client: "MlflowClient", experiments: Sequence[str], tag: str, since: int | None = None) -> "list[Run]":
    """Return the runs that have a tag and are not deleted, with their params, tags and last metrics.

    Args:
        client: Of a store in a SQL database.
        experiments: Ids of the experiments that are searched.
        tag: Stored name of the tag.
        since: Only runs started since then, in milliseconds since 1970.

    Raises:
        Exception: Whatever the database's driver raises.
    """
    from mlflow.entities import LifecycleStage, Metric, Param, Run, RunData, RunInfo, RunTag
    from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlParam, SqlRun, SqlTag
    from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME
    from sqlalchemy import select

    runs: Any = SqlRun
    tags: Any = SqlTag
    params: Any = SqlParam
    metrics: Any = SqlLatestMetric
    columns = (
        runs.run_uuid,
        runs.name,
        runs.experiment_id,
        runs.user_id,
        runs.status,
        runs.start_time,
        runs.end_time,
        runs.lifecycle_stage,
        runs.artifact_uri,
    )
    wanted: Any = select(*columns).where(
        runs.experiment_id.in_([int(experiment) for experiment in experiments]),
        runs.lifecycle_stage == LifecycleStage.ACTIVE,
        select(tags.key).where(tags.run_uuid == runs.run_uuid, tags.key == tag).exists(),
    )
    if since is not None:
        wanted = wanted.where(runs.start_time >= since)
    found = []
    with closing(_connect(client)) as connection:
        rows = list(connection.execute(wanted))
        for some in _chunks([row.run_uuid for row in rows]):
            data: dict[str, tuple[list[Any], list[Any], list[Any]]] = defaultdict(lambda: ([], [], []))
            for run, key, value in connection.execute(
                select(tags.run_uuid, tags.key, tags.value).where(tags.run_uuid.in_(some))
            ):
                data[run][0].append(RunTag(key, value))
            for run, key, value in connection.execute(
                select(params.run_uuid, params.key, params.value).where(params.run_uuid.in_(some))
            ):
                data[run][1].append(Param(key, value))
            for run, key, value, is_nan, moment, step in connection.execute(
                select(
                    metrics.run_uuid, metrics.key, metrics.value, metrics.is_nan, metrics.timestamp, metrics.step
                ).where(metrics.run_uuid.in_(some))
            ):
                data[run][2].append(Metric(key, math.nan if is_nan else value, moment, step))
            found += [(run, data[run]) for run in some]
    return [
        Run(
            RunInfo(
                run_id=row.run_uuid,
                run_name=row.name or next((tag.value for tag in its_tags if tag.key == MLFLOW_RUN_NAME), None),
                experiment_id=str(row.experiment_id),
                user_id=row.user_id,
                status=row.status,
                start_time=row.start_time,
                end_time=row.end_time,
                lifecycle_stage=row.lifecycle_stage,
                artifact_uri=row.artifact_uri,
            ),
            RunData(metrics=its_metrics, params=its_params, tags=its_tags),
        )
        for row, (_, (its_tags, its_params, its_metrics)) in zip(rows, found, strict=True)
    ]


def read_points(client: "MlflowClient", runs: Sequence[str], metrics: Sequence[str]) -> Iterator[list[Point]]:
    """Yield every value of these metrics of these runs, some runs at a time and in no particular order.

    Args:
        client: Of a store in a SQL database.
        runs: Ids of runs.
        metrics: Stored names.

    Raises:
        Exception: Whatever the database's driver raises.
    """
    from mlflow.store.tracking.dbmodels.models import SqlMetric
    from sqlalchemy import select

    table: Any = SqlMetric
    columns = (table.run_uuid, table.key, table.timestamp, table.step, table.value, table.is_nan)
    with closing(_connect(client)) as connection:
        for some in _chunks(runs):
            query: Any = select(*columns).where(table.run_uuid.in_(some), table.key.in_(metrics))
            yield [
                (run, metric, moment, step, math.nan if is_nan else value)
                for run, metric, moment, step, value, is_nan in connection.execute(query)
            ]


def _connect(client: "MlflowClient") -> Any:
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    return create_engine(client.tracking_uri, poolclass=NullPool).connect()


def _chunks(runs: Sequence[str]) -> Iterator[Sequence[str]]:
    return (runs[start : start + RUNS_PER_QUERY] for start in range(0, len(runs), RUNS_PER_QUERY))
