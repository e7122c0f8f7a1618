"""Runs as the tracking store and the run folders have them: what each takes, and what nobody needs any more."""

import contextlib
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlsplit

from resnet_bench.base.errors import UserError
from resnet_bench.base.text import plural
from resnet_bench.running.run_folder import RunFolder, folders_in, hold
from resnet_bench.tracking import mlflow_client
from resnet_bench.tracking.cursor import Cursor, lock_folder, store_of
from resnet_bench.tracking.run_files import CHECKPOINTS, MODEL, TAKEN_OVER, size_of
from resnet_bench.tracking.stale_runs import close_stale_runs
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.summaries import summarize
from resnet_bench.tracking.uploader import has_unsent
from resnet_bench.tracking.vocabulary import EXPERIMENTS, current_metrics, tag

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_PAGE = 1000


@dataclass(frozen=True)
class KeptRun:
    """A run of the store, with its folder where that is here.

    Attributes:
        run_id: MLflow's id.
        name: MLflow's name, for people.
        role: ``run``, ``study``, ``trial``, ``repeat`` or ``retrain``.
        status: MLflow's status: RUNNING, FINISHED, FAILED or KILLED.
        started: Milliseconds since 1970.
        seconds: From start to end; None while it runs.
        test_accuracy: The last one by the source's protocol, a fraction; None where there is none.
        reason: Why it did not finish.
        folder: The run's folder; None where it is not here.
        folder_bytes: Size of that folder.
        artifact_bytes: Size of its artifacts; None where they are not on this machine.
        resumable: Whether ``--resume`` continues it from a checkpoint.
    """

    run_id: str
    experiment_id: str
    name: str
    role: str
    benchmark: str
    profile: str
    seed: int | None
    status: str
    started: int
    seconds: float | None
    test_accuracy: float | None
    reason: str | None
    folder: Path | None
    folder_bytes: int
    artifact_bytes: int | None
    resumable: bool


def read_runs(store: Store, run_dir: Path) -> list[KeptRun]:
    """List the runs of a store that were not deleted, the newest first.

    Raises:
        UserError: There is no such store, or it cannot be read.
    """
    folders = {
        folder.run_id: folder
        for folder in folders_in(run_dir)
        if folder.run_id is not None and not (folder.path / TAKEN_OVER).exists()
    }
    runs = sorted(_runs(store.reader()), key=lambda run: -run.info.start_time)
    return [
        _kept(run, folders.get(run.info.run_id))
        for run in runs
        if run.info.lifecycle_stage == "active" and tag("summary") not in run.data.tags
    ]


def find_run(runs: Sequence[KeptRun], name: str) -> KeptRun:
    """Find a run by its id, the beginning of its id, or its name.

    Raises:
        UserError: None or several runs have it.
    """
    found = [run for run in runs if run.run_id.startswith(name) or run.name == name] if name else []
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(f"{name or 'an empty name'}: no run has this id or name; resnet-bench runs list shows them")
    raise UserError(f"{name}: {len(found)} runs have it; write an id: {', '.join(run.run_id for run in found[:4])}")


def delete_runs(store: Store, runs: Sequence[KeptRun]) -> int:
    """Delete runs in MLflow, where they can be restored until they are pruned, and remove their folders.

    Returns:
        The bytes of the folders.

    Raises:
        UserError: One of them is running, in use, or a study; none was deleted.
    """
    for run in runs:
        if run.role == "study":
            raise UserError(f"{run.name} is a study; delete it with: resnet-bench study delete {run.name}")
        if run.status == "RUNNING":
            raise UserError(f"{run.name} is running; stop it first")
    with contextlib.ExitStack() as held:
        folders = [run.folder for run in runs if run.folder is not None]
        if in_use := [folder for folder in folders if not held.enter_context(_held(folder))]:
            raise UserError(f"{in_use[0]}: another process uses this run; wait for it to end")
        for run in runs:
            # The folder goes second: a run that is still there can be deleted again.
            _delete(store, run)
            if run.folder is not None:
                shutil.rmtree(run.folder, ignore_errors=True)
    return sum(run.folder_bytes for run in runs)


def _delete(store: Store, run: KeptRun) -> None:
    client = store.client()
    tags = client.get_run(run.run_id).data.tags
    client.delete_run(run.run_id)
    summarize(store, client, tags, run.experiment_id)


# --- what nobody needs any more ---------------------------------------------------------------------


@dataclass(frozen=True)
class Leftover:
    """Something that can be removed.

    Attributes:
        kind: ``folder``, a run's folder; ``checkpoint``, a file that the model of the run makes superfluous; ``run``,
            a run that was deleted in MLflow, with its artifacts.
        name: The run's name, or its folder's.
        why: Why nobody needs it.
        bytes: Its size; 0 where it is not on this machine.
        path: The folder or file.
        run_id: The MLflow run.
    """

    kind: Literal["folder", "checkpoint", "run"]
    name: str
    why: str
    bytes: int
    path: Path | None = None
    run_id: str | None = None


@dataclass(frozen=True)
class Kept:
    """A folder that is left alone, and why."""

    name: str
    why: str
    path: Path
    bytes: int


@dataclass
class PrunePlan:
    """What pruning would remove, and which folders it would leave alone."""

    leftovers: list[Leftover] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """What would be freed."""
        return sum(leftover.bytes for leftover in self.leftovers)


def plan_prune(store: Store, run_dir: Path, *, unfinished: bool = False) -> PrunePlan:
    """Find what nobody needs any more.

    Args:
        store: The store; folders of other stores are left alone.
        run_dir: Folder of the runs' folders.
        unfinished: Also remove folders of runs that could be resumed, and measurements that no store has.

    Raises:
        UserError: The store cannot be used.
    """
    if problem := store.check():
        raise UserError(f"{store.redacted_uri} cannot be used: {problem}")
    plan = PrunePlan()
    if store.exists:
        close_stale_runs(store)
    client = store.client() if store.exists else None
    runs = {} if client is None else {run.info.run_id: run for run in _runs(client)}
    for folder in folders_in(run_dir):
        _judge_folder(folder, runs, store, plan, unfinished=unfinished)
    deleted = [run for run in runs.values() if run.info.lifecycle_stage != "active"]
    if deleted and store.is_server:
        plan.notes.append(
            f"{plural(len(deleted), 'run')} deleted in MLflow: a server removes them for good itself, with: mlflow gc"
        )
        deleted = []
    for run in deleted:
        size = size_of(path) if (path := _artifacts(run)) is not None else 0
        plan.leftovers.append(Leftover("run", _name(run), "deleted in MLflow", size, path, run.info.run_id))
    for run in runs.values():
        if run.info.lifecycle_stage == "active" and run.info.status == "FINISHED":
            plan.leftovers += _old_checkpoints(run)
    return plan


def _judge_folder(
    folder: RunFolder, runs: dict[str, "Run"], store: Store, plan: PrunePlan, *, unfinished: bool
) -> None:
    path, run_id = folder.path, Cursor.load(folder.path).run_id or folder.run_id
    size = size_of(path)

    def keep(why: str) -> None:
        plan.kept.append(Kept(path.name, why, path, size))

    try:
        store_of(path, store, Path.cwd())
    except UserError:
        keep("it belongs to another tracking store")
        return
    run = runs.get(run_id) if run_id is not None else None
    with _held(path) as is_free:
        if not is_free or (run is not None and run.info.status == "RUNNING"):
            keep("it is running")
            return
    if run is not None and run.info.lifecycle_stage != "active":
        why = "its run was deleted in MLflow"
    elif (path / TAKEN_OVER).exists():
        why = "its host was lost, and another folder has its run"
    elif has_unsent(path) and not unfinished:
        keep("its measurements are not uploaded yet; resnet-bench tracking flush does that")
        return
    elif not folder.is_finished and folder.last_checkpoint.is_file():
        if not unfinished:
            keep("it can be resumed")
            return
        why = "not finished"
    elif run is None:
        why = "the store has no run of it"
    else:
        why = f"{'finished' if folder.is_finished else 'ended'}, and in the store"
    plan.leftovers.append(Leftover("folder", path.name, why, size, path, run_id))


def _old_checkpoints(run: "Run") -> Iterator[Leftover]:
    """What version 0.1.0 logged besides the model: the position to resume from, which has the model's weights."""
    artifacts = _artifacts(run)
    if artifacts is None or not (artifacts / MODEL / "MLmodel").is_file():
        return
    last = artifacts / CHECKPOINTS / "last.pt"
    if last.is_file():
        why = "the run's model has the same weights"
        yield Leftover("checkpoint", _name(run), why, size_of(last), last, run.info.run_id)


def prune(store: Store, leftover: Leftover) -> str | None:
    """Remove one leftover; return why it could not be, in a sentence."""
    try:
        if leftover.kind == "run" and leftover.run_id is not None:
            _purge(store.client(), leftover.run_id, leftover.path)
        elif leftover.kind == "checkpoint" and leftover.path is not None:
            leftover.path.unlink(missing_ok=True)
        elif leftover.path is not None:
            with _held(leftover.path) as is_free:
                if not is_free:
                    return f"{leftover.name}: another process uses it now, so it stays"
                shutil.rmtree(leftover.path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{error.filename or leftover.name}: cannot be removed: {error.strerror or error}"
    except Exception as error:  # whatever the database driver or the artifact store raises
        return f"{leftover.name}: cannot be removed: {store.describe_error(error)}"
    return None


def _purge(client: "MlflowClient", run_id: str, artifacts: Path | None) -> None:
    """Do for one deleted run what ``mlflow gc`` does: artifacts first, because the row names them."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    run = client.get_run(run_id)
    if run.info.lifecycle_stage == "active":
        return
    if artifacts is not None:
        if artifacts.exists():
            shutil.rmtree(artifacts)
        with contextlib.suppress(OSError):
            artifacts.parent.rmdir()
    else:
        get_artifact_repository(run.info.artifact_uri).delete_artifacts()  # type: ignore[no-untyped-call]
    client._tracking_client.store._hard_delete_run(run_id)


# --- reading ------------------------------------------------------------------------------------------


def _runs(client: "MlflowClient") -> Iterator["Run"]:
    """The runs of our experiments, deleted ones too."""
    from mlflow.entities import ViewType

    found = [client.get_experiment_by_name(name) for name in EXPERIMENTS]
    ids = [experiment.experiment_id for experiment in found if experiment is not None]
    if ids:
        yield from mlflow_client.pages(client.search_runs, ids, run_view_type=ViewType.ALL, max_results=_PAGE)


def _kept(run: "Run", folder: RunFolder | None) -> KeptRun:
    tags, info = run.data.tags, run.info
    accuracy = current_metrics(run.data.metrics).get("final/test_accuracy")
    seed = tags.get(tag("seed"), "")
    artifacts = _artifacts(run)
    return KeptRun(
        run_id=info.run_id,
        experiment_id=str(info.experiment_id),
        name=_name(run),
        role=tags.get(tag("role"), ""),
        benchmark=tags.get(tag("benchmark"), ""),
        profile=tags.get(tag("profile"), ""),
        seed=int(seed) if seed.isdigit() else None,
        status=info.status,
        started=info.start_time,
        seconds=None if info.end_time is None else max(0, info.end_time - info.start_time) / 1000,
        test_accuracy=accuracy if accuracy is not None and math.isfinite(accuracy) else None,
        reason=tags.get(tag("reason")) or None,
        folder=None if folder is None else folder.path,
        folder_bytes=0 if folder is None else size_of(folder.path),
        artifact_bytes=None if artifacts is None else size_of(artifacts),
        resumable=folder is not None and not folder.is_finished and folder.last_checkpoint.is_file(),
    )


def _name(run: "Run") -> str:
    return str(run.info.run_name or run.info.run_id)


def _artifacts(run: "Run") -> Path | None:
    """The folder of a run's artifacts; None where they are not on this machine's disk."""
    parts = urlsplit(run.info.artifact_uri or "")
    if parts.scheme not in ("", "file") or parts.netloc not in ("", "localhost"):
        return None
    path = Path(unquote(parts.path))
    # Never a folder that a run shares with others, whatever a database says.
    return path if path.is_absolute() and path.parent.name == run.info.run_id else None


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Hold a run's folder against those that train or upload it; False where one of them does."""
    found = hold(folder)
    if found is None:
        yield False
        return
    try:
        upload = lock_folder(folder)
    except UserError:
        found.release()
        yield False
        return
    try:
        yield True
    finally:
        upload.release()
        found.release()
