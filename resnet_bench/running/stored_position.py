"""The position of a run in the artifact store, which it is resumed from where machines share no folder.

At most every ten minutes, and when a run is stopped, its last checkpoint goes to the artifact store, behind all that
was measured before it: who finds the one there finds the other. Two places take turns, so that one is whole whatever
becomes of an upload. A run that is finished has its model there, and the positions are removed.
"""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_bench.base.errors import UserError
from resnet_bench.running.run_cache import runs_alike
from resnet_bench.running.run_folder import RunFolder, RunInUse
from resnet_bench.tracking.cursor import CURSOR, JOURNAL, Cursor
from resnet_bench.tracking.facts import RunFacts
from resnet_bench.tracking.journal import Journal, metrics_record
from resnet_bench.tracking.leases import attempt_of, claim_attempt, wait_for_decision
from resnet_bench.tracking.run_files import CHECKPOINTS, PLACES, is_out_of_date, positions_in
from resnet_bench.tracking.stale_runs import close_stale_runs
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.tracker import Tracker
from resnet_bench.tracking.vocabulary import tag
from resnet_bench.training import checkpoint

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

UPLOAD_SECONDS = 600.0
"""Between two positions of a run that go to the artifact store: what a lost machine loses at most, with an upload."""
_MAX_CANDIDATES = 20

_log = logging.getLogger(__name__)


class PositionUploads:
    """Sends a run's last checkpoint to the artifact store now and then, by its journal."""

    def __init__(self, folder: RunFolder, tracker: Tracker) -> None:
        """Begin, or continue where a former process has left files."""
        self._folder, self._tracker = folder, tracker
        self._due_at = time.monotonic() + UPLOAD_SECONDS
        # What a former process left may still wait to be sent.
        self._sent_at = {place: self._recorded() if self._file(place).exists() else 0 for place in PLACES}
        # The newest one in the store is left alone.
        self._next = min(PLACES, key=lambda place: _written_at(self._file(place)))

    def offer(self, *, is_last: bool = False) -> None:
        """Queue the checkpoint that was just written, where that is due.

        Args:
            is_last: The run is stopped: what it has done since the last upload would be lost with the machine.
        """
        # A file that still waits stays as it is: what was measured up to a later one is not sent before it.
        if (
            not (is_last or time.monotonic() >= self._due_at)
            or self._tracker.uploader.cursor.arrived < self._sent_at[self._next]
        ):
            return
        place, file = self._next, self._file(self._next)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.unlink(missing_ok=True)
            try:
                # The next checkpoint replaces the other name of these bytes.
                os.link(self._folder.last_checkpoint, file)
            except OSError:
                shutil.copy2(self._folder.last_checkpoint, file)
        except OSError as error:
            _log.warning("%s: the position is not sent to the artifact store (%s)", file, error.strerror or error)
            return
        self._tracker.artifact(file, f"{CHECKPOINTS}/{place}")
        self._sent_at[place] = self._recorded()
        self._next = PLACES[1 - PLACES.index(place)]
        self._due_at = time.monotonic() + UPLOAD_SECONDS

    def _recorded(self) -> int:
        """The bytes of the journal."""
        return (self._folder.path / JOURNAL).stat().st_size

    def _file(self, place: str) -> Path:
        return self._folder.last_checkpoint.parent / place / self._folder.last_checkpoint.name


def was_resumed_elsewhere(folder: RunFolder, store: Store) -> bool:
    """Whether a machine that does not share a folder has fetched its run and trained on, so that it is out of date."""
    if folder.run_id is None:
        return False
    try:
        client = store.client()
        tags = client.get_run(folder.run_id).data.tags
        return bool(positions_in(client, folder.run_id)) and is_out_of_date(folder.path, tags)
    except Exception as error:  # whatever the database driver, the server's client and its artifact store raise
        _log.debug("%s was not asked for run %s: %s", store.redacted_uri, folder.run_id, store.describe_error(error))
        return False


def fetch_position(folder: RunFolder, facts: RunFacts, store: Store) -> bool:
    """Fill a new folder with what the store has of the newest unfinished run of the same experiment.

    Args:
        folder: Held by this process; nothing is in it.
        facts: What the run is.
        store: The tracking store.

    Returns:
        Whether there is such a run with a position that can be read; the folder is that run's then.

    Raises:
        RunInUse: Another process trains it.
    """
    try:
        client = store.client()
        for run in _unfinished_runs(client, facts):
            if _fetch(folder, run, client, facts, store):
                return True
    except RunInUse:
        raise
    except Exception as error:  # whatever the database driver, the server's client and its artifact store raise
        # Half of it would be resumed as something that it is not.
        shutil.rmtree(folder.last_checkpoint.parent, ignore_errors=True)
        for name in (CURSOR, JOURNAL):
            (folder.path / name).unlink(missing_ok=True)
        _log.warning(
            "%s was not searched for a position to resume from: %s", store.redacted_uri, store.describe_error(error)
        )
    return False


def _unfinished_runs(client: "MlflowClient", facts: RunFacts) -> "list[Run]":
    """Return the runs that differ in nothing that decides their result, the newest first."""
    found = runs_alike(client, facts, "attributes.status != 'FINISHED'", _MAX_CANDIDATES, same_recipe=True)
    return [run for run in found if not facts.differences(run.data.tags, run.data.params)]


def _fetch(folder: RunFolder, run: "Run", client: "MlflowClient", facts: RunFacts, store: Store) -> bool:
    run_id = run.info.run_id
    if not (places := positions_in(client, run_id)):
        return False
    if _is_held(run, client, store):
        raise RunInUse(
            f"{run.data.tags.get(tag('host'), 'another machine')} is training {facts.benchmark.name} seed "
            f"{facts.seed} already (run {run_id}); wait for it, then give the same command again"
        )
    if client.get_run(run_id).info.status == "FINISHED":
        raise RunInUse(
            f"{run.data.tags.get(tag('host'), 'another machine')} has just finished {facts.benchmark.name} seed "
            f"{facts.seed} (run {run_id}); give the same command again"
        )
    with tempfile.TemporaryDirectory(dir=folder.path) as scratch:
        newest = max(_positions(client, run_id, places, Path(scratch)), default=None)
        if newest is None:
            return False
        step, place, file = newest
        kept = folder.last_checkpoint.parent / place
        kept.mkdir(parents=True)
        shutil.copy2(file, folder.last_checkpoint)
        file.replace(kept / file.name)
    # Its process, should it come back, finds that it has lost its run.
    attempt = attempt_of(client.get_run(run_id).data.tags) + 1
    if store.is_shared:
        if not claim_attempt(client, run_id, attempt):
            raise RunInUse(
                f"another machine has just fetched {facts.benchmark.name} seed {facts.seed} from the artifact store "
                f"(run {run_id}); wait for it, then give the same command again"
            )
        # Who comes next finds a run that is held, or lost.
        client.update_run(run_id, status="RUNNING")
    _restore_journal(folder, run, client, facts, attempt)
    folder.update(run_id=run_id)
    _log.warning("%s resumes after step %d, from the artifact store", run.info.run_name or run_id, step)
    return True


def _is_held(run: "Run", client: "MlflowClient", store: Store) -> bool:
    """Whether a process trains the run, on whatever machine."""
    if run.info.status != "RUNNING":
        return False
    if store.is_shared:
        return wait_for_decision(store, run.info.run_id) in ("held", "unknown")
    close_stale_runs(store)
    return bool(client.get_run(run.info.run_id).info.status == "RUNNING")


def _positions(
    client: "MlflowClient", run_id: str, places: list[str], scratch: Path
) -> Iterator[tuple[int, str, Path]]:
    """Yield step, place and file of each position that is whole."""
    for place in places:
        local = Path(client.download_artifacts(run_id, place, str(scratch)))
        for file in sorted(local.iterdir()):
            try:
                yield int(checkpoint.load(file)["position"]["step"]), local.name, file
            except UserError as error:
                # An upload that was cut off, or a version that cannot be resumed.
                _log.warning("%s", error)


def _restore_journal(folder: RunFolder, run: "Run", client: "MlflowClient", facts: RunFacts, attempt: int) -> None:
    """Write down what the store has, so that nothing of it is sent again."""
    journal = Journal.open(folder.path / JOURNAL)
    try:
        journal.append(
            {
                "kind": "run",
                "name": run.info.run_name,
                "experiment": facts.experiment,
                "timestamp": run.info.start_time,
                "tags": dict(run.data.tags),
            }
        )
        journal.append({"kind": "params", "values": dict(run.data.params)})
        resumed = run.data.tags.get(tag("resumed"), "")
        for _ in range(int(resumed) if resumed.isdigit() else 0):
            journal.append({"kind": "status", "status": "RUNNING", "timestamp": run.info.start_time})
        for key in sorted(run.data.metrics):
            for point in client.get_metric_history(run.info.run_id, key):
                journal.append(metrics_record("epoch", point.step, {key: [point.value]}, timestamp=point.timestamp))
        journal.sync()
    finally:
        journal.close()
    size = (folder.path / JOURNAL).stat().st_size
    Cursor(
        run.info.run_id, arrived=size, underway=size, experiment_id=str(run.info.experiment_id), attempt=attempt
    ).save(folder.path)


def _written_at(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
