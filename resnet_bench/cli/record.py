"""The verbs of ``resnet-bench record``. Each parses, calls and prints; the work is done in ``record``."""

import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from resnet_bench.base.errors import UserError
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
from resnet_bench.models.of_recipe import check_benchmark
from resnet_bench.recipe.files import load_benchmark

if TYPE_CHECKING:
    from resnet_bench.running.record import Attempt, Record

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
        bool, typer.Option("--resume", help="Go on with a check that was interrupted, at the seed it was at.")
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
    """Train a recipe once a seed and say whether its claim holds, and in how many seconds.

    The lower end of the one-sided 95% interval of the mean has to reach the claim; see docs/records.md.

    Example: resnet-bench record check speedrun-90 --baseline resnet9-onecycle-adam

    Next: resnet-bench report
    """
    from resnet_bench.data.dataset import load_dataset
    from resnet_bench.execution.execution import Execution
    from resnet_bench.measure.autotune import autotune
    from resnet_bench.running import record
    from resnet_bench.running.stopping import Stopped, stop_on_signals
    from resnet_bench.tracking.stale_runs import close_stale_runs
    from resnet_bench.tracking.store import Store

    benchmark = load_benchmark(name, benchmarks)
    check_benchmark(benchmark)
    record.claim_of(benchmark)
    compared = load_benchmark(baseline, benchmarks) if baseline is not None else None
    if compared is not None and compared.recipe.data.dataset != benchmark.recipe.data.dataset:
        raise UserError(
            f"--baseline {baseline} is trained on {compared.recipe.data.dataset}, {name} on another dataset"
        )
    if out is not None and not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    execution = Execution.resolve(device, precision_named(precision), threads=threads, level=level_named(level))
    dataset = load_dataset(benchmark.recipe.data.dataset, data, progress=say)
    count = seeds or record.MIN_SEEDS[execution.device_type]
    execution = autotune(benchmark.recipe, execution, precision=precision == "auto", threads=threads is None)
    planned = record.Check(benchmark, execution, range(count), runs, compared)
    progress = planned.new_progress()
    if resume:
        progress.read()
    elif progress.path.exists():
        say(f"a check that was interrupted is thrown away ({progress.path}); --resume would go on with it")
    store = Store.resolve(tracking, Path.cwd())
    store.prepare()
    close_stale_runs(store)
    say(f"{count} seeds of {name} on {execution.device_name} ({execution.describe()}), tracked in {store.shown}")
    try:
        with stop_on_signals() as stop:
            for found in record.measure(planned, dataset, store, stop=stop, progress=progress):
                if isinstance(found, record.Attempt):
                    say(_line(found))
                else:
                    outcome = found
    except Stopped:
        print_resume_command("--resume")
        raise typer.Exit(INTERRUPTED) from None
    _print(outcome)
    if out is not None:
        out.write_text(json.dumps(outcome.asdict(), indent=2) + "\n", encoding="utf-8")
        say(f"written to {out}")
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
    console.print(table)
    say(found.sentence)
    if found.seconds:
        low, high = min(found.seconds), max(found.seconds)
        say(
            f"clock: median {statistics.median(found.seconds):.1f} s [{low:.1f}, {high:.1f}]; "
            f"warm-up outside of it {found.warm_up_seconds:.1f} s; on {found.execution.device_name} "
            f"({found.execution.describe()})"
        )
    if found.ratio is not None:
        seconds = statistics.median(found.baseline_seconds)
        say(
            f"baseline {found.baseline}: {seconds:.0f} s for its whole training, timed over some steps before, "
            f"between and after the seeds; {found.ratio:.1f} times as long"
        )
