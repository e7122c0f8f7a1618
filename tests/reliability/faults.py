"""A disk that fails at the Nth write, fsync or rename, once or for good."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class FaultyFile:
    """A file of which half a write arrives before the disk fails."""

    def __init__(self, file: Any, disk: "FaultyDisk") -> None:
        self._file = file
        self._disk = disk

    def write(self, data: Any) -> int:
        if self._disk.reach("write"):
            self._file.write(data[: len(data) // 2])
            raise self._disk.error()
        return int(self._file.write(data))

    def __enter__(self) -> "FaultyFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class FaultyDisk:
    """Fails the given one of all writes, fsyncs and renames below a folder.

    Attributes:
        reached: The operations that were asked for, in order.
        fired: How many of them failed.
    """

    def __init__(self, number: int, code: int, *, for_good: bool = False) -> None:
        self.number = number
        self.code = code
        self.for_good = for_good
        self.reached: list[str] = []
        self.fired = 0

    def reach(self, name: str) -> bool:
        """Note an operation; whether it fails."""
        self.reached.append(name)
        fails = len(self.reached) == self.number or (self.for_good and len(self.reached) > self.number)
        self.fired += fails
        return fails

    def error(self) -> OSError:
        """What the operating system says."""
        return OSError(self.code, os.strerror(self.code))

    @contextlib.contextmanager
    def attached(self, patch: pytest.MonkeyPatch, folder: Path) -> Iterator["FaultyDisk"]:
        """While the context is open, files of a folder lie on this disk."""
        open_path, replace, fsync, write = Path.open, Path.replace, os.fsync, os.write

        def is_here(place: Path | int) -> bool:
            path = Path(f"/proc/self/fd/{place}").readlink() if isinstance(place, int) else place.absolute()
            return path.is_relative_to(folder)

        def faulty_open(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
            file = open_path(path, mode, *rest, **options)
            return FaultyFile(file, self) if set(mode) & set("wax+") and is_here(path) else file

        def faulty_replace(path: Path, target: Path) -> Path:
            if is_here(path) and self.reach("rename"):
                raise self.error()
            return replace(path, target)

        def faulty_fsync(descriptor: int) -> None:
            if is_here(descriptor) and self.reach("fsync"):
                raise self.error()
            fsync(descriptor)

        def faulty_write(descriptor: int, data: bytes) -> int:
            if is_here(descriptor) and self.reach("append"):
                raise self.error()
            return write(descriptor, data)

        with patch.context() as context:
            context.setattr(Path, "open", faulty_open)
            context.setattr(Path, "replace", faulty_replace)
            context.setattr(os, "fsync", faulty_fsync)
            context.setattr(os, "write", faulty_write)
            yield self
