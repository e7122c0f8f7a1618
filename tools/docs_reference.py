"""Pages of the documentation that are made from the code: verbs with their options, and the keys of TOML files."""

import json
import re
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

import resnet_bench as rb
from resnet_bench.cli import app

REPOSITORY = Path(__file__).resolve().parents[1]

JsonSchema = Mapping[str, Any]

INTRODUCTIONS = {
    "benchmark": """A file in `benchmarks/`: a source, its claims, and one recipe.

Every key below `recipe` can be changed on the command line, without the word `recipe`: `--set optimizer.lr=0.05`. In a
file that extends another, and in a profile, every key may be missing. Take an optional key away with `"none"`.""",
    "study": "A file in `studies/`: what to tune, over which hyperparameters, and how long.",
    "launcher": "A file in `launchers/`: where runs are started, beside this machine.",
    "limits": "`limits.toml`: how much each benchmark may lose before a comparison fails.",
    "dataset": "A file in `datasets/`: your own images. `resnet-bench data describe DIR` prints one.",
}
"""What stands before the keys of a kind of file; elsewhere its schema's description."""

LARGE = 1_000_000_000
"""A bound that nobody meets, and no page names."""

PYTHON = """# Python

`import resnet_bench as rb` offers the functions below; `help(rb.train)` prints the same.
[Use it from Python](../api.md) has them by task.

::: resnet_bench.api
    options:
      show_root_heading: false
      show_root_toc_entry: false
      heading_level: 2
      members: [MEMBERS]

## Events of a run

What `rb.train` yields.

::: resnet_bench.training.events
    options:
      show_root_heading: false
      show_root_toc_entry: false
      heading_level: 3
"""


def pages() -> Iterator[tuple[str, str]]:
    """Make every page.

    Yields:
        The page's name without its suffix, and its Markdown.
    """
    yield "cli", command_line()
    yield "python", PYTHON.replace("MEMBERS", ", ".join(rb.__all__))
    for path in sorted((REPOSITORY / "schemas").glob("*.json")):
        yield f"{path.stem}-files", file_keys(path.stem, json.loads(path.read_text()))


# --- the command line ------------------------------------------------------------------------------


def command_line() -> str:
    """Describe every verb: what it does, its options with their defaults, an example."""
    verbs = {verb: list(_commands(verb)) for verb in app.VERBS}
    lines = ["# Command line", "", "`resnet-bench VERB --help` prints the same.", ""]
    lines += ["| verb | what it does |", "|---|---|"]
    lines += [f"| [`{verb}`](#{verb}) | {_cell(line)} |" for verb, line in app.VERBS.items()]
    for verb, commands in verbs.items():
        lines += ["", f"## {verb} {{: #{verb} }}", ""]
        if len(commands) > 1:
            lines += [app.VERBS[verb]]
        for name, command, context in commands:
            lines += _command(name, command, context, below=len(commands) > 1)
    return "\n".join(lines) + "\n"


def _commands(verb: str) -> Iterator[tuple[str, TyperCommand, typer.Context]]:
    command = app.load(verb)
    # An option's width in a terminal must not depend on who builds the pages.
    top = typer.Context(command, info_name=verb, terminal_width=1000)
    if not isinstance(command, TyperGroup):
        yield verb, command, top
        return
    for name, below in command.commands.items():
        if not below.hidden:
            yield f"{verb} {name}", below, typer.Context(below, info_name=name, parent=top, terminal_width=1000)


def _command(name: str, command: TyperCommand, context: typer.Context, *, below: bool) -> Iterator[str]:
    text, _, examples = (command.help or "").partition("\b\n")
    if below:
        yield from ("", f"### {name} {{: #{name.replace(' ', '-')} }}", "")
    yield from (text.strip(), "", "```bash")
    yield from (line.partition(":")[2].strip() for line in examples.splitlines() if line)
    yield "```"
    parameters = [parameter for parameter in command.params if not parameter.hidden]
    records = [(parameter, parameter.get_help_record(context)) for parameter in parameters]
    rows = [(record[0], record[1]) for _, record in records if record is not None]
    if rows:
        yield from ("", "| argument or option | what it does |", "|---|---|")
        yield from (f"| {_spelling(names)} | {_meaning(meaning)} |" for names, meaning in rows)


def _spelling(names: str) -> str:
    """Write an option with what it takes: choices stand behind it, so that a narrow screen can break the line."""
    names, _, choices = names.partition(" <")
    values = "" if choices.startswith("list[") else choices.rstrip(">").replace("|", ", ")
    return f"`{names}` {_cell(values)}".strip()


def _meaning(text: str) -> str:
    """Turn what Typer appends in brackets into sentences."""
    text, bracket, notes = text.rpartition("  [") if text.endswith("]") else (text, "", "")
    found = [_cell(text).rstrip(".") + "."] if text else []
    for note in notes.removesuffix("]").split("; ") if bracket else ():
        if note.startswith("default: "):
            found.append(f"Default: `{note.removeprefix('default: ')}`.")
        elif note.startswith("env var: "):
            found.append(f"Environment: `{note.removeprefix('env var: ')}`.")
        elif least := re.fullmatch(r"x>=([\d.]+)", note):
            found.append(f"At least {least[1]}.")
        elif not re.fullmatch(r"0<=x<=\d+", note):
            found.append(f"{_cell(note).capitalize()}.")
    return " ".join(found)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


# --- the keys of TOML files ------------------------------------------------------------------------


def file_keys(kind: str, schema: JsonSchema) -> str:
    """Describe every key of one kind of file.

    Args:
        kind: ``benchmark``, ``study``, …
        schema: The JSON schema of the files.
    """
    tables = _tables(kind, schema)
    lines = [f"# {kind.capitalize()} files", "", INTRODUCTIONS.get(kind, schema.get("description", "")), ""]
    lines += [
        f"`resnet-bench schema {kind}` prints the schema for editors, `resnet-bench validate FILE` checks a file."
    ]
    for name, (heading, table) in tables.items():
        if heading:
            lines += ["", f"## {heading} {{: #{name.lower()} }}", "", _prose(table.get("description", ""))]
        lines += ["", *_keys(table, tables)]
    return "\n".join(lines) + "\n"


def _tables(kind: str, schema: JsonSchema) -> dict[str, tuple[str, JsonSchema]]:
    """Each table once, by its definition's name: its heading, which is where it is met first, and its schema."""
    found: dict[str, tuple[str, JsonSchema]] = {}

    def visit(name: str, path: str, table: JsonSchema) -> None:
        variant = table["properties"].get("name", {}).get("const")
        found[name] = (f"{path} ({variant})" if variant else path, table)
        below = [(key, _whole(one)) for key, value in table["properties"].items() for one in _references(value)]
        for key, definition in below:
            known = schema.get("$defs", {}).get(definition, {})
            # The keys of a recipe are on another page.
            if definition not in found and "properties" in known and (kind == "benchmark" or definition != "Recipe"):
                visit(definition, f"{path}.{key}" if path else key, known)

    if "properties" in schema:
        visit("", "", schema)
    # A file of several kinds, such as a launcher's, has a table per kind.
    for definition in map(_whole, _references(schema.get("anyOf", []))) if "properties" not in schema else ():
        table = schema["$defs"][definition]
        visit(definition, str(table["properties"][kind]["const"]), table)
    return found


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if "$ref" in node:
            yield str(node["$ref"]).rpartition("/")[2]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def _whole(definition: str) -> str:
    """Name the table that a partial one, in which nothing is required, was made from."""
    return definition.removeprefix("Partial")


def _keys(table: JsonSchema, tables: Container[str]) -> Iterator[str]:
    required = table.get("required", ())
    yield from ("| key | takes | meaning |", "|---|---|---|")
    for key, value in table["properties"].items():
        meaning = [_prose(value.get("description", ""))]
        if key in required:
            meaning.append("Required.")
        elif "default" in value:
            meaning.append(f"Default: {_value(value['default'])}.")
        yield f"| `{key}` | {_takes(value, tables)} | {' '.join(filter(None, meaning)).replace('|', chr(92) + '|')} |"


def _takes(schema: JsonSchema, tables: Container[str]) -> str:
    if "const" in schema:
        return _value(schema["const"])
    if "enum" in schema:
        return ", ".join(map(_value, schema["enum"]))
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return " or ".join(dict.fromkeys(_takes(one, tables) for one in schema[choice]))
    if "allOf" in schema:
        return _takes(schema["allOf"][0], tables)
    if "$ref" in schema:
        definition = _whole(schema["$ref"].rpartition("/")[2])
        if definition == "Recipe" and definition not in tables:
            return "[keys of a recipe](benchmark-files.md#recipe)"
        return f"[table](#{definition.lower()})" if definition in tables else "table"
    kind = schema.get("type", "value")
    if kind == "array":
        items = _takes(schema.get("items", {}), tables)
        least, most = schema.get("minItems"), schema.get("maxItems")
        return f"{least} × {items}" if least == most and least is not None else f"list of {items}"
    return "table" if kind == "object" else " ".join(filter(None, [kind, _bounds(schema)]))


def _bounds(schema: JsonSchema) -> str:
    signs = {"exclusiveMinimum": "&gt;", "minimum": "≥", "exclusiveMaximum": "&lt;", "maximum": "≤"}
    return ", ".join(f"{sign} {schema[key]:,}" for key, sign in signs.items() if schema.get(key, LARGE) < LARGE)


def _value(value: Any) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _prose(text: str) -> str:
    """Turn a docstring's marks into Markdown's."""
    return re.sub(r":\w+:`([^`]+)`", r"`\1`", " ".join(text.split())).replace("``", "`")
