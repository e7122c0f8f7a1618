"""What ``run --dry-run`` prints after the plan."""

from collections.abc import Callable
from pathlib import Path

from rich.table import Table

from resnet_bench.base.text import DASH, duration, file_size
from resnet_bench.cli.screen import new_table
from resnet_bench.running.context import Context
from resnet_bench.running.dry_run import DryRun, Tried
from resnet_bench.running.plan import RunPlan


def print_dry_run(plan: RunPlan, context: Context, echo: Callable[[str | Table], None]) -> None:
    """Try some steps of each benchmark, and print what they need.

    Args:
        plan: What would run.
        context: Where images are, and how runs are executed.
        echo: Prints a line or a table.

    Raises:
        UserError: A batch does not fit into memory, or something else keeps a benchmark from being trained.
    """
    first = {job.benchmark.name: job for job in reversed(plan.jobs)}
    names = dict.fromkeys(job.benchmark.name for job in plan.jobs)
    task = DryRun(tuple(first[name] for name in names), Path.cwd())
    found = [event for event in plan.ask(task, context) if isinstance(event, Tried)]
    numbers = ("steps", "parameters", "MACs per image", "memory", "one step", "training", "checkpoint", "weights")
    table = new_table("benchmark", *numbers, right=numbers)
    for tried in found:
        table.add_row(
            tried.job.benchmark.name,
            f"{tried.steps:,}",
            f"{tried.parameters:,}",
            f"{tried.macs / 1e6:,.1f} M",
            DASH if tried.memory_bytes is None else file_size(tried.memory_bytes),
            duration(tried.step_seconds),
            duration(tried.train_seconds),
            file_size(tried.checkpoint_bytes),
            file_size(tried.weights_bytes),
        )
    echo(table)
    echo("")
    echo("memory and times are those of real steps, training is all steps of one run without evaluation;")
    echo("checkpoint and weights are the disk space that each run takes")
    for tried in found:
        echo(f"{tried.job.benchmark.name}, its images as the network sees them: {tried.images}")
    echo("nothing was trained or tracked; leave out --dry-run to train")
