"""The verbs of ``resnet-bench record``. Each parses, calls and prints."""

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from resnet_bench.base.errors import UserError
from resnet_bench.base.text import percent
from resnet_bench.cli.perf import LevelOption, ThreadsOption, level_named
from resnet_bench.cli.screen import (
    DEFAULT_DATA,
    DEFAULT_RUNS,
    FAILED,
    INTERRUPTED,
    BenchmarkName,
    BenchmarksFolder,
    DataFolder,
    Device,
    Precision,
    RunsFolder,
    TrackingURI,
    console,
    precision_named,
    print_resume_command,
    say,
)
from resnet_bench.recipe.files import load_benchmark

if TYPE_CHECKING:
    from resnet_bench.recipe.claims import Claim
    from resnet_bench.running.outcome import Outcome
    from resnet_bench.running.record_check import Record

record_app = typer.Typer(help="Check a speed record by its protocol.", no_args_is_help=True)


@record_app.command()
def check(
    name: BenchmarkName,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="Seeds 0 to N-1; else as many as the protocol asks for.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option("--baseline", metavar="NAME", help="A benchmark to time in between, for the ratio.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume an interrupted check at the seed it was at.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Also write everything as JSON.")] = None,
    device: Device = "auto",
    level: LevelOption = "auto",
    precision: Precision = "auto",
    threads: ThreadsOption = None,
    data: DataFolder = DEFAULT_DATA,
    tracking: TrackingURI = None,
    runs: RunsFolder = DEFAULT_RUNS,
    benchmarks: BenchmarksFolder = None,
) -> None:
    """Train a recipe once per seed; report whether its claim holds, and in how many seconds.

    The lower end of the one-sided 95% interval of the mean has to reach the claim; see docs/records.md.

    Example: resnet-bench record check speedrun-90 --baseline resnet9-onecycle-adam

    Next: resnet-bench report
    """
    from resnet_bench.data.dataset import ImageLocation
    from resnet_bench.execution.options import ExecutionOptions
    from resnet_bench.judging.record import MIN_SEEDS, claim_of
    from resnet_bench.models.of_recipe import check_benchmark
    from resnet_bench.running.context import Context
    from resnet_bench.running.prepare import resolve
    from resnet_bench.running.record_check import Record, RecordCheck
    from resnet_bench.running.stopping import Stopped, stop_on_signals
    from resnet_bench.tracking.stale_runs import close_stale_runs
    from resnet_bench.tracking.store import Store

    benchmark = load_benchmark(name, benchmarks)
    check_benchmark(benchmark)
    claim = claim_of(benchmark)
    compared = load_benchmark(baseline, benchmarks) if baseline is not None else None
    if compared is not None and compared.recipe.data.dataset != benchmark.recipe.data.dataset:
        raise UserError(
            f"--baseline {baseline} is trained on {compared.recipe.data.dataset}, {name} on another dataset"
        )
    if out is not None and not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    context = Context(
        store=Store.resolve(tracking, Path.cwd()),
        run_dir=runs,
        images=ImageLocation(data),
        options=ExecutionOptions(
            device=device, mode=level_named(level), precision=precision_named(precision), threads=threads
        ),
    )
    context.open_images(benchmark.recipe.data.dataset, say)
    execution = resolve(benchmark.recipe, context.options)
    count = seeds or MIN_SEEDS[execution.device_type]
    planned = RecordCheck(benchmark, range(count), compared)
    progress = planned.new_progress(execution, runs)
    if resume:
        progress.read()
        if progress.under_way is not None:
            say(f"seed {progress.under_way} was under way when the check ended; it is trained from scratch")
    elif progress.path.exists():
        say(f"an interrupted check is thrown away ({progress.path}); --resume would continue it")
    context.store.prepare()
    close_stale_runs(context.store)
    where = f"{execution.device_name} ({execution.describe()})"
    say(f"{count} seeds of {name} on {where}, tracked in {context.store.shown}")
    try:
        with stop_on_signals(announce="stopping; the seeds that are done are kept") as stop:
            for found in planned.measure(replace(context, stop=stop), progress):
                if isinstance(found, Record):
                    record = found
                else:
                    say(_line(*found, claim))
    except Stopped:
        print_resume_command("--resume" if progress.path.exists() else None)
        raise typer.Exit(INTERRUPTED) from None
    _print(record)
    if out is not None:
        out.write_text(json.dumps(record.asdict(), indent=2) + "\n", encoding="utf-8")
        say(f"written to {out}")
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
    table = Table(title=found.benchmark.name, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("seed", "accuracy", "standard", "set-up s", "training s", "TTA s", "clock s"):
        table.add_column(name, justify="right")
    seconds = ("setup_seconds", "train_seconds", "tta_seconds", "seconds")
    for attempt in found.asdict()["attempts"]:
        table.add_row(
            str(attempt["seed"]),
            "failed" if attempt["accuracy"] is None else f"{attempt['accuracy']:.2f}",
            "–" if attempt["standard"] is None else f"{attempt['standard']:.2f}",
            *(f"{attempt[name]:.1f}" for name in seconds),
        )
    console.print(table)
    say(found.verdict.sentence)
    if found.seconds:
        low, high = min(found.seconds), max(found.seconds)
        say(
            f"clock: median {statistics.median(found.seconds):.1f} s [{low:.1f}, {high:.1f}]; "
            f"warm-up outside of it {found.warm_up_seconds:.1f} s; on {found.execution.device_name} "
            f"({found.execution.describe()})"
        )
    if found.speedup is not None:
        say(
            f"baseline {found.baseline}: {statistics.median(found.baseline_seconds):.0f} s for its whole training, "
            f"timed over some steps before, between and after the seeds; speedup {found.speedup:.1f}×"
        )
