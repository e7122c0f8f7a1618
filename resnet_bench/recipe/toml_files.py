"""Find and read TOML files: benchmarks, studies, datasets and launchers.

A file names what it holds. The user's folder is searched before the shipped one, so that a user's file replaces the
shipped file of the same name.
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from resnet_bench.base.errors import UserError
from resnet_bench.base.names import is_file_name

Kind = Literal["benchmarks", "studies", "datasets", "launchers"]
Table = dict[str, Any]

SINGULAR: Mapping[Kind, str] = {
    "benchmarks": "benchmark",
    "studies": "study",
    "datasets": "dataset",
    "launchers": "launcher",
}

MAX_FILE_BYTES = 256 * 1024
MAX_DEPTH = 16
"""Depth of nested tables and lists; a benchmark needs seven."""

PACKAGE = Path(__file__).resolve().parent.parent


def search_folders(kind: Kind, given: Path | None = None) -> list[Path]:
    """List the folders to search for files of a kind, in order.

    Args:
        kind: Name of the folder, such as ``benchmarks``.
        given: A folder that the user names; without one, the folder of that name in the working directory.

    Raises:
        UserError: The given folder is not a folder.
    """
    if given is not None and not given.is_dir():
        raise UserError(f"{given} is not a folder; --{SINGULAR[kind]}-dir takes a folder with TOML files")
    own = given if given is not None else Path(kind)
    wheel, repository = PACKAGE / "shipped" / kind, PACKAGE.parent / kind
    candidates = [own, wheel if wheel.is_dir() else repository]
    # In a checkout of this repository ./benchmarks is the shipped folder.
    return list(dict.fromkeys(folder.resolve() for folder in candidates if folder.is_dir()))


def reference_folder() -> Path:
    """Return the folder with the tables of the reference results that come with the package."""
    wheel, repository = PACKAGE / "shipped" / "reference", PACKAGE.parent / "reports" / "reference"
    return wheel if wheel.is_dir() else repository


def toml_files(searched: Sequence[Path]) -> dict[str, Path]:
    """List the TOML files in some folders by their stem; of files with the same name the first one wins."""
    found: dict[str, Path] = {}
    for folder in searched:
        for path in sorted(folder.glob("*.toml"), key=lambda path: path.stem):
            if not path.name.startswith(".") and _lies_in(folder, path):
                found.setdefault(path.stem, path)
    return found


def find_file(name: str, searched: Sequence[Path]) -> Path | None:
    """Find the file of a name in the first folder that has it.

    A name is never a path: names that are not slugs, and links that lead out of their folder, are not found.
    """
    if not is_file_name(name):
        return None
    paths = [(folder, folder / f"{name}.toml") for folder in searched]
    return next((path for folder, path in paths if _lies_in(folder, path)), None)


def _lies_in(folder: Path, path: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve()) and path.is_file()


def read_toml(path: Path) -> Table:
    """Read one TOML file.

    Raises:
        UserError: The file is missing, larger than 256 KiB, not UTF-8, or not TOML (with the line).
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(content) > MAX_FILE_BYTES:
        raise UserError(f"{path}: is larger than {MAX_FILE_BYTES // 1024} KiB, which no file of this kind needs")
    try:
        table = tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    except RecursionError:
        raise UserError(f"{path}: tables or lists are nested too deep") from None
    except ValueError as error:  # TOMLDecodeError, and a number that Python refuses to read
        raise UserError(f"{path}: is not valid TOML: {error}") from None
    problem = _excess(table)
    if problem is not None:
        raise UserError(f"{path}: {problem}")
    return table


def _excess(table: Table) -> str | None:
    """Find what tomllib reads but later code should not have to handle."""
    level: list[Any] = [table]
    for _ in range(MAX_DEPTH):
        below = [value for outer in level for value in (outer.values() if isinstance(outer, dict) else outer)]
        if any(isinstance(value, int) and not -(2**63) <= value < 2**63 for value in below):
            return "contains a whole number of more than 64 bits"
        level = [value for value in below if isinstance(value, dict | list)]
    return f"tables or lists are nested more than {MAX_DEPTH} deep" if level else None
