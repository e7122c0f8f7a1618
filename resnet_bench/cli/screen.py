"""What the modules of verbs share: consoles, exit codes, and options that several verbs have."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from resnet_bench.base.errors import UserError
from resnet_bench.recipe.benchmark import PROFILES, ProfileName
from resnet_bench.recipe.files import scan_benchmarks

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130

# A log has no width of its own; 80 columns would fold every table.
console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 150)
errors = Console(stderr=True)


def complete_benchmark(incomplete: str) -> list[str]:
    """Names of benchmarks that begin like this, for the shell."""
    return [name for name in scan_benchmarks(None)[0] if name.startswith(incomplete)]


BenchmarkName = Annotated[str, typer.Argument(help="A benchmark's name.", autocompletion=complete_benchmark)]
BenchmarksFolder = Annotated[
    Path | None,
    typer.Option("--benchmarks", metavar="DIR", help="A folder of benchmark files; it comes before the shipped ones."),
]
DataFolder = Annotated[
    Path, typer.Option("--data", metavar="DIR", envvar="RESNET_BENCH_DATA", help="The folder that holds CIFAR.")
]
TrackingURI = Annotated[
    str | None,
    typer.Option("--tracking", metavar="URI", help="MLflow's store; else MLFLOW_TRACKING_URI, else mlflow.db here."),
]
RunsFolder = Annotated[
    Path, typer.Option("--runs", metavar="DIR", help="Where each run's journal and checkpoints are kept.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")]
Precision = Annotated[str, typer.Option("--precision", help="auto, fp32, tf32 or bf16.")]
DEFAULT_DATA = Path("data")
DEFAULT_RUNS = Path("runs")


def say(text: str) -> None:
    """Print text as it is, whatever brackets are in it."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def print_resume_command(option: str | None = None) -> None:
    """Print the command that was typed, with an option that going on takes, for whoever interrupted it."""
    arguments = sys.argv[1:]
    missing = [option] if option is not None and option not in arguments else []
    say(f"interrupted; go on with: {shlex.join(['resnet-bench', *arguments, *missing])}")


def profile_named(profile: str | None) -> ProfileName | None:
    """The profile of an option.

    Raises:
        UserError: There is no such profile.
    """
    if profile is None or profile in PROFILES:
        return profile
    raise UserError(f"--profile {profile}: there is no such profile; write full or smoke")


def precision_named(precision: str) -> Literal["auto", "fp32", "tf32", "bf16"]:
    """The precision of an option.

    Raises:
        UserError: There is no such precision.
    """
    choices: tuple[Literal["auto", "fp32", "tf32", "bf16"], ...] = ("auto", "fp32", "tf32", "bf16")
    for choice in choices:
        if precision == choice:
            return choice
    raise UserError(f"--precision {precision}: there is no such precision; write auto, fp32, tf32 or bf16")
