"""Every command that the documentation shows exists, with the options that it shows."""

import functools
import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from resnet_bench.cli import app
from resnet_bench.recipe.files import scan_benchmarks

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")), REPOSITORY / "CHANGELOG.md"]

OF_THE_SHELL = {"git", "cd", "pip", "python3", "source", "ssh"}


def shown_commands() -> list[tuple[str, str]]:
    """Each line of each shell block, and each command in a table, with the page that it is on."""
    found = []
    for page in PAGES:
        if page.is_file():
            rows = re.findall(r"^\|.*", page.read_text(), re.MULTILINE)
            found += [
                (page.name, line) for row in rows for line in re.findall(r"`((?:resnet-bench|make) [^`…]+)`", row)
            ]
            for block in re.findall(r"```(?:bash|sh|console)\n(.*?)```", page.read_text(), re.DOTALL):
                joined = block.replace("\\\n", " ")
                lines = [line.partition(" #")[0].strip().removeprefix("$ ") for line in joined.splitlines()]
                found += [(page.name, line) for line in lines if line and not line.startswith("#")]
    return found


def test_the_documentation_shows_commands() -> None:
    assert len(shown_commands()) > 10


@pytest.mark.parametrize(("page", "line"), shown_commands())
def test_a_shown_command_exists(page: str, line: str) -> None:
    words = [word for word in shlex.split(line) if not re.match(r"^[A-Z_]+=", word)]
    if words[0] == "make":
        targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
        assert set(words[1:]) <= targets, f"{page}: no such target in {line!r}"
        variables = set(re.findall(r"^([A-Z_]+) [?:]?=", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
        given = {word.partition("=")[0] for word in shlex.split(line) if re.match(r"^[A-Z_]+=", word)}
        assert given <= variables | {"MLFLOW_TRACKING_URI"}, f"{page}: no such variable in {line!r}"
    elif words[0] == "resnet-bench":
        _parse(words[1:])
    elif words[0] == "python":
        script = (REPOSITORY / words[1]).read_text()
        options = {word.partition("=")[0] for word in words[2:] if word.startswith("--")}
        unknown = [option for option in options if f'"{option}"' not in script]
        assert not unknown, f"{page}: {words[1]} has no {unknown}"
    else:
        assert words[0] in OF_THE_SHELL, f"{page}: {line!r} is not a command of ours"


@functools.cache
def benchmark_names() -> frozenset[str]:
    return frozenset(scan_benchmarks()[0])


def _parse(words: list[str]) -> None:
    verb, *words = words
    assert verb in app.VERBS, f"there is no verb {verb!r}"
    command = app.load(verb)
    parent = None
    if isinstance(command, TyperGroup):
        name, *words = words
        assert name in command.commands, f"there is no verb {verb} {name}"
        parent, command = typer.Context(command, **command.context_settings), command.commands[name]
    context = command.make_context(command.name, list(words), parent=parent)
    for name in context.params.get("names") or []:
        assert name in benchmark_names() or name.startswith("my-"), f"there is no benchmark {name!r}"
