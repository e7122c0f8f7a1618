"""A disk that fails under a run: one sentence, an intact last checkpoint, and a run that can be resumed."""

import errno
import os
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from resnet_bench.base.describe_error import describe_error
from resnet_bench.base.errors import UserError
from resnet_bench.base.files import write_atomically
from resnet_bench.cli.run_all import run_all
from resnet_bench.data.dataset import ImageLocation
from resnet_bench.recipe.benchmark import Benchmark, Source
from resnet_bench.recipe.claims import Claim
from resnet_bench.recipe.files import load_benchmark
from resnet_bench.running.context import Context
from resnet_bench.running.job import Job
from resnet_bench.running.prepare import prepare
from resnet_bench.running.run import run
from resnet_bench.running.run_folder import RunFolder
from resnet_bench.tracking.journal import Damage, Journal, metrics_record, read
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.tracker import Tracker
from resnet_bench.training import checkpoint
from tests.reliability import tiny
from tests.reliability.faults import FaultyDisk
from tests.running.conftest import PLAIN
from tests.training.conftest import tiny_recipe
from tests.weights import weights_at_the_end

CODES = [errno.ENOSPC, errno.EIO]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store.resolve(f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}")
    store.prepare()
    return store


@pytest.fixture
def train(store: Store, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], dict[str, Any]]:
    """Train a tiny run to its end in a folder of runs, resuming where there is something to resume."""
    tiny.speed_up(monkeypatch)
    # What a disk that fails for good does not let through within a second, it never will.
    monkeypatch.setitem(Tracker.close.__kwdefaults__, "timeout", 1.0)
    recipe = tiny_recipe(data={"train_images": 24, "test_images": 20}, training={"batch_size": 12})
    source = Source(title="A tiny run", kind="ours")
    benchmark = Benchmark(name="tiny", source=source, claims=(Claim(at_least=20.0),), recipe=recipe)
    job = Job(benchmark=benchmark, recipe=recipe, profile="full", seed=0, resume=True, force=True)

    def train_it(runs: Path) -> dict[str, Any]:
        context = Context(store, runs, ImageLocation(runs, generated=(64, 32)), PLAIN)
        return weights_at_the_end(list(run(prepare(job, context), context)))

    return train_it


def whole(path: Path) -> bool:
    """Whether a checkpoint is as it was written; one that was not written yet is."""
    return not path.exists() or "network" in checkpoint.load(path)


# --- a whole run -----------------------------------------------------------------------------------


def disturb(
    number: int, code: int, for_good: bool, folder: Path, train: Callable[[Path], dict[str, Any]], patch: Any
) -> FaultyDisk:
    """Let the disk fail under a run, look at what it leaves, and resume it."""
    runs = folder / f"{number}-{code}-{for_good}"
    failure = None
    with FaultyDisk(number, code, for_good=for_good).attached(patch, folder) as disk:
        try:
            train(runs)
        except Exception as error:
            failure = describe_error(error)
    if failure is not None:
        assert "\n" not in failure
        assert os.strerror(code) in failure, failure
    for kept in (*runs.glob("*/checkpoints/last.pt"), *runs.glob("*/checkpoints/best.pt")):
        assert whole(kept)
    return disk


def expect_same(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("number", "code"), [(2, errno.ENOSPC), (9, errno.EIO), (14, errno.ENOSPC)])
def test_a_disk_that_fails_under_a_run_costs_no_more_than_the_run(
    number: int,
    code: int,
    train: Callable[[Path], dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = disturb(number, code, True, tmp_path, train, monkeypatch)
    assert disk.fired
    expected = train(tmp_path / "undisturbed")
    expect_same(train(tmp_path / f"{number}-{code}-True"), expected)


@pytest.mark.slow
@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
def test_a_disk_that_fails_at_any_write_costs_no_more_than_the_run(
    for_good: bool, train: Callable[[Path], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every sixth write, fsync and rename of a run, until none is left to fail."""
    expected = train(tmp_path / "undisturbed")
    fired = 0
    for number in range(1 + for_good, 1000, 6):
        code = CODES[number // 6 % 2]
        disk = disturb(number, code, for_good, tmp_path, train, monkeypatch)
        if not disk.fired:
            break
        fired += 1
        expect_same(train(tmp_path / f"{number}-{code}-{for_good}"), expected)
    assert fired >= 6


@pytest.mark.parametrize("place", ["runs", "tracking"])
def test_a_folder_that_cannot_be_written_is_one_sentence_before_anything_is_trained(place: str, tmp_path: Path) -> None:
    """A file stands where the folder should be: the superuser, too, cannot write there."""
    (tmp_path / "taken").write_text("a file")
    tiny.write_images(tmp_path / "data")
    context = tiny.context(tmp_path, run_dir=tmp_path / "taken" / "runs")
    if place == "tracking":
        context = tiny.context(tmp_path, tracking=f"sqlite:///{tmp_path / 'taken' / 'mlflow.db'}")
        with pytest.raises(UserError, match=r"taken cannot be written"):
            run_all(tiny.options(), context, Console(file=StringIO()))
        return
    benchmark = load_benchmark(tiny.BENCHMARK)
    job = Job(benchmark=benchmark, recipe=benchmark.recipe_for("smoke"), profile="smoke", seed=0)
    for acquire in (RunFolder.create, RunFolder.acquire):
        with pytest.raises(UserError, match=r"cannot write the run's files here .*choose another with --run-dir DIR"):
            acquire(context.run_dir, prepare(job, context).facts)


# --- its files, one by one -------------------------------------------------------------------------


@pytest.mark.parametrize("code", CODES)
def test_a_file_that_is_replaced_is_the_old_or_the_new(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the state of a run and the position of its delivery are written with."""
    path = tmp_path / "run.json"
    for number in (1, 2, 3):
        write_atomically(path, b"old")
        with FaultyDisk(number, code).attached(monkeypatch, tmp_path) as disk, pytest.raises(OSError, match=r".+"):
            write_atomically(path, b"new")
        assert disk.fired == 1
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]
    # Behind the rename the folder is synced: the new file is there, but might not outlive a power cut.
    with FaultyDisk(4, code).attached(monkeypatch, tmp_path) as disk, pytest.raises(OSError, match=r".+"):
        write_atomically(path, b"new")
    assert disk.reached == ["write", "fsync", "rename", "fsync"]
    assert path.read_bytes() == b"new"
    with FaultyDisk(5, code).attached(monkeypatch, tmp_path) as disk:
        write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("code", CODES)
def test_a_journal_that_is_cut_back_is_the_old_or_the_new(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.jsonl"
    for number in range(1, 6):
        journal = Journal.open(path)
        for step in range(1, 5):
            journal.append(metrics_record("step", step, {"loss": [1.0]}, timestamp=step))
        before = path.read_bytes()
        with FaultyDisk(number, code).attached(monkeypatch, tmp_path) as disk:
            try:
                journal.truncate_after_step(2, 0)
            except OSError:
                assert (path.read_bytes() == before) == (number < 4)
        journal.append(metrics_record("step", 9, {"loss": [1.0]}, timestamp=9))
        journal.close()
        found = list(read(path, final=True))
        assert not any(isinstance(entry, Damage) for entry in found)
        # A journal whose folder cannot be synced is of no more use to the run, which ends with the error.
        assert len(found) == (5 if number < 4 else 2 if disk.fired else 3)
        path.unlink()
