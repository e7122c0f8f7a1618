"""The verb ``run``: train benchmarks, watch them, and track them in MLflow."""

import sys
from typing import Annotated, Any

import typer

from resnet_bench.base.errors import UserError
from resnet_bench.cli.perf import LevelOption, ThreadsOption, level_named
from resnet_bench.cli.screen import (
    DEFAULT_DATA,
    DEFAULT_RUNS,
    FAILED,
    INTERRUPTED,
    BenchmarksFolder,
    DataFolder,
    Device,
    Precision,
    RunsFolder,
    TrackingURI,
    complete_benchmark,
    console,
    precision_named,
    print_resume_command,
    profile_named,
)


def run(
    names: Annotated[list[str], typer.Argument(help="Benchmarks to run.", autocompletion=complete_benchmark)],
    seed: Annotated[list[int] | None, typer.Option("--seed", min=0, help="A seed; may be given again.")] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Run seeds 0 to N-1.")] = None,
    seeds_per_device: Annotated[
        int, typer.Option("--seeds-per-device", metavar="N", min=1, help="Train N seeds at once, each in a process.")
    ] = 1,
    profile: Annotated[
        str | None, typer.Option("--profile", help="full or smoke; else what this machine can do.")
    ] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a recipe key; may be given again.")
    ] = None,
    device: Device = "auto",
    execution: LevelOption = "auto",
    precision: Precision = "auto",
    threads: ThreadsOption = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same seed gives the same bits on the same machine.")
    ] = False,
    compile: Annotated[bool, typer.Option("--compile", help="Run the network through torch.compile.")] = False,  # noqa: A002
    data: DataFolder = DEFAULT_DATA,
    download: Annotated[
        bool, typer.Option("--download/--offline", help="Whether CIFAR may be downloaded where it is missing.")
    ] = True,
    tracking: TrackingURI = None,
    runs: RunsFolder = DEFAULT_RUNS,
    benchmarks: BenchmarksFolder = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what was interrupted.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Train anew what is finished already.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before a long run.")] = False,
) -> None:
    """Train benchmarks, watch them, and track them in MLflow.

    Example: resnet-bench run resnet9-onecycle-adam --seeds 3 --profile full

    Next: resnet-bench report, or resnet-bench ui
    """
    from resnet_bench.cli import suite

    outcome = suite.run_suite(
        suite.SuiteRequest(
            names=names,
            seeds=_seeds(seed, seeds),
            profile=profile_named(profile),
            assignments=_assignments(assignments or []),
            device=device,
            precision=precision_named(precision),
            deterministic=deterministic,
            compile=compile,
            data=data,
            download=download,
            tracking=tracking,
            runs=runs,
            benchmarks=benchmarks,
            resume=resume,
            again=again,
            ask=not yes and sys.stdin.isatty() and console.is_terminal,
            level=level_named(execution),
            threads=threads,
            seeds_per_device=seeds_per_device,
        ),
        console,
    )
    if outcome.interrupted:
        print_resume_command("--resume")
        raise typer.Exit(INTERRUPTED)
    if outcome.failures or outcome.abandoned:
        raise typer.Exit(FAILED)


def _seeds(seed: list[int] | None, seeds: int | None) -> list[int]:
    if seed and seeds:
        raise UserError("--seed and --seeds: give one of them")
    if seed and len(set(seed)) != len(seed):
        raise UserError(f"--seed: a seed is given twice in {seed}")
    return seed or list(range(seeds or 1))


def _assignments(texts: list[str]) -> dict[str, Any]:
    """``KEY=VALUE`` texts as a table; a value is read as TOML where it is TOML, else as a string."""
    import tomllib

    assignments: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {text}: write a key and a value, such as --set optimizer.lr=0.02")
        try:
            assignments[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except (tomllib.TOMLDecodeError, RecursionError):
            assignments[key.strip()] = value.strip()
    return assignments
