"""Uploads journals: of a running run, from a thread that nothing waits for; of ended runs, when asked."""

import logging
import shlex
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from resnet_bench.base.describe_error import describe_error
from resnet_bench.base.errors import UserError
from resnet_bench.tracking.cursor import JOURNAL, Cursor, lock_folder, note_store, store_of
from resnet_bench.tracking.delivery import Delivery, RunGone, UploadReport
from resnet_bench.tracking.journal import Entry, read
from resnet_bench.tracking.leases import TakenOver
from resnet_bench.tracking.mlflow_client import patient
from resnet_bench.tracking.run_files import TAKEN_OVER, is_out_of_date, remove_delivered
from resnet_bench.tracking.store import Store, login_note

BUSY_FRACTION = 0.25
"""The most of its time that the thread works during training: it shares the interpreter with the loop."""
MAX_BACKOFF_SECONDS = 30.0
GRACE_SECONDS = 0.5
"""For the thread to end behind its deadline, unless it is stuck."""
ARTIFACT_TRIES = 3
"""How often artifacts that were not taken are tried again at the end of a run."""
RUNS_FOLDER = "runs"
"""Where ``tracking flush`` looks unless it is told otherwise."""

_log = logging.getLogger(__name__)


class Uploader:
    """The background thread that uploads a run's journal during the run."""

    def __init__(
        self, store: Store, folder: Path, sync: Callable[[], None], *, interval: float, run_id: str | None = None
    ) -> None:
        """Take the right to upload the folder.

        Args:
            store: Where to.
            folder: The run's folder.
            sync: Brings the journal to the disk. What the store has, a journal must not lose.
            interval: Seconds between two looks at the journal.
            run_id: The MLflow run, where the folder's cursor names none.

        Raises:
            UserError: Another process uploads the folder.
            OSError: The folder cannot be written.
        """
        self._store = store
        self._folder = folder
        self._sync = sync
        self._interval = interval
        self._lock = lock_folder(folder)
        try:
            note_store(folder, store)
            self._delivery = Delivery(store, folder, run_id=run_id)
        except BaseException:
            self._lock.release()
            raise
        self._wake = threading.Event()
        self._deadline: float | None = None
        self._taken_over: str | None = None
        self._failures = 0
        """In a row, since the store last took something."""
        self._thread = threading.Thread(target=self._run, name="tracking-uploader", daemon=True)

    @property
    def cursor(self) -> Cursor:
        """How far the journal has been uploaded, and to which run."""
        return self._delivery.cursor

    @property
    def problem(self) -> str | None:
        """Why the store takes nothing at the moment."""
        return self._delivery.report.problem

    @property
    def taken_over(self) -> str | None:
        """Who writes to the run now instead of this process, in a sentence; None where this process does."""
        return self._taken_over

    def create_run(self) -> None:
        """Try once, before the thread starts, to create the run that the journal begins with."""
        try:
            self._delivery.step()
        except Exception as error:  # the store's client and its drivers raise what they like
            self._went_wrong(error)

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
        command = flush_command(self._store, self._folder)
        return replace(self._delivery.report, left=self._delivery.remaining(), command=command)

    def _run(self) -> None:
        try:
            artifact_tries = 0
            while True:
                closing = self._deadline is not None
                began = time.monotonic()
                more = False
                try:
                    self._sync()
                    with nullcontext() if closing else patient():
                        more = self._delivery.step(final=closing)
                    if closing and not more:
                        artifact_tries += 1
                        self._delivery.retry_deferred()
                    self._failures = 0
                except TakenOver as error:
                    self._taken_over = str(error)
                    self._went_wrong(error)
                    return
                except Exception as error:  # the store's client and its drivers raise what they like
                    self._went_wrong(error)
                    # Waiting restores no run, and an artifact folder that is away has been so since it was first tried.
                    if closing and (isinstance(error, RunGone) or artifact_tries >= ARTIFACT_TRIES):
                        return
                if closing and not more and not self._failures:
                    return
                if self._deadline is not None and time.monotonic() >= self._deadline:
                    return
                self._pause(time.monotonic() - began, more=more)
        finally:
            self._lock.release()

    def _pause(self, worked: float, *, more: bool) -> None:
        if self._failures:
            seconds = min(2.0 ** (self._failures - 1), MAX_BACKOFF_SECONDS)
        elif self._deadline is not None:
            return
        else:
            seconds = worked * (1 / BUSY_FRACTION - 1) if more else self._interval
        if self._deadline is not None:
            seconds = min(seconds, 1.0, max(0.0, self._deadline - time.monotonic()))
            time.sleep(seconds)
        elif self._wake.wait(seconds):
            self._wake.clear()

    def _went_wrong(self, error: Exception) -> None:
        self._failures += 1
        sentence = self._store.describe_error(error)
        self._delivery.note(sentence)
        if self._failures == 1:
            _log.warning(
                "%s does not take measurements (%s); they are kept in %s and sent when it takes them again",
                self._store.redacted_uri,
                sentence,
                self._folder,
            )


def flush_command(store: Store, folder: Path) -> str:
    """Return the command that delivers a run, with the options that it needs from here."""
    words = ["resnet-bench", "tracking", "flush"]
    runs = folder.absolute().parent
    if runs != Path.cwd() / RUNS_FOLDER:
        words += ["--run-dir", str(runs)]
    # The run's folder has the address; its login is in no file, unless the environment has it.
    return f"{shlex.join(words)}{login_note(store)}"


def flush(store: Store, folder: Path) -> UploadReport:
    """Deliver what a former process could not.

    Args:
        store: The store that the run is tracked in.
        folder: The run's folder.

    Raises:
        TakenOver: A machine that does not share the folder has resumed the run; the folder is left alone from now on.
        UserError: Another process is writing the run.
    """
    lock = lock_folder(folder)
    try:
        delivery = Delivery(store, folder)
        try:
            _require_current(store, folder, delivery.cursor.run_id)
            while delivery.step(final=True):
                pass
            delivery.retry_deferred()
        except TakenOver:
            raise
        except Exception as error:  # the store's client and its drivers raise what they like
            delivery.note(store.describe_error(error))
        remove_delivered(folder, store)
        return replace(delivery.report, left=delivery.remaining(), command=flush_command(store, folder))
    finally:
        lock.release()


def _require_current(store: Store, folder: Path, run_id: str | None) -> None:
    """Raise TakenOver, and mark the folder, where a process that does not share it has the run now."""
    if run_id is not None and is_out_of_date(folder, store.client().get_run(run_id).data.tags):
        (folder / TAKEN_OVER).touch()
        raise TakenOver(f"{folder}: nothing is delivered, because another machine has resumed run {run_id}")


def flush_all(named: Store | None, runs_folder: Path, *, say: Callable[[str], None]) -> bool:
    """Deliver what is left of every run under a folder, each to the store it was made for, and say what became of it.

    Args:
        named: The store that the user names, if any.
        runs_folder: The folder with the runs' folders.
        say: Told a line per run.

    Returns:
        Whether nothing is left.
    """
    complete, found = True, False
    ready: dict[str, str | None] = {}
    for folder in sorted(_run_folders(runs_folder)):
        try:
            if not has_unsent(folder):
                continue
            found = True
            store = store_of(folder, named, Path.cwd())
            if store.uri not in ready:
                ready[store.uri] = _made_ready(store)
            if problem := ready[store.uri]:
                say(f"{folder}: nothing was delivered: {problem}")
                complete = False
                continue
            report = flush(store, folder)
        except TakenOver as error:
            # What is in the folder has been measured again.
            say(str(error))
            continue
        except UserError as error:
            say(str(error))
            complete = False
            continue
        except OSError as error:
            # Somebody else's run, or a disk that is full: how far the store has it could not be noted.
            say(f"{folder}: nothing was delivered: {describe_error(error)}")
            complete, found = False, True
            continue
        say(f"{folder}: {report.sentence}")
        complete = complete and report.complete
    if not found:
        say(f"nothing to deliver: every run under {runs_folder} is in the tracking store")
    return complete


def _made_ready(store: Store) -> str | None:
    """Why a store takes nothing, or None; a database of an older MLflow is upgraded, because it is written to."""
    if problem := store.check():
        return problem
    try:
        store.prepare()
    except UserError as error:
        return str(error)
    return None


def _run_folders(runs_folder: Path) -> Iterable[Path]:
    return (path.parent for path in runs_folder.rglob(JOURNAL) if not (path.parent / TAKEN_OVER).exists())


def has_unsent(folder: Path) -> bool:
    """Whether a run's folder has records that its store does not have."""
    cursor = Cursor.load(folder)
    behind = (isinstance(found, Entry) for found in read(folder / JOURNAL, cursor.arrived, final=True))
    return bool(cursor.deferred) or any(behind)
