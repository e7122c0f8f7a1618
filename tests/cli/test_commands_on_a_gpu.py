"""What a user types on a machine with an NVIDIA GPU; one that computes nothing serves as well (tests/stub_cuda)."""

import json
import logging
import shlex
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow.entities import Run
from typer.testing import CliRunner

from resnet_bench.cli.app import app
from resnet_bench.tracking.vocabulary import tag
from resnet_bench.training.cuda_graphs import GraphedStep
from tests.reliability.tiny import write_images
from tests.stub_cuda import counts, is_idle, needs_gpu
from tests.tuning.conftest import write_tiny
from tools import gpu

pytestmark = [pytest.mark.gpu, needs_gpu]

BENCHMARKS = [
    "resnet9-onecycle-adam",
    "speedrun-94",
    "cifar100-resnet",
    "resnet18-step-decay",
    "resnet34-sgd-224",
    "resnet9-dropout",
    "speedrun-90",
]
SMALL = (
    "--profile smoke --set data.train_images=600 --set data.test_images=20 --set training.epochs=2 "
    "--set training.batch_size=20 --set evaluation.batch_size=10"
)


@pytest.fixture
def type_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Types a command in an empty folder, which must succeed; gives what it printed."""
    monkeypatch.chdir(tmp_path)

    def type_command(command: str) -> str:
        result = CliRunner().invoke(app, shlex.split(command), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    return type_command


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow database for all tests: making it takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def runs_of(type_command: Callable[[str], str], store: str) -> Callable[[str], list[Run]]:
    """Types a command and gives the runs that it has tracked, all of which must have come to their end."""

    def runs() -> list[Run]:
        client = mlflow.MlflowClient(store)
        found = client.search_runs([each.experiment_id for each in client.search_experiments()])
        return [run for run in found if tag("summary") not in run.data.tags]

    def runs_of(command: str) -> list[Run]:
        before = {run.info.run_id for run in runs()}
        type_command(f"{command} --tracking {store}")
        found = [run for run in runs() if run.info.run_id not in before]
        assert {run.info.status for run in found} == {"FINISHED"}
        return found

    return runs_of


def was_captured(run: Run) -> bool:
    return int(run.data.tags.get("resnet_bench.cuda_graphs", 0)) > 0


def test_doctor_names_the_gpu(type_command) -> None:
    assert torch.cuda.get_device_name() in type_command("doctor")


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_is_trained_in_captured_steps(name, runs_of, caplog, monkeypatch) -> None:
    waits = []
    launch = GraphedStep.launch

    def watched(self, *arguments):
        before = counts().waits if is_idle() else 0
        result = launch(self, *arguments)
        waits.append((counts().waits if is_idle() else 0) - before)
        return result

    monkeypatch.setattr(GraphedStep, "launch", watched)
    with caplog.at_level(logging.WARNING, logger="resnet_bench"):
        (run,) = runs_of(f"run {name} --device cuda {SMALL}")
    assert not caplog.records
    assert was_captured(run)
    assert waits
    assert not any(waits)
    if is_idle():
        assert counts().stray == 0


@pytest.mark.slow
def test_stock_pytorch_captures_nothing(runs_of) -> None:
    (run,) = runs_of(f"run he-resnet20 --device cuda --execution plain --precision fp32 {SMALL}")
    assert not was_captured(run)


@pytest.mark.slow
def test_runs_of_one_process_leave_the_gpu_to_those_behind_them(runs_of) -> None:
    runs = runs_of(f"run he-resnet20 resnet9-onecycle-adam --seeds 2 --force --device cuda {SMALL}")
    assert [was_captured(run) for run in runs] == [True] * 4


@pytest.mark.slow
def test_seeds_are_trained_at_once_on_one_gpu(runs_of) -> None:
    runs = runs_of(f"run resnet18-step-decay --seeds 3 --seeds-per-device 2 --force --device cuda {SMALL}")
    assert [was_captured(run) for run in runs] == [True] * 3


@pytest.mark.slow
def test_a_study_is_run_on_a_gpu(runs_of, tmp_path) -> None:
    write_images(tmp_path / "data")
    (tmp_path / "studies").mkdir()
    write_tiny(tmp_path / "studies", data="data = { train_images = 40, test_images = 20 }")
    runs = runs_of("study run tiny --study-dir studies --device cuda --profile full --yes")
    assert sum(was_captured(run) for run in runs) >= 3


@pytest.mark.slow
def test_perf_measures_the_baseline_loop_beside_ours(type_command, tmp_path) -> None:
    type_command("perf he-resnet20 --device cuda --repeats 1 --steps 2 --loader-workers 0 --output perf.json")
    (comparison,) = json.loads((tmp_path / "perf.json").read_text())
    assert [arm["name"] for arm in comparison["arms"]] == ["source", "plain", "fast", "auto"]
    assert all(arm["images_per_second"]["median"] > 0 for arm in comparison["arms"])


@pytest.mark.slow
def test_what_is_to_be_measured_on_a_gpu_can_be(tmp_path, capsys) -> None:
    options = ["--benchmarks", "he-resnet20", "speedrun-94", "--steps", "4", "--repeats", "1", "--out", str(tmp_path)]
    failed = gpu.main(["--part", "steps", "--part", "epochs", *options])
    assert failed == 0, capsys.readouterr().out
    rows = json.loads((tmp_path / "epochs.json").read_text())
    assert [row["captures"] > 0 for row in rows] == [True, True]
