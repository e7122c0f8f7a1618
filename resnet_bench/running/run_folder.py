"""The folder of one run: its journal, its checkpoints, and what is needed to resume it."""

import contextlib
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from resnet_bench.base.errors import UserError
from resnet_bench.base.files import UNFINISHED, new_folder, write_atomically
from resnet_bench.tracking.cursor import CURSOR, JOURNAL, STORE, Cursor
from resnet_bench.tracking.facts import RunFacts
from resnet_bench.tracking.leases import Holding
from resnet_bench.tracking.run_files import ARTIFACTS, CHECKPOINTS, MODEL, TAKEN_OVER, remove_delivered
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.uploader import flush, has_unsent
from resnet_bench.tracking.vocabulary import tag

STATE_FILE = "run.json"

_log = logging.getLogger(__name__)


class RunInUse(UserError):
    """Another process is training the run."""


class RunFolder:
    """A run on disk. One process at a time may hold it."""

    def __init__(self, path: Path, state: dict[str, Any]) -> None:
        """Take over a folder that exists; see :meth:`create` and :meth:`acquire`."""
        self.path = path
        self._state = state
        self._lock = FileLock(path / "in_use.lock")

    @classmethod
    def acquire(cls, run_dir: Path, facts: RunFacts, *, watch: Callable[[str], Holding] | None = None) -> "RunFolder":
        """Hold the newest unfinished folder of an experiment, or a new one where there is none.

        An unfinished run of the same seed that differs in what decides its result is left aside; a warning says how.
        Of a run that another host trains, locks say nothing for certain: its lease decides. Where that is lost, a copy
        of its folder is held, because its process may come back and write to the original.

        Args:
            run_dir: Folder of the runs' folders.
            facts: What the run is.
            watch: Watches the lease of an MLflow run; None where its store has no leases.

        Raises:
            RunInUse: Another process is training this very run.
            UserError: The place cannot be written.
        """
        lost: set[Path] = set()
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            while True:
                try:
                    # Two processes that look at once would each find nothing, and train one seed twice.
                    with FileLock(run_dir / ".acquire.lock"):
                        return cls._unfinished(run_dir, facts, lost, watched=watch is not None) or cls.create(
                            run_dir, facts
                        )
                except _Elsewhere as found:
                    holding = watch(found.run_id) if watch is not None else "held"
                    if holding == "held" or (holding == "unknown" and found.is_locked):
                        raise found.error from None
                    if holding == "finished":
                        # Its result is in the store, which is searched before a folder without a run is trained in.
                        return cls.create(run_dir, facts)
                    lost.add(found.path)
        except OSError as error:
            raise _cannot_write(run_dir, error) from None

    @classmethod
    def _unfinished(
        cls, run_dir: Path, facts: RunFacts, lost: Collection[Path] = (), *, watched: bool = False
    ) -> "RunFolder | None":
        identity = facts.identity
        left_aside: list[tuple[Path, list[str]]] = []
        for path, state in _folders(run_dir, facts):
            folder = cls(path, state)
            if state["identity"] != identity:
                differences = facts.differences(state["tags"], state["params"])
                if differences and state["status"] != "finished" and folder.last_checkpoint.is_file():
                    left_aside.append((path, differences))
                continue
            if path in lost:
                return _take_over(path, state)
            taken = folder.take()
            error = RunInUse(
                f"{_holder(state)} is training {facts.benchmark.name} seed {facts.seed} already ({path}); "
                "wait for it, then give the same command again"
            )
            # Its holder until now may have finished it.
            folder._state = read_state(path / STATE_FILE) or state
            if watched and _is_elsewhere(folder._state):
                if taken:
                    folder.release()
                raise _Elsewhere(path, folder._state["run_id"], error, is_locked=not taken)
            if not taken:
                raise error
            if not folder.is_finished:
                _clear_leftovers(path / CHECKPOINTS)
                folder.update(pid=os.getpid(), host=socket.gethostname())
                return folder
            folder.release()
        if left_aside:
            path, differences = left_aside[0]
            _log.warning(
                "%s seed %d starts from scratch: an unfinished run of this seed is left aside (%s): %s",
                facts.benchmark.name,
                facts.seed,
                path,
                ", ".join(differences),
            )
        return None

    @classmethod
    def create(cls, run_dir: Path, facts: RunFacts) -> "RunFolder":
        """Make a new folder, named so that a person finds it, and hold it.

        Raises:
            UserError: The place cannot be written.
        """
        stem = f"{facts.benchmark.name}-{facts.profile}-seed{facts.seed}-{facts.recipe.fingerprint[:6]}"
        stamp = time.strftime("%Y%m%d-%H%M%S")
        state = {
            "identity": facts.identity,
            "tags": facts.tags(),
            "params": facts.params(),
            "status": "running",
            "run_id": None,
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            folder = cls(new_folder(run_dir, f"{stem}-{stamp}"), state)
            folder.take()
            folder._write()
        except OSError as error:
            raise _cannot_write(run_dir, error) from None
        return folder

    def release(self) -> None:
        """Let other processes have it."""
        self._lock.release()

    def discard(self) -> None:
        """Remove the folder of a run that was not begun."""
        shutil.rmtree(self.path, ignore_errors=True)

    @property
    def last_checkpoint(self) -> Path:
        """The checkpoint to resume from."""
        return self.path / CHECKPOINTS / "last.pt"

    @property
    def best_checkpoint(self) -> Path:
        """The weights of the best epoch so far."""
        return self.path / CHECKPOINTS / "best.pt"

    @property
    def artifacts(self) -> Path:
        """Files made for the tracking store."""
        folder = self.path / ARTIFACTS
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

    def update(self, **changes: Any) -> None:
        """Change fields of the state file, atomically."""
        self._state = {**self._state, **changes}
        self._write()

    def note_end(self, status: str, run_id: str | None) -> None:
        """Note how the run ended. A full disk must not hide why: the run can then be resumed."""
        try:
            self.update(status=status, run_id=run_id)
        except OSError as error:
            _log.warning("%s: how the run ended could not be noted (%s)", self.path, error.strerror or error)

    def take(self) -> bool:
        """Hold the folder; False where another live process does."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        return True

    def _write(self) -> None:
        write_atomically(self.path / STATE_FILE, json.dumps(self._state, indent=1).encode())


class _Elsewhere(Exception):
    """The process that trains a run is on another host."""

    def __init__(self, path: Path, run_id: str, error: UserError, *, is_locked: bool) -> None:
        super().__init__(path)
        self.path, self.run_id, self.error, self.is_locked = path, run_id, error, is_locked


def _is_elsewhere(state: Mapping[str, Any]) -> bool:
    host = state.get("host") or state["tags"].get(tag("host"))
    return state["status"] == "running" and bool(state["run_id"]) and host not in (None, socket.gethostname())


def _take_over(path: Path, state: Mapping[str, Any]) -> RunFolder:
    """Hold a copy of the folder of a run whose host is lost, as the next attempt at it."""
    attempt = Cursor.load(path).attempt + 1
    copy = new_folder(path.parent, f"{path.name.partition('-attempt')[0]}-attempt{attempt}")
    folder = RunFolder(copy, {**state, "pid": os.getpid(), "host": socket.gethostname()})
    try:
        folder.take()
        _copy_run(path, copy)
        replace(Cursor.load(copy), attempt=attempt).save(copy)
        folder.update(status="running")
        # Made by one process alone, on whatever file system; last, so that a copy that fails leaves the run as it was.
        (path / TAKEN_OVER).touch(exist_ok=False)
    except BaseException as error:
        folder.release()
        folder.discard()
        if isinstance(error, FileExistsError):
            raise RunInUse(f"another process has just taken over {path}; give the same command again") from None
        raise
    _log.warning("%s was lost with its host; %s resumes it", path, copy)
    return folder


def _copy_run(path: Path, copy: Path) -> None:
    """Copy what a run is resumed from, out of a folder that its process may still write to."""
    # The journal last: it then has what the checkpoint and the cursor speak of, whatever its process still appends.
    for name in (CHECKPOINTS, ARTIFACTS, MODEL, CURSOR, STORE, JOURNAL):
        if (path / name).is_dir():
            shutil.copytree(path / name, copy / name, ignore=shutil.ignore_patterns(f".*{UNFINISHED}"))
        elif (path / name).exists():
            shutil.copy2(path / name, copy / name)


def folders_in(run_dir: Path) -> list[RunFolder]:
    """Every run's folder below one, those of studies too, by name; nothing is held."""
    files = [file for pattern in ("*", "studies/*/*") for file in sorted(run_dir.glob(f"{pattern}/{STATE_FILE}"))]
    found = [(file.parent, read_state(file)) for file in files]
    return [RunFolder(path, state) for path, state in found if state is not None]


def hold(path: Path) -> RunFolder | None:
    """Hold a run's folder; None where another live process does, or it has no state that can be read."""
    state = read_state(path / STATE_FILE)
    if state is None:
        return None
    folder = RunFolder(path, state)
    try:
        return folder if folder.take() else None
    except OSError:
        return None


def move_to_study(folder: RunFolder, name: str) -> None:
    """Note that a run belongs to a study by another name, so that it is still resumed."""
    state = folder._state
    if state["identity"].get("study"):
        folder.update(
            identity={**state["identity"], "study": name},
            tags={key: name if key == tag("study") else value for key, value in state["tags"].items()},
        )


def settle(run_dir: Path, name: str, run_id: str | None, store: Store) -> None:
    """Finish the folder of a run that the store knows as finished, where its process was killed before it could.

    Args:
        run_dir: Folder of the runs' folders.
        name: The folder's name, as the store has it; it may not be here.
        run_id: The MLflow run.
        store: The store that knows it.
    """
    path = run_dir / name
    state = read_state(path / STATE_FILE) if name and Path(name).name == name else None
    # What a process wrote whose run was taken over is the other's to say.
    if state is None or state["run_id"] not in (run_id, None) or (path / TAKEN_OVER).exists():
        return
    if (folder := hold(path)) is not None:
        try:
            if not folder.is_finished:
                folder.note_end("finished", run_id)
            if has_unsent(path):
                # It was killed before it could note that the last record had arrived.
                with contextlib.suppress(UserError):
                    flush(store, path)
            else:
                remove_delivered(path, store)
        finally:
            folder.release()


def _clear_leftovers(checkpoints: Path) -> None:
    """Remove what a process left that was killed while it wrote a checkpoint."""
    for file in checkpoints.glob(f".*{UNFINISHED}"):
        file.unlink(missing_ok=True)


def _folders(run_dir: Path, facts: RunFacts) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folders of the same benchmark, profile, seed and role with their states, the newest first."""
    asked = {name: facts.identity[name] for name in ("benchmark", "profile", "seed", "role", "study")}
    for file in sorted(run_dir.glob(f"*/{STATE_FILE}"), key=_modified, reverse=True):
        state = None if (file.parent / TAKEN_OVER).exists() else read_state(file)
        if state is not None and all(state["identity"].get(name) == value for name, value in asked.items()):
            yield file.parent, state


def _holder(state: Mapping[str, Any]) -> str:
    host = state.get("host") or state["tags"].get(tag("host"), "this machine")
    return f"process {state['pid']} on {host}" if state.get("pid") else "another process"


def _cannot_write(run_dir: Path, error: OSError) -> UserError:
    return UserError(
        f"{run_dir}: cannot write the run's files here ({error.strerror}); choose another with --run-dir DIR"
    )


def _modified(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        # Somebody is tidying up.
        return 0.0


def read_state(file: Path) -> dict[str, Any] | None:
    """Read the state of a folder; None where it is damaged, or of a version whose runs cannot be resumed."""
    try:
        state = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(state, dict) or not {"identity", "tags", "params", "status", "run_id"} <= state.keys():
        return None
    tables = (state[name] for name in ("identity", "tags", "params"))
    return state if all(isinstance(table, dict) for table in tables) else None
