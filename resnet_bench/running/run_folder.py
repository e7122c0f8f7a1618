"""The folder of one run: its journal, its checkpoints, and what is needed to go on with it."""

import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from resnet_bench.base.errors import UserError
from resnet_bench.base.files import write_atomically
from resnet_bench.training import checkpoint

STATE_FILE = "run.json"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunIdentity:
    """What two folders must share to hold the same experiment."""

    benchmark: str
    profile: str
    seed: int
    fingerprint: str
    data_fingerprint: str
    role: str
    execution: str
    code: str


class RunFolder:
    """A run on disk. One process at a time may hold it."""

    def __init__(self, path: Path, state: dict[str, Any]) -> None:
        """Take over a folder that exists; see ``create`` and ``find``."""
        self.path = path
        self._state = state
        self._lock = FileLock(path / "in_use.lock")

    @classmethod
    def create(cls, runs_folder: Path, identity: RunIdentity) -> "RunFolder":
        """Make a new folder, named so that a person finds it.

        Raises:
            UserError: The place cannot be written.
        """
        stem = f"{identity.benchmark}-{identity.profile}-seed{identity.seed}-{identity.fingerprint[:6]}"
        stamp = time.strftime("%Y%m%d-%H%M%S")
        try:
            runs_folder.mkdir(parents=True, exist_ok=True)
            path = _new_folder(runs_folder, f"{stem}-{stamp}")
            folder = cls(path, {"identity": vars(identity), "status": "running", "run_id": None, "resumed": 0})
            folder.acquire()
            folder._write()
        except OSError as error:
            raise UserError(
                f"{runs_folder}: cannot write the run's files here ({error.strerror}); "
                "choose another with --run-dir DIR"
            ) from None
        return folder

    @classmethod
    def find(cls, runs_folder: Path, identity: RunIdentity, *, finished: bool = True) -> "RunFolder | None":
        """The newest folder of this experiment that no process holds, or None.

        Args:
            runs_folder: Where to look.
            identity: The experiment.
            finished: Whether a run counts that was trained to its end.
        """
        candidates = sorted(runs_folder.glob(f"*/{STATE_FILE}"), key=_modified, reverse=True)
        for file in candidates:
            state = _read_state(file)
            if state is None or state.get("identity") != vars(identity):
                continue
            folder = cls(file.parent, state)
            if not folder.acquire():
                continue
            # Whoever held it until now may have finished it.
            folder._state = _read_state(file) or state
            if finished or not folder.is_finished:
                folder._clear_leftovers()
                return folder
            folder.release()
        return None

    def acquire(self) -> bool:
        """Hold the folder; False where another live process does."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        return True

    def release(self) -> None:
        """Let others have it."""
        self._lock.release()

    @property
    def last_checkpoint(self) -> Path:
        """The checkpoint to go on from."""
        return self.path / "checkpoints" / "last.pt"

    @property
    def best_checkpoint(self) -> Path:
        """The weights of the best epoch so far."""
        return self.path / "checkpoints" / "best.pt"

    @property
    def artifacts(self) -> Path:
        """Files made for the tracking store."""
        folder = self.path / "artifacts"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def run_id(self) -> str | None:
        """The MLflow run."""
        run_id: str | None = self._state["run_id"]
        return run_id

    @property
    def is_finished(self) -> bool:
        """Whether the run was trained to its end."""
        return bool(self._state["status"] == "finished")

    @property
    def times_resumed(self) -> int:
        """How often the run was taken up again."""
        return int(self._state["resumed"])

    def update(self, **changes: Any) -> None:
        """Change fields of the state file, atomically."""
        self._state = {**self._state, **changes}
        self._write()

    def note_end(self, status: str, run_id: str | None) -> None:
        """Note how the run ended. A disk that is full must not hide why: the run can then be gone on with."""
        try:
            self.update(status=status, run_id=run_id)
        except OSError as error:
            _log.warning("%s: how the run ended could not be noted (%s)", self.path, error.strerror or error)

    def _write(self) -> None:
        write_atomically(self.path / STATE_FILE, json.dumps(self._state, indent=1).encode())

    def _clear_leftovers(self) -> None:
        """Remove what a process left that was killed while it wrote a checkpoint."""
        for file in self.last_checkpoint.parent.glob(f".*{checkpoint.UNFINISHED}"):
            file.unlink(missing_ok=True)


def _modified(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        # Somebody is tidying up.
        return 0.0


def _read_state(file: Path) -> dict[str, Any] | None:
    try:
        state = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) and {"identity", "status", "run_id", "resumed"} <= state.keys() else None


def _new_folder(parent: Path, name: str) -> Path:
    for suffix in ("", *(f"-{number}" for number in range(2, 1000))):
        path = parent / f"{name}{suffix}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise FileExistsError(os.strerror(17), str(parent / name))
