"""Finds and loads the files of ``benchmarks/``; adding a file adds a benchmark.

A benchmark is named by its file. A user's own folder is looked through before the shipped one, so that a
file of one's own replaces the shipped file of the same name.
"""

import re
import shlex
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomli_w

from resnet_bench.benchmark import (
    MAX_NAME_LENGTH,
    NAME_PATTERN,
    NOT_GIVEN,
    Benchmark,
    Recipe,
    Schema,
    merge,
    override_nested,
    parse,
    shown,
    unknown_name,
)
from resnet_bench.errors import UserError

Kind = Literal["benchmarks", "studies"]
Table = dict[str, Any]

MAX_FILE_BYTES = 256 * 1024
MAX_DEPTH = 16
"""Tables and lists within one another; a benchmark needs seven."""

_PACKAGE = Path(__file__).resolve().parent
_ARTICLES = frozenset({"tutorial", "blog", "course"})
_SHORT_LIST = re.compile(r"^(?P<key>\S+) = \[\n(?P<values>(?:    [^\s{\[].*,\n)+)\]$", re.MULTILINE)


# --- finding files --------------------------------------------------------------------------------


def folders(kind: Kind, given: Path | None = None) -> list[Path]:
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


def files(searched: Sequence[Path]) -> dict[str, Path]:
    """The TOML files in some folders by their stem; of files with the same name the first one counts."""
    found: dict[str, Path] = {}
    for folder in searched:
        for path in sorted(folder.glob("*.toml")):
            if not path.name.startswith(".") and _lies_in(folder, path):
                found.setdefault(path.stem, path)
    return found


def find(name: str, searched: Sequence[Path]) -> Path | None:
    """The file of a name in the first folder that has it, or None.

    A name is never a path: what is no slug, or a link that leads out of its folder, is not found.
    """
    if not _is_name(name):
        return None
    paths = [(folder, folder / f"{name}.toml") for folder in searched]
    return next((path for folder, path in paths if _lies_in(folder, path)), None)


def _is_name(name: str) -> bool:
    return len(name) <= MAX_NAME_LENGTH and re.fullmatch(NAME_PATTERN, name) is not None


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


# --- loading benchmarks ---------------------------------------------------------------------------


def load(name: str, folder: Path | None = None) -> Benchmark:
    """Load a benchmark by its name, or by the path of its file, which ends in ``.toml``.

    Args:
        name: Such as ``resnet9-onecycle-adam`` or ``mine/wider.toml``.
        folder: Folder of benchmarks to look through first.

    Raises:
        UserError: There is no such benchmark (with the nearest name), or its file is wrong.
    """
    if name.endswith(".toml"):
        return load_file(Path(name), folder)
    searched = folders("benchmarks", folder)
    path = find(name, searched)
    if path is None:
        raise UserError(unknown_name("benchmark", name, files(searched)))
    return load_file(path, folder)


def load_file(path: Path, folder: Path | None = None) -> Benchmark:
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
    return _load(path, folders("benchmarks", folder), ()).benchmark


def scan(folder: Path | None = None) -> tuple[dict[str, Benchmark], dict[str, str]]:
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
    for name, path in files(folders("benchmarks", folder)).items():
        try:
            loaded[name] = load_file(path, folder)
        except UserError as error:
            problems[name] = str(error)
    return dict(sorted(loaded.items(), key=lambda item: _family(item[1], loaded))), problems


def load_all(folder: Path | None = None) -> dict[str, Benchmark]:
    """Load every benchmark, sorted as by :func:`scan`.

    Raises:
        UserError: A file is wrong.
    """
    benchmarks, problems = scan(folder)
    if problems:
        first, *others = problems.values()
        raise UserError(f"{first} (and {len(others)} more files)" if others else first)
    return benchmarks


def check(benchmark: Benchmark) -> None:
    """Check what the schema cannot: that the networks exist, take their options, and fit the images.

    Raises:
        UserError: Such as an unknown network, with the nearest name.
    """
    for place, recipe in {"recipe": benchmark.recipe, **_placed_profiles(benchmark)}.items():
        try:
            _check_network(recipe)
        except UserError as error:
            raise UserError(f"{benchmark.name}: {place}.model: {error}") from None


def _check_network(recipe: Recipe) -> None:
    # Listing benchmarks must not wait seconds for torch.
    from resnet_bench import models

    models.validate(recipe.model.name, recipe.model.options)
    network = models.network_outline(recipe)
    models.frozen_parameters(recipe, network)
    if not recipe.model.name.startswith("torchvision:"):
        # torchvision's classifiers pool to one pixel, so they take images of any size.
        for size in {recipe.image_size, *(stretch.pixels for stretch in recipe.augmentation.sizes or ())}:
            models.count_macs(network, (3, size, size))


def _placed_profiles(benchmark: Benchmark) -> dict[str, Recipe]:
    return {f"profiles.{name}": recipe for name, recipe in benchmark.profiles.items()}


@dataclass(frozen=True)
class _Loaded:
    """A benchmark, and the differences of its profiles as its file gives them, for a file that extends it."""

    benchmark: Benchmark
    profiles: Mapping[str, Table]


def _load(path: Path, searched: Sequence[Path], children: tuple[Path, ...]) -> _Loaded:
    if path.suffix != ".toml" or not _is_name(path.stem):
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
    parent = find(name, nearby)
    if parent is None:
        raise UserError(f"{path}: extends: {unknown_name('benchmark', name, files(nearby))}")
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


# --- writing benchmarks ---------------------------------------------------------------------------


def to_toml(benchmark: Benchmark) -> str:
    """The text of a file that holds the whole benchmark, nothing left to a parent.

    Loading it under the same file name gives an equal benchmark, but that ``extends`` is None.
    """
    table: Table = {"source": _written(benchmark.source)}
    if benchmark.claims:
        table["claims"] = [_written(claim) for claim in benchmark.claims]
    table["recipe"] = benchmark.recipe.model_dump(exclude_none=True, mode="json")
    if not benchmark.recipe.model.options:
        del table["recipe"]["model"]["options"]
    if benchmark.profiles:
        table["profiles"] = {
            name: _differences(benchmark.recipe, profile) for name, profile in benchmark.profiles.items()
        }
    if benchmark.tuned is not None:
        table["tuned"] = _written(benchmark.tuned)
    return _SHORT_LIST.sub(_on_one_line, tomli_w.dumps(table))


def _on_one_line(found: re.Match[str]) -> str:
    values = [line.removeprefix("    ").removesuffix(",") for line in found["values"].rstrip("\n").split("\n")]
    line = f"{found['key']} = [{', '.join(values)}]"
    return line if len(line) <= 110 else found[0]


def copy(name: str, path: Path, folder: Path | None = None) -> None:
    """Write the start of a recipe of one's own: everything of a benchmark that trains, nothing to look up.

    What a source says of itself stays behind: its claims and facts are not those of a changed recipe.

    Args:
        name: The benchmark to start from.
        path: File to write; its folder is made where it is missing.
        folder: Folder of benchmarks to look through first.

    Raises:
        UserError: There is no such benchmark, the file exists, or its name is not one for a benchmark.
    """
    original = load(name, folder)
    if path.suffix != ".toml" or not _is_name(path.stem):
        raise UserError(
            f"{path}: name the file after the new benchmark, in lower-case letters, digits and hyphens, "
            f"such as {path.parent / 'my-resnet.toml'}"
        )
    own = original.model_copy(
        update={
            "source": parse(
                type(original.source),
                {"title": f"My variant of {original.name}", "kind": "ours", "notes": f"Started from {original.name}."},
                where=str(path),
            ),
            "claims": (),
            "tuned": None,
        }
    )
    text = f"""\
# A benchmark of your own, started from {original.name}. Change what you like, then:
#   resnet-bench validate {shlex.quote(str(path))}
#   resnet-bench run {shlex.quote(str(path))} --profile smoke
# [profiles.smoke] holds what differs in a run of a few minutes. An optional key is taken away by "{NOT_GIVEN}".

{to_toml(own)}"""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        if path.exists():
            raise UserError(f"{path} exists and is left as it is; take another name or remove it") from None
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


def _written(part: Schema) -> Table:
    return part.model_dump(exclude_none=True, exclude_defaults=True, mode="json")


def _differences(recipe: Recipe, profile: Recipe) -> Table:
    """The table that :func:`resnet_bench.benchmark.override_nested` turns the recipe into the profile with."""
    full, wanted = (part.model_dump(exclude_none=True, mode="json") for part in (recipe, profile))
    differences = _difference(full, wanted)
    scaled = {key: value for key, value in differences.items() if key != "schedule"}
    if _gives(recipe, scaled, profile):
        return scaled
    # With another number of epochs, a schedule that is left out would be scaled.
    return {**differences, "schedule": wanted["schedule"]}


def _gives(recipe: Recipe, changes: Table, profile: Recipe) -> bool:
    try:
        return override_nested(recipe, changes, where="profile") == profile
    except UserError:
        return False


def _difference(base: Mapping[str, Any], wanted: Mapping[str, Any]) -> Table:
    differences: Table = {key: NOT_GIVEN for key in base if key not in wanted}
    for key, value in wanted.items():
        below = base.get(key)
        renamed = (
            isinstance(below, dict)
            and isinstance(value, dict)
            and "name" in value
            and value["name"] != below.get("name")
        )
        if isinstance(below, dict) and isinstance(value, dict) and not renamed:
            if inner := _difference(below, value):
                differences[key] = inner
        elif key not in base or value != below:
            differences[key] = value
    return differences
