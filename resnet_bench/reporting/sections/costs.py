"""Show what each benchmark costs on each device: medians over its runs."""

import statistics
from collections.abc import Sequence

from resnet_bench.base.text import DASH, duration
from resnet_bench.reporting.run_cost import median
from resnet_bench.reporting.runs import Run, RunGroup, peak_flops
from resnet_bench.reporting.sections.section import Cell, Results, Section, View, apart_badge, grid
from resnet_bench.reporting.wording import energy, flops, number, share, size
from resnet_bench.tracking.vocabulary import ENERGY

TITLES = (
    "Benchmark|Device|Precision|#Runs|#Training time|#Images/s|#Model FLOP/s|#% of measured peak|#Peak memory|#Energy"
)


def build(results: Results) -> View | None:
    """Build the section; None without a finished run."""
    rows = [
        _row(group, label, device, runs)
        for group, label in results.labels.items()
        for device, runs in group.devices.items()
    ]
    above_peak = any(
        share > 1 for group in results.labels for runs in group.devices.values() for share in _shares(runs)
    )
    return View({"table": grid("Costs", TITLES, rows), "above_peak": above_peak}) if rows else None


SECTION = Section("costs", "Costs", build)


def _row(group: RunGroup, label: str, device: str, runs: Sequence[Run]) -> list[str | Cell]:
    seconds = [run.train_seconds for run in runs if run.train_seconds is not None]
    shares = _shares(runs)
    joules = median(run.number(ENERGY) for run in runs)
    counter = "CPU packages" if runs[0].device_type == "cpu" else "GPU board"
    return [
        Cell(label, badge=apart_badge(group)),
        device or DASH,
        ", ".join(sorted({run.precision for run in runs})) or DASH,
        str(len(runs)),
        Cell(duration(median(seconds)), _range(seconds)),
        number(median(run.images_per_second for run in runs), 0),
        flops(median(run.flops for run in runs)),
        share(statistics.median(shares) if shares else None),
        size(median(run.peak_memory for run in runs)),
        Cell(energy(joules), "" if joules is None else counter),
    ]


def _shares(runs: Sequence[Run]) -> list[float]:
    """Return what part of the device's measured peak each run used."""
    return [run.flops / peak for run in runs if run.flops is not None and (peak := peak_flops(run)) is not None]


def _range(seconds: Sequence[float]) -> str:
    if not seconds:
        return ""
    low, high = duration(min(seconds)), duration(max(seconds))
    return f"{low} to {high}" if low != high else ""
