"""What a command has running on a cluster: its tasks, its jobs and what they tell, in a folder on the shared disk."""

import hashlib
import json
import pickle  # what is loaded was written by the same user, beside the runs  # nosec B403
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from resnet_bench.base.errors import UserError
from resnet_bench.base.files import new_folder, write_atomically
from resnet_bench.recipe.schema import parse
from resnet_bench.running.launchers.options import ENGINES, LauncherOptions

LAUNCHES = "launches"
"""The folder below that of the runs."""
_STATE, _WORK, EVENTS, LOGS = "launch.json", "work.pkl", "events", "logs"


@dataclass(frozen=True)
class Handle:
    """A job that was submitted.

    Attributes:
        id: What the scheduler calls it.
        tasks: The numbers of its tasks in the launch, in the order in which they are run.
    """

    id: str
    tasks: tuple[int, ...]


@dataclass(frozen=True)
class Launch:
    """What one command has submitted.

    Attributes:
        path: Its folder.
        options: Those of the launcher.
        labels: What each task is, for a person; a task's number is its place here.
        checksum: SHA-256 of the file that holds the work.
        handles: The jobs; none before they are submitted.
    """

    path: Path
    options: LauncherOptions
    labels: tuple[str, ...]
    checksum: str
    handles: tuple[Handle, ...] = ()

    @classmethod
    def create(cls, run_dir: Path, options: LauncherOptions, tasks: Sequence[Any], context: Any) -> "Launch":
        """Write down what is to be done.

        Args:
            run_dir: Folder of the runs' folders, which every node sees.
            options: Those of the launcher.
            tasks: The tasks.
            context: What they share, with absolute paths.

        Raises:
            UserError: The folder cannot be written.
        """
        launches = run_dir / LAUNCHES
        try:
            launches.mkdir(parents=True, exist_ok=True)
            path = new_folder(launches, time.strftime(f"%Y%m%d-%H%M%S-{options.launcher}"))
            # The store's address may hold a login.
            path.chmod(0o700)
            for name in (EVENTS, LOGS):
                (path / name).mkdir()
            work = pickle.dumps((list(tasks), context))
            write_atomically(path / _WORK, work)
            launch = cls(path, options, tuple(task.label for task in tasks), hashlib.sha256(work).hexdigest())
            launch.write()
        except OSError as error:
            raise UserError(
                f"{launches}: cannot write what is submitted ({error.strerror}); choose another with --run-dir DIR"
            ) from None
        return launch

    @classmethod
    def load(cls, path: Path) -> "Launch | None":
        """Read a launch; None where its folder is damaged, or of another version."""
        try:
            state = json.loads((path / _STATE).read_text("utf-8"))
            options = parse(ENGINES[state["options"]["launcher"]].options, state["options"], where=str(path))
            handles = tuple(Handle(job["id"], tuple(job["tasks"])) for job in state["jobs"])
            return cls(path, options, tuple(state["tasks"]), state["checksum"], handles)
        except (OSError, ValueError, KeyError, TypeError, UserError):
            return None

    @property
    def name(self) -> str:
        """What to call it: its folder's name."""
        return self.path.name

    @property
    def events(self) -> Path:
        """The folder of what its tasks tell."""
        return self.path / EVENTS

    @property
    def logs(self) -> Path:
        """The folder of what its jobs print."""
        return self.path / LOGS

    def submitted(self, handles: Sequence[Handle]) -> "Launch":
        """Note the jobs on disk, for ``status`` and ``cancel``."""
        launch = replace(self, handles=tuple(handles))
        launch.write()
        return launch

    def write(self) -> None:
        """Write down all but the work itself.

        Raises:
            OSError: The folder cannot be written.
        """
        state = {
            "options": self.options.model_dump(mode="json", exclude_none=True),
            "tasks": list(self.labels),
            "checksum": self.checksum,
            "jobs": [asdict(handle) for handle in self.handles],
        }
        write_atomically(self.path / _STATE, json.dumps(state, indent=1).encode())

    def work(self) -> tuple[list[Any], Any]:
        """Return the tasks and what they share.

        Raises:
            UserError: They are not what was submitted.
        """
        path = self.path / _WORK
        try:
            work = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: what was submitted cannot be read ({error.strerror})") from None
        if hashlib.sha256(work).hexdigest() != self.checksum:
            raise UserError(f"{path}: this is not what was submitted; submit it again")
        tasks, context = pickle.loads(work)  # noqa: S301  # nosec B301
        return tasks, context


def path_of(events: Path, task: int, attempt: int) -> Path:
    """Name the file of what an attempt at a task tells, in the folder for that."""
    return events / f"{task:05d}-{attempt:03d}.jsonl"


def attempts_in(events: Path) -> Iterator[tuple[Path, int, int]]:
    """Yield each such file with its task and attempt; others in the folder are not ours."""
    for path in events.glob("*-*.jsonl"):
        task, _, attempt = path.stem.partition("-")
        if task.isdigit() and attempt.isdigit():
            yield path, int(task), int(attempt)


def find_launches(run_dir: Path) -> list[Launch]:
    """List what was submitted with this folder of runs, the oldest first."""
    found = [Launch.load(path) for path in sorted((run_dir / LAUNCHES).glob("*")) if path.is_dir()]
    return [launch for launch in found if launch is not None]
