"""Brings a run's journal to the store in batches, in order and exactly once.

Before a batch is sent the cursor file says which records it holds, afterwards that they have arrived. Whatever
stops the process in between, the next one sends the same batch again, and the store takes rows that it already
has as no news. So nothing is lost, doubled or out of order.

A record is only given up where the store says, again and again, that this very record is invalid. Whatever else
goes wrong, a full connection pool, a proxy's error page, a run that was deleted, leaves it to be sent again.
"""

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_bench.base.errors import UserError
from resnet_bench.tracking.cursor import JOURNAL, Cursor
from resnet_bench.tracking.journal import Damage, Entry, Record, points, read, thinned
from resnet_bench.tracking.leases import Lease
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.summaries import summarize
from resnet_bench.tracking.vocabulary import tag

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

STEP_VALUES = "RESNET_BENCH_STEP_VALUES"
"""The environment variable that, where it is ``all``, has a server get every value of every step."""
MAX_METRICS = 1000
MAX_PARAMS_AND_TAGS = 100
REFUSALS = 3
"""How often a store must refuse one record before it is given up."""
REFUSAL_PAUSE_SECONDS = 0.2
_MAX_TAG_LENGTH = 8000
_MAX_PARAM_LENGTH = 6000
_BATCHED = {"metrics", "params", "tags"}

_log = logging.getLogger(__name__)


class RunGone(UserError):
    """The MLflow run, or its experiment, was deleted; what is left of it stays on disk."""


class _ArtifactMissing(Exception):
    """A file that was to be logged is not there any more."""


@dataclass(frozen=True)
class UploadReport:
    """What became of a run's records.

    Attributes:
        sent: Records that arrived in the store.
        left: Records that are on disk, still to be sent.
        refused: Records that the store refuses for good, such as a param that has another value already.
        damaged: Places where the journal is damaged.
        lost: Records that could not be written to the disk.
        problem: Why records are left or refused, in a sentence.
        command: What to type to deliver what is left.
    """

    sent: int = 0
    left: int = 0
    refused: int = 0
    damaged: int = 0
    lost: int = 0
    problem: str | None = None
    command: str = "resnet-bench tracking flush"

    @property
    def complete(self) -> bool:
        """Whether everything that was measured is in the store."""
        return not (self.left or self.refused or self.damaged or self.lost)

    @property
    def sentence(self) -> str:
        """The report for a person."""
        if self.complete:
            return "everything is in the tracking store"
        parts = [
            f"{count} {what}"
            for count, what in (
                (self.left, f"still on disk (deliver with: {self.command})"),
                (self.refused, "refused by the store"),
                (self.damaged, "damaged in the journal"),
                (self.lost, "lost because the disk could not be written"),
            )
            if count
        ]
        why = f": {self.problem}" if self.problem else ""
        return f"tracking records {', '.join(parts)}{why}"


@dataclass
class _Batch:
    """Records that one call of the store takes."""

    entries: list[Entry] = field(default_factory=list)
    metrics: int = 0
    params: int = 0
    tags: int = 0

    def takes(self, record: Record) -> bool:
        """Whether the record can go with those that are there."""
        if record["kind"] not in _BATCHED or (self.entries and self.entries[0].record["kind"] not in _BATCHED):
            return not self.entries
        metrics, params, tags = _sizes(record)
        fits = self.metrics + metrics <= MAX_METRICS and max(self.params + params, self.tags + tags) <= (
            MAX_PARAMS_AND_TAGS
        )
        # A record larger than a batch goes alone, in several calls.
        return fits or not self.entries

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)
        metrics, params, tags = _sizes(entry.record)
        self.metrics, self.params, self.tags = self.metrics + metrics, self.params + params, self.tags + tags


class Delivery:
    """Brings one run's journal to the store, a batch at a time. Not for several threads at once."""

    def __init__(self, store: Store, folder: Path, *, run_id: str | None = None, lease: Lease | None = None) -> None:
        """Continue at the folder's cursor; run_id counts where it names no run."""
        self._store = store
        self._folder = folder
        self._client: MlflowClient | None = None
        self._refusal: str | None = None
        saved = _of_this_journal(Cursor.load(folder), folder)
        self.cursor = replace(saved, run_id=saved.run_id or run_id)
        # A file is written by one host, which knows its processes.
        self._lease = (lease or Lease(saved.attempt)) if store.is_shared else None
        self._thin = store.is_server and os.environ.get(STEP_VALUES) != "all"
        self.report = UploadReport(refused=len(self.cursor.refused))

    @property
    def journal(self) -> Path:
        """The file that is uploaded."""
        return self._folder / JOURNAL

    def step(self, *, final: bool = False) -> bool:
        """Send the next batch.

        Args:
            final: Whether nothing is appended to the journal any more.

        Returns:
            Whether there may be more to send.

        Raises:
            RunGone: The run was deleted; nothing is lost.
            TakenOver: Another process writes to the run now; nothing was sent.
            Exception: Whatever the store's client raises when the store is away; nothing is lost.
        """
        batch, damaged, end = self._next_batch(final=final)
        if batch.entries:
            self._move(arrived=self.cursor.arrived, underway=end)
            given_up = set(self.cursor.refused)
            self._send_or_defer([entry for entry in batch.entries if entry.start not in given_up])
        if end > self.cursor.arrived:
            self._move(arrived=end, underway=end)
            self.report = replace(self.report, damaged=self.report.damaged + damaged, problem=self._refusal)
        if not (batch.entries or final) and self.cursor.run_id is not None and self._lease and self._lease.beat():
            # Nothing was measured for a while, as in a long setup: the process shows that it is alive.
            self.deliver([{"kind": "tags", "values": {}}])
        return bool(batch.entries)

    def retry_deferred(self) -> None:
        """Try once more to log the artifacts that the artifact store did not take.

        Raises:
            Exception: Whatever the artifact store's client raises.
        """
        for start in self.cursor.deferred:
            entry = next(read(self.journal, start, final=True))
            if isinstance(entry, Entry):
                self._send([entry])
            self._save(replace(self.cursor, deferred=tuple(at for at in self.cursor.deferred if at != start)))

    def remaining(self) -> int:
        """Count the records that are still to be sent."""
        behind = sum(isinstance(found, Entry) for found in read(self.journal, self.cursor.arrived, final=True))
        return behind + len(self.cursor.deferred)

    def note(self, problem: str) -> None:
        """Keep for the report why a batch could not be sent."""
        self.report = replace(self.report, problem=problem)

    def _next_batch(self, *, final: bool) -> tuple[_Batch, int, int]:
        batch, damaged, end = _Batch(), 0, self.cursor.arrived
        for found in read(self.journal, end, final=final):
            if isinstance(found, Damage):
                _log.warning("%s: bytes %d to %d are damaged and lost", self.journal, found.start, found.end)
                damaged += 1
            elif batch.takes(found.record):
                batch.add(found)
            else:
                break
            end = found.end
        return batch, damaged, end

    def _move(self, *, arrived: int, underway: int) -> None:
        moved = replace(self.cursor, arrived=arrived, underway=underway)
        if moved != self.cursor:
            self._save(moved)

    def _save(self, cursor: Cursor) -> None:
        cursor.save(self._folder)
        self.cursor = cursor

    def _connected(self) -> "MlflowClient":
        if self._client is None:
            self._client = self._store.client()
        return self._client

    # --- sending -----------------------------------------------------------------------------------

    def _send_or_defer(self, entries: list[Entry]) -> None:
        if not entries:
            return
        try:
            self._send(entries)
        except Exception as error:
            if entries[0].record["kind"] != "artifact" or self.cursor.run_id is None:
                raise
            # Artifacts may be kept elsewhere than runs. Where only that place is away, the rest must not wait.
            self._require_active_run()
            _log.warning(
                "an artifact of %s is tried again at the end: %s", self._folder, self._store.describe_error(error)
            )
            self._save(replace(self.cursor, deferred=(*self.cursor.deferred, entries[0].start)))

    def _send(self, entries: list[Entry], refusals: int = 0) -> None:
        try:
            self.deliver([entry.record for entry in entries])
        except _ArtifactMissing as error:
            # What the disk no longer has, no store will ever get.
            self._give_up(entries[0], error)
        except Exception as error:
            # A store that says that something is missing or deleted may mean the run, which is not the record's fault.
            if getattr(error, "error_code", None) in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                self._require_active_run()
            if not _calls_it_invalid(error):
                raise
            if len(entries) > 1:
                for entry in entries:
                    self._send([entry])
            elif refusals + 1 < REFUSALS:
                time.sleep(REFUSAL_PAUSE_SECONDS)
                self._send(entries, refusals + 1)
            else:
                self._give_up(entries[0], error)
        else:
            self.report = replace(self.report, sent=self.report.sent + len(entries))

    def _give_up(self, entry: Entry, error: Exception) -> None:
        self._refusal = self._store.describe_error(error)
        _log.warning("the tracking store refuses a record of %s: %s", self._folder, self._refusal)
        self._save(replace(self.cursor, refused=(*self.cursor.refused, entry.start)))
        self.report = replace(self.report, refused=self.report.refused + 1)

    def _require_active_run(self) -> None:
        """Raise :class:`RunGone` where the store answers that the run is not there any more, or is deleted."""
        run_id = self.cursor.run_id
        if run_id is None:
            return
        try:
            run = self._connected().get_run(run_id)
        except Exception as error:
            if getattr(error, "error_code", None) != "RESOURCE_DOES_NOT_EXIST":
                raise
            where = self._store.redacted_uri
            raise RunGone(f"run {run_id} is not in {where}; what was measured stays in {self._folder}") from None
        if run.info.lifecycle_stage != "active":
            command = _restore_command(self._store, self._connected(), run)
            raise RunGone(f"run {run_id} was deleted in MLflow; restore it with: {command}")

    def deliver(self, records: list[Record]) -> None:
        client, kind = self._connected(), records[0]["kind"]
        if kind == "run":
            if self.cursor.run_id is None:
                created, experiment_id = create_run(self._store, client, records[0])
                self._save(replace(self.cursor, run_id=created, experiment_id=experiment_id))
            return
        run_id = self.cursor.run_id
        if run_id is None:
            raise UserError(f"{self.journal} does not say which run it belongs to; its first record is damaged")
        if self._lease and not self._lease.is_sure:
            self._lease.confirm(client, run_id)
        if kind in _BATCHED:
            sent_at, beat = (self._lease.clock(), self._lease.beat()) if self._lease else (0.0, {})
            _log_batches(client, run_id, records, beat, thin=self._thin)
            if self._lease and beat:
                self._lease.acknowledge(sent_at)
        elif kind == "artifact":
            _log_artifact(client, run_id, self._folder, records[0])
        elif kind == "dataset":
            _log_dataset(client, run_id, records[0])
        elif kind == "status":
            _set_status(client, run_id, records[0])
            if records[0]["status"] != "RUNNING":
                run = client.get_run(run_id)
                summarize(self._store, client, run.data.tags, run.info.experiment_id)
        else:
            raise ValueError(f"{self.journal} holds a record of a kind this version does not know: {kind}")


def _of_this_journal(cursor: Cursor, folder: Path) -> Cursor:
    """Return a cursor at the beginning, and save it, where it speaks of a journal that was lost."""
    journal = folder / JOURNAL
    if cursor.underway <= (journal.stat().st_size if journal.exists() else 0):
        return cursor
    # The journal that is written now would not be sent before it was longer than the other.
    _log.warning("%s was lost; what is measured from here on is sent from its beginning", journal)
    cursor = replace(cursor, arrived=0, underway=0, deferred=(), refused=())
    cursor.save(folder)
    return cursor


def create_run(store: Store, client: "MlflowClient", record: Record) -> tuple[str, str]:
    """Create the MLflow run that a journal begins with, or find it where that was done before.

    Returns:
        The run's id, and that of its experiment.
    """
    experiment_id = store.experiment_id(client, record["experiment"])
    key = record["tags"][tag("run_key")]
    found = client.search_runs([experiment_id], f"tags.`{tag('run_key')}` = '{key}'", max_results=1)
    if found:
        return str(found[0].info.run_id), experiment_id
    tags = {name: value[:_MAX_TAG_LENGTH] for name, value in record["tags"].items()}
    run = client.create_run(experiment_id, start_time=record["timestamp"], tags=tags, run_name=record["name"])
    return str(run.info.run_id), experiment_id


def _restore_command(store: Store, client: "MlflowClient", run: "Run") -> str:
    experiment = client.get_experiment(run.info.experiment_id)
    if experiment.lifecycle_stage != "active":
        # Its runs come back with it.
        return store.command(f"experiments restore --experiment-id {experiment.experiment_id}")
    return store.command(f"runs restore --run-id {run.info.run_id}")


def _calls_it_invalid(error: Exception) -> bool:
    """Whether the store says that what was sent is invalid, and not a proxy or a database that it does not like."""
    code = getattr(error, "error_code", None)
    return code == "INVALID_PARAMETER_VALUE" and "API request to endpoint" not in str(error)


def _sizes(record: Record) -> tuple[int, int, int]:
    kind, values = record["kind"], record.get("values", {})
    metrics = sum(map(len, values.values())) if kind == "metrics" else 0
    return metrics, len(values) if kind == "params" else 0, len(values) if kind == "tags" else 0


def _log_batches(
    client: "MlflowClient", run_id: str, records: list[Record], beat: Mapping[str, str], *, thin: bool
) -> None:
    """Log records, and the beat with the call that is made anyway."""
    from mlflow.entities import Metric, Param, RunTag

    metrics = [
        Metric(point.key, point.value, point.timestamp, point.step)
        for record in records
        if record["kind"] == "metrics"
        for point in (thinned(record) if thin else points(record))
    ]
    params = [
        Param(key, value[:_MAX_PARAM_LENGTH])
        for record in records
        if record["kind"] == "params"
        for key, value in record["values"].items()
    ]
    # The last one of a name counts: a batch must not name one twice.
    tags = {
        key: RunTag(key, value[:_MAX_TAG_LENGTH])
        for record in records
        if record["kind"] == "tags"
        for key, value in record["values"].items()
    }
    for part in _parts(params, MAX_PARAMS_AND_TAGS):
        client.log_batch(run_id, params=part)
    beats = [RunTag(key, value) for key, value in beat.items()]
    for part in _parts(metrics, MAX_METRICS):
        client.log_batch(run_id, metrics=part, tags=beats)
        beats = []
    for part in _parts([*tags.values(), *beats], MAX_PARAMS_AND_TAGS):
        client.log_batch(run_id, tags=part)


def _log_artifact(client: "MlflowClient", run_id: str, folder: Path, record: Record) -> None:
    path = folder / record["path"]
    if not path.exists():
        raise _ArtifactMissing(f"the artifact {path} is no longer there")
    client.log_artifact(run_id, str(path), record["artifact_path"] or None)


def _log_dataset(client: "MlflowClient", run_id: str, record: Record) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.exceptions import MlflowException

    dataset = Dataset(
        name=record["name"],
        digest=record["digest"],
        source_type="local",
        source=json.dumps({"uri": record["source"]}),
    )
    tags = [InputTag("mlflow.data.context", "training")]
    inputs = [DatasetInput(dataset=dataset, tags=tags)]
    try:
        client.log_inputs(run_id, datasets=inputs)
    except MlflowException:
        # Two runs that begin at once both find the dataset missing, and the slower one fails to make it.
        client.log_inputs(run_id, datasets=inputs)


def _set_status(client: "MlflowClient", run_id: str, record: Record) -> None:
    if record["status"] == "RUNNING":
        client.update_run(run_id, status="RUNNING")
    else:
        client.set_terminated(run_id, record["status"], end_time=record["timestamp"])


def _parts(values: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
