"""What a report hands on says nothing about the machine but its devices."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd

from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.reporting import reading, report
from resnet_bench.reporting.anonymize import anonymized, machine_name
from tests.reporting.synthetic import FakeRun, log_all


def test_neither_host_nor_process_nor_path_is_handed_on(
    fresh_uri: str, benchmarks: dict[str, Benchmark], tmp_path: Path
) -> None:
    run = FakeRun(
        benchmarks["ranged"], tags={"resnet_bench.pid": "4194304711", "resnet_bench.pid_start": "boot/4194304711"}
    )
    killed = "its process 4194304711 on test-host is gone"
    full = "OSError: No space left on device: '/home/me/secret/runs/x.bin'"
    note = {"team": "ran on test-host in /home/me/secret", "link": "https://example.org/a/b"}
    log_all(
        fresh_uri,
        run,
        replace(run, seed=1, status="KILLED", reason=killed),
        replace(run, seed=2, status="FAILED", reason=full),
        replace(run, seed=3, tags=note),
    )
    missing = tmp_path / "deep" / "down" / "mlflow.db"
    result = report.write([fresh_uri, str(missing), f"sqlite:///{missing}"], tmp_path / "out")
    for file in ("index.html", "report.md", "runs.csv", "metrics.csv"):
        text = (tmp_path / "out" / file).read_text()
        for secret in ("test-host", "4194304711", "/home/me", str(tmp_path)):
            assert secret not in text, (file, secret)
    assert "does not exist" in " ".join(result.problems)
    runs = pd.read_parquet(tmp_path / "out" / "runs.parquet").sort_values("seed")
    assert set(runs["host"]) == {machine_name("test-host")}
    assert list(runs["reason"])[1:3] == ["its process is gone", "OSError: No space left on device: '…/runs/x.bin'"]
    assert json.loads(runs["tags"].iloc[3])["link"] == "https://example.org/a/b"
    assert json.loads(runs["tags"].iloc[3])["team"] == f"ran on {machine_name('test-host')} in …/me/secret"
    assert set(runs["device"]) == {"Test GPU"}


def test_what_was_published_is_published_again_unchanged(store_uri: str) -> None:
    once = anonymized(reading.read([store_uri]))
    again = anonymized(once)
    pd.testing.assert_frame_equal(once.runs, again.runs)
    assert once.stores == again.stores


def test_machines_are_told_apart_without_their_names() -> None:
    assert machine_name("a") != machine_name("b")
    assert machine_name(machine_name("a")) == machine_name("a")
    assert machine_name("") == ""
