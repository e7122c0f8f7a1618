"""Either all of the new files or all of the old ones."""

import os
from pathlib import Path

import pytest

from resnet_bench.base.errors import UserError
from resnet_bench.reporting import files

OLD = {"index.html": b"old page", "runs.csv": b"old table"}
NEW = {"index.html": b"new page", "runs.csv": b"new table", "report.md": b"new text"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files.write_all(tmp_path, OLD)
    (tmp_path / "mine.txt").write_bytes(b"untouched")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_are_replaced_and_others_left_alone(folder: Path) -> None:
    files.write_all(folder, NEW)
    assert contents(folder) == NEW | {"mine.txt": b"untouched"}


def test_the_folder_is_made(tmp_path: Path) -> None:
    files.write_all(tmp_path / "a" / "b", NEW)
    assert contents(tmp_path / "a" / "b") == NEW


@pytest.mark.parametrize("failing", ["fsync", "replace", "link"])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_any_failure_leaves_the_old_state(
    folder: Path, monkeypatch: pytest.MonkeyPatch, failing: str, nth: int
) -> None:
    owner = Path if failing == "replace" else os
    original = getattr(owner, failing)
    calls = 0

    def fail(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise OSError(28, "No space left on device")
        return original(*arguments)

    monkeypatch.setattr(owner, failing, fail)
    if failing == "link" and nth == 3:
        files.write_all(folder, NEW)
        assert contents(folder) == NEW | {"mine.txt": b"untouched"}, "only two old files are linked"
        return
    with pytest.raises(UserError, match=r"the report cannot be written there: No space left on device"):
        files.write_all(folder, NEW)
    assert contents(folder) == OLD | {"mine.txt": b"untouched"}


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match="cannot be written there"):
        files.write_all(tmp_path / "taken", NEW)
