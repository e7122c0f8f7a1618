"""Whether an execution changes what a recipe reaches: seeds by stock PyTorch in fp32 beside seeds by other executions.

The sources trained with torch's own operations in fp32; we train with our kernels and, where the processor has
it, in bf16. The tables of this question come with the package, and every report says what they show.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from resnet_bench.base.text import plural
from resnet_bench.judging.intervals import Difference, outcome, standard_deviation, welch
from resnet_bench.recipe.toml_files import reference_folder
from resnet_bench.reporting import reading, runs
from resnet_bench.reporting.runs import Run, RunGroup, claimed_metric
from resnet_bench.reporting.wording import assignments, signed, signed_interval

STOCK = "plain, fp32"
"""The execution that the others are compared with."""

MARGIN = 0.5
"""Percentage points within which two executions must end to count as one: about what ten seeds per side can show."""


@dataclass(frozen=True)
class ExecutionCheck:
    """Seeds of one recipe by stock PyTorch in fp32, and by another execution.

    Attributes:
        execution: Such as ``fast, bf16``.
        stock: Runs by :data:`STOCK`.
        other: Runs of the same recipe on the same images by ``execution``.
    """

    execution: str
    stock: RunGroup
    other: RunGroup

    @property
    def benchmark(self) -> str:
        """The benchmark's name."""
        return self.stock.name

    @property
    def schedule(self) -> str:
        """What was made shorter, such as ``training.epochs = 4``; empty where the recipe was trained in full."""
        recipe, changed = self.stock.latest.recipe, self.stock.changed
        # A schedule is scaled to the epochs, which say it in fewer words; another kind of schedule is a change.
        keys = [key for key in changed if not key.startswith("schedule.") or key == "schedule.name"] or changed
        return assignments({key: recipe.get(key) for key in keys})

    @cached_property
    def accuracies(self) -> tuple[list[float], list[float]]:
        """Last accuracy of each seed in percent, by the claim's metric: of ``stock``, then of ``other``."""
        split, metric = self.stock.split, claimed_metric(self.stock.definition)
        return self.stock.values(split, metric), self.other.values(split, metric)

    @cached_property
    def difference(self) -> Difference:
        """Mean of ``other`` minus that of ``stock``, in percentage points."""
        return welch(*self.accuracies)

    @property
    def word(self) -> str:
        """``alike``, ``not alike`` or ``open``: where the 90% CI lies, within the margin, outside or across."""
        if outcome(self.difference, None, MARGIN) == "same":
            return "alike"
        ends = self.difference.equivalence_interval
        apart = ends is not None and (ends.low > MARGIN or ends.high < -MARGIN)
        return "not alike" if apart else "open"

    @property
    def sentence(self) -> str:
        """What the seeds say, for a report: the difference, its interval and how many seeds there are."""
        stock, other = self.accuracies
        ends = self.difference.equivalence_interval
        within = f" (90% CI {signed_interval(ends)})" if ends else ""
        schedule = f", in a short schedule ({self.schedule})" if self.schedule else ""
        counts = f"{len(other)} and {plural(len(stock), 'seed')}"
        said = {
            "alike": f"ends within {MARGIN:g} pp of",
            "not alike": f"ends more than {MARGIN:g} pp from",
            "open": "is not yet shown to end as",
        }[self.word]
        gap = f"{signed(self.difference.value)} pp{within}"
        return f"{self.execution} {said} stock PyTorch in fp32{schedule}: {gap}, {counts}"

    def asdict(self) -> dict[str, object]:
        """Return everything as plain values; accuracies in percent, differences in percentage points."""
        stock, other = self.accuracies
        low, high = self.difference.equivalence_interval or (None, None)
        return {
            "benchmark": self.benchmark,
            "schedule": self.schedule,
            "execution": self.execution,
            "seeds": len(other),
            "mean": statistics.fmean(other),
            "sd": standard_deviation(other) if len(other) > 1 else None,
            "stock_seeds": len(stock),
            "stock_mean": statistics.fmean(stock),
            "stock_sd": standard_deviation(stock) if len(stock) > 1 else None,
            "difference": self.difference.value,
            "ci90_low": low,
            "ci90_high": high,
            "word": self.word,
        }


def read_executions(folder: Path | None = None, benchmarks: Sequence[str] | None = None) -> list[ExecutionCheck]:
    """Read seeds that were trained by several executions, and pair each with those by stock PyTorch.

    Args:
        folder: Reference results, whose folder ``executions`` has one with the tables of a report for each execution;
            those of the package where not given.
        benchmarks: Only these.

    Returns:
        One for each recipe and execution, in the order of the benchmarks' names; empty where there are no such tables.
    """
    folder = (folder or reference_folder()) / "executions"
    if not any(folder.glob("*/runs.parquet")):
        return []
    by_execution: dict[str, list[Run]] = {}
    for run in runs.load(reading.read([folder]))[0]:
        by_execution.setdefault(execution_name(run.execution), []).append(run)
    groups = {name: {group.key: group for group in runs.group(members)} for name, members in by_execution.items()}
    stock = groups.pop(STOCK, {})
    checks = [
        ExecutionCheck(name, stock[key], group)
        for name, found in groups.items()
        for key, group in found.items()
        if key in stock and (benchmarks is None or group.name in benchmarks)
    ]
    complete = [check for check in checks if all(check.accuracies)]
    return sorted(complete, key=lambda check: (check.benchmark, check.schedule, check.execution))


def execution_name(execution: Mapping[str, object]) -> str:
    """Return what decides the rounding of a run in two words, such as ``fast, bf16``."""
    ours = any(execution.get(switch) for switch in ("fast_paths", "fused_layers"))
    return f"{'fast' if ours else 'plain'}, {execution.get('precision', 'unknown')}"
