"""Read metrics of many runs from a SQL store at once: MLflow's client asks for each metric of each run by itself."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUNS_PER_QUERY = 500
"""Databases limit how many values a query may name; SQLite at 999 in older versions."""

Point = tuple[str, str, int, int, float]
"""A value that was logged: run, metric, milliseconds since 1970, step, value."""


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
    from sqlalchemy import create_engine, select
    from sqlalchemy.pool import NullPool

    table: Any = SqlMetric
    columns = (table.run_uuid, table.key, table.timestamp, table.step, table.value, table.is_nan)
    left = iter(runs)
    with create_engine(client.tracking_uri, poolclass=NullPool).connect() as connection:
        while some := list(islice(left, RUNS_PER_QUERY)):
            query: Any = select(*columns).where(table.run_uuid.in_(some), table.key.in_(metrics))
            yield [
                (run, metric, moment, step, float("nan") if is_nan else value)
                for run, metric, moment, step, value, is_nan in connection.execute(query)
            ]
