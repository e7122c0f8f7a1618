"""The verb ``resnet-bench perf``. It parses, calls and prints; the work is done in ``performance``."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from resnet_bench.base.errors import UserError
from resnet_bench.cli.screen import (
    DEFAULT_DATA,
    BenchmarksFolder,
    DataFolder,
    Device,
    TrackingURI,
    complete_benchmark,
    console,
    say,
)
from resnet_bench.recipe.files import load_benchmark

if TYPE_CHECKING:
    from resnet_bench.execution.choices import Level
    from resnet_bench.measure.peaks import Clock

MAIN_BENCHMARKS = ("resnet9-onecycle-adam", "resnet34-sgd-224", "resnet18-step-decay", "cifar100-resnet")
DEFAULT_STEPS = {"cpu": 3, "mps": 20, "cuda": 100}

LevelOption = Annotated[
    str, typer.Option("--execution", help="auto (measured here), fast, or plain: fp32, contiguous, eager.")
]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, help="Threads on a CPU; else what is fastest.")]


def perf(
    names: Annotated[
        list[str] | None, typer.Argument(help="Benchmarks; the four by default.", autocompletion=complete_benchmark)
    ] = None,
    device: Device = "auto",
    levels: Annotated[
        list[str] | None, typer.Option("--execution", help="plain, fast or auto; may be given again. All by default.")
    ] = None,
    threads: ThreadsOption = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="How often each way has its turn.")] = 5,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Steps measured in each of them.")] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=0, help="Loader processes of the source's loop; else the source's.")
    ] = None,
    clock: Annotated[
        str,
        typer.Option("--clock", help="wall; or processor, which other work on the machine disturbs less (CPU only)."),
    ] = "wall",
    data: DataFolder = DEFAULT_DATA,
    tracking: TrackingURI = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The JSON to write.")] = Path(
        "reports/performance.json"
    ),
    benchmarks: BenchmarksFolder = None,
) -> None:
    """Measure training steps against the source's own way, interleaved, and each stage alone.

    Example: resnet-bench perf resnet18-step-decay --threads 1

    Next: resnet-bench run resnet18-step-decay --execution fast
    """
    from resnet_bench.data.dataset import load_dataset
    from resnet_bench.execution.execution import Execution
    from resnet_bench.measure.autotune import autotune
    from resnet_bench.measure.log import log_comparison
    from resnet_bench.measure.page import remarks, speed_table, stage_table
    from resnet_bench.measure.speed import compare
    from resnet_bench.tracking.store import Store

    reading = _clock(clock)
    asked = list(dict.fromkeys(map(level_named, levels or ["plain", "fast", "auto"])))
    store = Store.resolve(tracking, Path.cwd())
    chosen = [load_benchmark(name, benchmarks) for name in dict.fromkeys(names or MAIN_BENCHMARKS)]
    found = []
    for benchmark in chosen:
        resolved = {level: Execution.resolve(device, threads=threads, level=level) for level in asked}
        executions: dict[str, Execution] = {
            level: autotune(benchmark.recipe, execution, threads=threads is None)
            for level, execution in resolved.items()
        }
        dataset = load_dataset(benchmark.recipe.data.dataset, data, allow_generated=True)
        if dataset.generated:
            console.print("[bold yellow]GENERATED IMAGES[/]: speeds are those of CIFAR, nothing is learned.")
        kind = next(iter(executions.values())).device_type
        comparison = compare(
            benchmark,
            dataset,
            executions,
            steps=steps or DEFAULT_STEPS[kind],
            repeats=repeats,
            workers=workers,
            clock=reading,
            said=say,
        )
        console.print(speed_table(comparison))
        console.print(stage_table(comparison))
        for remark in remarks(comparison):
            say(remark)
        found.append(comparison)
        try:
            say(f"logged: {log_comparison(comparison, store)}\n")
        except Exception as error:  # whatever the store raises: what was measured is worth more than its record
            say(f"not logged, because {store.shown} does not take it: {store.sentence(error)}\n")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps([comparison.asdict() for comparison in found], indent=1) + "\n", encoding="utf-8")
    say(f"wrote {out}")


def _clock(text: str) -> "Clock":
    from resnet_bench.measure.peaks import cpu_seconds

    if text not in ("wall", "processor"):
        raise UserError(f"--clock {text}: there is no such clock; write wall or processor")
    return cpu_seconds if text == "processor" else time.perf_counter


def level_named(text: str) -> "Level":
    """The level of execution of an option.

    Raises:
        UserError: There is no such level.
    """
    if text not in ("auto", "plain", "fast"):
        raise UserError(f"--execution {text}: there is no such level; write auto, plain or fast")
    return cast("Level", text)
