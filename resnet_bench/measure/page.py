"""A comparison as tables for a terminal."""

from collections.abc import Sequence
from dataclasses import fields

from rich import box
from rich.table import Table

from resnet_bench.measure.speed import SpeedComparison, Spread
from resnet_bench.measure.stages import Stages

GIGA = 1e9


def speed_table(comparison: SpeedComparison) -> Table:
    """Images per second of each arm, and how many times the source's that is."""
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=(
            f"{comparison.benchmark}, batch {comparison.batch_size}: medians (range) of {comparison.repeats} times "
            f"{comparison.steps} steps"
        ),
        title_justify="left",
    )
    columns = ("way", "execution", "images/s", "ms a step", "times the source", "of peak", "memory", "start", "compile")
    for column in columns:
        table.add_column(column, justify="left" if column in ("way", "execution") else "right", overflow="fold")
    for arm in comparison.arms:
        table.add_row(
            arm.name,
            arm.execution,
            _spread(arm.images_per_second),
            _spread(arm.milliseconds),
            _spread(arm.ratio),
            f"{arm.peak_share:.0%}",
            f"{arm.peak_memory_bytes / GIGA:.2f} GB",
            f"{arm.startup_seconds:.1f} s",
            f"{arm.compile_seconds:.1f} s" if arm.compile_seconds else "–",
        )
    return table


def stage_table(comparison: SpeedComparison) -> Table:
    """Milliseconds that a batch spends in each stage alone."""
    names = [stage.name for stage in fields(Stages)]
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title="each stage alone, milliseconds a batch", title_justify="left"
    )
    table.add_column("way")
    for name in names:
        table.add_column(name, justify="right")
    for arm in comparison.arms:
        table.add_row(arm.name, *(f"{getattr(arm.stages, name):.2f}" for name in names))
    return table


def remarks(comparison: SpeedComparison) -> Sequence[str]:
    """What the tables rest on, in sentences."""
    peaks = ", ".join(f"{name} {rate / GIGA:.0f}" for name, rate in comparison.peak_flops.items())
    return [
        f"source: torchvision on Pillow images, {comparison.workers} loader processes, torch's own fp32 (on a GPU with "
        "TF32), contiguous, eager",
        f"peak: a large matrix product, in GFLOP/s: {peaks}; a large copy: {comparison.peak_bandwidth / GIGA:.1f} GB/s",
    ]


def _spread(spread: Spread) -> str:
    digits = 2 if spread.median < 10 else 1 if spread.median < 1000 else 0
    return f"{spread.median:,.{digits}f} ({spread.low:,.{digits}f}–{spread.high:,.{digits}f})"
