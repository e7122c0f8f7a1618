"""The verbs of ``resnet-bench record``. Each parses, calls and prints."""

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resnet_bench.base.errors import UserError
from resnet_bench.base.text import duration, percent
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
from resnet_bench.cli.screen import (
    FAILED,
    INTERRUPTED,
    console,
    echo,
    measuring_aloud,
    new_table,
    print_resume_command,
    print_table,
)
from resnet_bench.execution import choices
from resnet_bench.recipe.files import load_benchmark
from resnet_bench.tracking.store import Store

if TYPE_CHECKING:
    from resnet_bench.recipe.claims import Claim
    from resnet_bench.running.outcome import Outcome
    from resnet_bench.running.record_check import Record

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
    execution_mode: ExecutionMode = choices.ExecutionMode.AUTO,
    precision: Precision = choices.PrecisionChoice.AUTO,
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
    from resnet_bench.cli.live_runs import RunsDisplay, lasting
    from resnet_bench.data.dataset import ImageLocation
    from resnet_bench.execution.options import ExecutionOptions
    from resnet_bench.judging.record import MIN_SEEDS, claim_of
    from resnet_bench.models.of_recipe import check_benchmark
    from resnet_bench.running.context import Context
    from resnet_bench.running.prepare import resolve
    from resnet_bench.running.record_check import Record, RecordCheck
    from resnet_bench.running.stopping import Stopped, stop_on_signals
    from resnet_bench.tracking.stale_runs import close_stale_runs

    check_benchmark(benchmark)
    claim = claim_of(benchmark)
    options = ExecutionOptions(device=device, mode=execution_mode, precision=precision, threads=threads)
    context = Context(store, run_dir, ImageLocation(folder), options)
    context.open_images(benchmark.recipe.data.dataset, echo)
    with measuring_aloud():
        execution = resolve(benchmark.recipe, options)
    count = seeds or MIN_SEEDS[execution.device_type]
    planned = RecordCheck(benchmark, range(count), compared)
    progress = planned.new_progress(execution, run_dir)
    if resume:
        progress.read()
        if progress.under_way is not None:
            echo(f"seed {progress.under_way} was under way when the check ended; it is trained from scratch")
    elif progress.path.exists():
        echo(f"an interrupted check is thrown away ({progress.path}); --resume would continue it")
    store.prepare()
    close_stale_runs(store)
    echo(f"{count} seeds of {name} on {execution.device_name} ({execution.describe()}), tracked in {store.shown}")
    try:
        with (
            lasting(console),
            RunsDisplay(console, planned.tasks_left(progress)).shown() as display,
            stop_on_signals(announce="stopping; the seeds that are done are kept") as stop,
        ):
            for found in planned.measure(replace(context, stop=stop), progress, display.watch):
                if isinstance(found, Record):
                    record = found
                else:
                    echo(_line(*found, claim))
    except Stopped:
        print_resume_command("--resume" if progress.path.exists() else None)
        raise typer.Exit(INTERRUPTED) from None
    _print(record)
    if output is not None:
        output.write_text(json.dumps(record.asdict(), indent=2) + "\n", encoding="utf-8")
        echo(f"wrote {output}")
    if not record.verdict.holds:
        raise typer.Exit(FAILED)


def _line(seed: int, outcome: "Outcome", claim: "Claim") -> str:
    from resnet_bench.running.record_check import clock_seconds, record_accuracy

    accuracy = record_accuracy(outcome, claim)
    if accuracy is None:
        return f"seed {seed}: failed: {outcome.failure}"
    return (
        f"seed {seed}: {accuracy:.2f}% in {clock_seconds(outcome, claim):.1f} s "
        f"(standard {percent(outcome.accuracy_standard)})"
    )


def _print(found: "Record") -> None:
    columns = ("seed", "accuracy", "standard", "set-up s", "training s", "TTA s", "clock s")
    table = new_table(*columns, right=columns, title=found.benchmark.name)
    seconds = ("setup_seconds", "train_seconds", "tta_seconds", "seconds")
    for attempt in found.asdict()["attempts"]:
        table.add_row(
            str(attempt["seed"]),
            "failed" if attempt["accuracy"] is None else f"{attempt['accuracy']:.2f}",
            "–" if attempt["standard"] is None else f"{attempt['standard']:.2f}",
            *(f"{attempt[name]:.1f}" for name in seconds),
        )
    print_table(table)
    echo(found.verdict.sentence)
    if found.seconds:
        low, high = min(found.seconds), max(found.seconds)
        echo(
            f"clock: median {statistics.median(found.seconds):.1f} s [{low:.1f}, {high:.1f}]; "
            f"warm-up outside of it {duration(found.warm_up_seconds)}; on {found.execution.device_name} "
            f"({found.execution.describe()})"
        )
    if found.speedup is not None:
        echo(
            f"baseline {found.baseline}: {duration(statistics.median(found.baseline_seconds))} for its whole training, "
            f"timed over some steps before, between and after the seeds; speedup {found.speedup:.1f}×"
        )
