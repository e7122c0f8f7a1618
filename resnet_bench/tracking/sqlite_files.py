"""What a SQLite file is, found out without changing it, and what brings one of MLflow's up to date."""

import contextlib
import errno
import functools
import importlib.util
import logging
import os
import re
import shlex
import sqlite3
import subprocess  # our own interpreter  # nosec B404
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

from resnet_bench.base.errors import UserError
from resnet_bench.base.files import acquire_lock
from resnet_bench.tracking.vocabulary import EXPERIMENTS

BUSY_SECONDS = 3
LOCK_TIMEOUT_SECONDS = 180
ABANDONED_SECONDS = 5
"""How long nobody has written to a database that was never finished, before it is made again."""
ARTIFACTS = "mlartifacts"
"""The folder beside a database that holds the artifacts of its runs."""

_MLFLOW_TABLES = {"experiments", "runs", "metrics", "params", "tags"}
_ARTIFACT_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
)
_NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb", "smbfs", "smb3", "afpfs", "ncpfs", "9p", "fuse.sshfs", "lustre"}
_log = logging.getLogger(__name__)

Kind = Literal["missing", "empty", "current", "older", "newer", "foreign", "locked", "broken"]


@dataclass(frozen=True)
class SqliteFile:
    """A file as it was found.

    Attributes:
        path: The file.
        kind: What it is; ``current``, ``older`` and ``newer`` are MLflow's, compared with the MLflow installed here.
        problem: Why it cannot hold runs; None where it can.
        revision: The version of MLflow's tables.
        deleted: Our experiments that were deleted in MLflow, by name, with their ids.
        moved: The artifact folder that the file names and the one beside it, where that one is meant.
        is_bare: Whether its tables hold nothing at all: it is being made, or its maker was killed.
    """

    path: Path
    kind: Kind
    problem: str | None = None
    revision: str | None = None
    deleted: tuple[tuple[str, str], ...] = ()
    moved: tuple[Path, Path] | None = None
    is_bare: bool = False

    @property
    def has_nothing(self) -> bool:
        """Whether there is nothing to read: another process may be making the tables, through older versions."""
        return self.kind in ("missing", "empty") or self.is_bare


def inspect(path: Path) -> SqliteFile:
    """Look at a file without changing it or making anything."""
    if not path.exists():
        if path.is_symlink():
            return SqliteFile(path, "broken", f"{path} is a link to {path.readlink()}, which does not exist")
        return SqliteFile(path, "missing")
    if not path.is_file():
        return SqliteFile(path, "broken", f"{path} is not a file")
    try:
        with read_only(path) as database:
            return _inspect(path, database)
    except sqlite3.DatabaseError as error:
        return SqliteFile(path, "locked" if "locked" in str(error) else "broken", _broken(path, error))
    except OSError as error:
        return SqliteFile(path, "broken", f"{path} cannot be read: {error.strerror or error}")


@contextlib.contextmanager
def read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a SQLite file for reading; nothing that lasts is written beside it either.

    Raises:
        OSError: The file cannot be read.
        sqlite3.DatabaseError: It is locked, or not a database.
    """
    with contextlib.closing(connect_to_read(path)) as database:
        yield database


def connect_to_read(path: Path, *, busy_seconds: float = BUSY_SECONDS) -> sqlite3.Connection:
    """Connect to a SQLite file for reading; see :func:`read_only`.

    A killed process may have left its half-done change in a journal: SQLite takes it back, as it would for any reader
    that may write.

    Args:
        path: The file.
        busy_seconds: How long another process's change is waited for.

    Raises:
        OSError: The file cannot be read.
        sqlite3.DatabaseError: It is locked, or not a database.
    """
    # Python's own open() is not used on the file: closing it would end the locks of this process on the database.
    if not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    # Opened to read only, it refuses a file with a journal, even one that another process is about to delete. Opened to
    # write, it would move a write-ahead log into the file at the end.
    database = _connect(path, "ro" if path.with_name(f"{path.name}-wal").exists() else "rw", busy_seconds)
    try:
        database.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        database.close()
        if not any(text in str(error) for text in ("unable to open", "readonly")):
            raise
        journal = path.with_name(f"{path.name}-journal")
        if journal.exists():
            raise sqlite3.OperationalError(
                f"{journal.name} holds a change that a killed process left half-done; only somebody who may write to "
                "this folder can have it taken back, by any command"
            ) from None
        # A write-ahead log cannot be begun in this folder, so that there is nobody to share the file with.
        return _connect(path, "ro&immutable=1", busy_seconds)
    except BaseException:
        database.close()
        raise
    return database


def _connect(path: Path, mode: str, busy_seconds: float) -> sqlite3.Connection:
    database = sqlite3.connect(f"file:{quote(str(path))}?mode={mode}", uri=True, timeout=busy_seconds)
    database.execute("PRAGMA query_only = ON")
    return database


def problem(found: SqliteFile, *, to_write: bool) -> str | None:
    """Say why a file cannot be used and what to do, or None.

    Args:
        found: The file as it was found.
        to_write: Whether runs are to be logged; False asks only whether it can be read.
    """
    path = found.path
    if found.problem is not None:
        if found.kind == "locked":
            return found.problem
        return f"{found.problem}; {_another(path) if to_write else 'name another store'}"
    if not to_write:
        return f"{path} holds no runs yet" if found.has_nothing else None
    folder = next(parent for parent in path.parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return f"the folder {folder} cannot be written; name another store: --tracking sqlite:////folder/mlflow.db"
    if found.kind != "missing" and not os.access(path, os.W_OK):
        return f"{path} cannot be written; type: chmod u+w {shlex.quote(str(path))}"
    return None


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep other processes of this machine out while a file is made or changed.

    Raises:
        UserError: The folder cannot be written, or another process does not come to an end.
    """
    if notice := network_file_system_notice(path):
        log_once(notice)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = acquire_lock(Path(f"{path}.lock"), timeout=LOCK_TIMEOUT_SECONDS)
    except OSError as error:
        raise UserError(f"{path.parent}: runs cannot be kept in this folder ({error.strerror})") from None
    if lock is None:
        raise UserError(f"{path}.lock: another process has been making the database for minutes; end it")
    try:
        yield
    finally:
        lock.release()


def update(path: Path) -> None:
    """Bring a database up to date in place, and keep what an older MLflow made beside it.

    Raises:
        UserError: It cannot be upgraded.
    """
    try:
        _update(path)
    except sqlite3.Error as error:
        raise UserError(
            f"{path}: this database cannot be brought up to date ({error}); make space, end what else uses it, "
            f"and try again"
        ) from None


def _update(path: Path) -> None:
    # Looked at again, because another process may have done it while this one waited for the lock.
    found = inspect(path)
    # Our processes make a database under the lock, but a server of MLflow's may be at it.
    changed, since = path.stat().st_mtime_ns if found.is_bare else 0, time.monotonic()
    while found.is_bare and time.monotonic() - since < ABANDONED_SECONDS:
        time.sleep(0.2)
        if (now := path.stat().st_mtime_ns) != changed:
            changed, since = now, time.monotonic()
        found = inspect(path)
    if found.is_bare:
        _log.warning("%s: making this database was interrupted; it is made again", path)
        _empty(path)
        return
    if found.kind == "older":
        backup = path.with_name(f"{path.name}.{found.revision}.backup")
        _log.warning("%s was made by an older MLflow; upgrading it, the old one is kept as %s", path, backup)
        # One that is there is of an upgrade that broke off, perhaps half way: the database is no longer what it was.
        if not backup.exists():
            unfinished = backup.with_suffix(".unfinished")
            copy(path, unfinished)
            unfinished.replace(backup)
    if found.moved is not None:
        _log.warning("%s was moved or copied; its artifacts are taken from %s", path, found.moved[1])
    bring_up_to_date(found, path)


def _empty(path: Path) -> None:
    """Take the tables out, which hold nothing: MLflow cannot continue with some of them."""
    with contextlib.closing(sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        # The file keeps its place: this process or another may have it open.
        for table in _tables(database):
            database.execute(f'DROP TABLE "{table}"')
        database.execute("COMMIT")


def copy(path: Path, target: Path) -> None:
    """Copy a database as it is at one moment, whatever writes to it."""
    with read_only(path) as database, contextlib.closing(sqlite3.connect(target)) as other:
        database.backup(other)


def bring_up_to_date(found: SqliteFile, path: Path) -> None:
    """Give a database the tables that this MLflow wants, and the artifact folder that lies beside the original.

    Args:
        found: What the original was found to be.
        path: The original, or a copy of it, to be changed.

    Raises:
        UserError: It cannot be upgraded.
    """
    if found.kind == "older":
        done = subprocess.run(  # noqa: S603 - our own interpreter and MLflow's own command  # nosec B603
            [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{path}"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError(
                f"{found.path}: this database of MLflow cannot be upgraded ({last}); {_another(found.path)}"
            )
    if found.moved is not None:
        old, new = (folder.as_uri() for folder in found.moved)
        with contextlib.closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as database, database:
            tables = _tables(database)
            for table, column in _ARTIFACT_COLUMNS:
                if table in tables:
                    database.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608 - names of ours  # nosec B608
                        f"WHERE substr({column}, 1, ?) = ?",
                        (new, len(old) + 1, len(old) + 1, f"{old}/"),
                    )


@functools.cache
def installed_revisions() -> tuple[frozenset[str], str | None]:
    """Return every version of MLflow's tables that the installed MLflow knows, and the one it wants.

    Read from the names and texts of its migrations: importing MLflow takes seconds.
    """
    spec = importlib.util.find_spec("mlflow")
    places = (spec.submodule_search_locations if spec else None) or ()
    folders = [Path(place) / "store" / "db_migrations" / "versions" for place in places]
    before: dict[str, str | None] = {}
    for file in (file for folder in folders for file in folder.glob("*.py")):
        text = file.read_text("utf-8")
        revision = re.search(r"^revision\s*=\s*[\"'](\w+)[\"']", text, re.MULTILINE)
        down = re.search(r"^down_revision\s*=\s*[\"'](\w+)[\"']", text, re.MULTILINE)
        if revision:
            before[revision[1]] = down[1] if down else None
    heads = set(before) - set(before.values())
    return frozenset(before), heads.pop() if len(heads) == 1 else None


def _inspect(path: Path, database: sqlite3.Connection) -> SqliteFile:
    tables = _tables(database)
    if not tables:
        return SqliteFile(path, "empty")
    # A database that is used has experiments: then one query tells.
    likely_first = sorted(tables - {"alembic_version"}, key=lambda table: (table != "experiments", table))
    is_bare = not any(_has_rows(database, table) for table in likely_first)
    if not {"experiments", "runs"} <= tables:
        # Its maker may have been killed after the first of MLflow's tables.
        if is_bare and tables <= _MLFLOW_TABLES:
            return SqliteFile(path, "empty", is_bare=True)
        whose = "Optuna" if {"studies", "trials"} <= tables else "another application"
        return SqliteFile(path, "foreign", f"{path} is a database of {whose}, not of MLflow")
    revision = _revision(database) if "alembic_version" in tables else None
    if revision is None and is_bare:
        return SqliteFile(path, "empty", is_bare=True)
    known, wanted = installed_revisions()
    if revision is None or revision == wanted:
        kind: Kind = "current"
    elif revision in known:
        kind = "older"
    else:
        problem = (
            f"{path} was made by a newer MLflow than the one installed here (its tables are of revision {revision}); "
            "update it with: pip install --upgrade mlflow"
        )
        return SqliteFile(path, "newer", problem, revision)
    return SqliteFile(path, kind, None, revision, _deleted(database), _moved(path, database), is_bare)


def _tables(database: sqlite3.Connection) -> set[str]:
    rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    return {str(name) for (name,) in rows}


def _has_rows(database: sqlite3.Connection, table: str) -> bool:
    rows = database.execute(f'SELECT 1 FROM "{table}" LIMIT 1')  # noqa: S608 - a name from the file itself  # nosec B608
    return rows.fetchone() is not None


def _revision(database: sqlite3.Connection) -> str | None:
    row = database.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(row[0]) if row else None


def _deleted(database: sqlite3.Connection) -> tuple[tuple[str, str], ...]:
    rows = database.execute("SELECT name, experiment_id FROM experiments WHERE lifecycle_stage = 'deleted'")
    return tuple((name, str(number)) for name, number in rows if name in EXPERIMENTS)


def _moved(path: Path, database: sqlite3.Connection) -> tuple[Path, Path] | None:
    """The artifact folder that a database names, and the one beside it, where the project was moved or copied."""
    beside = path.parent.resolve() / ARTIFACTS
    if os.environ.get("MLFLOW_DEFAULT_ARTIFACT_ROOT"):
        return None
    for (location,) in database.execute("SELECT artifact_location FROM experiments"):
        parts = urlsplit(location or "")
        named = Path(unquote(parts.path)).parent
        if parts.scheme != "file" or named.name != ARTIFACTS or named == beside:
            continue
        # A user may keep artifacts elsewhere on purpose: then they are there, and not here.
        if beside.is_dir() or not named.is_dir():
            return named, beside
    return None


def _broken(path: Path, error: sqlite3.DatabaseError) -> str:
    text = str(error)
    if "locked" in text:
        return f"{path} is locked by another process; wait for it, or find it: fuser {shlex.quote(str(path))}"
    if "not a database" in text or "malformed" in text:
        return f"{path} is not a SQLite database ({text})"
    return f"{path} cannot be read: {text}"


def _another(path: Path) -> str:
    other = path.with_name(f"{path.stem}-runs.db")
    return f"name another store: --tracking {shlex.quote(f'sqlite:///{other}')}"


def network_file_system(path: Path) -> str | None:
    """Return the kind of network file system that a path lies on; None where it is none, or cannot be told."""
    import psutil  # type: ignore[import-untyped]

    resolved = path.resolve()
    mounts = [part for part in psutil.disk_partitions(all=True) if resolved.is_relative_to(part.mountpoint)]
    kind = max(mounts, key=lambda part: len(part.mountpoint)).fstype.lower() if mounts else ""
    return kind if kind in _NETWORK_FILE_SYSTEMS else None


def network_file_system_notice(path: Path) -> str | None:
    """Say why SQLite should not be used at a path, where it lies on a network file system; else None."""
    kind = network_file_system(path)
    if kind is None:
        return None
    return (
        f"{path} lies on a network file system ({kind}), where SQLite can lose or damage runs when several "
        "processes write; take a local folder, or a server with --tracking http://…"
    )


@functools.cache
def log_once(text: str) -> None:
    """Warn of something that is the same for every run of a command."""
    _log.warning("%s", text)
