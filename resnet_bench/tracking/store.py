"""Where runs are tracked: an MLflow store, found once and passed along as a value."""

import contextlib
import functools
import logging
import os
import socket
import sqlite3
import subprocess  # our own interpreter  # nosec B404
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from resnet_bench.base.describe_error import describe_error
from resnet_bench.base.errors import UserError
from resnet_bench.base.uris import PORTS, redact, redact_text, sqlite_path
from resnet_bench.tracking import mlflow_client
from resnet_bench.tracking.experiments import EXPERIMENTS, experiment_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient

DATABASES = ("sqlite", "postgresql", "postgresql+psycopg", "postgresql+psycopg2", "mysql", "mysql+pymysql", "mssql")
SERVERS = ("http", "https")
UI_ADDRESS = "http://127.0.0.1:5000"
"""Where ``make ui`` shows a database."""

CHECK_TIMEOUT_SECONDS = 3
LOCK_TIMEOUT_SECONDS = 180
_NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb", "smbfs", "smb3", "afpfs", "ncpfs", "9p", "fuse.sshfs", "lustre"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Store:
    """An MLflow tracking store.

    Attributes:
        uri: The tracking URI, passwords included; show :attr:`shown` to people.
        artifact_root: Folder or URI for the artifacts of new experiments; None leaves it to the server.
    """

    uri: str = field(repr=False)
    artifact_root: str | None = None

    @classmethod
    def resolve(cls, uri: str | None = None, folder: Path | None = None) -> Self:
        """Find the store: the one named, else ``MLFLOW_TRACKING_URI``, else a database in the folder.

        Args:
            uri: A tracking URI.
            folder: The project's folder, by default the working directory.

        Raises:
            UserError: The URI is not one that runs can be tracked at.
        """
        folder = (folder or Path.cwd()).resolve()
        found = uri or os.environ.get("MLFLOW_TRACKING_URI") or _sqlite_uri(folder / "mlflow.db")
        scheme = found.partition(":")[0].lower()
        found = f"{scheme}{found[len(scheme) :]}"
        if not _is_well_formed(found):
            raise UserError("the tracking URI is no address; write one such as sqlite:////folder/mlflow.db")
        if scheme == "databricks" or scheme in SERVERS:
            return cls(found)
        if scheme not in DATABASES:
            raise UserError(_refusal(found, scheme))
        root = os.environ.get("MLFLOW_DEFAULT_ARTIFACT_ROOT")
        if scheme != "sqlite":
            return cls(found, root or str(folder / "mlartifacts"))
        path = sqlite_path(found)
        if path is None:
            raise UserError(f"{redact(found)}: a database in memory keeps no runs; write sqlite:////folder/mlflow.db")
        if any(sign in str(path) for sign in "?#%"):
            raise UserError(
                f"{redact(str(path))}: MLflow cannot open a database whose path has ?, # or % in it; move it"
            )
        return cls(_sqlite_uri(path), root or str(path.parent / "mlartifacts"))

    # --- what people see ---------------------------------------------------------------------------

    @property
    def shown(self) -> str:
        """The URI as it may be printed and logged: without passwords and tokens."""
        return redact(self.uri)

    def hide(self, text: str) -> str:
        """A text, such as an error of the store, with the secrets of the URI replaced by ``***``."""
        return redact_text(text, self.uri)

    @property
    def is_server(self) -> bool:
        """Whether runs are sent to a server rather than written to a database."""
        return self.uri.startswith(("http:", "https:", "databricks"))

    @property
    def exists(self) -> bool:
        """Whether there is a store to read: a SQLite file that nobody has made yet holds nothing."""
        path = sqlite_path(self.uri)
        return path is None or path.exists()

    def run_url(self, run_id: str) -> str:
        """The page of a run; for a database, where ``make ui`` will show it."""
        if self.uri.startswith("databricks"):
            return f"{self.uri} run {run_id}"
        base = UI_ADDRESS
        if self.is_server:
            scheme, _, rest = self.uri.partition("://")
            base = f"{scheme}://{rest.rpartition('@')[2].partition('?')[0].rstrip('/')}"
        return f"{base}/#/runs/{run_id}"

    # --- getting ready -----------------------------------------------------------------------------

    def client(self) -> "MlflowClient":
        """A client of the store.

        Raises:
            UserError: The database cannot be opened, or another version of MLflow made it.
        """
        # MLflow tries a database ten times, for two minutes, before it gives up.
        if not self.is_server and (problem := _unreachable_database(self.uri)):
            raise UserError(f"{self.shown} cannot be opened: {problem}")
        try:
            return mlflow_client.connect(self.uri)
        except ImportError as error:
            raise UserError(f"{self.shown}: the store needs a package that is missing ({error})") from None
        except Exception as error:  # whatever the database driver raises
            raise UserError(f"{self.shown} cannot be opened: {self.sentence(error)}") from None

    def prepare(self, experiments: Iterable[str] = EXPERIMENTS) -> None:
        """Make or upgrade the database and make the experiments; any number of processes may do so at once.

        A server that is away is no error: runs are then kept on disk until it is back.

        Raises:
            UserError: The database cannot be made, opened or upgraded.
        """
        # The slow import is not part of what has to be done one process after another.
        mlflow_client.load()
        with self._alone() as path:
            if path is not None and path.exists():
                self._upgrade(path)
            client = self.client()
            for name in experiments:
                try:
                    self.experiment_id(client, name)
                except UserError:
                    raise
                except Exception as error:  # whatever the database driver or the server's client raises
                    reason = self.sentence(error)
                    if not self.is_server:
                        raise UserError(f"{self.shown} cannot be used: {reason}") from None
                    _log_once(f"{self.shown} does not answer ({reason}); runs are kept on disk until it is back")
                    return

    def experiment_id(self, client: "MlflowClient", name: str) -> str:
        """The id of an experiment, made where there is none.

        Raises:
            UserError: The experiment was deleted.
            MlflowException: The store does not answer.
        """
        from mlflow.exceptions import MlflowException

        tags = experiment_tags(name)
        found = client.get_experiment_by_name(name)
        if found is None:
            location = None
            if self.artifact_root is not None:
                location = f"{_as_uri(self.artifact_root)}/{name.replace(' ', '-')}"
            try:
                return client.create_experiment(name, artifact_location=location, tags=tags)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                # Another process was quicker.
                found = client.get_experiment_by_name(name)
        if found is None or found.lifecycle_stage != "active":
            raise UserError(
                f"{self.shown}: the experiment {name!r} was deleted; "
                "bring it back with: mlflow experiments restore --experiment-id "
                f"{found.experiment_id if found else '…'}"
            )
        for key, value in _changed(tags, found.tags).items():
            client.set_experiment_tag(found.experiment_id, key, value)
        return str(found.experiment_id)

    def check(self) -> str | None:
        """Why the store cannot be reached right now, or None when it can; at most a few seconds."""
        path = sqlite_path(self.uri)
        if path is not None:
            return _check_sqlite(path)
        if self.uri.startswith(("http:", "https:")):
            return self.hide(problem) if (problem := _check_server(self.uri)) else None
        try:
            self.client().search_experiments(max_results=1)
        except Exception as error:  # whatever the database driver or the SDK raises
            return self.sentence(error)
        return None

    def sentence(self, error: BaseException) -> str:
        """What went wrong in the store, in one line without passwords."""
        return describe_error(error, self.uri)

    def _upgrade(self, path: Path) -> None:
        revision = _sqlite_revision(path)
        # The revision that this MLflow wants is in its package's scripts; asking for it opens no database.
        from mlflow.store.db.utils import _get_latest_schema_revision

        if revision is None or revision == _get_latest_schema_revision():  # type: ignore[no-untyped-call]
            return
        backup = path.with_name(f"{path.name}.{revision}.backup")
        _log.warning("%s was made by another version of MLflow; upgrading it, the old one is kept as %s", path, backup)
        with contextlib.closing(sqlite3.connect(path)) as old, contextlib.closing(sqlite3.connect(backup)) as copy:
            old.backup(copy)
        done = subprocess.run(  # noqa: S603 - our own interpreter and MLflow's own command  # nosec B603
            [sys.executable, "-m", "mlflow", "db", "upgrade", self.uri], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError(
                f"{path}: this database of MLflow cannot be upgraded ({last}); take another with --tracking"
            )

    @contextlib.contextmanager
    def _alone(self) -> Iterator[Path | None]:
        """Keep other processes of this machine out while a SQLite file is made; gives its path."""
        path = sqlite_path(self.uri)
        if path is None:
            # MLflow makes the tables of a database server under a lock of its own.
            yield None
            return
        if notice := network_file_system_notice(path):
            _log_once(notice)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(f"{path}.lock", timeout=LOCK_TIMEOUT_SECONDS)
            lock.acquire()
        except Timeout:
            raise UserError(f"{path}.lock: another process has been making the database for minutes; end it") from None
        except OSError as error:
            raise UserError(f"{path.parent}: runs cannot be kept in this folder ({error.strerror})") from None
        try:
            yield path
        finally:
            lock.release()


def network_file_system_notice(path: Path) -> str | None:
    """Why SQLite should not be used at a path, where it lies on a network file system; else None."""
    import psutil  # type: ignore[import-untyped]

    resolved = path.resolve()
    mounts = [part for part in psutil.disk_partitions(all=True) if resolved.is_relative_to(part.mountpoint)]
    kind = max(mounts, key=lambda part: len(part.mountpoint)).fstype.lower() if mounts else ""
    if kind not in _NETWORK_FILE_SYSTEMS:
        return None
    return (
        f"{path} lies on a network file system ({kind}), where SQLite can lose or damage runs when several "
        "processes write; take a local folder, or a server with --tracking http://…"
    )


def _refusal(uri: str, scheme: str) -> str:
    if scheme == "file" or "://" not in uri:
        return (
            f"{redact(uri)}: MLflow's file store is no longer supported by MLflow itself; "
            "take a database, such as sqlite:////absolute/path/mlflow.db"
        )
    return (
        f"{scheme}://…: runs cannot be tracked there; a tracking URI starts with "
        f"{', '.join((*DATABASES, *SERVERS))} or databricks"
    )


def _is_well_formed(uri: str) -> bool:
    """Whether an address can be taken apart, and holds nothing that would break a line of a log."""
    try:
        parts = urlsplit(uri)
        # Asking for the number checks it.
        _ = parts.port
    except ValueError:
        return False
    if parts.scheme in (*DATABASES, *SERVERS) and "://" not in uri:
        return False
    if parts.scheme in SERVERS and not parts.hostname:
        return False
    return uri.isprintable() and "\\" not in uri


def _sqlite_uri(path: Path) -> str:
    return f"sqlite:///{path.as_posix()}"


def _sqlite_revision(path: Path) -> str | None:
    with contextlib.closing(sqlite3.connect(path, timeout=CHECK_TIMEOUT_SECONDS)) as database:
        try:
            row = database.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.OperationalError:
            # No such table: a database that MLflow has not filled yet.
            return None
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path} is no SQLite database ({error}); move it away, or take another") from None
    return str(row[0]) if row else None


def _check_sqlite(path: Path) -> str | None:
    folder = next(parent for parent in path.parents if parent.exists())
    if not os.access(folder, os.W_OK):
        return f"the folder {folder} cannot be written"
    if not path.exists():
        return None
    try:
        _sqlite_revision(path)
    except (sqlite3.Error, UserError) as error:
        return str(error)
    return None if os.access(path, os.W_OK) else f"{path} cannot be written"


def _unreachable_database(uri: str) -> str | None:
    """Why nothing answers at a database server's address; None where something does, or there is no address."""
    parts = urlsplit(uri)
    usual = PORTS.get(parts.scheme.partition("+")[0])
    if not parts.hostname or usual is None:
        return None
    port = parts.port or usual
    try:
        socket.create_connection((parts.hostname, port), timeout=CHECK_TIMEOUT_SECONDS).close()
    except OSError as error:
        return f"{parts.hostname}:{port} does not answer ({error})"
    return None


def _check_server(uri: str) -> str | None:
    parts = urlsplit(uri)
    address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}/health"
    try:
        with urllib.request.urlopen(address, timeout=CHECK_TIMEOUT_SECONDS):  # noqa: S310 - http or https  # nosec B310
            return None
    except urllib.error.HTTPError as error:
        error.close()
        # A server that asks who is there, is there.
        return None if error.code in (401, 403) else f"{address} answers with status {error.code}"
    except (OSError, ValueError) as error:
        return f"{address} does not answer ({getattr(error, 'reason', error)})"


def _as_uri(root: str) -> str:
    return root.rstrip("/") if "://" in root else Path(root).absolute().as_uri()


def _changed(wanted: Mapping[str, str], there: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in wanted.items() if there.get(key) != value}


@functools.cache
def _log_once(text: str) -> None:
    _log.warning("%s", text)
