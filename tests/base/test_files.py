"""Files that are whole whatever happens, locks, and the cache folder of users of all kinds."""

import errno
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from resnet_bench.base import files


def test_write_atomically_keeps_the_mode_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"old")
    path.chmod(0o640)
    files.write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_write_atomically_writes_through_a_link(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere" / "state"
    target.parent.mkdir()
    target.write_bytes(b"old")
    link = tmp_path / "state"
    link.symlink_to(target)
    files.write_atomically(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_write_atomically_syncs_the_file_before_the_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, calls = tmp_path / "state", []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        calls.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")  # noqa: PTH112
        fsync(descriptor)

    def noted_replace(old: Path, new: Path) -> Path:
        calls.append("rename")
        return replace(old, new)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    files.write_atomically(path, b"new")
    assert calls == ["file", "rename", "folder"]


@pytest.mark.parametrize("broken", ["fsync", "check"])
def test_write_atomically_keeps_the_old_content_where_it_fails(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if broken == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        files.write_atomically(path, b"new", check=fail if broken == "check" else None)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_write_new_leaves_what_is_there_and_makes_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "mine" / "recipe.toml"
    files.write_new(path, b"first")
    with pytest.raises(FileExistsError):
        files.write_new(path, b"second")
    assert path.read_bytes() == b"first"


def test_write_new_says_that_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(NotADirectoryError, match="Not a directory"):
        files.write_new(tmp_path / "file" / "new.toml", b"new")
    assert (tmp_path / "file").read_text() == "kept"


def test_write_new_leaves_nothing_where_the_disk_is_full(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    program = (
        "import resource, signal, sys; from pathlib import Path; from resnet_bench.base.files import write_new; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); "
        "write_new(Path(sys.argv[1]), b'x' * 1000)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)
    assert "File too large" in done.stderr
    assert not path.exists()


OLD = {"index.html": b"old page", "runs.csv": b"old table"}
NEW = {"index.html": b"new page", "runs.csv": b"new table", "report.md": b"new text"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files.write_together(tmp_path / "made" / "here", OLD)
    (tmp_path / "made" / "here" / "mine.txt").write_bytes(b"untouched")
    return tmp_path / "made" / "here"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_write_together_replaces_files_and_leaves_others_alone(folder: Path) -> None:
    (folder / "runs.csv").chmod(0o600)
    files.write_together(folder, NEW)
    assert contents(folder) == NEW | {"mine.txt": b"untouched"}
    assert (folder / "runs.csv").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("failing", ["fsync", "replace", "copyfile"])
@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space"), KeyboardInterrupt()], ids=["disk", "Ctrl-C"])
def test_write_together_keeps_the_old_files_where_it_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch, failing: str, nth: int, error: BaseException
) -> None:
    owner = {"fsync": os, "replace": Path, "copyfile": shutil}[failing]
    original = getattr(owner, failing)
    calls = 0

    def fail(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise error
        return original(*arguments)

    monkeypatch.setattr(owner, failing, fail)
    if failing == "copyfile" and nth == 3:
        files.write_together(folder, NEW)
        assert contents(folder) == NEW | {"mine.txt": b"untouched"}, "there are only two old files"
        return
    with pytest.raises(type(error)):
        files.write_together(folder, NEW)
    assert contents(folder) == OLD | {"mine.txt": b"untouched"}


@pytest.mark.parametrize("refused", ["link", "chmod"])
def test_write_together_needs_neither_hard_links_nor_modes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """ExFAT and some shares know neither."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, refused, refuse)
    for content in (NEW, OLD, NEW):
        files.write_together(folder, content)
    assert contents(folder) == NEW | {"mine.txt": b"untouched"}


def test_write_together_removes_what_a_killed_process_left(folder: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    leftovers = [folder / f".resnet-bench-unfinished-{pid}-x" for pid in (gone.pid, os.getpid())]
    for leftover in leftovers:
        leftover.mkdir()
    files.write_together(folder, OLD)
    assert [leftover.exists() for leftover in leftovers] == [False, True], "the other one is written to right now"


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    lock = files.acquire_lock(tmp_path / "lock")
    assert lock is not None
    assert files.acquire_lock(tmp_path / "lock") is None
    code = "import sys; from resnet_bench.base.files import acquire_lock; print(acquire_lock(sys.argv[1]))"
    other = subprocess.run([sys.executable, "-c", code, str(tmp_path / "lock")], capture_output=True, text=True)
    assert other.stdout.strip() == "None", other.stderr
    lock.release()
    again = files.acquire_lock(tmp_path / "lock")
    assert again is not None
    again.release()


def test_the_cache_folder_tells_backups_and_git_to_leave_it_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = files.cache_folder()
    assert folder == tmp_path / "resnet-bench"
    assert (folder / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")
    assert (folder / ".gitignore").read_text() == "*\n"


def test_a_relative_cache_home_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.chdir(tmp_path)
    assert files.cache_folder().is_relative_to(tmp_path)
    assert not (tmp_path / "relative").exists()


HOMELESS = """
import logging, os, pathlib, pwd, sys
logging.basicConfig(stream=sys.stderr, format="%(message)s")
def nobody(uid): raise KeyError(uid)
pwd.getpwuid = nobody
from resnet_bench.base import files
one, other = files.cache_folder(), files.cache_folder()
assert one == other and one.is_dir()
print(one); print(pathlib.Path.home()); print(oct(pathlib.Path.home().stat().st_mode & 0o777))
"""


@pytest.mark.parametrize("home", [None, ""])
def test_a_user_without_a_home_gets_a_private_folder_and_is_told_once(home: str | None, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME")}
    if home is not None:
        environment["HOME"] = home
    done = subprocess.run(
        [sys.executable, "-c", HOMELESS],
        env={**environment, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    cache, found, mode = done.stdout.split()
    assert Path(found).is_relative_to(tmp_path)
    assert Path(cache).is_relative_to(found)
    assert mode == "0o700"
    assert done.stderr.count("no home folder") == 1


def test_a_home_where_no_cache_can_be_made_is_as_good_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "a file"))
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    files.private_home.cache_clear()
    try:
        folders = [files.cache_folder(), files.cache_folder()]
    finally:
        files.private_home.cache_clear()
    assert len(set(folders)) == 1
    assert folders[0].is_relative_to(tmp_path)
    assert (folders[0] / "CACHEDIR.TAG").is_file()
    assert caplog.text.count("no home folder that can be used") == 1


def test_a_folder_that_somebody_else_prepared_is_not_taken_for_a_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"resnet-bench-home-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", "")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    files.private_home.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            folder = files.cache_folder()
    finally:
        files.private_home.cache_clear()
    assert folder.is_relative_to(tmp_path)
    assert not list((tmp_path / "elsewhere").iterdir())
