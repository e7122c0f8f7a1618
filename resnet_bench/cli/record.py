"""The verbs of ``resnet-bench record``. Each parses, calls and prints; the work is done in ``record``."""

import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from resnet_bench.base.errors import UserError
from resnet_bench.cli.options import (
    DEFAULT_RUNS,
    BenchmarkDir,
    BenchmarkName,
    DataFolder,
    Device,
    ExecutionMode,
    Precision,
    RunDir,
    Threads,
    TrackingURI,
    complete_benchmark,
    data_folder,
    help_text,
    new_app,
)
from resnet_bench.cli.screen import FAILED, INTERRUPTED, echo, print_resume_command, print_table
from resnet_bench.recipe.files import load_benchmark
from resnet_bench.tracking.store import Store

if TYPE_CHECKING:
    from resnet_bench.running.record import Attempt, Record

app = new_app("Check a speed record.")


@app.callback()
def _group() -> None:
    """Make Typer keep the one verb below the group's name."""


@app.command(
    help=help_text(
        "Train a recipe once per seed, and report whether its claim holds, and in how many seconds.\n\nThe lower "
        "bound of the one-sided 95% CI of the mean has to reach the claim; see docs/records.md.",
        example="record check speedrun-90",
        following="report",
    )
)
def check(
    name: BenchmarkName,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", metavar="N", min=1, help="Check seeds 0 to N-1; the protocol's number by default."),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            metavar="NAME",
            help="Time this benchmark in between, for the speedup.",
            autocompletion=complete_benchmark,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an interrupted check.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Also write everything as JSON.")
    ] = None,
    device: Device = "auto",
    execution_mode: ExecutionMode = "auto",
    precision: Precision = "auto",
    threads: Threads = None,
    data: DataFolder = None,
    tracking: TrackingURI = None,
    run_dir: RunDir = DEFAULT_RUNS,
    benchmark_dir: BenchmarkDir = None,
) -> None:
    benchmark = load_benchmark(name, benchmark_dir)
    compared = load_benchmark(baseline, benchmark_dir) if baseline is not None else None
    if compared is not None and compared.recipe.data.dataset != benchmark.recipe.data.dataset:
        raise UserError(
            f"--baseline {baseline} is trained on {compared.recipe.data.dataset}, {name} on another dataset"
        )
    if output is not None and not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}")
    folder = data_folder(data)
    store = Store.resolve(tracking, Path.cwd())

    # Torch is imported when the verb is called, so that help, completion and mistakes are quick.
    from resnet_bench.data.dataset import load_dataset
    from resnet_bench.execution.execution import Execution
    from resnet_bench.measure.autotune import autotune
    from resnet_bench.models.of_recipe import check_benchmark
    from resnet_bench.running import record
    from resnet_bench.running.stopping import Stopped, stop_on_signals
    from resnet_bench.tracking.stale_runs import close_stale_runs

    check_benchmark(benchmark)
    record.claim_of(benchmark)
    execution = Execution.resolve(device, precision, threads=threads, level=execution_mode)
    dataset = load_dataset(benchmark.recipe.data.dataset, folder, progress=echo)
    count = seeds or record.MIN_SEEDS[execution.device_type]
    execution = autotune(benchmark.recipe, execution, precision=precision == "auto", threads=threads is None)
    planned = record.Check(benchmark, execution, range(count), run_dir, compared)
    progress = planned.new_progress()
    if resume:
        progress.read()
    elif progress.path.exists():
        echo(f"a check that was interrupted is thrown away ({progress.path}); --resume would go on with it")
    store.prepare()
    close_stale_runs(store)
    echo(f"{count} seeds of {name} on {execution.device_name} ({execution.describe()}), tracked in {store.shown}")
    try:
        with stop_on_signals() as stop:
            for found in record.measure(planned, dataset, store, stop=stop, progress=progress):
                if isinstance(found, record.Attempt):
                    echo(_line(found))
                else:
                    outcome = found
    except Stopped:
        print_resume_command("--resume")
        raise typer.Exit(INTERRUPTED) from None
    _print(outcome)
    if output is not None:
        output.write_text(json.dumps(outcome.asdict(), indent=2) + "\n", encoding="utf-8")
        echo(f"wrote {output}")
    if not outcome.holds:
        raise typer.Exit(FAILED)


def _line(attempt: "Attempt") -> str:
    if attempt.failure is not None:
        return f"seed {attempt.seed}: failed: {attempt.failure}"
    return f"seed {attempt.seed}: {attempt.accuracy:.2f}% in {attempt.seconds:.1f} s (plain {attempt.plain:.2f}%)"


def _print(found: "Record") -> None:
    table = Table(title=found.benchmark.name, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("seed", "accuracy", "plain", "set-up s", "training s", "augmented test s", "clock s"):
        table.add_column(name, justify="right")
    for attempt in found.attempts:
        table.add_row(
            str(attempt.seed),
            "failed" if attempt.accuracy is None else f"{attempt.accuracy:.2f}",
            "–" if attempt.plain is None else f"{attempt.plain:.2f}",
            *(
                f"{seconds:.1f}"
                for seconds in (
                    attempt.setup_seconds,
                    attempt.train_seconds,
                    attempt.augmented_seconds,
                    attempt.seconds,
                )
            ),
        )
    print_table(table)
    echo(found.sentence)
    if found.seconds:
        low, high = min(found.seconds), max(found.seconds)
        echo(
            f"clock: median {statistics.median(found.seconds):.1f} s [{low:.1f}, {high:.1f}]; "
            f"warm-up outside of it {found.warm_up_seconds:.1f} s; on {found.execution.device_name} "
            f"({found.execution.describe()})"
        )
    if found.ratio is not None:
        seconds = statistics.median(found.baseline_seconds)
        echo(
            f"baseline {found.baseline}: {seconds:.0f} s for its whole training, timed over some steps before, "
            f"between and after the seeds; {found.ratio:.1f} times as long"
        )
