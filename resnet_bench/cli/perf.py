"""The verb ``resnet-bench perf``."""

import contextlib
import errno
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

from resnet_bench.base.errors import UserError
from resnet_bench.base.files import write_atomically
from resnet_bench.cli.options import (
    BenchmarkDir,
    DataFolder,
    Device,
    Json,
    Precision,
    Threads,
    TrackingURI,
    complete_benchmark,
    data_folder,
    help_text,
    new_app,
)
from resnet_bench.cli.screen import announce_generated, echo, print_json, print_table
from resnet_bench.execution.choices import ExecutionMode, PrecisionChoice
from resnet_bench.recipe.files import load_benchmark
from resnet_bench.tracking.store import Store

MAIN_BENCHMARKS = ("resnet9-onecycle-adam", "resnet34-sgd-224", "resnet18-step-decay", "cifar100-resnet")
DEFAULT_STEPS = {"cpu": 3, "mps": 20, "cuda": 100}

app = new_app(workers="loader_workers")


@app.command(
    help=help_text(
        "Measure training speed against the source's training loop, interleaved, and time each stage separately.",
        example="perf resnet18-step-decay --threads 1",
        following="run resnet18-step-decay --execution fast",
    )
)
def perf(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Names of benchmarks; the four by default.", autocompletion=complete_benchmark),
    ] = None,
    device: Device = "auto",
    modes: Annotated[
        list[ExecutionMode] | None,
        typer.Option("--execution", help="Only this mode; may be repeated. All by default."),
    ] = None,
    precision: Precision = PrecisionChoice.AUTO,
    threads: Threads = None,
    repeats: Annotated[
        int, typer.Option("--repeats", metavar="N", min=1, help="How often each loop has its turn.")
    ] = 5,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", min=1, help="Steps measured per turn.")] = None,
    loader_workers: Annotated[
        int | None,
        typer.Option(
            "--loader-workers",
            metavar="N",
            min=0,
            help="Loader processes of the source's loop; as many as the source has by default.",
        ),
    ] = None,
    clock: Annotated[
        Literal["wall", "cpu"],
        typer.Option("--clock", help="cpu is disturbed less by other work on the machine, and needs --device cpu."),
    ] = "wall",
    data: DataFolder = None,
    tracking: TrackingURI = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="JSON file to write.")] = Path(
        "reports/performance.json"
    ),
    benchmark_dir: BenchmarkDir = None,
    as_json: Json = False,
) -> None:
    chosen = [load_benchmark(name, benchmark_dir) for name in dict.fromkeys(names or MAIN_BENCHMARKS)]
    folder = data_folder(data)
    store = Store.resolve(tracking, Path.cwd())
    # Found out before anything is measured, which takes long.
    with _writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not os.access(output.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    # Torch is imported when the verb is called, so that help, completion and mistakes are quick.
    from resnet_bench.data.dataset import ImageLocation, load
    from resnet_bench.execution.execution import Execution
    from resnet_bench.measure.autotune import autotune
    from resnet_bench.measure.log import log_comparison
    from resnet_bench.measure.page import remarks, speed_table, stage_table
    from resnet_bench.measure.peaks import cpu_seconds
    from resnet_bench.measure.speed import compare

    found = []
    for benchmark in chosen:
        resolved = {
            str(mode): Execution.resolve(device, precision, threads=threads, mode=mode)
            for mode in dict.fromkeys(modes or [ExecutionMode.PLAIN, ExecutionMode.FAST, ExecutionMode.AUTO])
        }
        executions: dict[str, Execution] = {
            name: autotune(
                benchmark.recipe,
                execution,
                precision=precision == PrecisionChoice.AUTO,
                threads=threads is None,
                progress=echo,
            )
            for name, execution in resolved.items()
        }
        dataset = load(benchmark.recipe.data.facts, ImageLocation(folder, allow_generated=True))
        if dataset.generated:
            announce_generated(dataset.name)
        kind = next(iter(executions.values())).device_type
        comparison = compare(
            benchmark,
            dataset,
            executions,
            steps=steps or DEFAULT_STEPS[kind],
            repeats=repeats,
            workers=loader_workers,
            clock=cpu_seconds if clock == "cpu" else time.perf_counter,
            progress=echo,
        )
        print_table(speed_table(comparison))
        print_table(stage_table(comparison))
        for remark in remarks(comparison):
            echo(remark)
        found.append(comparison)
        try:
            echo(f"logged: {log_comparison(comparison, store)}\n")
        except Exception as error:  # whatever the store raises: what was measured is worth more than its record
            echo(f"not logged, because {store.redacted_uri} does not take it: {store.describe_error(error)}\n")
    text = json.dumps([comparison.asdict() for comparison in found], indent=1) + "\n"
    with _writing(output):
        write_atomically(output, text.encode())
    echo(f"wrote {output}")
    if as_json:
        print_json("perf", file=output, comparisons=found)


@contextlib.contextmanager
def _writing(output: Path) -> Iterator[None]:
    """Turn the errors of writing the file into a sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{output}: cannot be written: {error.strerror or error}; name another --output") from None
