"""Where Optuna keeps a study's trials: a database, a journal file or a gRPC proxy, named by a URL."""

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import optuna
import sqlalchemy
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.study import Study as OptunaStudy
from optuna.trial import FrozenTrial
from sqlalchemy.exc import SQLAlchemyError

from resnet_bench.base.describe_error import describe_error
from resnet_bench.base.errors import UserError
from resnet_bench.base.uris import PORTS, kind_of, parse, redact, same_place
from resnet_bench.tracking.sqlite_files import connect_to_read, network_file_system_notice

DEFAULT_FILE = "optuna.db"
HEARTBEAT_SECONDS = 15
GRACE_SECONDS = 60
"""Silence after which a worker on another machine counts as dead; the next look finds it, within 90 s of its end."""

_LOCK_TIMEOUT_SECONDS = 300
_BUSY_TIMEOUT_SECONDS = 60
_CONNECT_TIMEOUT_SECONDS = 5
_DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
_KINDS = "sqlite:///optuna.db, postgresql://user@host/database, journal:optuna.log or grpc://host:13000"
_NO_STUDIES = "there are no studies yet; start one with: resnet-bench study run NAME"
_OPTUNAS_TABLES = frozenset({"studies", "trials"})
_JOURNALS_BEGIN = b'{"op_code":'

KEPT_ATTRIBUTES = ("slot", "source")
"""What the retry of a trial keeps; the rest belongs to the process that ran the trial."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudyStorage:
    """An Optuna storage by its URL.

    Attributes:
        url: The URL, passwords included; print :attr:`redacted_url`.
        heartbeat_seconds: Interval at which a running trial reports to the storage.
        grace_seconds: Silence after which a trial counts as dead.
    """

    url: str = field(repr=False)
    heartbeat_seconds: int = HEARTBEAT_SECONDS
    grace_seconds: int = GRACE_SECONDS

    @classmethod
    def resolve(cls, url: str | None, folder: Path, *, tracking_uri: str) -> Self:
        """Find the storage: the one named, else ``optuna.db`` in the folder.

        Args:
            url: A storage URL, or None.
            folder: The working folder, which relative paths start from.
            tracking_uri: MLflow's store, which must be another database.

        Raises:
            UserError: Optuna does not know the URL, or it is MLflow's database.
        """
        folder = folder.resolve()
        storage = cls(_absolute(url or f"sqlite:///{DEFAULT_FILE}", folder))
        if same_place(storage.url, tracking_uri):
            raise UserError(
                f"{storage.redacted_url} is MLflow's database, and Optuna cannot share it: both keep a table of the "
                "same name for their versions; take another with --storage"
            )
        return storage

    @property
    def redacted_url(self) -> str:
        """The URL without passwords."""
        return redact(self.url)

    @property
    def file(self) -> Path | None:
        """The file of a SQLite database or journal; None for a server."""
        for prefix in ("sqlite:///", "journal:"):
            if self.url.startswith(prefix):
                return Path(self.url.removeprefix(prefix))
        return None

    @property
    def option(self) -> list[str]:
        """The words that name the storage in a command typed in this folder; none where it is found without."""
        return [] if self.file == Path.cwd() / DEFAULT_FILE else ["--storage", self.redacted_url]

    @property
    def exists(self) -> bool:
        """Whether there is something to open; a server counts as there."""
        return self.file is None or self.file.exists()

    @property
    def dashboard(self) -> str | None:
        """The argument for optuna-dashboard; None for a proxy, which it cannot read."""
        return None if self.url.startswith("grpc:") else self.redacted_url.removeprefix("journal:")

    def notice(self) -> str | None:
        """Return what a user should know before many trials are written there, or None."""
        return network_file_system_notice(self.file) if self.file is not None else None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep the other processes of this machine out of the storage.

        Raises:
            UserError: The lock's file cannot be made, or another process does not release it.
        """
        file = self.file
        if file is None:
            # A server's studies have no folder here; processes of one user on one machine meet in this one.
            folder = Path(tempfile.gettempdir()) / f"resnet-bench-{os.getuid() if hasattr(os, 'getuid') else 'locks'}"
            file = folder / hashlib.sha256(self.url.encode()).hexdigest()[:16]
        # Optuna locks a journal file by a link that ends in .lock.
        path = Path(f"{file}.resnet-bench-lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path, timeout=_LOCK_TIMEOUT_SECONDS)
            lock.acquire()
        except Timeout:
            raise UserError(f"{path}: another process has held the lock for minutes; end it") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
        try:
            yield
        finally:
            lock.release()

    def open(self) -> "OpenStorage":
        """Connect, making the database or file where there is none.

        Raises:
            UserError: It cannot be reached, is damaged, belongs to another application or needs a missing package.
        """
        # Several processes that make one database at once get in each other's way.
        with self.errors_in_words("cannot be opened", (Exception,)), self.lock():
            self._check_owner()
            return OpenStorage(self, self._connect())

    def read(self) -> "OpenStorage":
        """Connect to what is there; nothing is made or changed.

        Raises:
            UserError: Likewise, or there is nothing to read.
        """
        if not self.exists:
            raise UserError(f"{self.redacted_url}: {_NO_STUDIES}")
        with self.errors_in_words("cannot be opened", (Exception,)):
            if not self._check_owner():
                raise UserError(f"{self.redacted_url}: {_NO_STUDIES}")
            return OpenStorage(self, self._connect(read_only=True))

    @contextlib.contextmanager
    def errors_in_words(
        self, what: str = "stopped working", kinds: tuple[type[Exception], ...] | None = None
    ) -> Iterator[None]:
        """Turn what the storage raises meanwhile into one sentence.

        Args:
            what: What happened to the storage, which the sentence says behind its URL.
            kinds: The errors that come from the storage; by default those that only a storage raises.

        Raises:
            UserError: The sentence.
        """
        caught = _storage_errors() if kinds is None else kinds
        try:
            yield
        except UserError:
            raise
        except caught as error:
            if isinstance(error, ImportError):
                raise UserError(f"{self.redacted_url}: {_missing_package(self.url, error)}") from None
            raise UserError(f"{self.redacted_url} {what}: {self._reason(error)}") from None

    def _reason(self, error: BaseException) -> str:
        # Optuna hides the database's own words behind a guess.
        while isinstance(error.__cause__, Exception):
            error = error.__cause__
        return describe_error(getattr(error, "orig", None) or error, self.url)

    def _check_owner(self) -> bool:
        """Make sure that what is there is Optuna's; False where nothing is there yet.

        Raises:
            UserError: It belongs to another application.
        """
        if self.url.startswith("grpc:"):
            return True
        if self.url.startswith("journal:"):
            return _check_journal(Path(self.url.removeprefix("journal:")), self.redacted_url)
        if not self.exists:
            return False
        engine = sqlalchemy.create_engine(self.url, **self._engine_options(read_only=True))
        try:
            tables = set(sqlalchemy.inspect(engine).get_table_names())
        finally:
            engine.dispose()
        if tables and not tables >= _OPTUNAS_TABLES:
            some = ", ".join(sorted(tables)[:3])
            raise UserError(
                f"{self.redacted_url} belongs to another application (it has the tables {some}, …); "
                "name another database with --storage"
            )
        return bool(tables)

    def _engine_options(self, *, read_only: bool) -> dict[str, Any]:
        if not self.url.startswith("sqlite"):
            return {"pool_pre_ping": True}
        path = self.file
        if not read_only or path is None:
            return {"connect_args": {"timeout": _BUSY_TIMEOUT_SECONDS}}
        return {"creator": lambda: connect_to_read(path, busy_seconds=_BUSY_TIMEOUT_SECONDS)}

    def _connect(self, *, read_only: bool = False) -> BaseStorage:
        # Optuna's own lines would land in the middle of the live table.
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            _ignore_experimental()
            if self.url.startswith("journal:"):
                path = Path(self.url.removeprefix("journal:"))
                return optuna.storages.JournalStorage(JournalFileBackend(str(path)) if read_only else _Journal(path))
            if self.url.startswith("grpc:"):
                return _connect_proxy(self.url)
            return optuna.storages.RDBStorage(
                self.url,
                engine_kwargs=self._engine_options(read_only=read_only),
                heartbeat_interval=self.heartbeat_seconds,
                grace_period=self.grace_seconds,
                heartbeat_stale_trial_callback=retry,
                skip_table_creation=read_only,
            )


@dataclass(frozen=True)
class OpenStorage:
    """A connected storage."""

    address: StudyStorage
    optuna: BaseStorage

    def claim_lock(self) -> "contextlib.AbstractContextManager[None]":
        """Keep other processes out of a file while a trial changes hands; on a server nobody waits for anybody."""
        return self.address.lock() if self.address.file is not None else contextlib.nullcontext()

    def beat(self, trial_id: int) -> None:
        """Report to the storage that the trial is alive, where it knows heartbeats."""
        if isinstance(self.optuna, optuna.storages.RDBStorage):
            # The next beat makes up for one that is lost because the database is busy.
            with contextlib.suppress(Exception):
                self.optuna.record_heartbeat(trial_id)

    def fail_stale(self, study: OptunaStudy, is_alive: Callable[[FrozenTrial], bool]) -> bool:
        """Fail trials that have missed their heartbeats and queue them again, except those that are known to run.

        Returns:
            Whether any had missed theirs.
        """
        if not isinstance(self.optuna, optuna.storages.RDBStorage):
            return False
        stale = self.optuna._get_stale_trial_ids(study._study_id)
        for trial_id in stale:
            if is_alive(self.optuna.get_trial(trial_id)):
                self.beat(trial_id)
        if stale:
            optuna.storages.fail_stale_trials(study)
        return bool(stale)

    @contextlib.contextmanager
    def beating(self, trial_id: int, look: Callable[[], object] = lambda: None) -> Iterator[None]:
        """Report meanwhile, at intervals, that the trial is alive, and look after others.

        Journal files and gRPC proxies know no heartbeat; dead workers on this machine are found without.

        Args:
            trial_id: The trial that runs.
            look: Called at each interval; what it raises is left to the next time.
        """
        if not isinstance(self.optuna, optuna.storages.RDBStorage):
            yield
            return
        done = threading.Event()

        def beat() -> None:
            while True:
                self.beat(trial_id)
                with contextlib.suppress(Exception):
                    look()
                if done.wait(self.address.heartbeat_seconds):
                    return

        thread = threading.Thread(target=beat, name="trial heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def retry(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
    """Queue an interrupted trial again, with the same hyperparameters."""
    trial.user_attrs = {key: value for key, value in trial.user_attrs.items() if key in KEPT_ATTRIBUTES}
    with warnings.catch_warnings():
        _ignore_experimental()
        optuna.storages.RetryHeartbeatStaleTrialCallback()(study, trial)


def retried_numbers(trials: list[optuna.trial.FrozenTrial]) -> dict[int, int]:
    """Map the number of each interrupted trial to that of the trial that took its place last."""
    retries: dict[int, int] = {}
    with warnings.catch_warnings():
        _ignore_experimental()
        for trial in trials:
            for number in optuna.storages.RetryHeartbeatStaleTrialCallback.retry_history(trial):
                retries[number] = trial.number
    return retries


def _ignore_experimental() -> None:
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)


# --- journal files -----------------------------------------------------------------------------------


class _Journal(JournalFileBackend):
    """Optuna's journal file, which survives a disk that is full and a process that is killed while it writes.

    Optuna appends behind an incomplete line, after which nobody can read the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._link = JournalFileSymlinkLock(str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(str(path), self._link)
        with self._alone():
            self._cut_incomplete_line()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append whole lines, or nothing."""
        lines = "".join(f"{json.dumps(log, separators=(',', ':'))}\n" for log in logs).encode()
        with self._alone():
            self._cut_incomplete_line()
            end = self._path.stat().st_size
            try:
                with self._path.open("ab") as file:
                    file.write(lines)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                os.truncate(self._path, end)
                raise optuna.exceptions.StorageInternalError(str(error)) from error

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            self._link.acquire()
        except OSError as error:
            raise optuna.exceptions.StorageInternalError(str(error)) from error
        try:
            yield
        finally:
            self._link.release()

    def _cut_incomplete_line(self) -> None:
        content = self._path.read_bytes() if not _ends_with_newline(self._path) else b""
        if content:
            whole = content.rfind(b"\n") + 1
            os.truncate(self._path, whole)
            _log.warning(
                "%s: its last line was incomplete (%d bytes), because the disk was full or a process was killed; "
                "it was cut off",
                self._path,
                len(content) - whole,
            )


def _ends_with_newline(path: Path) -> bool:
    """Whether a file ends with a whole line; an empty one does."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _check_journal(path: Path, shown: str) -> bool:
    """Make sure that a file is a journal of Optuna; False where it is not there or empty.

    Raises:
        UserError: It is another file.
    """
    try:
        with path.open("rb") as file:
            begin = file.read(len(_JOURNALS_BEGIN))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UserError(f"{shown} cannot be opened: {error.strerror or error}") from None
    if not _JOURNALS_BEGIN.startswith(begin):
        raise UserError(f"{shown} is not a journal of Optuna; name another file with --storage")
    return bool(begin)


# --- servers -----------------------------------------------------------------------------------------


def _connect_proxy(url: str) -> BaseStorage:
    for package in ("grpc", "google"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(name="grpcio")
    address = parse(url)
    proxy = optuna.storages.GrpcStorageProxy(host=address.host or "localhost", port=address.port or 13000)
    proxy.wait_server_ready(timeout=_CONNECT_TIMEOUT_SECONDS)
    return proxy


def _storage_errors() -> tuple[type[Exception], ...]:
    """Return the classes of error that nothing but a storage raises."""
    found: tuple[type[Exception], ...] = (optuna.exceptions.OptunaError, SQLAlchemyError)
    with contextlib.suppress(ImportError):
        import grpc  # type: ignore[import-untyped]  # an optional package

        found += (grpc.RpcError,)
    return found


# --- URLs ------------------------------------------------------------------------------------------


def _absolute(url: str, folder: Path) -> str:
    scheme, separator, rest = url.partition(":")
    scheme = scheme.lower()
    if not separator or not rest:
        raise UserError(f"--storage {redact(url)}: write a URL, such as {_KINDS}")
    if scheme == "journal":
        return f"journal:{(folder / rest.removeprefix('//')).resolve()}"
    if scheme == "sqlite":
        path = rest.removeprefix("///")
        if path in ("", "//", ":memory:") or rest == path:
            raise UserError(f"--storage {redact(url)}: a study must outlive this process; write sqlite:///optuna.db")
        return f"sqlite:///{(folder / path).resolve()}"
    if scheme == "grpc":
        return url
    if scheme in _DRIVERS:
        return f"{_DRIVERS[scheme]}:{rest}"
    if kind_of(url) in PORTS and kind_of(url) not in ("http", "https"):
        return url
    raise UserError(f"--storage {scheme}:…: Optuna cannot keep a study there; write such as {_KINDS}")


def _missing_package(url: str, error: ImportError) -> str:
    if url.startswith("grpc:"):
        return "a gRPC proxy needs the packages grpcio and protobuf; install them with: pip install grpcio protobuf"
    if url.startswith("postgresql"):
        return "PostgreSQL needs a driver; install it with: pip install 'resnet-bench[postgres]'"
    return f"the database's driver is missing ({error.name or error})"
