"""What the verbs print with: consoles, tables that fit, announcements, and exit codes."""

import logging
import os
import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TextIO

import typer
from rich import box
from rich.console import Console, RenderableType
from rich.measure import Measurement, measure_renderables
from rich.prompt import Confirm
from rich.table import Table
from rich.text import Text

from resnet_bench.base.errors import UserError
from resnet_bench.base.json_document import json_document
from resnet_bench.base.uris import HIDDEN, redact

FAILED = 1
BAD_INPUT = 2
OUT_OF_TIME = 124
"""``--max-minutes`` ended it, resumable; timeout(1) exits with the same."""
INTERRUPTED = 130

LONG_SECONDS = 1800.0
"""What takes longer is asked about where somebody can answer."""
VERY_LONG_SECONDS = 8 * 3600.0
"""What takes this long starts on a "yes" only, not on a mere Enter."""

SECONDS_BETWEEN_LINES = 10.0
"""Interval of lines about something in progress, where the output is not a terminal."""
_READER = "resnet_bench.reporting.mlflow_reader"

LOG_WIDTH = 150
"""Columns where the output is not a terminal: a log has no width, and 80 would fold every table."""


def _width() -> int | None:
    """Columns to print in, or None for as many as the terminal has at any time."""
    given = os.environ.get("COLUMNS", "")
    if not sys.stdout or not sys.stdout.isatty():
        return int(given) if given.isdigit() and int(given) else LOG_WIDTH
    # Rich takes a 0 at its word.
    return shutil.get_terminal_size().columns if given else None


# Nothing in square brackets is markup, nor between colons a picture: it may be of a path or of any library's error.
console = Console(width=_width(), markup=False, emoji=False, highlight=False)
errors = Console(stderr=True, markup=False, emoji=False, highlight=False)


def exit_with_problems(problems: Mapping[str, str], *, as_json: bool) -> None:
    """Exit with ``BAD_INPUT`` where files have problems, which are printed unless a JSON document has them."""
    for problem in problems.values() if not as_json else ():
        print_error(problem)
    if problems:
        raise typer.Exit(BAD_INPUT)


def echo(text: str, style: str | None = None) -> None:
    """Print text as it is, whatever brackets are in it, and never fold it: people copy commands and paths."""
    console.print(text, style=style, soft_wrap=True)


def paragraph(text: str) -> None:
    """Print text wrapped between words, each line indented."""
    echo(
        textwrap.fill(
            text,
            width=console.width,
            initial_indent="  ",
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


@contextmanager
def prose_aside() -> Iterator[None]:
    """While the context is open, print what people read on standard error: standard output is for a document."""
    before = console._file  # only this field tells whether the console follows sys.stdout
    console.file = sys.stderr
    try:
        yield
    finally:
        console.file = before  # type: ignore[assignment]  # None is what it was made with


def print_json(kind: str, **fields: Any) -> None:
    """Print what a verb says as JSON, and nothing else on standard output."""
    # Not through rich, which would wrap lines that a program reads.
    sys.stdout.write(json_document(kind, fields))


def print_error(text: str) -> None:
    """Print one sentence about what is wrong."""
    errors.print(Text.assemble(("error:", "bold red"), " ", text), soft_wrap=True)


def note(text: str) -> None:
    """Print, beside the output, what a user may want to know."""
    errors.print(Text.assemble(("note:", "yellow"), " ", text), soft_wrap=True)


def announce_generated(dataset: str, to: Console | None = None) -> None:
    """Warn that a dataset's images are generated."""
    warning = ", because no CIFAR was found: the numbers below say nothing about the benchmarks"
    (to or console).print(
        Text.assemble((f"{dataset}: GENERATED IMAGES", "bold yellow"), warning), highlight=False, soft_wrap=True
    )


def can_ask() -> bool:
    """Return whether somebody can answer; a service or a batch job may have closed standard input."""
    return sys.stdin is not None and sys.stdin.isatty() and console.is_terminal


def ask_to_continue(seconds: float, to: Console | None = None, *, answers: TextIO | None = None) -> None:
    """Ask before what takes long is started.

    Args:
        seconds: How long it takes.
        to: Where to ask.
        answers: Where the answer is read from; the terminal by default.

    Raises:
        UserError: The answer is no.
    """
    if seconds <= LONG_SECONDS:
        return
    if not Confirm.ask("Continue?", console=to or console, default=seconds < VERY_LONG_SECONDS, stream=answers):
        raise UserError("nothing was started")


def confirm_deletion(question: str, *, yes: bool, ask: bool = True) -> None:
    """Ask before something is deleted, where somebody can answer.

    Args:
        question: What is asked.
        yes: Whether ``--yes`` was given; nothing is asked then.
        ask: Whether a question may be printed.

    Raises:
        UserError: The answer is no, or nobody can answer and ``--yes`` is missing.
    """
    if yes:
        return
    if not ask or not can_ask():
        raise UserError("nothing was deleted; without a terminal, say so with --yes")
    if not Confirm.ask(question, console=console, default=False):
        raise UserError("nothing was deleted")


def measuring_aloud(to: Console | None = None) -> AbstractContextManager[None]:
    """While the context is open, print what is measured to choose an execution, as soon as it is."""

    def show(text: str) -> None:
        (to or console).print(Text(text), highlight=False, soft_wrap=True)

    return _shown("resnet_bench.measure.autotune", show)


@contextmanager
def reading_aloud(to: Console | None = None, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """While the context is open, show how far reading a store is: on a terminal at once, in a log now and then."""
    to = to or errors
    if to.is_terminal:
        with to.status("reading") as status, _shown(_READER, lambda text: status.update(Text(text))):
            yield
        return
    last_line = clock()

    def show(text: str) -> None:
        nonlocal last_line
        if clock() - last_line >= SECONDS_BETWEEN_LINES:
            last_line = clock()
            to.print(Text(text), soft_wrap=True)

    with _shown(_READER, show):
        yield


@contextmanager
def _shown(logger: str, show: Callable[[str], None]) -> Iterator[None]:
    """Have ``show`` called with what a module logs."""
    log, handler = logging.getLogger(logger), logging.Handler(logging.INFO)
    handler.emit = lambda record: show(record.getMessage())  # type: ignore[method-assign]  # a class would say no more
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)


def print_resume_command(option: str | None = None, *, why: str = "interrupted") -> None:
    """Print the command that was typed, with the option that resumes what was interrupted."""
    arguments = sys.argv[1:]
    missing = [option] if option is not None and option not in arguments else []
    shown = [redact(argument) if "://" in argument else argument for argument in arguments]
    login = "" if shown == arguments else f" (with the login in place of {HIDDEN})"
    echo(f"{why}; resume with: {shlex.join(['resnet-bench', *shown, *missing])}{login}")


def new_table(*columns: str, right: Sequence[str] = (), title: str | None = None) -> Table:
    """Make an empty table.

    Args:
        *columns: Headers.
        right: Headers of the columns that hold numbers.
        title: A line above the table.
    """
    table = Table(title=Text(title) if title else None)
    for column in columns:
        table.add_column(Text(column), justify="right" if column in right else "left")
    return table


def print_table(table: Table, to: Console | None = None) -> None:
    """Print a table so that every word and every column can be read, however narrow the terminal is.

    Cells wrap between words only. Where even that needs more columns than there are, each row becomes lines of
    header and value.
    """
    to = to or console
    if table.title:
        # Rich wraps a title to the width of the table, and paths with it.
        to.print(_text(table.title, to), style="bold", soft_wrap=True)
        table.title = None
    if fit(table, to):
        to.print(table)
    else:
        _print_rows(table, to)


def fit(table: Table, to: Console) -> bool:
    """Give a table columns in which cells wrap between words only; False where the console is too narrow for that."""
    table.box, table.show_edge, table.pad_edge, table.padding = box.SIMPLE_HEAD, False, False, (0, 1, 0, 0)
    # Measured without a limit; a table that is limited hides what it needs.
    options = to.options.update(width=100_000)
    needs = [measure_renderables(to, options, [column.header, *column.cells]) for column in table.columns]
    between = Measurement.get(to, options, table).maximum - sum(need.maximum for need in needs)
    widths = _shares([(need.minimum, need.maximum) for need in needs], to.width - between)
    if widths is None:
        return False
    for column, width in zip(table.columns, widths, strict=True):
        column.width, column.no_wrap = width, False
    return True


def _shares(needs: Sequence[tuple[int, int]], room: int) -> list[int] | None:
    """Share columns of the screen among those of a table, the narrowest first; None where there are too few."""
    widths = [least for least, _ in needs]
    if sum(widths) > room:
        return None
    for _ in range(room - sum(widths)):
        hungry = [place for place, (_, most) in enumerate(needs) if widths[place] < most]
        if not hungry:
            break
        widths[min(hungry, key=lambda place: widths[place])] += 1
    return widths


def _print_rows(table: Table, to: Console) -> None:
    texts = [[_text(cell, to) for cell in (column.header, *column.cells)] for column in table.columns]
    label = max(text.cell_len for text, *_ in texts) + 2
    for row in range(table.row_count):
        to.print()
        for header, *cells in texts:
            to.print(Text.assemble(header.plain.ljust(label), cells[row]), soft_wrap=True)


def _text(cell: RenderableType, to: Console) -> Text:
    return cell if isinstance(cell, Text) else to.render_str(str(cell))
