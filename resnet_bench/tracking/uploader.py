"""Ships a journal to the store in batches, in order and exactly once, from a thread that nothing waits for.

Before a batch is sent the cursor file says which records it holds, afterwards that they have arrived. Whatever
stops the process in between, the next one sends the same batch again, and the store takes rows that it already
has as no news. So nothing is lost, doubled or out of order.
"""

import json
import logging
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from resnet_bench.base.errors import UserError
from resnet_bench.base.files import acquire_lock, write_atomically
from resnet_bench.tracking.journal import Damage, Entry, Record, points, read
from resnet_bench.tracking.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient

JOURNAL = "journal.jsonl"
CURSOR = "shipping.json"
LOCK = "shipping.lock"

BUSY_FRACTION = 0.25
"""The most of its time that the thread works while training goes on: it shares the interpreter with the loop."""
MAX_METRICS = 1000
MAX_PARAMS_AND_TAGS = 100
MAX_BACKOFF_SECONDS = 30.0
GRACE_SECONDS = 0.5
"""For the thread to end behind its deadline, unless it is stuck."""
_MAX_TAG_LENGTH = 8000
_MAX_PARAM_LENGTH = 6000

_REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST"}
"""Errors that sending the same again cannot cure."""

_log = logging.getLogger(__name__)


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
    """

    sent: int = 0
    left: int = 0
    refused: int = 0
    damaged: int = 0
    lost: int = 0
    problem: str | None = None

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
                (self.left, "still on disk (deliver with: resnet-bench tracking flush)"),
                (self.refused, "refused by the store"),
                (self.damaged, "damaged in the journal"),
                (self.lost, "lost because the disk could not be written"),
            )
            if count
        ]
        why = f": {self.problem}" if self.problem else ""
        return f"tracking records {', '.join(parts)}{why}"


@dataclass(frozen=True)
class Cursor:
    """How far a journal has been shipped, in bytes, and to which run."""

    run_id: str | None = None
    arrived: int = 0
    """Records that end here or before are in the store."""
    underway: int = 0
    """Records between ``arrived`` and here may be in the store."""
    deferred: tuple[int, ...] = ()
    """Where artifacts begin that the artifact store did not take, while the rest goes on."""

    @classmethod
    def load(cls, folder: Path) -> "Cursor":
        """The cursor of a run's folder; a run that has none starts at the beginning."""
        try:
            checksum, _, text = (folder / CURSOR).read_text("ascii").partition(" ")
            if checksum != _checksum(text):
                raise ValueError(checksum)  # noqa: TRY301 - damaged in one way or another
            saved = json.loads(text)
            return cls(saved["run_id"], saved["arrived"], saved["underway"], tuple(saved["deferred"]))
        except FileNotFoundError:
            return cls()
        except (ValueError, TypeError, KeyError):
            # Sending everything again costs time and changes nothing.
            _log.warning("%s is damaged; the run is sent again from its beginning", folder / CURSOR)
            journal = folder / JOURNAL
            return cls(underway=journal.stat().st_size if journal.exists() else 0)

    def save(self, folder: Path) -> None:
        """Write the cursor to a run's folder, whole or not at all."""
        text = json.dumps(asdict(self))
        write_atomically(folder / CURSOR, f"{_checksum(text)} {text}".encode("ascii"))


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode('ascii')):08x}"


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


_BATCHED = {"metrics", "params", "tags"}


def _sizes(record: Record) -> tuple[int, int, int]:
    kind, values = record["kind"], record.get("values", {})
    metrics = sum(map(len, values.values())) if kind == "metrics" else 0
    return metrics, len(values) if kind == "params" else 0, len(values) if kind == "tags" else 0


class Delivery:
    """Brings one run's journal to the store, a batch at a time. Not for several threads at once."""

    def __init__(self, store: Store, folder: Path, *, run_id: str | None = None) -> None:
        """Go on where the cursor of the folder says; run_id counts where it names no run."""
        self._store = store
        self._folder = folder
        self._client: MlflowClient | None = None
        self._refusal: str | None = None
        saved = Cursor.load(folder)
        self.cursor = replace(saved, run_id=saved.run_id or run_id)
        self.report = UploadReport()

    @property
    def journal(self) -> Path:
        """The file that is shipped."""
        return self._folder / JOURNAL

    def step(self, *, final: bool = False) -> bool:
        """Send the next batch.

        Args:
            final: Whether nothing is appended to the journal any more.

        Returns:
            Whether there may be more to send.

        Raises:
            Exception: Whatever the store's client raises when the store is away; nothing is lost.
        """
        batch, damaged, end = self._next_batch(final=final)
        if batch.entries:
            if self._client is None:
                self._client = self._store.client()
            self._move(arrived=self.cursor.arrived, underway=end)
            self._send_or_defer(self._client, batch.entries)
        if end > self.cursor.arrived:
            self._move(arrived=end, underway=end)
            self.report = replace(self.report, damaged=self.report.damaged + damaged, problem=self._refusal)
        return bool(batch.entries)

    def retry_deferred(self) -> None:
        """Try once more to log the artifacts that the artifact store did not take.

        Raises:
            Exception: Whatever the artifact store's client raises.
        """
        for start in self.cursor.deferred:
            entry = next(read(self.journal, start, final=True))
            if isinstance(entry, Entry):
                self._client = self._client or self._store.client()
                self._send(self._client, [entry])
            self._save(replace(self.cursor, deferred=tuple(at for at in self.cursor.deferred if at != start)))

    def remaining(self) -> int:
        """Records that are still to be sent."""
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

    def _send_or_defer(self, client: "MlflowClient", entries: list[Entry]) -> None:
        try:
            self._send(client, entries)
        except Exception as error:
            if entries[0].record["kind"] != "artifact" or self.cursor.run_id is None:
                raise
            # Artifacts may be kept elsewhere than runs. Where only that place is away, the rest must not wait.
            client.get_run(self.cursor.run_id)
            _log.warning("an artifact of %s is tried again at the end: %s", self._folder, self._store.sentence(error))
            self._save(replace(self.cursor, deferred=(*self.cursor.deferred, entries[0].start)))

    def _send(self, client: "MlflowClient", entries: list[Entry]) -> None:
        try:
            self._call(client, [entry.record for entry in entries])
        except Exception as error:
            if not _is_refusal(error):
                raise
            if len(entries) > 1:
                for entry in entries:
                    self._send(client, [entry])
                return
            self._refusal = self._store.sentence(error)
            _log.warning("the tracking store refuses a record of %s: %s", self._folder, self._refusal)
            self.report = replace(self.report, refused=self.report.refused + 1)
        else:
            self.report = replace(self.report, sent=self.report.sent + len(entries))

    def _call(self, client: "MlflowClient", records: list[Record]) -> None:
        kind = records[0]["kind"]
        if kind == "run":
            created = self.cursor.run_id or create_run(self._store, client, records[0])
            self._save(replace(self.cursor, run_id=created))
            return
        run_id = self.cursor.run_id
        if run_id is None:
            raise UserError(f"{self.journal} does not say which run it belongs to; its first record is damaged")
        if kind in _BATCHED:
            _log_batches(client, run_id, records)
        elif kind == "artifact":
            _log_artifact(client, run_id, self._folder, records[0])
        elif kind == "dataset":
            _log_dataset(client, run_id, records[0])
        elif kind == "status":
            _set_status(client, run_id, records[0])
        else:
            raise ValueError(f"{self.journal} holds a record of a kind this version does not know: {kind}")


class Uploader:
    """The background thread that ships a run's journal while the run goes on."""

    def __init__(
        self, store: Store, folder: Path, sync: Callable[[], None], *, interval: float, run_id: str | None = None
    ) -> None:
        """Take the right to ship the folder.

        Args:
            store: Where to.
            folder: The run's folder.
            sync: Brings the journal to the disk. What the store has, a journal must not lose.
            interval: Seconds between two looks at the journal.
            run_id: The MLflow run, where the folder's cursor names none.

        Raises:
            UserError: Another process ships the folder.
        """
        self._store = store
        self._folder = folder
        self._sync = sync
        self._interval = interval
        self._lock = lock_shipping(folder)
        self._delivery = Delivery(store, folder, run_id=run_id)
        self._wake = threading.Event()
        self._deadline: float | None = None
        self._thread = threading.Thread(target=self._run, name="tracking-shipper", daemon=True)

    @property
    def run_id(self) -> str | None:
        """The MLflow run's id, None until the store has given one."""
        return self._delivery.cursor.run_id

    @property
    def problem(self) -> str | None:
        """Why the store takes nothing at the moment."""
        return self._delivery.report.problem

    @property
    def underway(self) -> int:
        """The byte of the journal up to which its records may be in the store."""
        return self._delivery.cursor.underway

    def create_run(self) -> None:
        """Try once, before the thread starts, to create the run that the journal begins with."""
        try:
            self._delivery.step()
        except Exception as error:  # the store's client and its drivers raise what they like
            self._went_wrong(error, failures=1)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def abandon(self) -> None:
        """Give the folder back without having started the thread."""
        self._lock.release()

    def close(self, timeout: float) -> UploadReport:
        """Send what is left, for so many seconds at most, and stop.

        What could not be sent stays on disk. The thread may be stuck in a call to a store that hangs; it is then
        left to itself and ends with the process.
        """
        self._deadline = time.monotonic() + timeout
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout + GRACE_SECONDS)
        return replace(self._delivery.report, left=self._delivery.remaining())

    def _run(self) -> None:
        try:
            failures = 0
            while True:
                closing = self._deadline is not None
                began = time.monotonic()
                more = False
                try:
                    self._sync()
                    more = self._delivery.step(final=closing)
                    if closing and not more:
                        self._delivery.retry_deferred()
                    failures = 0
                except Exception as error:  # the store's client and its drivers raise what they like
                    failures += 1
                    self._went_wrong(error, failures)
                if closing and not more and not failures:
                    return
                if self._deadline is not None and time.monotonic() >= self._deadline:
                    return
                self._pause(time.monotonic() - began, more=more, failures=failures)
        finally:
            self._lock.release()

    def _pause(self, worked: float, *, more: bool, failures: int) -> None:
        if failures:
            seconds = min(2.0 ** (failures - 1), MAX_BACKOFF_SECONDS)
        elif self._deadline is not None:
            return
        else:
            seconds = worked * (1 / BUSY_FRACTION - 1) if more else self._interval
        if self._deadline is not None:
            seconds = min(seconds, 1.0, max(0.0, self._deadline - time.monotonic()))
            time.sleep(seconds)
        elif self._wake.wait(seconds):
            self._wake.clear()

    def _went_wrong(self, error: Exception, failures: int) -> None:
        sentence = self._store.sentence(error)
        self._delivery.note(sentence)
        if failures == 1:
            _log.warning(
                "%s does not take measurements (%s); they are kept in %s and sent when it is back",
                self._store.shown,
                sentence,
                self._folder,
            )


def lock_shipping(folder: Path) -> FileLock:
    """Take the right to ship a run's folder, of which there is one; the end of the process gives it back.

    Raises:
        UserError: Another process has it.
    """
    lock = acquire_lock(folder / LOCK)
    if lock is None:
        raise UserError(f"{folder}: another process is writing or delivering this run; wait for it to end")
    return lock


def flush(store: Store, folder: Path) -> UploadReport:
    """Deliver what a former process could not.

    Args:
        store: The store that the run is tracked in.
        folder: The run's folder.

    Raises:
        UserError: Another process is writing the run.
    """
    lock = lock_shipping(folder)
    try:
        delivery = Delivery(store, folder)
        try:
            while delivery.step(final=True):
                pass
            delivery.retry_deferred()
        except Exception as error:  # the store's client and its drivers raise what they like
            delivery.note(store.sentence(error))
        return replace(delivery.report, left=delivery.remaining())
    finally:
        lock.release()


def flush_all(store: Store, runs_folder: Path, *, say: Callable[[str], None]) -> bool:
    """Deliver what is left of every run under a folder, and say what became of each.

    Returns:
        Whether nothing is left.
    """
    waiting = [folder for folder in sorted(_run_folders(runs_folder)) if _has_unsent(folder)]
    if not waiting:
        say(f"nothing to deliver: every run under {runs_folder} is in the tracking store")
    complete = True
    for folder in waiting:
        try:
            report = flush(store, folder)
        except UserError as error:
            say(str(error))
            complete = False
            continue
        say(f"{folder}: {report.sentence}")
        complete = complete and report.complete
    return complete


def create_run(store: Store, client: "MlflowClient", record: Record) -> str:
    """Create the MLflow run that a journal begins with, or find it where that was done before.

    Returns:
        The run's id.
    """
    experiment_id = store.experiment_id(client, record["experiment"])
    key = record["tags"]["resnet_bench.run_key"]
    found = client.search_runs([experiment_id], f"tags.`resnet_bench.run_key` = '{key}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    tags = {name: value[:_MAX_TAG_LENGTH] for name, value in record["tags"].items()}
    run = client.create_run(experiment_id, start_time=record["timestamp"], tags=tags, run_name=record["name"])
    return str(run.info.run_id)


def _log_batches(client: "MlflowClient", run_id: str, records: list[Record]) -> None:
    from mlflow.entities import Metric, Param, RunTag

    metrics = [
        Metric(point.key, point.value, point.timestamp, point.step)
        for record in records
        if record["kind"] == "metrics"
        for point in points(record)
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
    for part in _parts(metrics, MAX_METRICS):
        client.log_batch(run_id, metrics=part)
    for part in _parts(list(tags.values()), MAX_PARAMS_AND_TAGS):
        client.log_batch(run_id, tags=part)


def _log_artifact(client: "MlflowClient", run_id: str, folder: Path, record: Record) -> None:
    path = folder / record["path"]
    if not path.exists():
        raise FileNotFoundError(f"the artifact {path} is no longer there")
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


def _is_refusal(error: Exception) -> bool:
    # Only MLflow's own exceptions carry a code; a store that was never reached gave none of these.
    return isinstance(error, FileNotFoundError) or getattr(error, "error_code", None) in _REFUSALS


def _parts(values: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _run_folders(runs_folder: Path) -> Iterable[Path]:
    return (path.parent for path in runs_folder.rglob(JOURNAL))


def _has_unsent(folder: Path) -> bool:
    cursor = Cursor.load(folder)
    behind = (isinstance(found, Entry) for found in read(folder / JOURNAL, cursor.arrived, final=True))
    return bool(cursor.deferred) or any(behind)
