"""Measured choices that are kept from run to run, so that the same machine goes the same way and measures once."""

import functools
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from resnet_bench.base import files

LOCK_TIMEOUT_SECONDS = 5
_log = logging.getLogger(__name__)


class TuningCache:
    """A small JSON file of values by key.

    A file that cannot be read or written is not an error: the choices then last as long as the process.

    Args:
        path: The file; its folder need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values: dict[str, Any] = _read(path)

    def get(self, key: str) -> Any:
        """The value under a key, or None."""
        return self._values.get(key)

    def put(self, key: str, value: Any) -> Any:
        """Remember a value, unless another process was quicker.

        Returns:
            The value that is remembered.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lock = files.acquire_lock(self._path.with_suffix(".lock"), timeout=LOCK_TIMEOUT_SECONDS)
            if lock is None:
                raise TimeoutError("another process holds it")
            try:
                self._values = {key: value, **self._values, **_read(self._path)}
                text = json.dumps(self._values, indent=1, sort_keys=True)
                files.write_atomically(self._path, text.encode())
            finally:
                lock.release()
        except OSError as error:
            _log.debug("%s cannot be written (%s); what was measured is not kept", self._path, error)
            self._values.setdefault(key, value)
        return self._values[key]


@functools.cache
def machine_tuning_cache(machine: str) -> TuningCache:
    """The choices for a machine, named with all that a measurement depends on: processor, threads, versions, compiler.

    They are kept in the user's cache folder, one file for a machine and the kernels as they are: a faster one may have
    been the slower one before.
    """
    kernels = files.source_digest(Path(__file__).parent.parent / "kernels")
    name = hashlib.sha256(f"{machine}, {kernels}".encode()).hexdigest()[:12]
    memory = TuningCache(files.cache_folder() / f"execution-{name}.json")
    memory.put("machine", machine)
    return memory


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
