"""What a run's folder holds of files: until the tracking store has them, or for as long as the run can be resumed."""

import shutil
from pathlib import Path

from resnet_bench.tracking.cursor import JOURNAL, Cursor
from resnet_bench.tracking.journal import Entry, last_entry

ARTIFACTS = "artifacts"
"""Files made for the tracking store."""
MODEL = "model"
"""The trained network as an MLflow model, on its way to the store."""
CHECKPOINTS = "checkpoints"
"""The position to resume from, and the weights of the best epoch."""

TAKEN_OVER = "taken_over"
"""In the folder of a run whose host was lost: another folder has the run now, and this one is left alone."""


def is_delivered(folder: Path) -> bool:
    """Whether a run is finished and the store has everything of it."""
    journal, cursor = folder / JOURNAL, Cursor.load(folder)
    if cursor.run_id is None or cursor.deferred or cursor.refused or not journal.is_file():
        return False
    last = last_entry(journal)
    return isinstance(last, Entry) and last.end <= cursor.arrived and last.record.get("status") == "FINISHED"


def remove_delivered(folder: Path) -> int:
    """Remove what nobody needs any more of a run that is finished and in the store; return the bytes it took.

    The trained weights and all other files are artifacts then, and a finished run is never resumed. What cannot be
    removed stays.
    """
    if not is_delivered(folder):
        return 0
    before = size_of(folder)
    for name in (ARTIFACTS, MODEL, CHECKPOINTS):
        shutil.rmtree(folder / name, ignore_errors=True)
    return before - size_of(folder)


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
