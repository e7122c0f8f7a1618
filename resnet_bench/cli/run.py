"""The verb ``run``: train benchmarks, watch them, and track them in MLflow."""

import sys
from pathlib import Path
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
    seed: Annotated[
        list[int] | None, typer.Option("--seed", min=0, max=2**63 - 1, help="A seed; may be given again.")
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Run seeds 0 to N-1.")] = None,
    seeds_per_device: Annotated[
        int,
        typer.Option("--seeds-per-device", metavar="N", min=1, help="Train N seeds per device in parallel processes."),
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
    resume: Annotated[bool, typer.Option("--resume", help="Resume interrupted runs.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Train finished runs from scratch.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before a long run.")] = False,
) -> None:
    """Train benchmarks, watch them, and track them in MLflow.

    Example: resnet-bench run resnet9-onecycle-adam --seeds 3 --profile full

    Next: resnet-bench report, or resnet-bench ui
    """
    from resnet_bench.cli.live_runs import lasting
    from resnet_bench.cli.run_all import run_all
    from resnet_bench.data.dataset import ImageLocation
    from resnet_bench.execution.options import ExecutionOptions
    from resnet_bench.running.context import Context
    from resnet_bench.running.plan import RunOptions
    from resnet_bench.tracking.store import Store

    options = RunOptions(
        names=names,
        seeds=_seeds(seed, seeds),
        profile=profile_named(profile),
        changes=parse_assignments(assignments or []),
        resume=resume,
        force=again,
        seeds_per_device=seeds_per_device,
        benchmark_dir=benchmarks,
    )
    executed = ExecutionOptions(
        device=device,
        mode=level_named(execution),
        precision=precision_named(precision),
        threads=threads,
        compile=compile,
        deterministic=deterministic,
    )
    context = Context(
        store=Store.resolve(tracking, Path.cwd()),
        run_dir=runs,
        images=ImageLocation(data, allow_generated=options.profile != "full", download=download),
        options=executed,
    )
    # A service or a batch job may have closed standard input.
    can_ask = sys.stdin is not None and sys.stdin.isatty() and console.is_terminal
    with lasting(console):
        summary = run_all(options, context, console, ask=can_ask and not yes)
        if summary.interrupted:
            print_resume_command("--resume" if summary.is_resumable else None)
    if summary.interrupted:
        raise typer.Exit(INTERRUPTED)
    if summary.failures or summary.abandoned:
        raise typer.Exit(FAILED)


def _seeds(seed: list[int] | None, seeds: int | None) -> list[int]:
    if seed and seeds:
        raise UserError("--seed and --seeds: give one of them")
    if seed and len(set(seed)) != len(seed):
        raise UserError(f"--seed: a seed is given twice in {seed}")
    return seed or list(range(seeds or 1))


def parse_assignments(texts: list[str]) -> dict[str, Any]:
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
