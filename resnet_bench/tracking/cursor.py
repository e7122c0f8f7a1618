"""What the upload of a run's journal has come to, kept in the run's folder: how far, to which run, of which store."""

import json
import logging
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from resnet_bench.base.errors import UserError
from resnet_bench.base.files import acquire_lock, write_atomically
from resnet_bench.base.uris import HIDDEN, same_place
from resnet_bench.tracking.store import Store

JOURNAL = "journal.jsonl"
CURSOR = "shipping.json"
LOCK = "shipping.lock"
STORE = "store.json"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cursor:
    """How far a journal has been uploaded, in bytes, and to which run."""

    run_id: str | None = None
    arrived: int = 0
    """Records that end here or before are in the store, except those named below."""
    underway: int = 0
    """Records between ``arrived`` and here may be in the store."""
    deferred: tuple[int, ...] = ()
    """Where artifacts begin that the artifact store did not take, while the rest continues."""
    refused: tuple[int, ...] = ()
    """Where records begin that the store refuses for good."""
    experiment_id: str | None = None
    attempt: int = 1
    """Which attempt at the run the folder is; of a run that was taken over from another host, a later one."""

    @classmethod
    def load(cls, folder: Path) -> "Cursor":
        """Read the cursor of a run's folder; a run that has none starts at the beginning."""
        try:
            checksum, _, text = (folder / CURSOR).read_text("ascii").partition(" ")
            if checksum != _checksum(text):
                raise ValueError(checksum)  # noqa: TRY301 - damaged in one way or another
            saved = json.loads(text)
            return cls(
                saved["run_id"],
                saved["arrived"],
                saved["underway"],
                tuple(saved["deferred"]),
                # Version 0.1.0 did not write these.
                tuple(saved.get("refused", ())),
                saved.get("experiment_id"),
                saved.get("attempt", 1),
            )
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


def lock_folder(folder: Path) -> FileLock:
    """Take the right to upload a run's folder, of which there is one; the end of the process gives it back.

    Raises:
        UserError: Another process has it.
    """
    lock = acquire_lock(folder / LOCK)
    if lock is None:
        raise UserError(f"{folder}: another process is writing or delivering this run; wait for it to end")
    return lock


def note_store(folder: Path, store: Store) -> None:
    """Write down which store a run belongs to, without secrets.

    Raises:
        UserError: The run was made for another one.
        OSError: The folder cannot be written.
    """
    noted: dict[str, Any] = {"uri": store.redacted_uri}
    if store.path is not None:
        # Where a project is moved or copied, the database is found from the run's folder.
        noted["relative"] = os.path.relpath(store.path, folder.resolve())
    if (known := _noted(folder)) == noted:
        return
    if known is not None:
        _require_own(folder, known, store)
    write_atomically(folder / STORE, json.dumps(noted).encode())


def store_of(folder: Path, named: Store | None, project: Path) -> Store:
    """Find the store that a run was made for.

    Args:
        folder: The run's folder.
        named: The store that the user names, if any; it may have the login that the folder does not keep.
        project: The project's folder, for runs of version 0.1.0, which do not know their store.

    Raises:
        UserError: The user names another one, or its login is missing.
    """
    noted = _noted(folder)
    if noted is None:
        return named or Store.resolve(None, project)
    uri = _address(folder, noted)
    if named is None and HIDDEN not in uri:
        return Store.resolve(uri, project)
    store = named or Store.resolve(None, project)
    if named is None and not _is_same(store, uri):
        raise UserError(f"{folder} was made for {uri}; set MLFLOW_TRACKING_URI to this address with its login")
    _require_own(folder, noted, store)
    return store


def _require_own(folder: Path, noted: Mapping[str, Any], store: Store) -> None:
    """Raise where a run was made for another store; a server may have got another address."""
    uri, run_id = _address(folder, noted), Cursor.load(folder).run_id
    if _is_same(store, uri):
        return
    if run_id is not None:
        try:
            store.reader().get_run(run_id)
        except Exception:  # whatever the database driver or the server's client raises
            _log.debug("%s does not know run %s", store.redacted_uri, run_id)
        else:
            return
    elif HIDDEN in uri or Store.resolve(uri).check(to_write=False):
        # It never got there, and never will.
        return
    raise UserError(
        f"{folder} was made for {uri}, not for {store.redacted_uri}; leave --tracking out, or name that one"
    )


def _noted(folder: Path) -> dict[str, Any] | None:
    try:
        noted = json.loads((folder / STORE).read_bytes())
        return {"uri": str(noted["uri"]), **({"relative": str(noted["relative"])} if "relative" in noted else {})}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        _log.warning("%s is damaged; the run is taken for one of the store that is named", folder / STORE)
        return None


def _address(folder: Path, noted: Mapping[str, Any]) -> str:
    if "relative" in noted:
        beside = (folder.resolve() / noted["relative"]).resolve()
        if beside.exists():
            return f"sqlite:///{beside}"
    return str(noted["uri"])


def _is_same(store: Store, uri: str) -> bool:
    return uri == store.redacted_uri or same_place(uri, store.uri)


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode('ascii')):08x}"
