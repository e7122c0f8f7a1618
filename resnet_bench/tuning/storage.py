"""Where Optuna keeps a study's trials: a database, a journal file or a gRPC proxy, named by a URL."""

import contextlib
import hashlib
import importlib.util
import os
import tempfile
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from filelock import FileLock

from resnet_bench.base.describe_error import describe_error
from resnet_bench.base.errors import UserError
from resnet_bench.base.uris import redact, same_place
from resnet_bench.tracking.sqlite_files import network_file_system_notice

if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage

DEFAULT_FILE = "optuna.db"
HEARTBEAT_SECONDS = 60
GRACE_SECONDS = 180
"""A worker of another machine that has been silent for so long is taken for dead."""

_LOCK_TIMEOUT_SECONDS = 300
_BUSY_TIMEOUT_SECONDS = 60
_CONNECT_TIMEOUT_SECONDS = 5
_DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_KINDS = "sqlite:///optuna.db, postgresql://user@host/database, journal:optuna.log or grpc://host:13000"

# What a stale trial's retry takes over; the rest belongs to the process that ran it.
KEPT_ATTRIBUTES = ("slot", "source")


@dataclass(frozen=True)
class StudyStorage:
    """An Optuna storage by its URL.

    Attributes:
        url: The URL, passwords included; show :attr:`shown` to people.
        heartbeat_seconds: How often a running trial says that it lives.
        grace_seconds: Silence after which it is taken for dead.
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
            UserError: The URL is none that Optuna knows, or it is MLflow's database.
        """
        folder = folder.resolve()
        found = _absolute(url or f"sqlite:///{DEFAULT_FILE}", folder)
        if _is_database(found) and same_place(found, tracking_uri):
            raise UserError(
                f"{redact(found)} is MLflow's database, and Optuna cannot share it: both keep a table of the same "
                "name for their versions; take another with --storage"
            )
        return cls(found)

    @property
    def shown(self) -> str:
        """The URL as it may be printed: without its password."""
        return redact(self.url)

    @property
    def _file(self) -> Path | None:
        for prefix in ("sqlite:///", "journal:"):
            if self.url.startswith(prefix):
                return Path(self.url.removeprefix(prefix))
        return None

    @property
    def exists(self) -> bool:
        """Whether there is something to open; a server is taken to be there."""
        return self._file is None or self._file.exists()

    @property
    def dashboard(self) -> str | None:
        """What optuna-dashboard is given to show the studies; None for a proxy, which it cannot read."""
        return None if self.url.startswith("grpc:") else self.shown.removeprefix("journal:")

    def notice(self) -> str | None:
        """What a user should know before many trials are written there, or None."""
        return network_file_system_notice(self._file) if self._file is not None else None

    def alone(self) -> FileLock:
        """A lock that one process of this machine holds at a time."""
        file = self._file
        if file is None:
            # A server's studies have no folder here; processes of one user on one machine meet in this one.
            folder = Path(tempfile.gettempdir()) / f"resnet-bench-{os.getuid() if hasattr(os, 'getuid') else 'locks'}"
            file = folder / hashlib.sha256(self.url.encode()).hexdigest()[:16]
        file.parent.mkdir(parents=True, exist_ok=True)
        # Optuna locks a journal file by a link that ends in .lock.
        return FileLock(f"{file}.resnet-bench-lock", timeout=_LOCK_TIMEOUT_SECONDS)

    def open(self, *, create: bool = True) -> "OpenStorage":
        """Connect, making the database or file where there is none.

        Args:
            create: Whether it may be made.

        Raises:
            UserError: It cannot be reached, is damaged, needs a missing package, or (without ``create``) is
                not there.
        """
        if not create and not self.exists:
            raise UserError(f"{self.shown}: there are no studies yet; start one with: resnet-bench study run NAME")
        with warnings.catch_warnings():
            _ignore_experimental()
            try:
                # Several processes that make one database at once get in each other's way.
                with self.alone():
                    return OpenStorage(self, self._connect())
            except ImportError as error:
                raise UserError(f"{self.shown}: {_missing_package(self.url, error)}") from None
            except UserError:
                raise
            except Exception as error:  # whatever the database driver raises
                raise UserError(f"{self.shown} cannot be opened: {describe_error(error, self.url)}") from None

    def _connect(self) -> "BaseStorage":
        import optuna

        # Optuna's own lines would land in the middle of the live table.
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        if self.url.startswith("journal:"):
            from optuna.storages.journal import JournalFileBackend

            backend = JournalFileBackend(self.url.removeprefix("journal:"))
            return optuna.storages.JournalStorage(backend)
        if self.url.startswith("grpc://"):
            return self._connect_proxy()
        timeout = {"connect_args": {"timeout": _BUSY_TIMEOUT_SECONDS}} if self.url.startswith("sqlite") else {}
        return optuna.storages.RDBStorage(
            self.url,
            engine_kwargs=timeout or {"pool_pre_ping": True},
            heartbeat_interval=self.heartbeat_seconds,
            grace_period=self.grace_seconds,
            heartbeat_stale_trial_callback=retry,
        )

    def _connect_proxy(self) -> "BaseStorage":
        import optuna

        for package in ("grpc", "google.protobuf"):
            if importlib.util.find_spec(package.partition(".")[0]) is None:
                raise ImportError(name="grpcio")
        parts = urlsplit(self.url)
        proxy = optuna.storages.GrpcStorageProxy(host=parts.hostname or "localhost", port=parts.port or 13000)
        proxy.wait_server_ready(timeout=_CONNECT_TIMEOUT_SECONDS)
        return proxy


@dataclass(frozen=True)
class OpenStorage:
    """A connected storage."""

    address: StudyStorage
    optuna: "BaseStorage"

    def beat(self, trial_id: int) -> None:
        """Tell the storage that the trial is alive, where it knows heartbeats."""
        import optuna

        if isinstance(self.optuna, optuna.storages.RDBStorage):
            # A beat that is lost because the database is busy is made good by the next.
            with contextlib.suppress(Exception):
                self.optuna.record_heartbeat(trial_id)

    @contextlib.contextmanager
    def beating(self, trial_id: int) -> Iterator[None]:
        """While the context is open, the storage is told now and then that the trial is alive.

        Journal files and gRPC proxies know no heartbeat; dead workers of this machine are found without.
        """
        import optuna

        if not isinstance(self.optuna, optuna.storages.RDBStorage):
            yield
            return
        done = threading.Event()

        def beat() -> None:
            while True:
                self.beat(trial_id)
                if done.wait(self.address.heartbeat_seconds):
                    return

        thread = threading.Thread(target=beat, name="trial heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def retry(study: "optuna.Study", trial: "optuna.trial.FrozenTrial") -> None:
    """Queue a trial that was interrupted to be run again, with the values it had."""
    import optuna

    trial.user_attrs = {key: value for key, value in trial.user_attrs.items() if key in KEPT_ATTRIBUTES}
    with warnings.catch_warnings():
        _ignore_experimental()
        optuna.storages.RetryHeartbeatStaleTrialCallback()(study, trial)


def retried_numbers(trials: "list[optuna.trial.FrozenTrial]") -> dict[int, int]:
    """The numbers of trials that were interrupted, each with that of the trial that ran in its place last."""
    import optuna

    retries: dict[int, int] = {}
    with warnings.catch_warnings():
        _ignore_experimental()
        for trial in trials:
            for number in optuna.storages.RetryHeartbeatStaleTrialCallback.retry_history(trial):
                retries[number] = trial.number
    return retries


def _ignore_experimental() -> None:
    import optuna

    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)


# --- URLs ------------------------------------------------------------------------------------------


def _absolute(url: str, folder: Path) -> str:
    scheme, separator, rest = url.partition(":")
    scheme = scheme.lower()
    if not separator or not rest:
        raise UserError(f"--storage {url}: write a URL, such as {_KINDS}")
    if scheme == "journal":
        return f"journal:{(folder / rest.removeprefix('//')).resolve()}"
    if scheme == "sqlite":
        path = rest.removeprefix("///")
        if path in ("", "//", ":memory:") or rest == path:
            raise UserError(f"--storage {url}: a study must outlive this process; write sqlite:///optuna.db")
        return f"sqlite:///{(folder / path).resolve()}"
    if scheme == "grpc":
        return url
    if scheme in _DRIVERS:
        return f"{_DRIVERS[scheme]}:{rest}"
    if scheme.partition("+")[0] in _PORTS:
        return url
    raise UserError(f"--storage {scheme}:…: Optuna cannot keep a study there; write such as {_KINDS}")


def _is_database(url: str) -> bool:
    return not url.startswith(("journal:", "grpc:"))


def _missing_package(url: str, error: ImportError) -> str:
    if url.startswith("grpc:"):
        return "a gRPC proxy needs the packages grpcio and protobuf; install them with: pip install grpcio protobuf"
    if url.startswith("postgresql"):
        return "PostgreSQL needs a driver; install it with: pip install 'resnet-bench[postgres]'"
    return f"the database's driver is missing ({error.name or error})"
