"""The verb ``resnet-bench run``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from resnet_bench.base.errors import UserError
from resnet_bench.cli.options import (
    DEFAULT_RUNS,
    BenchmarkDir,
    DataFolder,
    Deterministic,
    Device,
    Download,
    ExecutionMode,
    Precision,
    Profile,
    RunDir,
    Threads,
    TrackingURI,
    Yes,
    complete_benchmark,
    complete_setting,
    data_folder,
    help_text,
    new_app,
)
from resnet_bench.cli.screen import FAILED, INTERRUPTED, console, print_resume_command
from resnet_bench.recipe.changes import override, parse_assignments
from resnet_bench.recipe.files import load_benchmark
from resnet_bench.tracking.store import Store

app = new_app()


@app.command(
    help=help_text(
        "Train benchmarks and track them in MLflow.",
        example="run resnet9-onecycle-adam --seeds 3 --profile full",
        following="report",
    )
)
def run(
    names: Annotated[list[str], typer.Argument(help="Names of benchmarks.", autocompletion=complete_benchmark)],
    seed: Annotated[
        list[int] | None, typer.Option("--seed", metavar="N", min=0, help="Run this seed; may be repeated.")
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", metavar="N", min=1, help="Run seeds 0 to N-1.")] = None,
    seeds_per_device: Annotated[
        int,
        typer.Option("--seeds-per-device", metavar="N", min=1, help="Train N seeds in parallel, each in a process."),
    ] = 1,
    profile: Profile = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a recipe key; may be repeated.", autocompletion=complete_setting
        ),
    ] = None,
    device: Device = "auto",
    execution: ExecutionMode = "auto",
    precision: Precision = "auto",
    threads: Threads = None,
    deterministic: Deterministic = False,
    compile: Annotated[bool, typer.Option("--compile", help="Train with torch.compile.")] = False,  # noqa: A002
    data: DataFolder = None,
    download: Download = True,
    tracking: TrackingURI = None,
    run_dir: RunDir = DEFAULT_RUNS,
    benchmark_dir: BenchmarkDir = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume interrupted runs.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Train finished runs again, from scratch.")] = False,
    yes: Yes = False,
) -> None:
    # What does not exist is refused at once; torch takes seconds to import.
    changes = parse_assignments(assignments or [])
    for name in names:
        override(load_benchmark(name, benchmark_dir).recipe, changes, where="--set")
    folder = data_folder(data)
    wanted = _seeds(seed, seeds)
    Store.resolve(tracking, Path.cwd())

    from resnet_bench.cli import suite

    outcome = suite.run_suite(
        suite.SuiteRequest(
            names=names,
            seeds=wanted,
            profile=profile,
            assignments=changes,
            device=device,
            precision=precision,
            deterministic=deterministic,
            compile=compile,
            data=folder,
            download=download,
            tracking=tracking,
            runs=run_dir,
            benchmarks=benchmark_dir,
            resume=resume,
            again=force,
            ask=not yes and sys.stdin.isatty() and console.is_terminal,
            level=execution,
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
