"""What a recipe's own spread says about the next comparison: seeds, hours and joules for an effect, or the reverse."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from resnet_bench.base.errors import UserError
from resnet_bench.judging.intervals import Interval, standard_deviation, standard_deviation_interval
from resnet_bench.judging.power import seeds_needed, smallest_effect
from resnet_bench.recipe.toml_files import reference_folder
from resnet_bench.reporting.reading import Source, default_store, read
from resnet_bench.reporting.run_cost import RunCost, median, run_cost
from resnet_bench.reporting.runs import RunGroup, claimed_metric, group, load
from resnet_bench.tracking.vocabulary import ENERGY

POWERS = (0.8, 0.95)
MIN_SEEDS = 3


@dataclass(frozen=True)
class NoiseFloor:
    """The spread of a benchmark's seeds and the cost of one run.

    Attributes:
        group: The runs that it is taken from: the full profile of the benchmark's own recipe on real images.
        cost: What one of them takes.
    """

    group: RunGroup
    cost: RunCost

    @cached_property
    def accuracies(self) -> list[float]:
        """Last accuracy of each seed, in percent, as the benchmark's first claim measures it."""
        return self.group.values(self.group.split, claimed_metric(self.group.definition))

    @cached_property
    def sd(self) -> float:
        """Standard deviation across seeds, in percentage points."""
        return standard_deviation(self.accuracies)

    @cached_property
    def sd_interval(self) -> Interval:
        """95% CI of the standard deviation: with few seeds the spread itself is uncertain."""
        return standard_deviation_interval(self.accuracies)

    @property
    def device(self) -> str:
        """The device that most seeds with a time ran on; energy is of it alone, and time unless it is extrapolated."""
        return next(iter(self.group.devices))

    @cached_property
    def joules(self) -> float | None:
        """Energy of one run, the median; None where no counter could be read."""
        return median(run.number(ENERGY) for run in self.group.devices[self.device])

    def for_effect(self, effect: float, power: float) -> "ComparisonPlan":
        """Plan a comparison that sees an effect.

        Args:
            effect: Difference between two recipes' true means, in percentage points.
            power: Probability of seeing it.
        """
        return self._plan(power, seeds_needed(effect, self.sd, wanted=power), effect)

    def for_seeds(self, seeds: int, power: float) -> "ComparisonPlan":
        """Plan a comparison of some seeds per side."""
        return self._plan(power, seeds, smallest_effect(self.sd, seeds, wanted=power))

    def for_hours(self, hours: float, power: float) -> "ComparisonPlan":
        """Plan a comparison that takes some hours in all, both sides one run after another.

        Raises:
            UserError: How long a run takes is unknown, or the hours do not suffice for two seeds per side.
        """
        seconds = self.cost.seconds
        if seconds is None:
            raise UserError(f"{self.group.name}: how long a run takes is unknown; write --seeds in place of --hours")
        seeds = math.floor(hours * 3600 / (2 * seconds))
        if seeds < 2:
            needed = 4 * seconds / 3600
            raise UserError(f"--hours {hours:g}: two seeds per side of {self.group.name} take {needed:.2g} hours")
        return self.for_seeds(seeds, power)

    def _plan(self, power: float, seeds: int | None, effect: float | None) -> "ComparisonPlan":
        runs = None if seeds is None else 2 * seeds
        return ComparisonPlan(
            power=power,
            effect=effect,
            seeds=seeds,
            hours=None if runs is None or self.cost.seconds is None else runs * self.cost.seconds / 3600,
            joules=None if runs is None or self.joules is None else runs * self.joules,
        )


@dataclass(frozen=True)
class ComparisonPlan:
    """A comparison of two recipes with equal spread.

    Attributes:
        power: Probability that Welch's test sees the effect, at 5% two-sided.
        effect: Percentage points; None where no number of seeds shows any.
        seeds: Runs per side; None where 100,000 do not suffice.
        hours: Training time of both sides, one run after another; None where it is unknown.
        joules: Energy of both sides; None where no counter could be read.
    """

    power: float
    effect: float | None
    seeds: int | None
    hours: float | None
    joules: float | None


def noise_floor(benchmark: str, sources: Sequence[Source] | None = None) -> NoiseFloor:
    """Take the noise floor of a benchmark from the first source that has three seeds of it in full.

    Args:
        benchmark: The benchmark's name.
        sources: Stores and folders of report tables, in the order in which they are asked; by default the store that
            runs are logged to, where it can be read, and the reference results.

    Raises:
        UserError: A source that was named cannot be read, or none has three finished seeds in the full profile on real
            images.
    """
    most, unread = 0, ""
    for source in sources or _default_sources():
        try:
            runs, _ = load(read([source]))
        except UserError as error:
            if sources:
                raise
            unread += f"; {error}"
            continue
        every = group(run for run in runs if run.benchmark == benchmark)
        whole = [found for found in every if not found.apart and not found.changed]
        for found in sorted(whole, key=lambda members: len(members.runs), reverse=True)[:1]:
            floor = NoiseFloor(found, run_cost(found, every))
            if len(floor.accuracies) >= MIN_SEEDS:
                return floor
            most = max(most, len(floor.accuracies))
    raise UserError(
        f"{benchmark}: {most} finished seeds in full, and a spread needs {MIN_SEEDS}; "
        f"first: resnet-bench run {benchmark} --profile full --seeds {MIN_SEEDS}{unread}"
    )


def _default_sources() -> list[Source]:
    """Return those that there are: no run may have made a store yet, and reference results may be missing."""
    store, folder = default_store(), reference_folder()
    return [*([store] if store.exists else []), *([folder] if folder.is_dir() else [])]
