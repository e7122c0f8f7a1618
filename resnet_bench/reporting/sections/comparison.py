"""Show benchmarks beside one another: accuracy, time to an accuracy, throughput and memory."""

import math
from collections.abc import Sequence

from resnet_bench.base.text import DASH, duration
from resnet_bench.judging.target import TimesToAccuracy
from resnet_bench.reporting.claims import joules_to_accuracy, times_to_accuracy
from resnet_bench.reporting.figures import comparisons
from resnet_bench.reporting.figures.style import present
from resnet_bench.reporting.runs import RunGroup
from resnet_bench.reporting.sections.section import Cell, Grid, Results, Section, View, grid
from resnet_bench.reporting.wording import energy, held

MAX_TARGETS = 4


def build(results: Results) -> View | None:
    """Build the section; None without a finished run."""
    labels = results.compared
    if not labels:
        return None
    drawn = present(
        *(
            draw(labels, dataset)
            for dataset in results.datasets
            for draw in (comparisons.pareto, comparisons.time_to_accuracy, comparisons.strip)
        ),
        comparisons.throughput(labels),
        comparisons.memory(labels),
    )
    targets = [(dataset, table) for dataset in results.datasets if (table := _targets(results, dataset)) is not None]
    joules = [(dataset, table) for dataset in results.datasets if (table := _joules(results, dataset)) is not None]
    return View({"plots": drawn, "targets": targets, "joules": joules, "apart": not results.full}, drawn)


SECTION = Section("comparison", "Comparison", build)


def _targets(results: Results, dataset: str) -> Grid | None:
    """Return when each benchmark on each device reached some accuracies; None where nothing was timed."""
    shown = [group for group in results.compared if group.latest.dataset == dataset]
    targets = _round_targets(shown)
    rows: list[list[str | Cell]] = [
        [results.compared[group], device or DASH, *(_cell(each) for each in times)]
        for group in shown
        for device in group.devices
        if (times := times_to_accuracy(group, targets, device))
    ]
    if not rows:
        return None
    return grid(f"Time to accuracy, {dataset}", _titles(targets), rows, style="times")


def _joules(results: Results, dataset: str) -> Grid | None:
    """Return the energy to the same accuracies; None where no counter could be read."""
    shown = [group for group in results.compared if group.latest.dataset == dataset]
    targets = _round_targets(shown)
    found = {
        (group, device): [joules_to_accuracy(group, target, device) for target in targets]
        for group in shown
        for device in group.devices
    }
    if all(value is None for values in found.values() for value in values):
        return None
    rows = [
        [results.compared[group], device or DASH, *map(_energy, values)] for (group, device), values in found.items()
    ]
    return grid(f"Energy to accuracy, {dataset}", _titles(targets), rows, style="times")


def _titles(targets: Sequence[float]) -> str:
    return "|".join(("Benchmark", "Device", *(f"{target:.0f}%" for target in targets)))


def _energy(joules: float | None) -> str:
    if joules is None:
        return "not readable"
    return energy(joules) if math.isfinite(joules) else "missed by half or more"


def _cell(times: TimesToAccuracy) -> Cell:
    text = held(times)
    success = f"{duration(times.seconds_per_success)} per success" if times.reached else ""
    return Cell(text, success, lines=tuple(text.split("; ")))


def _round_targets(groups: Sequence[RunGroup]) -> tuple[float, ...]:
    """Return a few round accuracies that some runs reach and that tell the benchmarks apart."""
    best = [
        max(values)
        for group in groups
        if (values := [value for run in group.runs for _, value in run.timed_accuracy(group.curve_split)])
    ]
    if not best:
        return ()
    step = 1.0 if max(best) - min(best) < 5 else 5.0
    top = math.floor(max(best) / step) * step
    return tuple(reversed([top - step * place for place in range(MAX_TARGETS) if top - step * place > 0]))
