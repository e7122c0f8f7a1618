"""Files that are written whole or not at all, locks, and the user's cache folder."""

import contextlib
import errno
import functools
import hashlib
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_bench.base.errors import UserError

if TYPE_CHECKING:
    from filelock import FileLock

UNFINISHED = ".unfinished"
"""How the name of a file ends that is still being written."""

SOURCE_SUFFIXES = (".py", ".c", ".h")
"""What the suite's code is written in."""

_APP = "resnet-bench"
_SCRATCH = ".resnet-bench-unfinished-"
_CACHE_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# resnet-bench can make everything in this folder again.\n"
_log = logging.getLogger(__name__)


def expanded(path: str | Path) -> Path:
    """Put the home of a user in the place of a leading ``~`` or ``~name``.

    Raises:
        UserError: There is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: there is no user {Path(path).parts[0]}; write the whole path") from None


def source_digest(folder: Path, deciding: tuple[str, ...] = ("",)) -> str:
    """Return the SHA-256 of the source files below a folder whose relative path begins with one of these."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.suffix in SOURCE_SUFFIXES):
        name = file.relative_to(folder).as_posix()
        if name.startswith(deciding):
            content = file.read_bytes()
            digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


# --- writing -------------------------------------------------------------------------------------------


def write_atomically(path: Path, content: bytes | memoryview, *, check: Callable[[Path], object] | None = None) -> None:
    """Replace a file so that, whatever happens, either the old content or the new is there.

    File and folder are synced. The file keeps its mode; a link keeps its target's place. Only one process at a time
    may write a path: the next one overwrites what a killed one left.

    Args:
        path: The file; its folder must exist.
        content: What it shall hold.
        check: Called with the new file before it takes the old one's place; what it raises keeps the old one.

    Raises:
        OSError: The disk is full or the folder cannot be written; the old content is there.
    """
    path = path.resolve() if path.is_symlink() else path
    unfinished = path.with_name(f".{path.name}{UNFINISHED}")
    try:
        _write_synced(unfinished, content, mode_of=path)
        if check is not None:
            check(unfinished)
        unfinished.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_new(path: Path, content: bytes) -> None:
    """Write a file that nobody has yet; where that fails, nothing is left that would be in the way of another try.

    Args:
        path: The file; its folder is made where it is missing.
        content: What it shall hold.

    Raises:
        FileExistsError: It is there, and stays as it is.
        OSError: The disk is full or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        # What is there is not the file that was asked for.
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), error.filename) from None
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            left = memoryview(content)
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def write_together(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Replace files of a folder together, so that all of the new ones or all of the old ones are there.

    All new files are on disk before the first old one is replaced. If a replacement fails, the old ones are put back,
    which needs no space: copies of them are made beforehand. File systems without hard links serve as well. Other files
    of the folder stay. The next call removes what a killed one left.

    Args:
        folder: Made where it is missing.
        contents: What each file shall hold, by its name.

    Raises:
        OSError: The folder or a file in it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(folder)
    with tempfile.TemporaryDirectory(prefix=f"{_SCRATCH}{os.getpid()}-", dir=folder) as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        new.mkdir()
        old.mkdir()
        for name, content in contents.items():
            _write_synced(new / name, content, mode_of=folder / name)
            if (folder / name).is_file():
                shutil.copyfile(folder / name, old / name)
                _take_mode(old / name, folder / name)
        replaced: list[str] = []
        try:
            for name in contents:
                (new / name).replace(folder / name)
                replaced.append(name)
        except BaseException:
            for name in replaced:
                with contextlib.suppress(OSError):
                    _put_back(old / name, folder / name)
            raise
    sync_folder(folder)


def _clear_leftovers(folder: Path) -> None:
    # Most commands write no report, and start sooner without it.
    import psutil  # type: ignore[import-untyped]

    for leftover in folder.glob(f"{_SCRATCH}*"):
        pid = leftover.name.removeprefix(_SCRATCH).partition("-")[0]
        if not pid.isdigit() or not psutil.pid_exists(int(pid)):
            shutil.rmtree(leftover, ignore_errors=True)


def _put_back(old: Path, path: Path) -> None:
    if old.exists():
        old.replace(path)
    else:
        path.unlink()


def _write_synced(path: Path, content: bytes | memoryview, *, mode_of: Path) -> None:
    """Write a new file to the disk, with the mode of another one where that exists."""
    with path.open("wb") as file:
        _take_mode(path, mode_of)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _take_mode(path: Path, mode_of: Path) -> None:
    # Some shares have no modes; the content is what counts.
    with contextlib.suppress(OSError):
        path.chmod(stat.S_IMODE(mode_of.stat().st_mode))


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk: a rename survives a power cut only then.

    Raises:
        OSError: The disk is broken.
    """
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # Some file systems cannot sync a folder, and some folders may be written but not read.
        if error.errno in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
            raise


def acquire_lock(path: Path, *, timeout: float = 0) -> "FileLock | None":
    """Acquire an exclusive lock, which the end of the process releases.

    Args:
        path: The lock's file; its folder must exist.
        timeout: Seconds to wait for another holder.

    Returns:
        The lock, or None where another process or thread holds it.

    Raises:
        OSError: The file cannot be made.
    """
    # As every import in a function here, so that a verb that only lists files starts quickly.
    from filelock import FileLock, Timeout

    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        return None
    return lock


# --- the user's cache ----------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Return the user's folder for what can be made again; it is made and marked where that is possible.

    A user without a home, or with one where the folder cannot be made, as of a container's user without a name, gets a
    private folder in ``TMPDIR``. A relative ``XDG_CACHE_HOME`` is ignored, as its specification asks.
    """
    import platformdirs

    ensure_home()
    folder = platformdirs.user_cache_path(_APP, appauthor=False)
    if not folder.is_absolute():
        folder = Path.home() / ".cache" / _APP
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # One that can only be read still has what it has.
    if not os.access(folder, os.R_OK | os.X_OK):
        folder = private_home() / ".cache" / _APP
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    mark_as_cache(folder)
    return folder


def mark_as_cache(folder: Path) -> None:
    """Tell backups and git to leave a folder out. A folder that cannot be written stays as it is."""
    for name, text in (("CACHEDIR.TAG", _CACHE_TAG), (".gitignore", "*\n")):
        with contextlib.suppress(OSError):
            if not (folder / name).exists():
                (folder / name).write_text(text, encoding="ascii")


def ensure_home() -> None:
    """Set ``HOME`` for this process and its children where the user has none, because libraries ask for it."""
    home = Path("~").expanduser if os.environ.get("HOME", "unset") else None
    try:
        usable = home is not None and home().is_absolute()
    except RuntimeError:
        usable = False
    if not usable:
        os.environ["HOME"] = str(private_home())


@functools.cache
def private_home() -> Path:
    """Make a home in the folder for temporary files that nobody else prepared; the same one every time."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()).absolute() / f"{_APP}-home-{user}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        ours = stat.S_ISDIR(found.st_mode) and found.st_uid == user and not found.st_mode & 0o077
    except OSError:
        ours = False
    if not ours:
        # Another user put something in its place.
        folder = Path(tempfile.mkdtemp(prefix=f"{_APP}-home-"))
    _log.warning("this user has no home folder that can be used; caches are kept in %s", folder)
    return folder


def new_folder(parent: Path, name: str) -> Path:
    """Make a folder of this name, or with the next free number behind it, and return it.

    Raises:
        OSError: It cannot be made.
    """
    for suffix in ("", *(f"-{number}" for number in range(2, 1000))):
        path = parent / f"{name}{suffix}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(parent / name))
