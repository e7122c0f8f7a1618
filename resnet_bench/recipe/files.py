"""Finds and loads the files of ``benchmarks/``; adding a file adds a benchmark.

A benchmark is named by its file. A user's own folder is looked through before the shipped one, so that a
file of one's own replaces the shipped file of the same name.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from resnet_bench.base.errors import UserError
from resnet_bench.base.names import is_file_name, shown, unknown_name
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.changes import merge, override_nested
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.recipe.schema import parse

Kind = Literal["benchmarks", "studies"]
Table = dict[str, Any]

MAX_FILE_BYTES = 256 * 1024
MAX_DEPTH = 16
"""Tables and lists within one another; a benchmark needs seven."""

_PACKAGE = Path(__file__).resolve().parent.parent
_ARTICLES = frozenset({"tutorial", "blog", "course"})


def search_folders(kind: Kind, given: Path | None = None) -> list[Path]:
    """The folders to look through for files of a kind, the one that comes first in front.

    Args:
        kind: Name of the folder: ``benchmarks`` or ``studies``.
        given: A folder that the user names; without one, the folder of that name in the working directory.

    Raises:
        UserError: The given folder is none.
    """
    if given is not None and not given.is_dir():
        raise UserError(f"{given} is no folder; --{kind} takes a folder with TOML files")
    own = given if given is not None else Path(kind)
    wheel, repository = _PACKAGE / "shipped" / kind, _PACKAGE.parent / kind
    candidates = [own, wheel if wheel.is_dir() else repository]
    # In a checkout of this repository ./benchmarks and the shipped folder are the same one.
    return list(dict.fromkeys(folder.resolve() for folder in candidates if folder.is_dir()))


def toml_files(searched: Sequence[Path]) -> dict[str, Path]:
    """The TOML files in some folders by their stem; of files with the same name the first one counts."""
    found: dict[str, Path] = {}
    for folder in searched:
        for path in sorted(folder.glob("*.toml")):
            if not path.name.startswith(".") and _lies_in(folder, path):
                found.setdefault(path.stem, path)
    return found


def find_file(name: str, searched: Sequence[Path]) -> Path | None:
    """The file of a name in the first folder that has it, or None.

    A name is never a path: what is no slug, or a link that leads out of its folder, is not found.
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
        raise UserError(f"{path}: tables or lists lie too deep within one another") from None
    except ValueError as error:  # TOMLDecodeError, and a number that Python refuses to read
        raise UserError(f"{path}: is not valid TOML: {error}") from None
    problem = _excess(table)
    if problem is not None:
        raise UserError(f"{path}: {problem}")
    return table


def _excess(table: Table) -> str | None:
    """What tomllib reads and nothing after it should have to cope with."""
    level: list[Any] = [table]
    for _ in range(MAX_DEPTH):
        below = [value for outer in level for value in (outer.values() if isinstance(outer, dict) else outer)]
        if any(isinstance(value, int) and not -(2**63) <= value < 2**63 for value in below):
            return "holds a whole number of more than 64 bits"
        level = [value for value in below if isinstance(value, dict | list)]
    return f"tables or lists lie more than {MAX_DEPTH} deep within one another" if level else None


def load_benchmark(name: str, folder: Path | None = None) -> Benchmark:
    """Load a benchmark by its name, or by the path of its file, which ends in ``.toml``.

    Args:
        name: Such as ``resnet9-onecycle-adam`` or ``mine/wider.toml``.
        folder: Folder of benchmarks to look through first.

    Raises:
        UserError: There is no such benchmark (with the nearest name), or its file is wrong.
    """
    if name.endswith(".toml"):
        return load_benchmark_file(Path(name), folder)
    searched = search_folders("benchmarks", folder)
    path = find_file(name, searched)
    if path is None:
        # Sorted by family, so that of several names that begin alike the one that reproduces an article is suggested.
        known = [*scan_benchmarks(folder)[0], *toml_files(searched)]
        raise UserError(unknown_name("benchmark", name, known))
    return load_benchmark_file(path, folder)


def load_benchmark_file(path: Path, folder: Path | None = None) -> Benchmark:
    """Load one benchmark file; the benchmark is named after it.

    A file that says ``extends = "parent"`` gives only what differs. It inherits the parent's source, recipe
    and profiles, but neither its claims nor its tuning, which belong to the parent's recipe. Of the parent's
    facts those are left out that rest on a key whose value the file changes or has a fact of its own about.

    Args:
        path: The TOML file.
        folder: Folder of benchmarks to look through first for the parent; the file's own folder comes
            before it.

    Raises:
        UserError: What is wrong, in which file and where.
    """
    return _load(path, search_folders("benchmarks", folder), ()).benchmark


def scan_benchmarks(folder: Path | None = None) -> tuple[dict[str, Benchmark], dict[str, str]]:
    """Load every benchmark that can be loaded.

    Args:
        folder: Folder of benchmarks to look through first.

    Returns:
        The benchmarks by name, and for each file that is wrong, by its stem, the sentence that says why.
        Benchmarks are sorted by family: first those that reproduce an article, then the others; in a
        family the one that extends nothing, then its variants; names by their numbers, 9 before 18.
    """
    loaded: dict[str, Benchmark] = {}
    problems: dict[str, str] = {}
    for name, path in toml_files(search_folders("benchmarks", folder)).items():
        try:
            loaded[name] = load_benchmark_file(path, folder)
        except UserError as error:
            problems[name] = str(error)
    return dict(sorted(loaded.items(), key=lambda item: _family(item[1], loaded))), problems


def load_all_benchmarks(folder: Path | None = None) -> dict[str, Benchmark]:
    """Load every benchmark, sorted as by :func:`scan`.

    Raises:
        UserError: A file is wrong.
    """
    benchmarks, problems = scan_benchmarks(folder)
    if problems:
        first, *others = problems.values()
        raise UserError(f"{first} (and {len(others)} more files)" if others else first)
    return benchmarks


@dataclass(frozen=True)
class _Loaded:
    """A benchmark, and the differences of its profiles as its file gives them, for a file that extends it."""

    benchmark: Benchmark
    profiles: Mapping[str, Table]


def _load(path: Path, searched: Sequence[Path], children: tuple[Path, ...]) -> _Loaded:
    if path.suffix != ".toml" or not is_file_name(path.stem):
        raise UserError(
            f"{path}: a benchmark is named after its file, which must be lower-case letters, digits and "
            "hyphens, such as resnet9-dropout.toml"
        )
    file = path.resolve()
    if file in children:
        chain = " extends ".join(child.stem for child in (*children[children.index(file) :], file))
        raise UserError(f"{children[-1]}: extends: {chain}, which has no end")
    table = read_toml(path)
    if "name" in table:
        raise UserError(f"{path}: unknown key 'name'; a benchmark is named after its file")
    parent = _load_parent(path, table, searched, children)
    where = str(path)
    if parent is not None:
        table = _inherit(parent, table, where=where)
    differences = _tables(table.pop("profiles", {}), where=f"{where}: profiles")
    benchmark = parse(Benchmark, {**table, "name": path.stem}, where=where)
    profiles = {
        name: override_nested(benchmark.recipe, changes, where=f"{where}: profiles.{name}")
        for name, changes in differences.items()
    }
    whole = {name: getattr(benchmark, name) for name in Benchmark.model_fields}
    return _Loaded(parse(Benchmark, {**whole, "profiles": profiles}, where=where), differences)


def _load_parent(
    path: Path, table: Mapping[str, Any], searched: Sequence[Path], children: tuple[Path, ...]
) -> _Loaded | None:
    name = table.get("extends")
    if name is None:
        return None
    if not isinstance(name, str):
        raise UserError(f'{path}: extends must be the name of a benchmark, in "quotes", got {shown(name)}')
    nearby = [path.parent, *searched]
    parent = find_file(name, nearby)
    if parent is None:
        raise UserError(f"{path}: extends: {unknown_name('benchmark', name, toml_files(nearby))}")
    return _load(parent, searched, (*children, path.resolve()))


def _inherit(parent: _Loaded, table: Mapping[str, Any], *, where: str) -> Table:
    """The child's table with what it inherits."""
    own = {name: _table(table.get(name, {}), where=f"{where}: {name}") for name in ("source", "recipe", "profiles")}
    base = parent.benchmark
    recipe = merge(base.recipe.model_dump(exclude_none=True), own["recipe"])
    changed = _changed_keys(base.recipe, parse(Recipe, recipe, where=f"{where}: recipe"))
    inherited = base.source.model_dump(exclude_none=True)
    facts = own["source"].get("facts", [])
    if isinstance(facts, list):
        touched = changed | {key for fact in facts if isinstance(fact, dict) for key in _keys_of(fact)}
        kept = [fact for fact in inherited["facts"] if not _rests_on(fact["keys"], touched)]
        facts = [*kept, *facts]
    return {
        **table,
        "source": {**inherited, "kind": "variant", **own["source"], "facts": facts},
        "recipe": recipe,
        "profiles": merge(parent.profiles, own["profiles"]),
    }


def _table(value: Any, *, where: str) -> Table:
    if not isinstance(value, dict):
        raise UserError(f"{where}: must be a table, got {shown(value)}")
    return value


def _tables(value: Any, *, where: str) -> dict[str, Table]:
    return {name: _table(below, where=f"{where}.{name}") for name, below in _table(value, where=where).items()}


def _keys_of(fact: Mapping[str, Any]) -> list[str]:
    keys = fact.get("keys", [])
    return [key for key in keys if isinstance(key, str)] if isinstance(keys, list) else []


def _changed_keys(before: Recipe, after: Recipe) -> set[str]:
    old, new = before.flat(), after.flat()
    return {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}


def _rests_on(keys: Iterable[str], touched: Iterable[str]) -> bool:
    """Whether one of the keys is, holds, or lies within one that was touched."""
    return any(
        key == other or key.startswith(f"{other}.") or other.startswith(f"{key}.") for key in keys for other in touched
    )


def _family(benchmark: Benchmark, loaded: Mapping[str, Benchmark]) -> tuple[Any, ...]:
    line = [benchmark]
    while (parent := loaded.get(line[0].extends or "")) is not None and parent not in line:
        line.insert(0, parent)
    return line[0].source.kind not in _ARTICLES, *(_natural(ancestor.name) for ancestor in line)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"\d+|\D+", name)]
