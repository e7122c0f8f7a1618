"""Made-up stores, each written once a session."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.writing import to_toml
from resnet_bench.reporting import reading, report, runs
from resnet_bench.reporting.report import ReportResult
from resnet_bench.reporting.runs import RunGroup
from resnet_bench.reporting.tables import Tables
from tests.reporting import synthetic
from tests.reporting.synthetic import FakeRun

NASTY = '</script><script>document.title="owned"</script><img src=x onerror=alert(1)>"onload="a` | x'


@pytest.fixture(scope="session")
def benchmarks() -> dict[str, Benchmark]:
    """The benchmarks that the made-up runs are of; ``unseen`` has none."""
    made = [
        synthetic.benchmark(
            "nine-onecycle",
            [
                {
                    "value": "90.5",
                    "runs": 1,
                    "curve": {"epochs": [1, 2, 4, 8], "values": [48.4, 61.0, 82.0, 90.5]},
                    "wall_seconds": 240.0,
                    "wall_includes": [],
                },
                {"value": "96.0", "split": "train", "selection": "unknown"},
            ],
        ),
        synthetic.benchmark("at-least", [{"at_least": 90.0}], epochs=6),
        synthetic.benchmark("too-few", [{"value": "82.87", "selection": "epoch", "epoch": 8}]),
        synthetic.benchmark("ranged", [{"range": [62.0, 63.0]}], epochs=10),
        synthetic.benchmark("no-claim"),
        synthetic.benchmark("tried-only", [{"value": "87"}]),
        synthetic.benchmark("unseen", [{"value": "95.170"}]),
    ]
    return {bench.name: bench for bench in made}


@pytest.fixture(scope="session")
def benchmarks_folder(benchmarks: dict[str, Benchmark], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with those benchmarks as files."""
    folder = tmp_path_factory.mktemp("benchmarks")
    for bench in benchmarks.values():
        (folder / f"{bench.name}.toml").write_text(to_toml(bench))
    return folder


@pytest.fixture
def fresh_uri(empty_database: Path, tmp_path: Path) -> str:
    """An MLflow database of a test's own, without a run."""
    return synthetic.database(empty_database, tmp_path / "fresh")


@pytest.fixture(scope="session")
def store_uri(empty_database: Path, benchmarks: dict[str, Benchmark], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with what a suite leaves behind: full and smoke runs, failures, a study, two devices."""
    from mlflow import MlflowClient

    uri = synthetic.database(empty_database, tmp_path_factory.mktemp("store"))
    client = MlflowClient(uri)
    for minute, run in enumerate(suite_runs(benchmarks)):
        synthetic.log(client, run, minute)
    synthetic.log_study(client, benchmarks["nine-onecycle"], "nine-study", minute=100)
    return uri


def suite_runs(benchmarks: dict[str, Benchmark]) -> list[FakeRun]:
    """The ordinary runs of that store."""
    nine = FakeRun(benchmarks["nine-onecycle"], steps=1000)
    energy = {"energy/joules": 52_000.0, "device/peak_flops": 7.9e14}
    runs = [
        replace(nine, seed=seed, final=final, metrics=energy)
        for seed, final in enumerate([90.31, 90.62, 90.48, 90.12, 90.55])
    ]
    runs += [
        replace(runs[0], seed=seed, final=90.4, device="Test CPU, 2 threads", device_type="cpu", epoch_seconds=360.0)
        for seed in (0, 7)
    ]
    runs += [
        FakeRun(benchmarks["at-least"], seed=seed, final=final, epoch_seconds=0.5)
        for seed, final in enumerate([87.9, 88.1, 88.0, 88.3])
    ]
    runs += [
        FakeRun(benchmarks["too-few"], seed=seed, final=final, validation=True, test_by_epoch=False)
        for seed, final in enumerate([82.4, 82.9])
    ]
    runs += [FakeRun(benchmarks["ranged"], seed=s, final=f) for s, f in enumerate([62.3, 63.4, 61.7])]
    runs += [FakeRun(benchmarks["no-claim"], seed=s, final=f) for s, f in enumerate([91.0, 91.2])]
    runs += [
        FakeRun(benchmarks["tried-only"], profile="smoke", final=41.0, fingerprint="5" * 16, device="Test CPU"),
        FakeRun(benchmarks["nine-onecycle"], profile="smoke", generated=True, final=55.0, data_fingerprint="9" * 64),
        replace(nine, seed=1, final=70.0, overrides={"optimizer.lr": "0.1"}),
        replace(nine, seed=8, status="FAILED", reason="loss is not finite at step 17, learning rate 0.01"),
        replace(nine, seed=9, status="KILLED", reason="interrupted from the keyboard"),
    ]
    return runs


@pytest.fixture(scope="session")
def nasty_uri(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store whose names, tags and titles try to break out of the page."""
    from mlflow import MlflowClient

    bench = synthetic.benchmark("innocent", [{"value": "90.0", "quote": NASTY}], title=NASTY)
    run = FakeRun(
        bench,
        name=NASTY,
        device=NASTY,
        commit=NASTY[:40],
        environment={"torch": NASTY, NASTY: "x"},
        tags={"resnet_bench.dataset": NASTY[:60], "resnet_bench.precision": NASTY[:60], "team": NASTY},
        overrides={"optimizer.lr": NASTY},
        fingerprint=NASTY[:16],
        artifacts={
            "confusion_matrix.csv": '"</script><b>x","y"\n900,100\n50,950\n',
            "confident_mistakes.json": "",
        },
    )
    uri = synthetic.database(empty_database, tmp_path_factory.mktemp("nasty"))
    client = MlflowClient(uri)
    for seed in range(3):
        synthetic.log(client, replace(run, seed=seed, final=90 + seed / 10), seed)
    failed = replace(run, seed=5, status="FAILED", reason=NASTY, tags={"resnet_bench.recipe.benchmark": NASTY})
    synthetic.log(client, failed, 9)
    synthetic.log_study(client, bench, NASTY, minute=20, trials=6)
    return uri


@pytest.fixture(scope="session")
def store_tables(store_uri: str) -> Tables:
    """What is read from that store."""
    return reading.read([store_uri])


@pytest.fixture(scope="session")
def groups(store_tables: Tables) -> list[RunGroup]:
    """The finished runs of that store, those that repeat one experiment together."""
    return runs.group(runs.load(store_tables)[0])


@pytest.fixture(scope="session")
def written(store_uri: str, benchmarks_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ReportResult:
    """A whole report of that store, written once."""
    out = tmp_path_factory.mktemp("report") / "latest"
    return report.write([store_uri], out, benchmarks_folder=benchmarks_folder)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A running Chromium; the test skips where there is none."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs Chromium on the PATH")
    from playwright.sync_api import sync_playwright

    arguments = ["--disable-gpu", "--disable-background-networking", "--no-first-run"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--no-sandbox")  # Chromium refuses its sandbox to root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()
