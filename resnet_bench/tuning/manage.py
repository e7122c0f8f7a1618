"""Rename and delete studies, in Optuna's storage, in MLflow and on disk alike."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.trial import TrialState

from resnet_bench.base.errors import UserError
from resnet_bench.base.names import MAX_NAME_LENGTH, is_file_name
from resnet_bench.running.run_folder import folders_in, move_to_study
from resnet_bench.tracking.mlflow_client import pages
from resnet_bench.tracking.stale_runs import close_stale_runs
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.uploader import has_unsent
from resnet_bench.tracking.vocabulary import NOTE, PARENT, STUDIES_EXPERIMENT, tag
from resnet_bench.tuning.mlflow_sync import STORE
from resnet_bench.tuning.storage import StudyStorage
from resnet_bench.tuning.stored_study import StoredStudy, study_names
from resnet_bench.tuning.trial_queue import TrialQueue
from resnet_bench.tuning.turns import delete_turns

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_PAGE = 1000


@dataclass(frozen=True)
class Removed:
    """What went with a study."""

    trials: int
    runs: int
    """MLflow's, the parent included; they can be restored until they are pruned."""


def delete_study(name: str, address: StudyStorage, store: Store, run_dir: Path) -> Removed:
    """Delete a study: its runs in MLflow, its trials in Optuna, and its folder.

    A deletion that is interrupted is finished by another one.

    Args:
        name: The study's name in the storage.
        address: Where its trials are.
        store: Where its runs are.
        run_dir: Folder of the runs' folders.

    Raises:
        UserError: There is no such study, a process works on it, or a store does not answer.
    """
    with address.errors_in_words():
        stored = StoredStudy.read(name, address.open())
        client = _require_idle(stored, store)
        trials = len(stored.trials())
        with address.lock():
            runs = list(_runs(client, stored))
            # The parent goes last: by it the others are found again.
            for run in reversed(runs):
                client.delete_run(run.info.run_id)
            optuna.delete_study(study_name=name, storage=stored.storage.optuna)
            delete_turns(name, stored.storage)
    shutil.rmtree(run_dir / "studies" / name, ignore_errors=True)
    return Removed(trials, len(runs))


def rename_study(name: str, new: str, address: StudyStorage, store: Store, run_dir: Path) -> int:
    """Give a study another name, in Optuna, in MLflow and on disk.

    Returns:
        The number of MLflow runs that have the new name.

    Raises:
        UserError: There is no such study, the new name is taken or not a name, a process works on the study, or
            measurements of it are not uploaded yet.
    """
    if not is_file_name(new):
        raise UserError(
            f"{new}: a study's name is at most {MAX_NAME_LENGTH} lower-case letters, digits and hyphens, such as "
            "resnet9-wider"
        )
    folder, target = run_dir / "studies" / name, run_dir / "studies" / new
    with address.errors_in_words():
        storage = address.open()
        stored = StoredStudy.read(name, storage)
        if new in study_names(storage) or target.exists():
            raise UserError(f"{new}: there is a study of this name already")
        client = _require_idle(stored, store)
        folders = folders_in(folder)
        if any(has_unsent(each.path) for each in folders):
            raise UserError(f"{name}: measurements are not uploaded yet; first: resnet-bench tracking flush")
        with address.lock():
            optuna.copy_study(
                from_study_name=name, from_storage=storage.optuna, to_storage=storage.optuna, to_study_name=new
            )
            runs = list(_runs(client, stored))
            for run in runs:
                _rename_run(client, run, name, new)
            for each in folders:
                # Retraining runs are resumed by their study's name.
                move_to_study(each, new)
            if folder.is_dir():
                folder.rename(target)
            optuna.delete_study(study_name=name, storage=storage.optuna)
            delete_turns(name, storage)
    return len(runs)


def _require_idle(stored: StoredStudy, store: Store) -> "MlflowClient":
    """Return a client of the store that has the study's runs, once no process works on the study.

    Raises:
        UserError: One does, or the store does not have the study.
    """
    if problem := store.check():
        raise UserError(f"{store.redacted_uri} cannot be used: {problem}")
    close_stale_runs(store)
    TrialQueue(stored).recover()
    client = store.client()
    try:
        runs = list(_runs(client, stored))
        are_pruned = not runs and _parent(client, stored) is None
    except Exception as error:  # whatever the database driver or the server's client raises
        raise UserError(f"{store.redacted_uri} does not answer ({store.describe_error(error)})") from None
    if are_pruned and stored.get_attr("mlflow_run_id") and (theirs := stored.get_attr(STORE)) != store.redacted_uri:
        raise UserError(
            f"{store.redacted_uri} does not have the runs of study {stored.name}; name the store that has them with "
            f"--tracking{f': {theirs}' if theirs else ''}"
        )
    # While a study is retrained, no trial runs.
    if stored.trials(TrialState.RUNNING) or any(run.info.status == "RUNNING" for run in runs):
        raise UserError(f"study {stored.name}: a process works on it; stop that first")
    return client


def _parent(client: "MlflowClient", stored: StoredStudy) -> "Run | None":
    """The study's own run; None where it never got one, or the run was deleted for good."""
    run_id = stored.get_attr("mlflow_run_id")
    if run_id is None:
        return None
    try:
        return client.get_run(run_id)
    except Exception as error:  # whatever the database driver or the server's client raises
        if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _runs(client: "MlflowClient", stored: StoredStudy) -> Iterator["Run"]:
    """The study's runs that were not deleted, each before those that are nested in it."""
    run_id, parent = stored.get_attr("mlflow_run_id"), _parent(client, stored)
    if parent is not None and parent.info.lifecycle_stage == "active":
        yield parent
    place = parent.info if parent is not None else client.get_experiment_by_name(STUDIES_EXPERIMENT)
    if run_id is None or place is None:
        return
    found = [run_id]
    while found:
        query = f"tags.`{PARENT}` = '{found.pop()}'"
        for run in pages(client.search_runs, [place.experiment_id], query, max_results=_PAGE):
            found.append(run.info.run_id)
            yield run


def _rename_run(client: "MlflowClient", run: "Run", name: str, new: str) -> None:
    shown = str(run.info.run_name or "")
    if shown.endswith(f" of {name}"):
        client.update_run(run.info.run_id, name=shown.removesuffix(name) + new)
    elif shown == name or shown.startswith(f"{name} "):
        # The study's run; or one of 0.1.0, whose names began with the study's.
        client.update_run(run.info.run_id, name=new + shown.removeprefix(name))
    if run.data.tags.get(tag("study")) == name:
        client.set_tag(run.info.run_id, tag("study"), new)
    if (note := run.data.tags.get(NOTE, "")).startswith(f"**Study {name}**"):
        client.set_tag(run.info.run_id, NOTE, f"**Study {new}**{note.removeprefix(f'**Study {name}**')}")
