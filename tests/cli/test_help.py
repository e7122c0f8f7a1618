"""What a user reads and types before anything runs: help, version, option names, completion, and what it imports."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from typer.core import TyperCommand, TyperGroup
from typer.testing import CliRunner

from resnet_bench.cli import app, options

HEAVY = ("torch", "torchvision", "pandas", "optuna", "mlflow", "plotly", "matplotlib", "scipy", "pyarrow")


def commands() -> Iterator[tuple[str, TyperCommand]]:
    for verb in app.VERBS:
        command = app.load(verb)
        if isinstance(command, TyperGroup):
            for name, below in command.commands.items():
                assert isinstance(below, TyperCommand)
                yield f"{verb} {name}", below
        else:
            yield verb, command


COMMANDS = dict(commands())


def run_python(code: str, *flags: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, *flags, "-c", code],
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.mark.parametrize("path", COMMANDS)
def test_help_has_an_example_that_parses(path: str) -> None:
    help_text = COMMANDS[path].help
    assert help_text is not None
    examples = [line for line in help_text.splitlines() if line.startswith("Example: ")]
    assert len(examples) == 1, f"{path} needs one line 'Example: resnet-bench …'"
    words = shlex.split(examples[0].partition("Example: ")[2])
    assert words[: 1 + len(path.split())] == ["resnet-bench", *path.split()]
    COMMANDS[path].make_context(path, words[1 + len(path.split()) :])


@pytest.mark.parametrize("path", COMMANDS)
def test_help_prints_its_example_on_one_line(path: str) -> None:
    result = CliRunner().invoke(app.app, [*path.split(), "--help"], env={"COLUMNS": "80"}, prog_name="resnet-bench")
    assert result.exit_code == 0
    (example,) = [line for line in str(COMMANDS[path].help).splitlines() if line.startswith("Example: ")]
    assert f"  {example}\n" in result.output
    assert max(map(len, result.output.splitlines())) <= 80


@pytest.mark.parametrize("verb", app.VERBS)
def test_list_of_verbs_says_what_each_verb_says(verb: str) -> None:
    first = str(app.load(verb).help).partition("\n")[0]
    assert first.startswith(app.VERBS[verb].rstrip("."))


def test_help_survives_python_without_docstrings() -> None:
    code = """
import json
from resnet_bench.cli import app
found = {}
for verb in app.VERBS:
    command = app.load(verb)
    found[verb] = command.help
    for name, below in getattr(command, "commands", {}).items():
        found[f"{verb} {name}"] = below.help
print(json.dumps(found))
"""
    found = json.loads(run_python(code, "-OO"))
    assert {path: found[path] for path in COMMANDS} == {path: command.help for path, command in COMMANDS.items()}


def test_version_is_that_of_the_package() -> None:
    result = CliRunner().invoke(app.app, ["--version"])
    assert result.exit_code == 0
    assert result.output == f"resnet-bench {version('resnet-bench')}\n"


# --- what is imported -----------------------------------------------------------------------------


def type_in_one_process(*commands: str) -> list[set[str]]:
    """Type commands one after another in one new process; return the modules that it has after each."""
    code = f"""
import json
import shlex
import sys
from resnet_bench.cli import app
imported = []
for command in {commands!r}:
    sys.argv = ["resnet-bench", *shlex.split(command)]
    try:
        app.main()
    except SystemExit:
        pass
    imported.append([*sys.modules])
print()
print(json.dumps(imported))
"""
    return [set(modules) for modules in json.loads(run_python(code).splitlines()[-1])]


def assert_import_nothing_slow(*commands: str) -> None:
    for command, modules in zip(commands, type_in_one_process(*commands), strict=True):
        assert modules.isdisjoint(HEAVY), f"resnet-bench {command}"


def test_quick_verbs_import_nothing_slow() -> None:
    assert_import_nothing_slow("--help", "--version", "list", "show resnet9-onecycle-adam", "study list")


def test_list_imports_no_locks_no_cache_and_no_pictures() -> None:
    (imported,) = type_in_one_process("list")
    assert imported.isdisjoint({"filelock", "platformdirs", "rich._emoji_codes"})


def test_help_imports_no_verb_and_no_schema() -> None:
    (imported,) = type_in_one_process("--help")
    ours = {name for name in imported if name.startswith("resnet_bench.")}
    assert ours == {"resnet_bench.base", "resnet_bench.base.errors", "resnet_bench.cli", "resnet_bench.cli.app"}
    assert imported.isdisjoint({"pydantic", "rich"})


def test_help_of_a_verb_imports_nothing_slow() -> None:
    """Completion imports the same."""
    assert_import_nothing_slow(*(f"{path} --help" for path in COMMANDS))


def test_what_does_not_exist_is_refused_before_torch_is_imported() -> None:
    assert_import_nothing_slow(
        "run nothing",
        "run resnet9-onecycle-adam --set optimizer.lrr=1",
        "run resnet9-onecycle-adam --data nowhere",
        "run resnet9-onecycle-adam --precision fp8",
        "record check nothing",
        "perf nothing",
        "study run nothing",
        "data prepare cifar11",
        "validate nothing.toml",
    )


# --- names of 0.1.0 -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("run", "x --again", "x --force"),
        ("run", "x --benchmarks b --runs r", "x --benchmark-dir b --run-dir r"),
        ("report", "--out o --benchmarks b --benchmark x", "--output o --benchmark-dir b --benchmark x"),
        ("study run", "x --name y --studies s --workers 2", "x --study-name y --study-dir s --workers 2"),
        ("perf", "--workers 2 --clock processor --out o", "--loader-workers 2 --clock cpu --output o"),
    ],
)
def test_old_names_mean_the_new_ones_and_are_in_no_help(path: str, old: str, new: str) -> None:
    command = COMMANDS[path]
    verb = app.load(path.split()[0])
    parent = typer.Context(verb, **verb.context_settings)
    contexts = [command.make_context(path, words.split(), parent=parent) for words in (old, new)]
    assert contexts[0].params == contexts[1].params
    shown = command.get_help(contexts[1])
    words = set(shown.replace(",", " ").split())
    assert words.isdisjoint({word for word in old.split() if word.startswith("--")} - set(new.split()))


# --- completion -----------------------------------------------------------------------------------


def completed(line: str) -> set[str]:
    """What bash offers behind a line."""
    words = shlex.split(line) + ([""] if line.endswith(" ") else [])
    result = CliRunner().invoke(
        app.app,
        [],
        prog_name="resnet-bench",
        env={
            "_RESNET_BENCH_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
        },
    )
    return set(result.output.split())


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("resnet-bench ", {"run", "list", "study"}),
        ("resnet-bench run resnet9", {"resnet9-onecycle-adam", "resnet9-dropout"}),
        ("resnet-bench run x --profile ", {"full", "smoke"}),
        ("resnet-bench run x --precision ", {"auto", "fp32", "tf32", "bf16"}),
        ("resnet-bench run x --execution ", {"auto", "plain", "fast"}),
        ("resnet-bench run x --device c", {"cpu", "cuda"}),
        ("resnet-bench run resnet9-onecycle-adam --set optimizer.", {"optimizer.lr=", "optimizer.weight_decay="}),
        ("resnet-bench report --study resnet18", {"resnet18-step-decay", "resnet18-step-decay-cpu"}),
        ("resnet-bench report --benchmark speedrun-9", {"speedrun-90", "speedrun-94"}),
        ("resnet-bench study run resnet18", {"resnet18-step-decay", "resnet18-step-decay-cpu"}),
        ("resnet-bench record check speedrun-9", {"speedrun-90", "speedrun-94"}),
        ("resnet-bench data prepare ", {"cifar10", "cifar100"}),
        ("resnet-bench compare a b --format ", {"table", "markdown", "json"}),
        ("resnet-bench perf --clock ", {"wall", "cpu"}),
    ],
)
def test_completion_offers_values(line: str, offered: set[str]) -> None:
    assert offered <= completed(line)


def test_devices_are_completed_as_this_machine_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [Path(f"/dev/nvidia{name}") for name in ("10", "2", "0")]
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(devices))
    assert options.complete_device("cuda") == ["cuda", "cuda:0", "cuda:2", "cuda:10"]
