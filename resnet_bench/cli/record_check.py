"""The verb ``resnet-bench record check``."""

import statistics
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resnet_bench.base.errors import UserError
from resnet_bench.base.text import duration
from resnet_bench.cli.options import (
    DEFAULT_RUNS,
    BenchmarkDir,
    BenchmarkName,
    DataFolder,
    Device,
    ExecutionMode,
    Json,
    Precision,
    RunDir,
    Threads,
    TrackingURI,
    complete_benchmark,
    data_folder,
)
from resnet_bench.cli.screen import (
    FAILED,
    INTERRUPTED,
    console,
    echo,
    measuring_aloud,
    new_table,
    print_json,
    print_resume_command,
    print_table,
)
from resnet_bench.execution import choices
from resnet_bench.judging.record import MAX_SEEDS, MIN_SEEDS, claim_of
from resnet_bench.recipe.files import load_benchmark
from resnet_bench.tracking.store import Store

if TYPE_CHECKING:
    from resnet_bench.execution.execution import Execution
    from resnet_bench.execution.options import ExecutionOptions
    from resnet_bench.running.context import Context
    from resnet_bench.running.record_bundle import Attempt, RecordBundle
    from resnet_bench.running.record_check import RecordCheck

BundleDir = Annotated[
    Path | None,
    typer.Option("--bundle", metavar="DIR", help="New folder for the bundle; one in runs/records/ by default."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Resume an interrupted check.")]
WithoutPredictions = Annotated[
    bool, typer.Option("--without-predictions", help="Leave predictions out by their hashes: a smaller bundle.")
]


def check(
    name: BenchmarkName,
    seeds: Annotated[
        int | None,
        typer.Option(
            "--seeds", metavar="N", min=1, max=MAX_SEEDS, help="Check seeds 0 to N-1; the protocol's number by default."
        ),
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
    resume: Resume = False,
    bundle: BundleDir = None,
    without_predictions: WithoutPredictions = False,
    device: Device = "auto",
    execution_mode: ExecutionMode = choices.ExecutionMode.AUTO,
    precision: Precision = choices.PrecisionChoice.AUTO,
    threads: Threads = None,
    data: DataFolder = None,
    tracking: TrackingURI = None,
    run_dir: RunDir = DEFAULT_RUNS,
    benchmark_dir: BenchmarkDir = None,
    as_json: Json = False,
) -> None:
    benchmark = load_benchmark(name, benchmark_dir)
    compared = load_benchmark(baseline, benchmark_dir) if baseline is not None else None
    if compared is not None and compared.recipe.data.dataset != benchmark.recipe.data.dataset:
        raise UserError(
            f"--baseline {baseline} is trained on {compared.recipe.data.dataset}, {name} on another dataset"
        )
    claim_of(benchmark)
    folder = data_folder(data)

    # Torch is imported when the verb is called, so that help, completion and mistakes are quick.
    from resnet_bench.execution.options import ExecutionOptions
    from resnet_bench.models.of_recipe import check_benchmark
    from resnet_bench.running.record_check import RecordCheck

    check_benchmark(benchmark)
    options = ExecutionOptions(device=device, mode=execution_mode, precision=precision, threads=threads)
    context = context_of(options, folder, tracking, run_dir)
    count = seeds or MIN_SEEDS[options.device_type]
    found = measured(
        RecordCheck(benchmark, range(count), compared),
        context,
        bundle,
        resume=resume,
        without_predictions=without_predictions,
    )
    print_record(found)
    echo(f"bundle: {found.path}")
    if as_json:
        print_json("record check", **record_document(found))
    if not found.verdict.holds:
        raise typer.Exit(FAILED)


def context_of(options: "ExecutionOptions", folder: Path, tracking: str | None, run_dir: Path) -> "Context":
    """Return where and how the seeds of a record are trained on the images in a folder."""
    from resnet_bench.data.dataset import ImageLocation
    from resnet_bench.running.context import Context

    return Context(Store.resolve(tracking, Path.cwd()), run_dir, ImageLocation(folder), options)


def measured(
    planned: "RecordCheck", context: "Context", folder: Path | None, *, resume: bool, without_predictions: bool = False
) -> "RecordBundle":
    """Train the seeds of a check, print each, and return its bundle.

    Args:
        planned: What to measure.
        context: Where and how.
        folder: Of the bundle; one in the folder of runs by default.
        resume: Continue an interrupted check.
        without_predictions: Leave the predictions out of the bundle.

    Raises:
        Exit: It was interrupted; the command that resumes it is printed.
        UserError: It cannot be started or resumed.
    """
    from resnet_bench.cli.live_runs import RunsDisplay, lasting
    from resnet_bench.running.prepare import resolve
    from resnet_bench.running.stopping import Stopped, stop_on_signals
    from resnet_bench.tracking.stale_runs import close_stale_runs

    benchmark, store = planned.benchmark, context.store
    context.open_images(benchmark.recipe.data.facts, echo)
    with measuring_aloud():
        execution = resolve(benchmark.recipe, context.options)
    bundle = _opened(planned, execution, context.run_dir, folder, resume=resume)
    store.prepare()
    close_stale_runs(store)
    echo(
        f"{len(planned.seeds)} seeds of {benchmark.name} on {execution.device_name} ({execution.describe()}), tracked "
        f"in {store.redacted_uri}"
    )
    try:
        with (
            lasting(console),
            RunsDisplay(console, planned.tasks_left(bundle)).shown() as display,
            stop_on_signals(announce="stopping; the seeds that are done are kept") as stop,
        ):
            attempts = planned.measure(
                replace(context, stop=stop), bundle, without_predictions=without_predictions, watch=display.watch
            )
            for attempt in attempts:
                echo(_line(attempt))
    except (Stopped, KeyboardInterrupt):
        print_resume_command("--resume")
        raise typer.Exit(INTERRUPTED) from None
    return bundle


def _opened(
    planned: "RecordCheck", execution: "Execution", run_dir: Path, folder: Path | None, *, resume: bool
) -> "RecordBundle":
    from resnet_bench.running.record_bundle import find_unfinished, new_bundle_folder

    name = planned.benchmark.name
    unfinished = find_unfinished(run_dir, name)
    if not resume:
        if folder is None and unfinished is not None:
            echo(f"an interrupted check is left aside ({unfinished}); --resume would continue it")
        return planned.create(folder or new_bundle_folder(run_dir, name), execution)
    if folder is None and unfinished is None:
        raise UserError(f"--resume: no check of {name} in {run_dir} was interrupted; leave --resume out")
    bundle = planned.resume(folder or unfinished or run_dir, execution)
    if bundle.record.under_way is not None:
        echo(f"seed {bundle.record.under_way} was under way when the check ended; it is trained from scratch")
    return bundle


def _line(attempt: "Attempt") -> str:
    if attempt.accuracy is None:
        return f"seed {attempt.seed}: failed: {attempt.failure}"
    return f"seed {attempt.seed}: {attempt.accuracy:.2f}% in {attempt.seconds:.1f} s (standard {attempt.standard:.2f}%)"


def record_document(bundle: "RecordBundle") -> dict[str, Any]:
    """What a bundle states and what follows from it, for a program."""
    record = bundle.record
    return {
        "bundle": bundle.path,
        "holds": bundle.verdict.holds,
        "verdict": bundle.verdict.sentence,
        "target": bundle.verdict.target,
        "plan": record.plan.model_dump(mode="json"),
        "attempts": [attempt.model_dump(mode="json") for attempt in record.attempts],
        "result": bundle.conclude().model_dump(mode="json"),
    }


def print_record(bundle: "RecordBundle") -> None:
    """Print the attempts of a bundle, and what follows from them."""
    from resnet_bench.reporting.wording import energy

    record, result = bundle.record, bundle.conclude()
    columns = ("seed", "accuracy", "standard", "set-up s", "training s", "TTA s", "clock s")
    table = new_table(*columns, right=columns, title=bundle.benchmark.name)
    for attempt in record.attempts:
        table.add_row(
            str(attempt.seed),
            "failed" if attempt.accuracy is None else f"{attempt.accuracy:.2f}",
            "–" if attempt.standard is None else f"{attempt.standard:.2f}",
            *(
                f"{seconds:.1f}"
                for seconds in (attempt.setup_seconds, attempt.train_seconds, attempt.tta_seconds, attempt.seconds)
            ),
        )
    print_table(table)
    echo(bundle.verdict.sentence)
    seconds = [attempt.seconds for attempt in record.finished]
    if seconds:
        warm_up = next((attempt.warm_up_seconds for attempt in record.attempts if attempt.warm_up_seconds), 0.0)
        echo(
            f"clock: median {statistics.median(seconds):.1f} s [{min(seconds):.1f}, {max(seconds):.1f}]; "
            f"warm-up outside of it {duration(warm_up)}; on {record.plan.device}"
        )
        joules = result.median_joules
        echo(f"energy of the training steps, median: {'not readable here' if joules is None else energy(joules)}")
    if result.speedup is not None:
        echo(
            f"baseline {record.plan.baseline}: {duration(result.baseline_seconds)} for its whole training, "
            f"timed over some steps before, between and after the seeds; speedup {result.speedup:.1f}×"
        )
