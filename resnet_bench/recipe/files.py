"""Load benchmarks from their files; adding a file adds a benchmark, which is named after it."""

import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from resnet_bench.base.errors import UserError
from resnet_bench.base.names import is_file_name, shown, unknown_name
from resnet_bench.recipe.benchmark import PROFILES, Benchmark
from resnet_bench.recipe.changes import merge, override_nested
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.recipe.schema import parse
from resnet_bench.recipe.toml_files import SINGULAR, Kind, Table, find_file, read_toml, search_folders, toml_files

Loaded = TypeVar("Loaded")
SUITE_SIGN = "@"
"""What a name begins with that stands for every benchmark of a suite."""
_ARTICLES = frozenset({"tutorial", "blog", "course"})


def locate(kind: Kind, name: str, given: Path | None = None) -> Path:
    """Find the file of a name, or take the path of a file, which ends in ``.toml``.

    Args:
        kind: ``benchmarks`` or ``studies``.
        name: Such as ``resnet9-onecycle-adam`` or ``mine/wider.toml``.
        given: Folder to search first.

    Raises:
        UserError: There is no such file; the message has the nearest name.
    """
    if name.endswith(".toml"):
        return Path(name)
    searched = search_folders(kind, given)
    path = find_file(name, searched)
    if path is None:
        files = toml_files(searched)
        # By family: of several names that begin alike, the one that reproduces an article is suggested.
        known = [*scan_benchmarks(given)[0], *files] if kind == "benchmarks" else files
        raise UserError(unknown_name(SINGULAR[kind], name, known))
    return path


def scan(
    kind: Kind, load: Callable[[Path], Loaded], given: Path | None = None
) -> tuple[dict[str, Loaded], dict[str, str]]:
    """Load every file of a kind that can be loaded.

    Args:
        kind: ``benchmarks`` or ``studies``.
        load: Loads one file; raises UserError if the file is wrong.
        given: Folder to search first.

    Returns:
        What was loaded, by the file's stem, and for each file that is wrong the sentence that says why.
    """
    loaded: dict[str, Loaded] = {}
    problems: dict[str, str] = {}
    for name, path in toml_files(search_folders(kind, given)).items():
        try:
            loaded[name] = load(path)
        except UserError as error:
            problems[name] = str(error)
    return loaded, problems


def load_benchmark(name: str, folder: Path | None = None) -> Benchmark:
    """Load a benchmark by its name, or by the path of its file, which ends in ``.toml``.

    Args:
        name: Such as ``resnet9-onecycle-adam`` or ``mine/wider.toml``.
        folder: Folder of benchmarks to search first.

    Raises:
        UserError: There is no such benchmark (with the nearest name), or its file is wrong.
    """
    return load_benchmark_file(locate("benchmarks", name, folder), folder)


def expand_suites(names: Iterable[str], folder: Path | None = None) -> list[str]:
    """Replace each ``@suite`` by the names of its benchmarks, in the order of ``list``; other names stay.

    Raises:
        UserError: No benchmark belongs to such a suite (with the nearest name).
    """
    expanded: list[str] = []
    for name in names:
        if not name.startswith(SUITE_SIGN):
            expanded.append(name)
            continue
        members = suites(folder)
        if name[1:] not in members:
            raise UserError(unknown_name("suite", name[1:], members))
        expanded += members[name[1:]]
    return list(dict.fromkeys(expanded))


def suites(folder: Path | None = None) -> dict[str, list[str]]:
    """List the benchmarks of each suite; see ``scan_benchmarks`` for the folder and the order."""
    members: dict[str, list[str]] = {}
    for name, benchmark in scan_benchmarks(folder)[0].items():
        for suite in benchmark.suites:
            members.setdefault(suite, []).append(name)
    return members


def load_benchmark_file(path: Path, folder: Path | None = None) -> Benchmark:
    """Load one benchmark file; the benchmark is named after it.

    A file with ``extends = "parent"`` gives only what differs. It inherits the parent's source, recipe and profiles,
    but neither its claims nor its tuning, which belong to the parent's recipe. Of the parent's facts it inherits
    those whose keys it neither changes nor has facts about.

    Args:
        path: The TOML file.
        folder: Folder of benchmarks to search for the parent, after the file's own folder.

    Raises:
        InvalidTable: The file's tables are wrong; ``problems`` lists everything.
        UserError: The file or its parent cannot be read.
    """
    return _BenchmarkLoader(search_folders("benchmarks", folder)).load(path).benchmark


def scan_benchmarks(folder: Path | None = None) -> tuple[dict[str, Benchmark], dict[str, str]]:
    """Load every benchmark that can be loaded.

    Args:
        folder: Folder of benchmarks to search first.

    Returns:
        The benchmarks by name, and for each file that is wrong, by its stem, the sentence that says why; other
        programs' files (:func:`unrelated_files`) are neither. Benchmarks are sorted by family: first those that
        reproduce an article, then the others; in a family the one without a parent first, then its variants; numbers
        in names by value, 9 before 18.
    """
    loader = _BenchmarkLoader(search_folders("benchmarks", folder))
    loaded, problems = scan("benchmarks", lambda path: loader.load(path).benchmark, folder)
    for path in unrelated_files(problems, folder):
        del problems[path.stem]
    return dict(sorted(loaded.items(), key=lambda item: _family(item[1], loaded))), problems


def unrelated_files(
    names: Iterable[str] | None = None, folder: Path | None = None, *, related: Container[str] = ()
) -> list[Path]:
    """List the TOML files beside benchmarks that have neither a recipe nor a parent: other programs wrote them.

    Args:
        names: Stems of the files to look at; all by default.
        folder: Folder of benchmarks to search first.
        related: Stems of files that are known to be benchmarks; they are not read again.
    """
    files = toml_files(search_folders("benchmarks", folder))
    chosen = files if names is None else names
    return [files[name] for name in chosen if name not in related and _is_unrelated(files[name])]


def _is_unrelated(path: Path) -> bool:
    try:
        return not read_toml(path).keys() & {"recipe", "extends"}
    except UserError:
        return False


@dataclass(frozen=True)
class _Loaded:
    """A benchmark, and its profiles' differences as its file gives them, for files that extend it."""

    benchmark: Benchmark
    profiles: Mapping[str, Table]


class _BenchmarkLoader:
    """Loads benchmark files, each of them and each parent once.

    Args:
        searched: Folders to search for parents.
    """

    def __init__(self, searched: Sequence[Path]) -> None:
        self._searched = searched
        self._loaded: dict[Path, _Loaded] = {}

    def load(self, path: Path, children: tuple[Path, ...] = ()) -> _Loaded:
        """Load a file.

        Args:
            path: The file.
            children: The files that extend it, the first one that was asked for in front.
        """
        if path.suffix != ".toml" or not is_file_name(path.stem):
            raise UserError(
                f"{path}: a benchmark is named after its file, which must be lower-case letters, digits and "
                "hyphens, such as resnet9-dropout.toml"
            )
        file = path.resolve()
        if file in children:
            chain = " extends ".join(child.stem for child in (*children[children.index(file) :], file))
            raise UserError(f"{children[-1]}: extends: {chain}, which has no end")
        # A link may give one file two names, and a benchmark is named after its file.
        key = file.parent / path.name
        if key not in self._loaded:
            self._loaded[key] = self._read(path, (*children, file))
        return self._loaded[key]

    def _read(self, path: Path, children: tuple[Path, ...]) -> _Loaded:
        table = read_toml(path)
        where = str(path)
        if "name" in table:
            raise UserError(f"{where}: unknown key 'name'; a benchmark is named after its file")
        parent = self._parent(path, table, children)
        if parent is not None:
            table = _inherit(parent, table, where=where)
        differences = _tables(table.pop("profiles", {}), where=f"{where}: profiles")
        benchmark = parse(Benchmark, {**table, "name": path.stem}, where=where)
        if parent is not None:
            benchmark = _with_inherited_facts(benchmark, parent.benchmark)
        return _Loaded(_with_profiles(benchmark, differences, where=where), differences)

    def _parent(self, path: Path, table: Table, children: tuple[Path, ...]) -> _Loaded | None:
        name = table.get("extends")
        if name is None:
            return None
        if not isinstance(name, str):
            raise UserError(f'{path}: extends must be the name of a benchmark, in "quotes", got {shown(name)}')
        nearby = [path.parent, *self._searched]
        parent = find_file(name, nearby)
        if parent is None:
            raise UserError(f"{path}: extends: {unknown_name('benchmark', name, toml_files(nearby))}")
        return self.load(parent, children)


def _inherit(parent: _Loaded, table: Table, *, where: str) -> Table:
    """Merge a file's table into what it inherits, except for the facts."""
    own = {name: _table(table.get(name, {}), where=f"{where}: {name}") for name in ("source", "recipe", "profiles")}
    source = parent.benchmark.source.model_dump(exclude_none=True, exclude={"facts"})
    return {
        **table,
        "source": {**source, "kind": "variant", **own["source"]},
        "recipe": merge(parent.benchmark.recipe.model_dump(exclude_none=True), own["recipe"]),
        "profiles": merge(parent.profiles, own["profiles"]),
    }


def _with_inherited_facts(benchmark: Benchmark, parent: Benchmark) -> Benchmark:
    """Put those facts of the parent in front that rest on nothing the benchmark changes or has facts about."""
    facts = benchmark.source.facts
    touched = _changed_keys(parent.recipe, benchmark.recipe) | {key for fact in facts for key in fact.keys}
    kept = [fact for fact in parent.source.facts if not _rests_on(fact.keys, touched)]
    source = benchmark.source.model_copy(update={"facts": (*kept, *facts)})
    return benchmark.model_copy(update={"source": source})


def _with_profiles(benchmark: Benchmark, differences: Mapping[str, Table], *, where: str) -> Benchmark:
    profiles = {}
    for name, changes in differences.items():
        if name not in PROFILES or name == "full":
            raise UserError(f"{where}: {unknown_name('profile', name, ['smoke'])}")
        profiles[name] = override_nested(benchmark.recipe, changes, where=f"{where}: profiles.{name}")
    return benchmark.model_copy(update={"profiles": profiles})


def _table(value: Any, *, where: str) -> Table:
    if not isinstance(value, dict):
        raise UserError(f"{where}: must be a table, got {shown(value)}")
    return value


def _tables(value: Any, *, where: str) -> dict[str, Table]:
    return {name: _table(below, where=f"{where}.{name}") for name, below in _table(value, where=where).items()}


def _changed_keys(before: Recipe, after: Recipe) -> set[str]:
    old, new = before.flat(), after.flat()
    return {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}


def _rests_on(keys: Iterable[str], touched: Iterable[str]) -> bool:
    """Check whether one of the keys equals, contains, or is part of a touched one."""
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
