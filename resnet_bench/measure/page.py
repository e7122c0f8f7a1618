"""Speed comparisons as tables for a terminal."""

from collections.abc import Sequence
from dataclasses import fields

from rich import box
from rich.table import Table

from resnet_bench.base.text import duration, listed
from resnet_bench.measure.speed import SpeedComparison, Spread
from resnet_bench.measure.stages import Stages

GIGA = 1e9


def speed_table(comparison: SpeedComparison) -> Table:
    """Build the table of each loop's throughput and its speedup over the baseline loop."""
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=(
            f"{comparison.benchmark}, batch {comparison.batch_size}: medians (range) of {comparison.repeats} turns of "
            f"{comparison.steps} steps"
        ),
        title_justify="left",
    )
    columns = ("loop", "execution", "images/s", "ms/step", "speedup", "% of peak", "memory", "start", "compile")
    for column in columns:
        table.add_column(column, justify="left" if column in ("loop", "execution") else "right", overflow="fold")
    for arm in comparison.arms:
        table.add_row(
            arm.name,
            arm.execution,
            _spread(arm.images_per_second),
            _spread(arm.milliseconds),
            f"{_spread(arm.ratio)}×",
            f"{arm.peak_share:.0%}",
            f"{arm.peak_memory_bytes / GIGA:.2f} GB",
            duration(arm.startup_seconds),
            duration(arm.compile_seconds or None),
        )
    return table


def stage_table(comparison: SpeedComparison) -> Table:
    """Build the table of the milliseconds per batch of each stage, timed separately."""
    names = [stage.name for stage in fields(Stages)]
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title="each stage separately, milliseconds per batch", title_justify="left"
    )
    table.add_column("loop")
    for name in names:
        table.add_column(name, justify="right")
    for arm in comparison.arms:
        table.add_row(arm.name, *(f"{getattr(arm.stages, name):.2f}" for name in names))
    return table


def remarks(comparison: SpeedComparison) -> Sequence[str]:
    """Describe in sentences how the tables were measured."""
    peaks = ", ".join(f"{name} {rate / GIGA:.0f}" for name, rate in comparison.peak_flops.items())
    found = [
        f"source: the baseline loop, torchvision on Pillow images, {comparison.workers} loader processes, torch's "
        "default fp32 (on a GPU with TF32), contiguous, eager",
        f"peak: a large matrix multiplication, in GFLOP/s: {peaks}; a large copy: "
        f"{comparison.peak_bandwidth / GIGA:.1f} GB/s",
    ]
    if comparison.run_image_sizes != (comparison.image_size,):
        sizes = listed([str(size) for size in comparison.run_image_sizes])
        found.append(f"images: {comparison.image_size} pixels in every loop; a run trains on {sizes} pixels")
    return found


def _spread(spread: Spread) -> str:
    digits = 2 if spread.median < 10 else 1 if spread.median < 1000 else 0
    return f"{spread.median:,.{digits}f} ({spread.low:,.{digits}f}–{spread.high:,.{digits}f})"
