"""Time `report` on a large store: the runs of a store are copied, with new seeds, until there are enough of them.

    python tools/report.py --from sqlite:///mlflow.db --runs 10000

The goal is 60 s for 10,000 runs on two cores. The copies share the artifacts of the runs that they are copied from; the
store itself stays as it is.
"""

import argparse
import contextlib
import sqlite3
import sys
import tempfile
import time
import uuid
from pathlib import Path

from resnet_bench.base.errors import UserError
from resnet_bench.reporting import report
from resnet_bench.tracking.store import Store

TABLES = ("runs", "params", "tags", "metrics", "latest_metrics")
"""MLflow's tables of runs and of what they logged."""


def enlarge(database: Path, runs: int) -> int:
    """Copy the finished runs of a database, each time with another seed, until there are so many.

    Returns:
        How many there are; those that ended in another way are not copied, and count.
    """
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        # Without it every row would be written to the disk for itself.
        connection.execute("PRAGMA synchronous = OFF")
        (count,) = connection.execute("SELECT COUNT(*) FROM runs").fetchone()
        originals = connection.execute(
            "SELECT run_uuid FROM runs JOIN tags USING (run_uuid) "
            "WHERE status = 'FINISHED' AND lifecycle_stage = 'active' "
            "AND key = 'resnet_bench.role' AND value = 'run' ORDER BY start_time"
        ).fetchall()
        if not originals:
            raise UserError("the store has no finished run to copy")
        copies = [
            (originals[place % len(originals)][0], uuid.uuid4().hex, str(1000 + place // len(originals)))
            for place in range(max(0, runs - count))
        ]
        connection.execute("CREATE TEMP TABLE copies (original TEXT, copy TEXT, seed TEXT)")
        connection.executemany("INSERT INTO copies VALUES (?, ?, ?)", copies)
        for table in TABLES:
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            taken = ", ".join("copy" if column == "run_uuid" else f"{table}.{column}" for column in columns)
            connection.execute(
                f"INSERT INTO {table} ({', '.join(columns)}) "  # noqa: S608 - names of MLflow's own schema
                f"SELECT {taken} FROM {table} JOIN copies ON {table}.run_uuid = original"
            )
        connection.execute(
            "UPDATE tags SET value = (SELECT seed FROM copies WHERE copy = run_uuid) "
            "WHERE key = 'resnet_bench.seed' AND run_uuid IN (SELECT copy FROM copies)"
        )
    return count + len(copies)


def main() -> None:
    """Parse the options, enlarge a copy of the store, and time a report of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--from", dest="store", default=None, help="a SQLite store with finished runs")
    parser.add_argument("--runs", type=int, default=10_000, help="how many runs the report reads (default: 10000)")
    options = parser.parse_args()
    store = Store.resolve(options.store)
    if store.path is None:
        raise UserError(f"{store.redacted_uri} is not a SQLite database; name one with --from")
    if not store.path.is_file():
        raise UserError(f"{store.path} does not exist; name a store with --from")
    with tempfile.TemporaryDirectory(prefix="resnet-bench-report-") as scratch:
        database = Path(scratch) / "mlflow.db"
        with (
            contextlib.closing(sqlite3.connect(store.path)) as original,
            contextlib.closing(sqlite3.connect(database)) as copy,
        ):
            original.backup(copy)
        began = time.perf_counter()
        runs = enlarge(database, options.runs)
        print(f"{runs:,} runs written in {time.perf_counter() - began:.1f} s")
        wall, cpu = time.perf_counter(), time.process_time()
        written = report.write(f"sqlite:///{database}", Path(scratch) / "report")
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(f"report of {written.runs:,} runs: {wall:.1f} s, {cpu:.1f} s of CPU time")
        for problem in written.problems[:5]:
            print(problem)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
