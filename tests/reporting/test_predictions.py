"""Two runs compared image by image, from the predictions that each kept."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from resnet_bench.base.errors import UserError
from resnet_bench.cli.app import app
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.reporting import report
from resnet_bench.reporting.predictions import compare_images
from resnet_bench.running.pictures import write_confusion_matrix_csv
from resnet_bench.tracking.store import Store
from tests.reporting import synthetic

LABELS = np.arange(100) % 10


NAMES = ["airplane", "automobile", *map(str, range(2, 10))]


def keep(
    client: MlflowClient, folder: Path, name: str, predicted: np.ndarray, *, images: str = "abc", named: bool = True
) -> str:
    tags = {"fingerprint": "f", "data_fingerprint": images, "seed": name[-1], "benchmark": "x", "role": "run"}
    run = client.create_run("0", run_name=name, tags={f"resnet_bench.{key}": value for key, value in tags.items()})
    path = folder / "predictions.parquet"
    places = {"image": [f"test/{row}.png" for row in range(100)]} if named else {}
    pd.DataFrame({"index": np.arange(100), "label": LABELS, "predicted": predicted, **places}).to_parquet(path)
    client.log_artifact(run.info.run_id, str(path))
    if named:
        matrix = folder / "confusion_matrix.csv"
        write_confusion_matrix_csv(matrix, LABELS, predicted, NAMES)
        client.log_artifact(run.info.run_id, str(matrix))
    client.set_terminated(run.info.run_id, "FINISHED")
    return str(run.info.run_id)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("predictions")
    found = Store.resolve(f"sqlite:///{folder / 'mlflow.db'}", folder)
    found.prepare()
    client = found.client()
    ten_wrong, five_wrong = LABELS.copy(), LABELS.copy()
    ten_wrong[:10] = (ten_wrong[:10] + 1) % 10
    five_wrong[5:10] = (five_wrong[5:10] + 1) % 10
    keep(client, folder, "seed 0", ten_wrong)
    keep(client, folder, "seed 1", five_wrong)
    thirty_wrong = LABELS.copy()
    thirty_wrong[:30] = (thirty_wrong[:30] + 1) % 10
    keep(client, folder, "seed 2", thirty_wrong)
    keep(client, folder, "other 2", LABELS, images="other")
    keep(client, folder, "old 3", ten_wrong, images="old", named=False)
    keep(client, folder, "old 4", five_wrong, images="old", named=False)
    return found


def test_every_image_is_counted_and_the_floor_is_another_seed(store: Store) -> None:
    found = compare_images("seed 0", "seed 1", store)
    overall = found.overall
    assert (overall.both_right, overall.only_first, overall.only_second, overall.both_wrong) == (90, 0, 5, 5)
    assert found.floor is not None
    assert found.floor.churn == pytest.approx(0.2), "of seeds 0 and 2, and not of the two that are compared"
    assert compare_images("old 3", "old 4", store).floor is None
    assert sum(part.only_second for part in found.classes.values()) == 5


@pytest.mark.parametrize(
    ("first", "second", "sentence"),
    [("seed 0", "other 2", "different images"), ("seed 0", "seed 9", "no finished run")],
)
def test_what_cannot_be_compared_is_one_sentence(store: Store, first: str, second: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        compare_images(first, second, store)


def test_the_command_says_that_it_compares_networks(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    ran = CliRunner().invoke(app, ["compare", "seed 0", "seed 1", "--images", "--from", store.uri])
    assert ran.exit_code == 0, ran.output
    for text in ("never two recipes", "B − A: +5.00 pp", "churn 5.0%"):
        assert text in ran.output
    assert [line.split() for line in ran.output.splitlines() if ".png" in line][:2] == [
        ["test/0.png", "airplane", "automobile", "airplane"],
        ["test/1.png", "automobile", "2", "automobile"],
    ]
    assert any(line.split() == ["airplane", "10", "0", "1"] for line in ran.output.splitlines())
    ran = CliRunner().invoke(app, ["compare", "seed 0", "seed 1", "--images", "--from", store.uri, "--json"])
    document = json.loads(ran.output)
    assert document["differing_images"][1] == {
        "index": 1, "image": "test/1.png", "label": "automobile", "a": "2", "b": "automobile"
    }  # fmt: skip
    assert [each["class"] for each in document["classes"]] == NAMES


def test_runs_that_kept_no_names_have_numbers(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    ran = CliRunner().invoke(app, ["compare", "old 3", "old 4", "--images", "--from", store.uri])
    assert ran.exit_code == 0, ran.output
    assert "image 4 of the test images" in ran.output
    assert "between two seeds of A's recipe: no seed of A's recipe beside A and B kept predictions" in ran.output
    assert "counted in the order of their content" in ran.output


# --- churn in the report --------------------------------------------------------------------------


def predictions_file(predicted: list[int], labels: list[int] | None = None) -> bytes:
    buffer = io.BytesIO()
    columns = {"index": range(len(predicted)), "label": labels or [0] * len(predicted), "predicted": predicted}
    pd.DataFrame(columns).to_parquet(buffer)
    return buffer.getvalue()


def test_the_report_has_the_churn_between_seeds(
    fresh_uri: str, benchmarks: dict[str, Benchmark], tmp_path: Path
) -> None:
    right, off = [0] * 10, [1] + [0] * 9
    kept = [right, off, [1, 1] + [0] * 8]
    runs = [
        synthetic.FakeRun(
            benchmarks["ranged"], seed=seed, artifacts={"predictions.parquet": predictions_file(predicted)}
        )
        for seed, predicted in enumerate(kept)
    ]
    damaged = synthetic.FakeRun(benchmarks["ranged"], seed=3, artifacts={"predictions.parquet": b"PAR1 damaged"})
    other = predictions_file(right, [1] * 10)
    elsewhere = synthetic.FakeRun(benchmarks["ranged"], seed=4, artifacts={"predictions.parquet": other})
    synthetic.log_all(fresh_uri, *runs, damaged, elsewhere)
    result = report.write([fresh_uri], tmp_path / "report")
    text = result.markdown.read_text("utf-8").partition("## Churn between seeds")[2]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith(("| 0", "| 1", "| 2"))]
    assert rows[:3] == [["0", "–", "10%", "20%"], ["1", "10%", "–", "10%"], ["2", "20%", "10%", "–"]]
    assert "median 10%" in text
    assert any("predictions.parquet cannot be read" in problem for problem in result.problems)
    # The device with most seeds counts here too, although another has run one of them since.
    again = replace(runs[0], device="Another GPU", artifacts={"predictions.parquet": predictions_file([1] * 10)})
    synthetic.log(MlflowClient(fresh_uri), again, 100)
    report.write([fresh_uri], tmp_path / "later")
    assert "median 10%" in (tmp_path / "later" / "report.md").read_text("utf-8")
    # The tables alone give the same, and a folder of an earlier version, without churn, has no such section.
    report.write([tmp_path / "report"], tmp_path / "again")
    assert "median 10%" in (tmp_path / "again" / "report.md").read_text("utf-8")
    (tmp_path / "report" / "churn.parquet").unlink()
    report.write([tmp_path / "report"], tmp_path / "old")
    assert "Churn" not in (tmp_path / "old" / "report.md").read_text("utf-8")
