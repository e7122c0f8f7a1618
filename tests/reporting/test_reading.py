"""Reading stores: what is found, what is refused, and what is read all the same."""

import base64
import contextlib
import io
import json
import math
import re
import sqlite3
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from PIL import Image

from resnet_bench.base.errors import UserError
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.reporting import mlflow_reader, reading, report, run_artifacts, runs
from resnet_bench.reporting.anonymize import public_name
from resnet_bench.reporting.tables import TABLES, Tables
from tests.reporting import synthetic
from tests.reporting.synthetic import FakeRun, log_all

# --- what is found -------------------------------------------------------------------------------


def test_tables_hold_every_run_once(store_tables: Tables) -> None:
    runs = store_tables.runs
    assert runs["run_id"].is_unique
    assert runs["role"].value_counts().to_dict() == {"run": 23, "trial": 10, "retrain": 6, "study": 1}
    assert set(runs["status"]) == {"FINISHED", "FAILED", "KILLED"}
    assert store_tables.problems == ()
    for name, dtypes in TABLES.items():
        frame = getattr(store_tables, name)
        assert {column: str(dtype) for column, dtype in frame.dtypes.items()} == dict(dtypes)


def test_reading_tells_how_far_it_is(
    fresh_uri: str, benchmarks: dict[str, Benchmark], caplog: pytest.LogCaptureFixture
) -> None:
    log_all(fresh_uri, FakeRun(benchmarks["ranged"]))
    caplog.set_level("INFO", "resnet_bench.reporting.mlflow_reader")
    reading.read([fresh_uri])
    told = [text for text in caplog.messages if text.startswith("reading ")]
    assert told[0].endswith("mlflow.db: 1 run")
    assert re.fullmatch(r"1 run, \d\d+ values", told[-1].partition("mlflow.db: ")[2])


def test_metrics_are_tidy_and_complete(store_tables: Tables) -> None:
    metrics = store_tables.metrics
    assert not metrics.duplicated(["run_id", "metric", "axis", "step"]).any()
    run = store_tables.runs.query("benchmark == 'nine-onecycle' and seed == 0 and profile == 'full'").iloc[0]
    own = metrics[metrics["run_id"] == run["run_id"]]
    accuracy = own[own["metric"] == "test/accuracy"].set_index("step")["value"]
    assert list(accuracy.index) == list(range(1, 9))
    assert accuracy[8] == pytest.approx(0.9031)
    assert set(own.loc[own["metric"] == "test/accuracy", "split"]) == {"test"}
    assert own.loc[own["metric"] == "final/train_joules", "axis"].tolist() == ["once"]


def test_step_metrics_are_read_once_a_recipe_and_thinned(store_tables: Tables) -> None:
    rates = store_tables.metrics.query("metric == 'step/learning_rate'")
    assert rates["run_id"].nunique() == 2, "one run of the recipe and one of the changed recipe"
    for _, series in rates.groupby("run_id"):
        assert len(series) == mlflow_reader.MAX_STEP_POINTS
        assert series["step"].iloc[[0, -1]].tolist() == [1, 1000]
        assert series["step"].is_monotonic_increasing


def test_benchmark_is_kept_for_the_latest_run_of_each_recipe(
    store_tables: Tables, benchmarks: dict[str, Benchmark]
) -> None:
    kept = store_tables.runs[store_tables.runs["benchmark_json"] != ""]
    assert not kept.duplicated(["benchmark", "profile", "fingerprint", "data_fingerprint", "generated"]).any()
    ranged = kept[kept["benchmark"] == "ranged"].iloc[0]
    assert Benchmark.model_validate_json(ranged["benchmark_json"]) == benchmarks["ranged"]
    assert ranged["seed"] == 2


def test_confusions_sum_to_the_test_set(store_tables: Tables) -> None:
    totals = store_tables.confusion.groupby("run_id")["images"].sum()
    assert len(totals) == 21, "every finished benchmark run"
    assert (totals == 10_000).all()


def test_mistakes_come_most_confident_first(store_tables: Tables) -> None:
    for _, rows in store_tables.mistakes.groupby("run_id"):
        assert rows["confidence"].is_monotonic_decreasing
        assert len(rows) == 6


def test_a_resumed_run_counts_the_later_value_of_a_step(fresh_uri: str, benchmarks: dict[str, Benchmark]) -> None:
    (run_id,) = log_all(fresh_uri, FakeRun(benchmarks["ranged"], final=60.0))
    MlflowClient(fresh_uri).log_metric(run_id, "test/accuracy", 0.123, synthetic.START + 40_000_000, step=3)
    metrics = reading.read([fresh_uri]).metrics
    third = metrics.query("metric == 'test/accuracy' and step == 3")["value"]
    assert third.tolist() == [0.123]


# --- filters -------------------------------------------------------------------------------------


def test_filters(store_uri: str) -> None:
    assert set(reading.read([store_uri], benchmarks=["ranged", "too-few"]).runs["benchmark"]) == {"ranged", "too-few"}
    study = reading.read([store_uri], study="nine-study").runs
    assert set(study["benchmark"]) == {"nine-onecycle"}
    assert set(study["role"]) == {"run", "study", "trial", "retrain"}
    first = pd.Timestamp(synthetic.START, unit="ms", tz="UTC")
    late = reading.read([store_uri], since=(first + pd.Timedelta(minutes=100)).to_pydatetime()).runs
    assert set(late["role"]) == {"study", "trial", "retrain"}


def test_a_filter_that_leaves_nothing_says_what_was_asked(store_uri: str) -> None:
    with pytest.raises(
        UserError, match=r"holds no run of he-resnet20 since 2030-01-01: make one with resnet-bench run he"
    ):
        reading.read([store_uri], benchmarks=["he-resnet20"], since="2030-01-01")
    with pytest.raises(UserError, match=r"unknown study 'elsewhere'; there are: nine-study"):
        reading.read([store_uri], study="elsewhere")
    with pytest.raises(UserError, match=r"unknown benchmark 'nine-onecicle'; did you mean 'nine-onecycle'\?"):
        reading.read([store_uri], benchmarks=["nine-onecicle"])
    with pytest.raises(UserError, match="does not exist; name a tracking URI"):
        reading.read(["no/such/mlflow.db"])


@pytest.mark.parametrize(("zone", "since"), [("Asia/Tokyo", "0001-01-01"), ("America/New_York", "9999-12-31T23:00")])
def test_since_before_or_after_all_moments_is_refused(monkeypatch, zone: str, since: str) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        with pytest.raises(UserError, match="is not a date"):
            reading.parse_since(since)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_since_reads_dates_and_ages() -> None:
    assert reading.parse_since(None) is None
    assert reading.parse_since("2026-11-01T09:30+00:00") == datetime(2026, 11, 1, 9, 30, tzinfo=UTC)
    day = reading.parse_since("2026-11-01")
    assert day is not None
    assert day.tzinfo is not None
    week = reading.parse_since("7d")
    assert week is not None
    assert abs(datetime.now(UTC) - week - timedelta(days=7)) < timedelta(minutes=1)
    with pytest.raises(UserError, match="'yesterday' is not a date"):
        reading.parse_since("yesterday")


# --- folders with tables -------------------------------------------------------------------------


@pytest.fixture
def folder(store_tables: Tables, tmp_path: Path) -> Path:
    for name, content in report.table_files(store_tables).items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_a_folder_of_tables_is_a_store(folder: Path, store_tables: Tables) -> None:
    again = reading.read([str(folder)])
    for name in TABLES:
        pd.testing.assert_frame_equal(getattr(again, name), getattr(store_tables, name))


def test_a_run_in_two_sources_counts_once(folder: Path, store_uri: str, store_tables: Tables) -> None:
    both = reading.read([folder, store_uri])
    assert len(both.runs) == len(store_tables.runs)
    assert len(both.metrics) == len(store_tables.metrics)
    assert len(both.stores) == 2


def test_damaged_tables_are_refused_in_one_sentence(folder: Path) -> None:
    (folder / "metrics.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(UserError, match=r"metrics\.parquet is not a readable table of a report"):
        reading.read([folder])
    pd.DataFrame({"run_id": ["a"]}).to_parquet(folder / "metrics.parquet")
    with pytest.raises(UserError, match=r"lacks the column 'metric'"):
        reading.read([folder])
    (folder / "metrics.parquet").unlink()
    with pytest.raises(UserError, match=r"metrics\.parquet"):
        reading.read([folder])


UNUSABLE_CELLS = [
    *((column, None) for column in ("host", "reason", "tags", "store", "study", "device", "recipe", "benchmark_json")),
    *(("tags", text) for text in ("[]", "x", "7")),
    ("environment", "[]"),
]


def test_one_cell_that_cannot_be_used_costs_no_report(folder: Path, benchmarks_folder: Path) -> None:
    table = pd.read_parquet(folder / "runs.parquet").astype("object")
    for row, (column, cell) in enumerate(UNUSABLE_CELLS):
        table.loc[row, column] = cell
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False), folder / "runs.parquet")
    result = report.write([str(folder)], folder / "out", benchmarks_folder=benchmarks_folder)
    assert result.runs == len(table)
    assert result.problems == ()


# --- stores that cannot be read ------------------------------------------------------------------


def test_a_table_with_changed_bytes_is_refused_in_a_sentence_or_unharmed(folder: Path, tmp_path: Path) -> None:
    whole = {path.name: path.read_bytes() for path in folder.glob("*.parquet")}

    @given(name=st.sampled_from(sorted(whole)), cut=st.floats(0, 1), flips=st.lists(st.floats(0, 0.999), max_size=3))
    @settings(max_examples=60)
    def damage(name: str, cut: float, flips: list[float]) -> None:
        content = bytearray(whole[name])
        for place in flips:
            content[int(place * len(content))] ^= 0x41
        damaged = tmp_path / "damaged"
        damaged.mkdir(exist_ok=True)
        for other, kept in whole.items():
            (damaged / other).write_bytes(bytes(content[: int(cut * len(content))]) if other == name else kept)
        with contextlib.suppress(UserError):
            runs.load(reading.read([str(damaged)]))

    damage()


def test_a_missing_database_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "typo.db"
    with pytest.raises(UserError, match=r"typo\.db does not exist"):
        reading.read([f"sqlite:///{path}"])
    assert not path.exists()


def test_a_foreign_database_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE trials (number INTEGER)")
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"database of another application, not of MLflow; name another store$"):
        reading.read([f"sqlite:///{path}"])
    assert path.read_bytes() == before


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    path.write_text("not a database, but long enough to be mistaken for one " * 50)
    with pytest.raises(UserError, match=r"notes\.db is not a SQLite database"):
        reading.read([f"sqlite:///{path}"])


def test_a_folder_that_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no report table \(runs\.parquet\)"):
        reading.read([tmp_path])


def test_an_unreachable_server_is_named_without_its_password() -> None:
    with pytest.raises(UserError, match="cannot be read") as raised:
        reading.read(["http://someone:verysecret@127.0.0.1:9"])
    assert "verysecret" not in str(raised.value)


def test_a_store_without_our_runs(fresh_uri: str) -> None:
    with pytest.raises(UserError, match="holds no run: make one with resnet-bench run"):
        reading.read([fresh_uri])
    client = MlflowClient(fresh_uri)
    client.create_run(client.get_experiment_by_name("resnet-bench").experiment_id, run_name="somebody else's")
    with pytest.raises(UserError, match="holds no run"):
        reading.read([fresh_uri])


def test_one_bad_store_does_not_keep_the_others_from_being_read(store_uri: str, tmp_path: Path) -> None:
    read = reading.read([f"sqlite:///{tmp_path / 'gone.db'}", store_uri])
    assert len(read.runs) == 40
    assert len(read.problems) == 1
    assert "gone.db does not exist" in read.problems[0]


def test_nothing_to_read_is_said() -> None:
    with pytest.raises(UserError, match="name at least one store"):
        reading.read([])


# --- damaged artifacts ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("benchmark.json", '{"name": "x"', "Invalid JSON|validation error"),
        ("benchmark.json", '{"name": "x"}', "validation error"),
        ("confusion_matrix.csv", "a,b\n1,2\n", "not a square"),
        ("confusion_matrix.csv", "a,b\n1,x\n2,3\n", "invalid literal for int"),
        ("confusion_matrix.csv", "a,b\n1,-2\n2,3\n", "not a square of counts"),
        ("confusion_matrix.csv", "a,b\n1,2\n3\n", "inhomogeneous"),
        ("confusion_matrix.csv", "a\n1,2,3\n", "not a square of counts"),
        ("confusion_matrix.csv", b"\xff\xfe\x00", "decode"),
        ("confident_mistakes.json", "[]{", "Invalid JSON|trailing|validation"),
        ("confident_mistakes.json", '[{"index": 1}]', "validation error"),
    ],
)
def test_a_damaged_artifact_costs_only_itself(
    fresh_uri: str, benchmarks: dict[str, Benchmark], name: str, content: bytes | str, why: str
) -> None:
    (run_id,) = log_all(fresh_uri, FakeRun(benchmarks["ranged"], artifacts={name: content}))
    read = reading.read([fresh_uri])
    assert len(read.problems) == 1
    assert read.problems[0].startswith(f"run {run_id}: the artifact {name} cannot be read: ")
    assert pd.Series(read.problems).str.contains(why).all()
    assert "\n" not in read.problems[0]
    assert len(read.runs) == 1
    assert not read.metrics.empty
    others = {"benchmark.json", "confusion_matrix.csv", "confident_mistakes.json"} - {name}
    assert ("confusion_matrix.csv" in others) == (not read.confusion.empty)
    assert ("confident_mistakes.json" in others) == (not read.mistakes.empty)
    assert ("benchmark.json" in others) == bool(read.runs["benchmark_json"][0])


def test_an_artifact_that_is_too_large_is_not_opened(
    fresh_uri: str, benchmarks: dict[str, Benchmark], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_artifacts, "MAX_ARTIFACT_BYTES", 100)
    log_all(fresh_uri, FakeRun(benchmarks["ranged"], artifacts={"confident_mistakes.json": ""}))
    problems = reading.read([fresh_uri]).problems
    assert len(problems) == 2
    assert all("bytes, more than 100" in problem for problem in problems)


def test_missing_artifacts_are_no_problem(fresh_uri: str, benchmarks: dict[str, Benchmark]) -> None:
    nothing = {"benchmark.json": "", "confusion_matrix.csv": "", "confident_mistakes.json": ""}
    log_all(fresh_uri, FakeRun(benchmarks["ranged"], artifacts=nothing))
    read = reading.read([fresh_uri])
    assert read.problems == ()
    assert read.confusion.empty
    assert read.mistakes.empty


def test_a_picture_is_drawn_again() -> None:
    buffer = io.BytesIO()
    image = Image.new("RGB", (32, 32), (10, 200, 30))
    image.save(buffer, "PNG")
    smuggled = buffer.getvalue() + b"<script>alert(1)</script>"
    again = base64.b64decode(run_artifacts.redrawn_png(base64.b64encode(smuggled).decode()))
    assert b"script" not in again
    with Image.open(io.BytesIO(again)) as opened:
        assert opened.tobytes() == image.tobytes()


def encoded(image: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(
    "text",
    [
        "no base64!",
        base64.b64encode(b"<svg onload=alert(1)>").decode(),
        encoded(Image.new("RGB", (32, 32)), "JPEG"),
        encoded(Image.new("RGB", (4000, 32)), "PNG"),
        encoded(Image.new("RGB", (32, 32)), "PNG")[:60],
        "",
    ],
)
def test_what_is_no_small_png_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="an image"):
        run_artifacts.redrawn_png(text)


def test_a_forged_run_reaches_the_table_as_text(nasty_uri: str) -> None:
    runs = reading.read([nasty_uri]).runs
    assert runs["name"].str.contains("</script>").any()
    assert json.loads(runs["tags"].iloc[0])["team"].startswith("</script>")


def test_paths_are_given_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert public_name(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}") == "runs/mlflow.db"
    assert public_name("sqlite:////elsewhere/mlflow.db") == "…/elsewhere/mlflow.db"
    assert public_name("/home/me/project/runs/mlflow.db") == "…/runs/mlflow.db"
    assert public_name("…/runs/mlflow.db") == "…/runs/mlflow.db"
    assert public_name("http://server:5000") == "http://server:5000"


def test_tags_that_are_not_numbers_are_left_out(fresh_uri: str, benchmarks: dict[str, Benchmark]) -> None:
    odd = FakeRun(benchmarks["ranged"], tags={"resnet_bench.seed": "seven", "resnet_bench.macs": "1e9"})
    log_all(fresh_uri, odd, replace(odd, tags={"resnet_bench.environment": "not JSON"}))
    runs = reading.read([fresh_uri]).runs
    assert runs["seed"].isna().tolist() == [True, False]
    assert runs["macs"].isna().tolist() == [True, False]


def test_a_recipe_on_generated_images_takes_neither_claims_nor_mistakes_from_the_real_ones(
    fresh_uri: str, benchmarks: dict[str, Benchmark]
) -> None:
    real = FakeRun(benchmarks["ranged"])
    log_all(fresh_uri, real, replace(real, generated=True, data_fingerprint="9" * 64, final=12.0))
    read = reading.read([fresh_uri])
    found = runs.group(runs.load(read)[0])
    assert sorted(group.apart for group in found) == [False, True]
    assert [group.definition for group in found] == [benchmarks["ranged"]] * 2
    assert read.mistakes["run_id"].nunique() == 2


# --- numbers that are hard to keep ---------------------------------------------------------------


SEEDS = (2**53 + 1, 10**18 + 1, 1_790_000_000_123_456_789, 2**64 - 1)


def test_large_seeds_stay_whole_numbers_from_the_store_to_the_table(
    fresh_uri: str, benchmarks: dict[str, Benchmark], tmp_path: Path
) -> None:
    log_all(fresh_uri, *(FakeRun(benchmarks["ranged"], seed=seed) for seed in (*SEEDS, SEEDS[1])))
    read = reading.read([fresh_uri])
    assert read.problems == ()
    for name, content in report.table_files(read).items():
        (tmp_path / name).write_bytes(content)
    for tables in (read, reading.read([tmp_path])):
        (group,) = runs.group(runs.load(tables)[0])
        assert [run.seed for run in group.runs] == list(SEEDS), "a seed that ran twice counts once"
    assert str(SEEDS[2]) in (tmp_path / "runs.csv").read_text()


def test_a_seed_that_cannot_be_read_is_named(fresh_uri: str, benchmarks: dict[str, Benchmark]) -> None:
    (run_id,) = log_all(fresh_uri, FakeRun(benchmarks["ranged"], tags={"resnet_bench.seed": str(2**64)}))
    read = reading.read([fresh_uri])
    assert read.problems == (f"run {run_id}: its seed '{2**64}' cannot be read and is left out",)
    assert read.runs["seed"].isna().all()


def test_infinity_is_read_back_from_a_store_that_cannot_hold_it(
    fresh_uri: str, benchmarks: dict[str, Benchmark], benchmarks_folder: Path, tmp_path: Path
) -> None:
    lost = {"study/value": math.inf, "energy/joules": -math.inf}
    runs_lost = [FakeRun(benchmarks["ranged"], seed=seed, metrics=lost) for seed in (0, 1, 2)]
    ids = log_all(fresh_uri, *runs_lost)
    MlflowClient(fresh_uri).log_metric(ids[0], "test/loss", math.inf, step=5)
    values = reading.read([fresh_uri]).metrics.set_index(["run_id", "metric", "step"])["value"]
    assert values[ids[0], "study/value", 0] == math.inf
    assert values[ids[0], "final/train_joules", 0] == -math.inf
    assert values[ids[0], "test/loss", 5] == math.inf
    written = report.write(fresh_uri, tmp_path, benchmarks_folder=benchmarks_folder)
    assert written.problems == ()
    text = written.markdown.read_text()
    assert r"Values of final/train\_joules that are not finite are left out (seed 0, 1 and 2)." in text
    assert "Values of test/loss that are not finite are left out (seed 0)." in text
    assert "e+308" not in text + written.page.read_text().partition('id="plotly"')[0]
    assert reading.read([tmp_path]).metrics["value"].isin([math.inf, -math.inf]).sum() == 7


def test_a_run_that_an_earlier_version_let_finish_with_a_lost_evaluation_has_failed(
    fresh_uri: str, benchmarks: dict[str, Benchmark], benchmarks_folder: Path, tmp_path: Path
) -> None:
    whole, lost = FakeRun(benchmarks["ranged"]), FakeRun(benchmarks["ranged"], seed=1)
    mistakes = json.dumps([{"index": 0, "label": "cat", "predicted": "dog", "confidence": math.nan, "png_base64": ""}])
    _, run_id = log_all(fresh_uri, whole, replace(lost, artifacts={"confident_mistakes.json": mistakes}))
    MlflowClient(fresh_uri).log_metric(run_id, "test/loss", math.nan, step=10)
    written = report.write(fresh_uri, tmp_path, benchmarks_folder=benchmarks_folder)
    assert written.problems == ()
    row = reading.read([tmp_path]).runs.set_index("run_id").loc[run_id]
    assert (row["status"], row["reason"]) == ("FAILED", "diverged: test/loss is nan")


def test_a_run_with_impossible_numbers_is_named_and_the_others_are_reported(
    fresh_uri: str, benchmarks: dict[str, Benchmark], benchmarks_folder: Path, tmp_path: Path
) -> None:
    good = FakeRun(benchmarks["ranged"])
    forged = (
        {"augmentation.sizes": "[{}]"},
        {"augmentation.sizes": "nonsense"},
        {"training.epochs": "9" * 400, "augmentation.sizes": '[{"pixels": 16, "epochs": 1}]'},
        {"optimizer.lr": "9" * 400},
    )
    _, *ids = log_all(
        fresh_uri,
        good,
        *(replace(good, seed=seed, overrides=recipe) for seed, recipe in enumerate(forged, start=1)),
    )
    written = report.write(fresh_uri, tmp_path, benchmarks_folder=benchmarks_folder)
    assert [problem.partition(" is left out")[0] for problem in written.problems] == [f"run {run_id}" for run_id in ids]
    assert written.runs == 1
    assert [row.verdict.n for row in written.claims.rows] == [1]


# --- stores and tables of version 0.1.0 ----------------------------------------------------------


def test_metric_names_of_0_1_0_are_read_under_their_current_names(store_tables: Tables, folder: Path) -> None:
    names = set(store_tables.metrics["metric"])
    assert {"test/accuracy_standard", "final/test_accuracy_standard"} <= names
    assert not {name for name in names if name.endswith(("_plain", "_augmented"))}
    metrics = store_tables.metrics.copy()
    metrics["metric"] = metrics["metric"].str.replace("_standard", "_plain")
    metrics.loc[metrics["metric"] == "final/train_joules", "value"] = 1.7976931348623157e308
    metrics["metric"] = metrics["metric"].str.replace("final/train_joules", "energy/joules")
    metrics.to_parquet(folder / "metrics.parquet", index=False)
    store_tables.runs.astype({"seed": "Int64"}).to_parquet(folder / "runs.parquet", index=False)
    again = reading.read([folder])
    assert set(again.metrics["metric"]) == names
    assert (again.metrics.loc[again.metrics["metric"] == "final/train_joules", "value"] == math.inf).all()
    pd.testing.assert_series_equal(again.runs["seed"], store_tables.runs["seed"])


def test_mistakes_of_0_1_0_have_no_name_of_their_image(store_tables: Tables, folder: Path) -> None:
    assert set(store_tables.mistakes["image"]) == {f"test/cat/{place} & more.png" for place in range(6)}
    store_tables.mistakes.drop(columns="image").to_parquet(folder / "mistakes.parquet", index=False)
    again = reading.read([folder]).mistakes
    assert set(again["image"]) == {""}
    pd.testing.assert_series_equal(again["index"], store_tables.mistakes["index"])


def test_a_store_with_the_current_metric_names_is_read_alike(fresh_uri: str, benchmarks: dict[str, Benchmark]) -> None:
    client = MlflowClient(fresh_uri)
    for run_id in log_all(fresh_uri, FakeRun(benchmarks["ranged"])):
        client.log_metric(run_id, "test/accuracy_tta", 0.91, step=10)
        client.log_metric(run_id, "final/test_accuracy_tta", 0.92)
    ((run,), _) = runs.load(reading.read([fresh_uri]))
    assert run.accuracy("test", "accuracy_tta") == {10: 91.0}
    assert run.once["final/test_accuracy_tta"] == 0.92
