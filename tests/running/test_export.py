"""Trained networks out of a store or a folder: loaded, exported, and explained."""

import functools
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from resnet_bench.base.errors import UserError
from resnet_bench.cli.app import app
from resnet_bench.data.dataset import Dataset, ImageLocation, generate_dataset
from resnet_bench.models.of_recipe import build_network
from resnet_bench.recipe.datasets import DATASETS
from resnet_bench.recipe.files import load_benchmark
from resnet_bench.running.context import Context
from resnet_bench.running.events import Closed, Opened
from resnet_bench.running.export import FILES, Format, export_run
from resnet_bench.running.job import Job
from resnet_bench.running.prepare import prepare
from resnet_bench.running.run import run
from resnet_bench.running.safetensors import read_safetensors, write_safetensors
from resnet_bench.running.trained import TrainedRun, find_trained, load_classifier
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.tracker import Tracker
from resnet_bench.tracking.vocabulary import tag
from resnet_bench.training.events import Finished
from tests.running.conftest import PLAIN
from tests.training.conftest import tiny_recipe


@pytest.fixture(scope="module")
def images() -> Dataset:
    return generate_dataset("cifar10", train_size=64, test_size=32)


def trained(**tags: str) -> TrainedRun:
    """A run that was never trained, of the whole recipe on the published images unless tags say otherwise."""
    torch.manual_seed(0)
    benchmark = load_benchmark("he-resnet20")
    facts = {
        "profile": "full",
        "seed": "3",
        "data_fingerprint": DATASETS["cifar10"].fingerprint,
        "generated": "false",
        "environment": json.dumps({"torch": "2.99", "python": "3.11"}),
        "device": "a processor",
    }
    return TrainedRun(
        name="he-resnet20 seed 3",
        run_id="a" * 32,
        benchmark=benchmark,
        tags={tag(name): value for name, value in (facts | tags).items()},
        accuracies={"accuracy": 0.912, "accuracy_standard": 0.9125},
        weights=build_network(benchmark.recipe).state_dict(),
        repeats={0: 0.91, 3: 0.9125, 4: 0.915},
    )


def metadata_of(card: str) -> Any:
    return yaml.safe_load(card.split("---\n")[1])


def lines_of(card: str) -> str:
    (lines,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return str(lines)


# --- what is written -------------------------------------------------------------------------------


def test_export_writes_weights_configuration_card_and_results(tmp_path: Path) -> None:
    exported = trained()
    written = export_run(exported, "safetensors", tmp_path / "new" / "folder")
    names = {str(path.relative_to(tmp_path / "new" / "folder")) for path in written}
    assert names == {"model.safetensors", "config.json", "recipe.toml", "README.md", ".eval_results/cifar10.yaml"}
    weights = read_safetensors(written[0])
    assert weights.keys() == exported.weights.keys()
    assert all(torch.equal(weights[name], exported.weights[name]) for name in weights)

    config = json.loads((written[0].parent / "config.json").read_text())
    assert config["architecture"] == "he_resnet20"
    assert config["classes"][3] == "cat"
    assert config["preprocessing"]["mean"] == list(exported.benchmark.recipe.data.mean)
    assert config["seed"] == 3

    loaded = load_classifier(str(written[0].parent), Store.resolve(None, tmp_path))
    pixels = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(loaded(pixels), exported.classifier(pixels))


def test_model_card_has_the_metadata_of_the_hub(tmp_path: Path) -> None:
    export_run(trained(), "safetensors", tmp_path)
    card = (tmp_path / "README.md").read_text()
    metadata = metadata_of(card)
    assert metadata["datasets"] == ["uoft-cs/cifar10"]
    (result,) = metadata["model-index"][0]["results"]
    assert result["task"]["type"] == "image-classification"
    assert result["dataset"] == {"type": "uoft-cs/cifar10", "name": "cifar10", "config": "plain_text", "split": "test"}
    assert [metric["value"] for metric in result["metrics"]] == [0.912, 0.9125]
    for text in ("91.25%", "Seeds 0, 3 and 4", "2.99", "resnet-bench run recipe.toml --profile full --seed 3"):
        assert text in card
    assert len([line for line in lines_of(card).splitlines() if line]) <= 10


def test_results_for_a_leaderboard_have_the_form_of_the_hub(tmp_path: Path) -> None:
    export_run(trained(), "safetensors", tmp_path)
    (entry,) = yaml.safe_load((tmp_path / ".eval_results" / "cifar10.yaml").read_text())
    assert entry["dataset"] == {"id": "uoft-cs/cifar10", "task_id": "default"}
    assert entry["value"] == 0.9125
    assert "seed 3" in entry["notes"]


@pytest.mark.parametrize(
    "tags", [{"profile": "smoke"}, {"data_fingerprint": "other"}, {"generated": "true", "data_fingerprint": "other"}]
)
def test_results_that_are_not_of_the_benchmark_feed_no_leaderboard(tmp_path: Path, tags: dict[str, str]) -> None:
    export_run(trained(**tags), "safetensors", tmp_path)
    assert not (tmp_path / ".eval_results").exists()
    card = (tmp_path / "README.md").read_text()
    assert ("generated images: its numbers say nothing" in card) == ("generated" in tags)
    assert ("uoft-cs/cifar10" in card) == ("data_fingerprint" not in tags)


@pytest.mark.slow
def test_export_into_the_folder_of_another_run_leaves_nothing_of_that(tmp_path: Path) -> None:
    export_run(trained(), "safetensors", tmp_path)
    (tmp_path / "notes.txt").write_text("of a person")
    other = trained(profile="smoke")
    other = replace(other, run_id="b" * 32, weights=build_network(other.benchmark.recipe).state_dict())
    export_run(other, "torch", tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"model.pt2", "config.json", "recipe.toml", "README.md", "notes.txt"}
    pixels = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    found = load_classifier(str(tmp_path), Store.resolve(None, tmp_path))(pixels)
    assert torch.allclose(found, other.classifier(pixels), atol=1e-4)


def different(**changes: Any) -> TrainedRun:
    """Another run than :func:`trained` gives."""
    return replace(trained(), **changes)


@pytest.mark.parametrize(
    ("before", "after", "is_same"),
    [
        (trained, trained, True),
        (trained, lambda: different(run_id="b" * 32), False),
        (lambda: different(run_id=None), lambda: different(run_id=None), True),
        (
            lambda: different(run_id=None),
            lambda: different(run_id=None, accuracies={"accuracy": 0.5, "accuracy_standard": 0.5}),
            False,
        ),
    ],
)
def test_export_keeps_the_other_formats_of_its_run_alone(
    tmp_path: Path, before: Callable[[], TrainedRun], after: Callable[[], TrainedRun], is_same: bool
) -> None:
    """Runs that never reached a store have no id to tell them apart."""
    export_run(before(), "safetensors", tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"another format")
    export_run(after(), "safetensors", tmp_path)
    assert (tmp_path / "model.onnx").exists() == is_same
    assert (tmp_path / ".eval_results").exists()


def test_export_killed_halfway_leaves_nothing_that_loads_or_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    export_run(trained(), "safetensors", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("resnet_bench.running.export.write_safetensors", killed)
        with pytest.raises(KeyboardInterrupt):
            export_run(different(run_id="b" * 32), "safetensors", tmp_path)
    with pytest.raises(UserError):
        load_classifier(str(tmp_path), Store.resolve(None, tmp_path))
    (tmp_path / "model.pt2").write_bytes(b"of the run that was killed")
    export_run(different(run_id="b" * 32), "safetensors", tmp_path)
    assert not (tmp_path / "model.pt2").exists()


@pytest.mark.parametrize("content", [b'{"architectures": ["Bert"]}', b"[]", b"not JSON", b"\xff"])
def test_export_removes_nothing_where_somebody_else_wrote_the_configuration(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    (tmp_path / "model.onnx").write_bytes(b"of somebody else")
    export_run(trained(), "safetensors", tmp_path)
    assert (tmp_path / "model.onnx").exists()


def test_export_refuses_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .*; name another --output"):
        export_run(trained(), "safetensors", tmp_path / "file")


def test_export_names_the_packages_that_onnx_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"onnx and onnxscript; type: pip install 'resnet-bench\[export\]'"):
        export_run(trained(), "onnx", tmp_path)
    assert not any(tmp_path.iterdir())


def test_safetensors_keep_every_type_and_shape(tmp_path: Path) -> None:
    tensors = {
        "scalar": torch.tensor(5),
        "empty": torch.empty(0, 3),
        "half": torch.randn(3).bfloat16(),
        "flags": torch.tensor([True, False, True]),
        "matrix": torch.randn(4, 3).T,
    }
    tensors["tied"] = tensors["half"]
    write_safetensors(tmp_path / "file", tensors, {"format": "pt"})
    found = read_safetensors(tmp_path / "file")
    assert {name: value.dtype for name, value in found.items()} == {name: t.dtype for name, t in tensors.items()}
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]"])
def test_safetensors_refuse_other_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match="not a readable safetensors file"):
        read_safetensors(tmp_path / "file")


# --- runs ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(store: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Finished]:
    """The id, the folder and the last event of a tiny run."""
    runs = tmp_path_factory.mktemp("runs")
    recipe = tiny_recipe()
    benchmark = load_benchmark("he-resnet20").model_copy(update={"recipe": recipe, "profiles": {"smoke": recipe}})
    job = Job(benchmark=benchmark, recipe=recipe, profile="smoke", seed=77, force=True)
    context = Context(store, runs, ImageLocation(runs, generated=(64, 32)), PLAIN)
    events = list(run(prepare(job, context), context))
    assert isinstance(events[0], Opened)
    (last,) = (event for event in events if isinstance(event, Finished))
    return events[0].run_id, events[0].folder, last


def accuracy_of(namespace: dict[str, Any], images: Dataset) -> float:
    classes = images.class_names
    right = [
        classes[label] == name for label, name in zip(images.test.labels[:30], namespace["predicted"], strict=True)
    ]
    return sum(right) / len(right)


@pytest.mark.slow
@pytest.mark.parametrize("format", FILES)
def test_the_lines_of_the_model_card_give_the_accuracy_that_was_logged(
    finished: tuple[str, Path, Finished],
    store: Store,
    images: Dataset,
    tmp_path: Path,
    format: Format,  # noqa: A002
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if format == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    run_id, folder, last = finished
    for name in (run_id[:12], str(folder)):
        exported = find_trained(name, store)
        assert exported.accuracies["accuracy_standard"] == last.metrics["test/accuracy_standard"]
        export_run(exported, format, tmp_path)
        monkeypatch.chdir(tmp_path)
        pixels = images.test.images[:30]
        namespace: dict[str, Any] = {"images": pixels.numpy() if format == "onnx" else pixels}
        exec(lines_of((tmp_path / "README.md").read_text()), namespace)
        assert accuracy_of(namespace, images) == pytest.approx(last.metrics["test/accuracy_standard"])


@pytest.mark.slow
def test_a_seed_that_was_trained_twice_counts_by_its_latest_run(
    finished: tuple[str, Path, Finished], store: Store
) -> None:
    run_id, _, last = finished
    client = store.client()
    original = client.get_run(run_id)
    again = client.create_run(
        original.info.experiment_id, tags=original.data.tags, start_time=original.info.start_time + 1
    ).info.run_id
    accuracy = last.metrics["test/accuracy_standard"]
    client.log_metric(again, "final/test_accuracy_standard", accuracy - 0.01)
    client.set_terminated(again, "FINISHED")
    assert find_trained(run_id, store).repeats == {77: pytest.approx(accuracy - 0.01, abs=1e-4)}
    client.delete_run(again)


@pytest.mark.slow
def test_the_verb_exports_a_run(finished: tuple[str, Path, Finished], store: Store, tmp_path: Path) -> None:
    run_id, _, _ = finished
    typed: Callable[..., Any] = CliRunner().invoke
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        done = typed(app, ["export", run_id, "--tracking", store.uri])
    finally:
        os.chdir(before)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "exports" / "he-resnet20-seed77" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("splits", [["test"], ["validation"]])
def test_a_run_that_has_not_reached_its_store_is_read_from_its_folder(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, splits: list[str]
) -> None:
    """Until the store has everything, its files are in the folder; ``validation`` alone has the test at the end."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(Tracker, "close", functools.partialmethod(Tracker.close, timeout=0.0))
    recipe = tiny_recipe(
        data={"train_images": 30, "validation": {"images": 10, "seed": 1}}, evaluation={"splits": splits}
    )
    benchmark = load_benchmark("he-resnet20").model_copy(update={"recipe": recipe, "profiles": {"smoke": recipe}})
    job = Job(benchmark=benchmark, recipe=recipe, profile="smoke", seed=0, force=True)
    away = Store.resolve("http://127.0.0.1:9")
    context = Context(away, tmp_path / "runs", ImageLocation(tmp_path, generated=(64, 32)), PLAIN)
    opened, *_, last, closed = run(prepare(job, context), context)
    assert isinstance(opened, Opened)
    assert isinstance(last, Finished)
    assert isinstance(closed, Closed)
    assert not closed.upload.complete
    assert opened.folder is not None

    found = find_trained(str(opened.folder), store)
    assert {f"test/{name}": value for name, value in found.accuracies.items()} == last.metrics
    assert found.run_id is None
    assert found.benchmark.recipe == recipe
    weights = last.snapshot()["network"]
    assert all(torch.equal(found.weights[name], weights[name]) for name in weights)
    shutil.rmtree(opened.folder / "model")
    with pytest.raises(UserError, match="this run kept no model"):
        find_trained(str(opened.folder), store)


@pytest.mark.slow
def test_what_is_not_a_finished_run_is_refused(
    finished: tuple[str, Path, Finished], store: Store, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="nosuch: there is no finished run with this id or name"):
        find_trained("nosuch", store)
    with pytest.raises(UserError, match="is not the folder of a run"):
        find_trained(str(tmp_path), store)
    state = json.loads((finished[1] / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**state, "status": "killed"}))
    with pytest.raises(UserError, match="this run is not finished; resume it"):
        find_trained(str(tmp_path), store)
