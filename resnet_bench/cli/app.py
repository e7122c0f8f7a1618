"""The command ``resnet-bench``: its verbs, each in its own module, which is imported when it is typed."""

import codecs
import errno
import gc
import importlib
import io
import os
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

from resnet_bench.base.errors import UserError

VERBS = {
    "doctor": "Check what this machine offers: Python, torch, GPU, data, tracking store.",
    "launcher": "List and show launchers: where runs train.",
    "data": "Find or download CIFAR, or describe your own images.",
    "list": "List the benchmarks: name, dataset, network, epochs and claim.",
    "show": "Show a benchmark: its source, claims, recipe and facts.",
    "copy": "Copy a benchmark to a file, to start your own recipe.",
    "validate": "Check benchmark, study, dataset, launcher and limits files, and print every problem.",
    "schema": "Print the JSON schema of benchmark, study, dataset, launcher or limits files, for editors.",
    "run": "Train benchmarks and track them in MLflow.",
    "status": "Show the jobs on clusters: their state, node and progress.",
    "cancel": "Cancel jobs on clusters, with a checkpoint each.",
    "report": "Write a report of the tracked runs.",
    "compare": "Compare two sets of runs.",
    "history": "Follow a benchmark over commits and torch versions.",
    "results": "Print the reference results: which claims hold.",
    "export": "Export a trained network: weights, config.json and a model card for the Hugging Face Hub.",
    "evaluate": "Test a trained run on another dataset of the same classes.",
    "plan": "Plan a comparison: how many seeds an effect needs.",
    "runs": "List, show, delete and prune runs.",
    "ui": "Open MLflow on the runs.",
    "study": "Tune a benchmark with Optuna.",
    "record": "Check a speed record.",
    "perf": "Measure training speed against the source's training loop.",
    "tracking": "Look after the tracking store.",
}
"""Each verb, the module of its name in this package, and its line in the list of verbs."""


NEW_OBJECTS = 200_000
"""How many more objects there have to be before Python searches for garbage: far more than it takes by default."""

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""What Typer raises for a command that cannot be parsed; it has no public name."""


class VerbGroup(TyperGroup):
    """The verbs by their lines in the table; only the verb that is typed is imported."""

    def __init__(self, **options: Any) -> None:
        """Put a line for each verb where Typer looks for commands."""
        super().__init__(**options)
        self.commands = {name: TyperCommand(name, short_help=line) for name, line in VERBS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import the verb that is typed."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, load(name) if name in VERBS else command, rest


def load(verb: str) -> TyperCommand | TyperGroup:
    """Import a verb."""
    found = typer.main.get_command(importlib.import_module(f"resnet_bench.cli.{verb}").app)
    command = cast("TyperCommand | TyperGroup", found)
    command.name = verb
    for below in getattr(command, "commands", {}).values():
        # A line that is too long is wrapped; without this one it would end in dots.
        below.short_help = below.help.partition("\n")[0]
    return command


app = typer.Typer(
    name="resnet-bench",
    cls=VerbGroup,
    help="Fair, fast, tracked training of residual networks on CIFAR.\n\nStart with: resnet-bench list",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"resnet-bench {version('resnet-bench')}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Read the options that stand before the verb."""


def main() -> None:
    """Run the command line.

    An error that a user can fix is one sentence, with exit code 2. Output that nobody reads any more ends the
    command without a word.
    """
    # The objects of imported modules stay; to search them for garbage takes a fifth of what it takes to import torch.
    gc.set_threshold(NEW_OBJECTS)
    _open_standard_streams()
    _replace_unprintable()
    # The schema has no use for plugins, and to look for them costs a quarter of a verb's start.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        _require_folder()
        try:
            code = app(prog_name="resnet-bench", standalone_mode=False)
        finally:
            sys.stdout.flush()
    except UsageError as error:
        _print_usage_error(error)
        sys.exit(2)
    except UserError as error:
        _print_error(str(error))
        sys.exit(2)
    except typer.Abort:
        sys.exit(1)
    except OSError as error:
        # An error of a file carries its name.
        if error.filename is not None and error.errno in _OF_A_FILE:
            _print_error(f"{error.filename}: {error.strerror}")
            sys.exit(2)
        if error.filename is not None or error.errno not in _OUTPUT_ERRORS:
            raise
        # What is left in the buffer would fail once more when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno != errno.EPIPE:
            sys.stderr.write(f"error: the output cannot be written: {error.strerror}\n")
        sys.exit(1)
    sys.exit(code)


def _open_standard_streams() -> None:
    """Put nothing in the place of a stream that is closed, as services and batch jobs have them.

    A file gets the lowest number that is free. As number 2, a journal or a database would be given what signal handlers
    and libraries write to standard error, and so would that of each process that is started.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115


def _require_folder() -> None:
    try:
        Path.cwd()
    except OSError as error:
        raise UserError(f"this folder is gone ({error.strerror}); change to one that exists: cd ~") from None


def _print_usage_error(error: Any) -> None:
    # The words of pydantic, with which Typer reads values.
    message = error.format_message().replace("Value error, ", "")
    if "\n" in message:
        # The help of a verb with subcommands, of which none was typed.
        typer.echo(message, err=True)
        return
    _print_error(_as_typed(f"{message[0].lower()}{message[1:]}"))
    if error.ctx is not None:
        typer.echo(f"see: {error.ctx.command_path} --help", err=True)


def _as_typed(message: str) -> str:
    """Name an option that a verb does not have as it was typed: its old name is read as the new one everywhere."""
    from resnet_bench.cli.options import OLD_NAMES

    typed = {word.partition("=")[0] for word in sys.argv[1:]}
    for old, new in OLD_NAMES.items():
        if f"--{old}" in typed and f"--{new}" not in typed:
            message = message.replace(f"no such option: --{new}", f"no such option: --{old}")
    return message


def _print_error(text: str) -> None:
    # Rich, which the screen is made with, costs as much as all of --help.
    from resnet_bench.cli.screen import print_error

    print_error(text)


_OF_A_FILE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR),
)
"""Where a file or its disk is as it is, whatever the program wanted of it; other errors may be the program's."""
_OUTPUT_ERRORS = (errno.EPIPE, errno.ENOSPC, errno.EIO)
_PLAIN = {
    "–": "-",
    "—": "-",
    "≥": ">=",
    "≤": "<=",
    "×": "x",
    "±": "+-",
    "→": "->",
    "…": "...",
    "★": "*",
} | dict.fromkeys("“”", '"')


def _replace_unprintable() -> None:
    """Let a terminal that is not UTF-8 show what it can, instead of raising where it cannot."""

    def replace(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        unprintable = error.object[error.start : error.end]
        return "".join(_PLAIN.get(character, "?") for character in unprintable), error.end

    codecs.register_error("resnet_bench.plain", replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="resnet_bench.plain")


if __name__ == "__main__":
    main()
