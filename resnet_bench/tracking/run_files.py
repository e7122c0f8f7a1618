"""What a run's folder holds of files: until the tracking store has them, or for as long as the run can be resumed."""

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_bench.tracking.cursor import JOURNAL, Cursor
from resnet_bench.tracking.journal import Damage, Entry, last_entry, read
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.vocabulary import tag

if TYPE_CHECKING:
    from mlflow import MlflowClient

ARTIFACTS = "artifacts"
"""Files made for the tracking store."""
MODEL = "model"
"""The trained network as an MLflow model, on its way to the store."""
CHECKPOINTS = "checkpoints"
"""The position to resume from, and the weights of the best epoch."""
PLACES = ("0", "1")
"""Below it, in the folder as in the artifact store: positions that machines without a shared folder resume from."""

TAKEN_OVER = "taken_over"
"""In the folder of a run whose host was lost: another folder has the run now, and this one is left alone."""


def is_delivered(folder: Path) -> bool:
    """Whether a run is finished and the store has everything of it."""
    journal, cursor = folder / JOURNAL, Cursor.load(folder)
    if cursor.run_id is None or cursor.deferred or cursor.refused or not journal.is_file():
        return False
    last = last_entry(journal)
    return isinstance(last, Entry) and last.end <= cursor.arrived and last.record.get("status") == "FINISHED"


def is_out_of_date(folder: Path, tags: Mapping[str, str]) -> bool:
    """Whether a process that does not share a run's folder has resumed the run, and has it now.

    Args:
        folder: The run's folder; of one whose journal is damaged or was lost, nothing can be said against it.
        tags: What the store has of the run.
    """
    resumed, begun, noted = tags.get(tag("resumed"), ""), 0, 0
    if not resumed.isdigit():
        return False
    is_whole = False
    for found in read(folder / JOURNAL, final=True):
        if isinstance(found, Damage):
            return False
        record = found.record
        # One that was begun after another was lost makes no run, and has not counted what came before.
        is_whole = is_whole or record["kind"] == "run"
        if record["kind"] == "status":
            begun += record["status"] == "RUNNING"
        elif record["kind"] == "tags":
            # A process that was killed at once has noted no more.
            noted = max(noted, int(record["values"].get(tag("resumed")) or 0))
    # Both count the same resumptions; of those before it was fetched from the store, a journal has no tags.
    return is_whole and int(resumed) > max(begun, noted)


def positions_in(client: "MlflowClient", run_id: str) -> list[str]:
    """List the positions of a run in the artifact store, by their paths there."""
    return [found.path for found in client.list_artifacts(run_id, CHECKPOINTS) if found.path.split("/")[-1] in PLACES]


def remove_delivered(folder: Path, store: Store) -> int:
    """Remove what nobody needs any more of a run that is finished and in the store; return the bytes it took here.

    The trained weights and all other files are artifacts then, and a finished run is never resumed, so that its
    positions in the artifact store go too. What cannot be removed stays.
    """
    if not is_delivered(folder):
        return 0
    if any((folder / CHECKPOINTS / place).exists() for place in PLACES):
        _remove_positions(store, str(Cursor.load(folder).run_id))
    before = size_of(folder)
    for name in (ARTIFACTS, MODEL, CHECKPOINTS):
        shutil.rmtree(folder / name, ignore_errors=True)
    return before - size_of(folder)


def _remove_positions(store: Store, run_id: str) -> None:
    with contextlib.suppress(Exception):  # whatever the artifact store's client raises
        client = store.client()
        artifacts = client._tracking_client._get_artifact_repo(run_id)
        for position in positions_in(client, run_id):
            artifacts.delete_artifacts(position)  # type: ignore[no-untyped-call]


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files below a folder; those that vanish meanwhile have none."""
    found = 0
    for file in (path, *path.rglob("*")) if path.is_dir() else (path,):
        try:
            stat = file.lstat()
        except OSError:
            continue
        found += 0 if file.is_dir() and not file.is_symlink() else stat.st_size
    return found
