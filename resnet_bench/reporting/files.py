"""Writes several files so that a folder holds either all of the new ones or all of the old ones."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from resnet_bench.base.errors import UserError


def write_all(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Replace files of a folder together; other files in it are left alone.

    Everything is on disk before the first old file is replaced, and if a replacement fails the old files are
    put back.

    Args:
        folder: Made where it is missing.
        contents: What each file shall hold, by its name.

    Raises:
        UserError: The folder or a file in it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(folder)
        with tempfile.TemporaryDirectory(prefix=f".report-{os.getpid()}-", dir=folder) as scratch:
            _replace_all(folder, Path(scratch), contents)
    except OSError as error:
        raise UserError(f"{folder}: the report cannot be written there: {error.strerror or error}") from error


def _clear_leftovers(folder: Path) -> None:
    """Remove what processes left that were killed while they wrote."""
    for scratch in folder.glob(".report-*"):
        pid = scratch.name.split("-")[1]
        if not pid.isdigit() or not psutil.pid_exists(int(pid)):
            shutil.rmtree(scratch, ignore_errors=True)


def _replace_all(folder: Path, scratch: Path, contents: Mapping[str, bytes]) -> None:
    for name, content in contents.items():
        with (scratch / f"{name}.new").open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    for name in contents:
        if (folder / name).is_file():
            os.link(folder / name, scratch / f"{name}.old")
    replaced: list[str] = []
    try:
        for name in contents:
            (scratch / f"{name}.new").replace(folder / name)
            replaced.append(name)
    except OSError:
        for name in replaced:
            with contextlib.suppress(OSError):
                _restore(folder / name, scratch / f"{name}.old")
        raise


def _restore(path: Path, old: Path) -> None:
    if old.exists():
        old.replace(path)
    else:
        path.unlink()
