"""What has cost users of other tools their work, and is tested nowhere else."""

import contextlib
import os
import sqlite3
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from resnet_bench.base.files import write_atomically, write_together
from resnet_bench.data.cache import CacheEntry
from resnet_bench.data.content import in_canonical_order
from resnet_bench.data.dataset import generate_dataset
from resnet_bench.data.sources import find_sources
from resnet_bench.tracking.journal import Journal
from resnet_bench.training import checkpoint
from resnet_bench.tuning.plan import load_study_file, plan_study
from resnet_bench.tuning.storage import StudyStorage
from resnet_bench.tuning.trial_queue import TrialQueue
from tests.data import builders
from tests.tuning.conftest import write_tiny

# --- files keep the mode that the user's umask asks for --------------------------------------------


@pytest.fixture(params=[0o022, 0o002, 0o077], ids=["022", "002", "077"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def write_cache(path: Path) -> None:
    info = builders.small_info()
    builders.write_parquet(path.parent / "cifar10", info, builders.random_content(info))
    source = next(find_sources(info, path.parent))
    entry = CacheEntry.of(source, path.parent / "cache")
    with entry.lock():
        entry.write(in_canonical_order(source.read(lambda _: None)), entry.identity())
    next(entry.folder.glob("*.bin")).rename(path)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: checkpoint.save({"step": 1}, path),
        lambda path: write_atomically(path, b"state"),
        lambda path: Journal.open(path).close(),
        lambda path: write_together(path.parent, {path.name: b"page"}),
        write_cache,
    ],
    ids=["checkpoint", "state of a run", "journal", "report", "data cache"],
)
@pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no umask")
def test_what_is_replaced_has_the_mode_of_any_other_file(
    write: Callable[[Path], object], umask: int, tmp_path: Path
) -> None:
    """Written through a temporary file, it must not be readable by its owner alone: a group shares its runs."""
    path = tmp_path / "file"
    for _ in range(2):
        write(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


# --- life is not judged by the clock ---------------------------------------------------------------


@pytest.mark.parametrize("days", [-1, 1])
def test_a_trial_survives_a_change_of_the_clock(days: int, tmp_path: Path) -> None:
    """Moving the heartbeat is what a clock that is set, or a machine that slept, looks like from the storage."""
    storage = StudyStorage(f"sqlite:///{tmp_path / 'optuna.db'}")
    plan = plan_study(load_study_file(write_tiny(tmp_path)), "smoke")
    queue = TrialQueue.begin("study", plan, storage.open(), generate_dataset("cifar10", train_size=60, test_size=20))
    acquired = queue.acquire()
    assert acquired is not None
    queue.stored.storage.beat(acquired.trial._trial_id)
    with contextlib.closing(sqlite3.connect(tmp_path / "optuna.db")) as database:
        moved = database.execute(f"UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, '{-days} day')")
        database.commit()
        assert moved.rowcount == 1
    assert queue.recover() == []
    assert queue.stored.trial(0).state.name == "RUNNING"
    assert queue.stored.retries() == {}
