"""What is printed where: tables that fit, terminals that cannot show everything, output that cannot be written."""

import contextlib
import io
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from resnet_bench.base.errors import UserError
from resnet_bench.cli import screen
from tests.conftest import Result

WIDTHS = (80, 100, 120)


def run_command(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "resnet_bench", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        encoding=environment.get("PYTHONIOENCODING", "utf-8"),
    )


# --- what takes long --------------------------------------------------------------------------------


def test_a_log_is_told_now_and_then_how_far_reading_is() -> None:
    output, now = io.StringIO(), [0.0]
    log = logging.getLogger("resnet_bench.reporting.mlflow_reader")
    with screen.reading_aloud(Console(file=output, width=80), clock=lambda: now[0]):
        log.info("reading %s: 1 of 3 metrics", "[a]")
        now[0] = 11.0
        log.info("reading %s: 2 of 3 metrics", "[a]")
        log.info("reading %s: 3 of 3 metrics", "[a]")
    log.info("somebody else's")
    assert output.getvalue() == "reading [a]: 2 of 3 metrics\n"


def test_a_terminal_shows_at_once_how_far_reading_is() -> None:
    output = io.StringIO()
    with screen.reading_aloud(Console(file=output, width=80, force_terminal=True)):
        logging.getLogger("resnet_bench.reporting.mlflow_reader").info("reading [a]: 1 of 3 metrics")
    assert "reading [a]: 1 of 3 metrics" in output.getvalue()


def test_autotuning_prints_its_timings() -> None:
    output = io.StringIO()
    with screen.measuring_aloud(Console(file=output, width=80)):
        logging.getLogger("resnet_bench.measure.autotune").info("  cpu, bf16, 2 threads: 90 ms/step")
        assert output.getvalue() == "  cpu, bf16, 2 threads: 90 ms/step\n"


@pytest.mark.parametrize(
    ("hours", "answer", "starts"),
    [(0.1, "", True), (1, "", True), (1, "n", False), (9, "", False), (9, "y", True)],
)
def test_what_takes_a_night_starts_on_a_yes_only(hours: float, answer: str, starts: bool) -> None:
    with contextlib.nullcontext() if starts else pytest.raises(UserError, match="nothing was started"):
        screen.ask_to_continue(3600 * hours, Console(file=io.StringIO()), answers=io.StringIO(f"{answer}\n"))


# --- tables ---------------------------------------------------------------------------------------


def printed(columns: list[str], rows: list[list[str | Text]], width: int, title: str | None = None) -> list[str]:
    table = screen.new_table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    output = io.StringIO()
    screen.print_table(table, Console(file=output, width=width))
    return [line.rstrip() for line in output.getvalue().splitlines()]


def test_table_takes_no_more_columns_than_it_needs() -> None:
    lines = printed(["name", "epochs"], [["resnet9", "8"]], 80)
    assert lines == ["name     epochs", "───────────────", "resnet9  8"]


@pytest.mark.parametrize("width", WIDTHS)
def test_table_wraps_between_words_only(width: int) -> None:
    name, text = "resnet18-step-decay-no-augmentation", " ".join(f"word{number}" for number in range(40))
    lines = printed(["name", "notes", "epochs"], [[name, text, "270"]], width)
    assert max(map(len, lines)) <= width
    words = set(" ".join(lines).split())
    assert {name, "270", *text.split()} <= words


@pytest.mark.parametrize("width", WIDTHS)
def test_table_that_is_too_wide_becomes_lines_of_header_and_value(width: int) -> None:
    path = "/a/very/long/path/" + "x" * 120
    lines = printed(["dataset", "source"], [["cifar10", path], ["cifar100", "none"]], width, title="Data")
    assert lines == [
        "Data",
        "",
        "dataset  cifar10",
        f"source   {path}",
        "",
        "dataset  cifar100",
        "source   none",
    ]


def test_table_gives_the_room_to_the_columns_that_need_it() -> None:
    lines = printed(["key", "value"], [["optimizer.lr", "one two three four five six seven"]], 34)
    assert lines[2:] == ["optimizer.lr  one two three four", "              five six seven"]


@pytest.mark.parametrize("command", ["list", "show resnet18-step-decay", "study list", "data status"])
def test_tables_break_no_word_at_any_width(command: str, invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen.console, "width", 1000)
    wide = invoke(command).out
    for width in WIDTHS:
        screen.console.width = width
        assert not words_in(wide) - words_in(invoke(command).out)


def words_in(text: str) -> set[str]:
    return {word for word in text.split() if not re.fullmatch("─+", word)}


# --- widths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("columns", "expected"), [("0", 150), ("", 150), ("wide", 150), ("-5", 150), ("97", 97)])
def test_width_of_a_log_is_that_of_columns_where_it_is_a_number(columns: str, expected: int) -> None:
    code = "from resnet_bench.cli.screen import console; print(console.width)"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "COLUMNS": columns},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert int(found.stdout) == expected


def test_zero_columns_on_a_terminal_are_as_many_as_it_has() -> None:
    pty = pytest.importorskip("pty")
    code = "from resnet_bench.cli.screen import console; print(console.width)"
    parent, child = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "COLUMNS": "0"}, stdout=child)
    os.close(child)
    found = os.read(parent, 100)
    assert process.wait() == 0
    assert int(found) > 0
    os.close(parent)


# --- text -----------------------------------------------------------------------------------------


def test_brackets_and_colons_in_paths_and_problems_are_printed(
    invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "[bold]mine[red] :bug: [x]"
    folder.mkdir()
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks" / "broken.toml").write_text("[recipe")
    monkeypatch.chdir(folder)
    assert "[bold]mine[red] :bug: [x]/benchmarks/broken.toml" in invoke("list").err
    for command in ("data status", "doctor"):
        assert "[bold]mine[red] :bug: [x]" in invoke(command).out
    copied = invoke("copy resnet9-onecycle-adam 'a [b] c/mine.toml'")
    assert copied.out == "wrote a [b] c/mine.toml; edit it, then: resnet-bench validate 'a [b] c/mine.toml'\n"
    valid = invoke("validate 'a [b] c/mine.toml'")
    assert valid.out.startswith("a [b] c/mine.toml: valid, recipe ")


# --- output that cannot be written ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "encoding"),
    [
        ("list", "latin-1"),
        ("list", "ascii"),
        ("show resnet9-onecycle-adam", "ascii"),
        ("show speedrun-90", "cp1252"),
        ("--help", "ascii"),
        ("nosuch", "ascii"),
    ],
)
def test_terminal_of_another_encoding_shows_what_it_can(command: str, encoding: str, tmp_path: Path) -> None:
    result = run_command(*command.split(), folder=tmp_path, PYTHONIOENCODING=encoding)
    assert "Traceback" not in result.stderr
    assert result.returncode == (2 if command == "nosuch" else 0)
    if command == "list":
        assert ">= 90%" in result.stdout
        assert re.search("62.63%", result.stdout)


@pytest.mark.parametrize("command", ["list", "--help", "run --help"])
def test_output_that_nobody_reads_any_more_ends_without_a_word(command: str, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(
        [sys.executable, "-m", "resnet_bench", *command.split()],
        cwd=tmp_path,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    assert process.stderr == ""
    assert process.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", ["list", "--help"])
def test_full_disk_is_one_sentence(command: str, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(
            [sys.executable, "-m", "resnet_bench", command],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert process.stderr == "error: the output cannot be written: No space left on device\n"
    assert process.returncode == 1


FILE_OPENED_BY_A_COMMAND = """
import os
from pathlib import Path

from resnet_bench.cli import app

def command(**_):
    with open("a file", "w") as file:
        Path("numbers").write_text(f"{file.fileno()} {[os.get_inheritable(number) for number in range(3)]}")
    return 0

app.app = command
app.main()
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_takes_the_place_of_a_closed_stream(closed: str, tmp_path: Path) -> None:
    (tmp_path / "look.py").write_text(FILE_OPENED_BY_A_COMMAND)
    process = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" look.py {closed}'], cwd=tmp_path, capture_output=True, text=True
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
    number, _, inheritable = (tmp_path / "numbers").read_text().partition(" ")
    assert int(number) > 2
    assert inheritable == "[True, True, True]"


@pytest.mark.parametrize("arguments", ["list", "list --json", "schema benchmark"])
def test_closed_output_is_no_error(arguments: str, tmp_path: Path) -> None:
    process = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -m resnet_bench {arguments} >&-'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (process.returncode, process.stderr) == (0, "")


def test_a_folder_that_is_gone_is_one_sentence(
    invoke: Callable[[str], Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    found = invoke("list")
    monkeypatch.chdir(tmp_path)
    assert (found.code, found.out) == (2, "")
    assert found.err == "error: this folder is gone (No such file or directory); change to one that exists: cd ~\n"


def test_the_command_that_resumes_is_printed_without_a_login(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["resnet-bench", "run", "a b", "--tracking", "postgresql://ann:topsecret@db/x"])
    screen.print_resume_command("--resume")
    assert capsys.readouterr().out == (
        "interrupted; resume with: resnet-bench run 'a b' --tracking 'postgresql://ann:***@db/x' --resume "
        "(with the login in place of ***)\n"
    )
