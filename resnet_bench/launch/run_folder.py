"""The folder of one run: its journal, its checkpoints, and what is needed to go on with it."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from resnet_bench.errors import UserError

STATE_FILE = "run.json"


@dataclass(frozen=True)
class RunIdentity:
    """What two folders must share to hold the same experiment."""

    benchmark: str
    profile: str
    seed: int
    fingerprint: str
    data_fingerprint: str
    role: str


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
                f"{runs_folder}: cannot write the run's files here ({error.strerror}); choose another with --runs DIR"
            ) from None
        return folder

    @classmethod
    def find(cls, runs_folder: Path, identity: RunIdentity) -> "RunFolder | None":
        """The newest folder of this experiment that no process holds, or None."""
        candidates = sorted(runs_folder.glob(f"*/{STATE_FILE}"), key=lambda file: file.stat().st_mtime, reverse=True)
        for file in candidates:
            try:
                state = json.loads(file.read_text())
            except (OSError, ValueError):
                continue
            if isinstance(state, dict) and state.get("identity") == vars(identity):
                folder = cls(file.parent, state)
                if folder.acquire():
                    return folder
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

    def _write(self) -> None:
        unfinished = self.path / f".{STATE_FILE}.unfinished"
        unfinished.write_text(json.dumps(self._state, indent=1))
        unfinished.replace(self.path / STATE_FILE)


def _new_folder(parent: Path, name: str) -> Path:
    for suffix in ("", *(f"-{number}" for number in range(2, 1000))):
        path = parent / f"{name}{suffix}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise FileExistsError(os.strerror(17), str(parent / name))
