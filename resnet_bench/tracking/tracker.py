"""One MLflow run, from its creation to its end."""

import logging
import threading
import uuid
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from resnet_bench.tracking.cursor import JOURNAL
from resnet_bench.tracking.delivery import UploadReport
from resnet_bench.tracking.facts import RunFacts
from resnet_bench.tracking.journal import Entry, Journal, Record, read
from resnet_bench.tracking.model import save_model
from resnet_bench.tracking.recorder import Recorder, now_ms, tags_record
from resnet_bench.tracking.run_files import ARTIFACTS, MODEL
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.system import SystemSampler
from resnet_bench.tracking.uploader import Uploader
from resnet_bench.tracking.vocabulary import tag

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn

    from resnet_bench.training.events import EndReason, Event

STATUS: "Mapping[EndReason, str]" = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED", "pruned": "KILLED"}
CLOSE_TIMEOUT_SECONDS = 60.0
UPLOAD_SECONDS = 5.0
"""Between two looks at the journal; each costs some milliseconds, however little there is to send."""
SERVER_FACTOR = 3
"""How many times as rarely the journal is sent to a server, which others write to as well."""
SAMPLE_SECONDS = 10.0
"""Between two looks at processor, memory and GPU."""
_MAX_WAITING = 10_000
_MAX_DIGEST_LENGTH = 36

_log = logging.getLogger(__name__)


class Tracker:
    """Writes what a run does to its journal, and has a thread upload it.

    Nothing here waits for the store except :meth:`open`, for a few seconds at most, and :meth:`close`, as long
    as it is told. A disk that is full loses measurements, which the report says, but never stops the run.
    """

    def __init__(
        self, store: Store, description: RunFacts, folder: Path, journal: Journal, *, run_id: str | None
    ) -> None:
        """Use :meth:`open`."""
        self._store = store
        self._folder = folder
        self._writer = _Writer(journal)
        self._recorder = Recorder(description)
        interval = UPLOAD_SECONDS * (SERVER_FACTOR if store.is_server else 1)
        self.uploader = Uploader(store, folder, journal.sync, interval=interval, run_id=run_id)
        device = str(description.execution.get("device", "cpu"))

        def take(sample: dict[str, float]) -> None:
            self._writer.append(self._recorder.sample(sample))

        self.sampler = SystemSampler(take, device, interval=SAMPLE_SECONDS)

    @classmethod
    def open(
        cls,
        store: Store,
        description: RunFacts,
        folder: Path,
        *,
        resume_run_id: str | None = None,
        resume_step: int | None = None,
    ) -> Self:
        """Start tracking a run, or resume the one whose journal is in the folder.

        Args:
            store: Where to track it. When it is away, the run is created once it is back.
            description: What the run is.
            folder: The run's own folder; the journal is kept there.
            resume_run_id: The MLflow run to resume, for a folder whose journal was lost.
            resume_step: Optimizer steps that the checkpoint to resume from has done; later measurements are taken
                back, because they are made again. None: the run starts at its beginning.

        Raises:
            UserError: Another process is writing the run.
            OSError: The folder cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        journal = Journal.open(folder / JOURNAL)
        try:
            tracker = cls(store, description, folder, journal, run_id=resume_run_id)
        except BaseException:
            journal.close()
            raise
        try:
            if tracker.run_id is not None or any(_entries(journal)):
                tracker._resume(description, resume_step)
            else:
                tracker._begin(description)
        except BaseException:
            tracker.uploader.abandon()
            journal.close()
            raise
        tracker.uploader.start()
        tracker.sampler.start()
        return tracker

    @property
    def run_id(self) -> str | None:
        """The MLflow run's id; None while the store has not been reached."""
        return self.uploader.cursor.run_id

    @property
    def url(self) -> str:
        """Where the run can be seen."""
        cursor = self.uploader.cursor
        return self._store.run_url(cursor.run_id, cursor.experiment_id) if cursor.run_id else self._store.redacted_uri

    @property
    def problem(self) -> str | None:
        """Why the store takes nothing at the moment, in a sentence; None when all is well."""
        return self.uploader.problem

    def record(self, event: "Event") -> None:
        """Take down an event of the training loop. Costs microseconds and never raises for the store's sake."""
        self._writer.append(self._recorder.records(event))

    def tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; a name without a dot gets the prefix ``resnet_bench.``."""
        self._writer.append([tags_record({key: self._store.hide(value) for key, value in tags.items()})])

    def metrics(self, values: Mapping[str, float], *, epoch: int | None = None) -> None:
        """Log further metrics that belong to an epoch, or to the whole run."""
        if epoch is None:
            self._writer.append(self._recorder.final(values, timestamp=now_ms()))
            return
        single = {key: [float(value)] for key, value in values.items()}
        self._writer.append(self._recorder.metrics("epoch", epoch, single, timestamp=now_ms()))

    def artifact(self, path: Path, artifact_path: str = "") -> None:
        """Queue a file or folder to be logged as an artifact.

        Args:
            path: The file, or a folder with all that is in it. It must stay until the run is closed.
            artifact_path: The folder among the run's artifacts to put it in.
        """
        absolute = path.absolute()
        inside = absolute.is_relative_to(self._folder.absolute())
        shown = absolute.relative_to(self._folder.absolute()) if inside else absolute
        self._writer.append([{"kind": "artifact", "path": shown.as_posix(), "artifact_path": artifact_path}])

    def text(self, name: str, text: str) -> None:
        """Queue a text, such as the recipe, to be logged as an artifact under a file name."""
        path = self._folder / ARTIFACTS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        self.artifact(path, Path(name).parent.as_posix().removeprefix("."))

    def log_model(self, network: "nn.Module", example: "npt.NDArray[np.uint8]") -> None:
        """Queue the network to be logged as an MLflow model, under ``model``; see :func:`save_model`."""
        folder = self._folder / MODEL
        save_model(network, example, folder)
        self.artifact(folder)

    def close(
        self, end: "EndReason", reason: str | None = None, *, timeout: float = CLOSE_TIMEOUT_SECONDS
    ) -> UploadReport:
        """End the run, and give the store some time to take what is left.

        Args:
            end: How the run ended; decides its status in MLflow.
            reason: Why, where it did not finish, in a sentence.
            timeout: Seconds to wait for the store. What it has not taken by then stays on disk.
        """
        self.sampler.stop()
        self._writer.append(self._recorder.rest())
        if reason:
            self.tags({"reason": reason})
        self._writer.append([{"kind": "status", "status": STATUS[end], "timestamp": now_ms()}])
        report = self.uploader.close(timeout)
        return replace(report, lost=self._writer.close())

    # --- beginning and resuming --------------------------------------------------------------------

    def _begin(self, description: RunFacts) -> None:
        tags = {**description.tags(), tag("run_key"): uuid.uuid4().hex}
        created = {
            "kind": "run",
            "name": description.name,
            "experiment": description.experiment,
            "timestamp": now_ms(),
            "tags": {key: self._store.hide(value) for key, value in tags.items()},
        }
        self._writer.append([created, *_recipe_records(description)])
        self.uploader.create_run()

    def _resume(self, description: RunFacts, step: int | None) -> None:
        # A checkpoint before the first step keeps the evaluations of epoch 0; without one they are repeated.
        epoch = -1 if step is None else step // description.recipe.steps_per_epoch
        journal = self._writer.journal
        journal.truncate_after_step(step or 0, epoch, delivered=self.uploader.cursor.underway)
        entries = _entries(journal)
        self._recorder.catch_up(entries, epoch)
        # A process that was killed right after its first record left neither params nor dataset.
        there = {entry.record["kind"] for entry in entries}
        self._writer.append(record for record in _recipe_records(description) if record["kind"] not in there)
        resumed = sum(entry.record["kind"] == "status" and entry.record["status"] == "RUNNING" for entry in entries)
        # The process is named before the status says that it runs: who looks in between must not find it dead.
        self.tags({**description.process_tags(), "resumed": str(resumed + 1), "reason": ""})
        self._writer.append([{"kind": "status", "status": "RUNNING", "timestamp": now_ms()}])
        if self.run_id is None:
            self.uploader.create_run()


class _Writer:
    """Appends to a journal from several threads; what a full disk does not take waits in memory."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._waiting: deque[Record] = deque()
        self._lock = threading.Lock()
        self._lost = 0

    def append(self, records: Iterable[Record]) -> None:
        for record in records:
            self._append(record)

    def close(self) -> int:
        """Close the journal, and return how many records are lost."""
        self.journal.close()
        return self._lost + len(self._waiting)

    def _append(self, record: Record) -> None:
        with self._lock:
            self._waiting.append(record)
            try:
                while self._waiting:
                    self.journal.append(self._waiting[0])
                    self._waiting.popleft()
            except OSError as error:
                if not self._lost and len(self._waiting) == 1:
                    _log.warning("%s cannot be written (%s); measurements wait in memory", self.journal.path, error)
                if len(self._waiting) > _MAX_WAITING:
                    self._waiting.popleft()
                    self._lost += 1


def _recipe_records(description: RunFacts) -> list[Record]:
    dataset = {
        "kind": "dataset",
        "name": description.dataset_name,
        "digest": description.data_fingerprint[:_MAX_DIGEST_LENGTH],
        "source": description.data_source,
    }
    return [{"kind": "params", "values": description.params()}, dataset]


def _entries(journal: Journal) -> list[Entry]:
    return [found for found in read(journal.path, final=True) if isinstance(found, Entry)]
