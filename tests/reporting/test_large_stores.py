"""Stores of thousands of runs: a copy of a store with more runs, and metrics that are read for many runs at once."""

import sqlite3
from pathlib import Path

import pandas as pd
import pytest

from resnet_bench.base.errors import UserError
from resnet_bench.base.uris import sqlite_path
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.reporting import mlflow_reader, reading
from resnet_bench.reporting.tables import TABLES, Tables
from tests.reporting.synthetic import FakeRun, log_all
from tools.report import enlarge


def test_a_store_is_enlarged_by_runs_with_seeds_of_their_own(fresh_uri: str, benchmarks: dict[str, Benchmark]) -> None:
    log_all(fresh_uri, FakeRun(benchmarks["ranged"]), FakeRun(benchmarks["ranged"], seed=1, status="FAILED"))
    path = sqlite_path(fresh_uri)
    assert path is not None
    assert enlarge(path, 7) == 7
    read = reading.read([fresh_uri])
    finished = read.runs[read.runs["status"] == "FINISHED"]
    assert (len(read.runs), len(finished), finished["seed"].nunique()) == (7, 6, 6)
    assert read.metrics.groupby("run_id").size().loc[list(finished["run_id"])].nunique() <= 2, "one has learning rates"
    assert read.confusion["run_id"].nunique() == 6, "copies share the artifacts"


def test_a_store_without_a_finished_run_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE runs (run_uuid, status, lifecycle_stage, start_time)")
        connection.execute("CREATE TABLE tags (run_uuid, key, value)")
    connection.close()
    with pytest.raises(UserError, match="no finished run to copy"):
        enlarge(path, 5)


def test_runs_and_metrics_read_together_are_those_read_by_mlflow(
    store_uri: str, store_tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("this driver cannot")

    monkeypatch.setattr(mlflow_reader, "read_runs", refuse)
    monkeypatch.setattr(mlflow_reader, "read_points", refuse)
    one_by_one = reading.read([store_uri])
    for name in TABLES:
        pd.testing.assert_frame_equal(getattr(one_by_one, name), getattr(store_tables, name))


def test_a_server_is_asked_for_each_metric(
    store_uri: str, store_tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server's database is not at hand, and its artifacts may be on another machine."""
    monkeypatch.setattr(mlflow_reader, "read_runs", None)
    monkeypatch.setattr(mlflow_reader, "read_points", None)
    monkeypatch.setattr("resnet_bench.tracking.store.Store.is_server", property(lambda _: True))
    read = reading.read([store_uri])
    pd.testing.assert_frame_equal(read.metrics, store_tables.metrics)


def test_runs_read_together_leave_out_what_a_search_leaves_out(
    fresh_uri: str, benchmarks: dict[str, Benchmark]
) -> None:
    from mlflow import MlflowClient

    runs = [FakeRun(benchmarks["ranged"], seed=seed) for seed in range(3)]
    ids = log_all(fresh_uri, *runs)
    client = MlflowClient(fresh_uri)
    client.delete_run(ids[0])
    client.create_run(client.get_run(ids[1]).info.experiment_id, run_name="of another program")
    assert set(reading.read([fresh_uri]).runs["run_id"]) == set(ids[1:])
    since = pd.Timestamp(client.get_run(ids[2]).info.start_time, unit="ms", tz="UTC").to_pydatetime()
    assert list(reading.read([fresh_uri], since=since).runs["run_id"]) == [ids[2]]
