"""The schema of a study: a benchmark, a search space over its recipe, a sampler, a pruner and a budget.

Each file of ``studies/`` holds one and is checked as strictly as a benchmark. Nothing heavy is imported, so that
listing studies is fast.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from resnet_bench.base.errors import UserError
from resnet_bench.base.names import MAX_NAME_LENGTH, NAME_PATTERN
from resnet_bench.recipe.benchmark import ProfileName
from resnet_bench.recipe.schema import Count, OptionValue, Schema
from resnet_bench.recipe.settings import ValidationSplit

SamplerName = Literal["tpe", "gp", "cma_es", "random", "grid"]
PrunerName = Literal["none", "median", "successive_halving", "hyperband", "wilcoxon"]
Objective = Literal["validation_accuracy", "training_seconds"]
Value = bool | int | float | str
Key = str
"""A recipe key with dots, such as ``optimizer.lr``."""

RETRAIN_SEEDS = 3
WILCOXON_MIN_SEEDS = 3


class Condition(Schema):
    """When a conditional parameter is searched: if another one has this value, or one of these."""

    key: Key
    """Another key of the space."""
    equals: OptionValue | Annotated[tuple[OptionValue, ...], Field(strict=False, min_length=1)]
    """The value that it must have."""

    @property
    def wanted(self) -> tuple[Value, ...]:
        """The values of the other parameter for which this one is searched."""
        return self.equals if isinstance(self.equals, tuple) else (self.equals,)

    def holds(self, params: Mapping[Key, Value]) -> bool:
        """Whether the other parameter is searched and has a wanted value."""
        return self.key in params and any(same_value(params[self.key], value) for value in self.wanted)


class Parameter(Schema):
    """The values that one key of the recipe may take."""

    type: Literal["float", "log-float", "int", "categorical"]
    """Kind of values; ``log-float`` is searched by its logarithm."""
    low: int | float | None = None
    """The least value."""
    high: int | float | None = None
    """The ends of a range, both included."""
    step: Annotated[int | float, Field(gt=0)] | None = None
    """Distance between neighboring values, counted from ``low``."""
    log: bool = False
    """For ``int``: search on a logarithmic scale."""
    choices: Annotated[tuple[OptionValue, ...], Field(strict=False, min_length=1)] | None = None
    """The values of ``categorical``."""
    when: Condition | None = None
    """Search it only where another key has a value."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        ranged = {"low": self.low, "high": self.high}
        if self.type == "categorical":
            given = [name for name, value in {**ranged, "step": self.step}.items() if value is not None]
            if self.choices is None or given or self.log:
                raise ValueError("a categorical parameter takes choices = […] and neither low, high, step nor log")
            if any(same_value(a, b) for i, a in enumerate(self.choices) for b in self.choices[:i]):
                raise ValueError(f"choices names a value twice: {list(self.choices)}")
            return self
        self._check_range()
        return self

    def _check_range(self) -> None:
        if self.choices is not None:
            raise ValueError(f"a parameter of type {self.type} takes low and high, and no choices")
        low, high = self.ends
        if low >= high:
            raise ValueError(f"low must lie below high, got {low} and {high}")
        if self.log and self.type != "int":
            raise ValueError('log = true belongs to type = "int"; for a real number write type = "log-float"')
        if self.searches_logarithm and low <= 0:
            raise ValueError(f"the logarithm is searched, so low must be above 0, got {low}")
        if self.step is not None and self.searches_logarithm:
            raise ValueError("step and the logarithm exclude each other")
        if self.type == "int" and any(isinstance(value, float) for value in (low, high, self.step)):
            raise ValueError("low, high and step of an int must be whole numbers")

    @property
    def ends(self) -> tuple[int | float, int | float]:
        """Both ends of a range, included.

        Raises:
            ValueError: It is not a range.
        """
        if self.low is None or self.high is None:
            raise ValueError(f"a parameter of type {self.type} takes low and high, and no choices")
        return self.low, self.high

    @property
    def searches_logarithm(self) -> bool:
        """Whether the scale is logarithmic, so that every value is above 0."""
        return self.log or self.type == "log-float"

    @property
    def count(self) -> int | None:
        """Number of values; None for a continuous range."""
        if self.choices is not None:
            return len(self.choices)
        if self.type == "log-float" or (self.type == "float" and self.step is None):
            return None
        low, high = self.ends
        return math.floor((high - low) / (self.step or 1) + 1e-9) + 1

    def values(self) -> list[Value]:
        """List every value of a range that is not continuous.

        Raises:
            ValueError: It is continuous.
        """
        if self.choices is not None:
            return list(self.choices)
        (low, _), step, count = self.ends, self.step or 1, self.count
        if count is None:
            raise ValueError("a continuous range has no list of values")
        return [low + i * step for i in range(count)]

    @property
    def extremes(self) -> tuple[Value, ...]:
        """Both ends of a range, or every choice."""
        if self.choices is not None:
            return self.choices
        low, high = self.ends
        return (low, high) if self.type == "int" else (float(low), float(high))

    def contains(self, value: Any) -> bool:
        """Whether the sampler could draw this value."""
        if self.choices is not None:
            return any(same_value(value, choice) for choice in self.choices)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        low, high = self.ends
        if not low <= value <= high:
            return False
        if self.type == "int" and value != int(value):
            return False
        steps = (value - low) / self.step if self.step is not None else 0.0
        return math.isclose(steps, round(steps), abs_tol=1e-6)

    def describe(self) -> str:
        """Format the values for a table."""
        if self.choices is not None:
            text = " | ".join(str(choice) for choice in self.choices)
        else:
            scale = ", log" if self.searches_logarithm else ""
            step = f", step {self.step:g}" if self.step is not None else ""
            text = f"{self.low:g} … {self.high:g}{scale}{step}"
        if self.when is None:
            return text
        return f"{text} (when {self.when.key} is {' or '.join(map(str, self.when.wanted))})"


class Sampler(Schema):
    """One of Optuna's samplers, by name, with its options."""

    name: SamplerName = "tpe"
    """Which one."""
    options: dict[str, OptionValue] = Field(default_factory=dict)
    """Its options, as Optuna calls them."""


class Pruner(Schema):
    """One of Optuna's pruners, by name, with its options."""

    name: PrunerName = "median"
    """Which one."""
    options: dict[str, OptionValue] = Field(default_factory=dict)
    """Its options, as Optuna calls them."""


class Budget(Schema):
    """When a study ends."""

    trials: Count
    """Finished trials, the source hyperparameters included; an interrupted trial does not count."""
    epochs: Count | None = None
    """Epochs per trial; the recipe's by default."""
    wall_seconds: Annotated[float, Field(gt=0)] | None = None
    """No trial starts after this time; each ``study run`` and ``study work`` counts from its own start."""


class RetrainConfig(Schema):
    """How the best and the source hyperparameters are compared at the end."""

    seeds: Count = RETRAIN_SEEDS
    """How many new seeds per side."""
    epochs: Count | None = None
    """The recipe's by default."""


class Study(Schema):
    """One file of ``studies/``."""

    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=MAX_NAME_LENGTH)]
    benchmark: str
    """The benchmark to tune."""
    notes: str | None = None
    """Whatever readers should know."""
    made_for: Literal["gpu", "cpu"] = "gpu"
    """The machine that the full profile is sized for; elsewhere the smoke profile is the default."""
    objectives: Annotated[tuple[Objective, ...], Field(strict=False, min_length=1)] = ("validation_accuracy",)
    """What to optimize; with two, the study looks for the best trade-offs."""
    space: Annotated[dict[Key, Parameter], Field(min_length=1)]
    """Recipe keys, such as ``optimizer.lr``, with the values to search."""
    """Parameters by dotted recipe key; a conditional one comes after the one it depends on."""
    sampler: Sampler = Sampler()
    """How hyperparameters are suggested."""
    pruner: Pruner = Pruner()
    """Which trials end early."""
    budget: Budget
    """How long it searches."""
    seeds: Count = 1
    """Runs per trial, with seeds 0, 1, …; the objective is their mean."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the sampler."""
    validation: ValidationSplit | None = None
    """Split off the training images to score trials, where the recipe has no validation split."""
    retrain: RetrainConfig = RetrainConfig()
    """The comparison on new seeds at the end."""
    recipe: dict[str, Any] = Field(default_factory=dict)
    """Changes of the recipe that all trials have."""
    """Changes to the benchmark's recipe, for trials and retraining runs alike."""
    profiles: "dict[Literal['smoke'], Study]" = Field(default_factory=dict)
    """``smoke``: changes that make a study of minutes."""
    """The whole study of each profile, its differences merged in."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for problem in self._problems():
            raise ValueError(problem)
        return self

    def _problems(self) -> list[str]:
        problems = []
        if len(set(self.objectives)) != len(self.objectives) or self.objectives[0] != "validation_accuracy":
            problems.append(
                "objectives starts with validation_accuracy, which training_seconds may follow, "
                f"got {list(self.objectives)}"
            )
        if len(self.objectives) > 1 and self.pruner.name != "none":
            problems.append('pruner.name: several objectives cannot be pruned; write name = "none"')
        if len(self.objectives) > 1 and self.sampler.name == "cma_es":
            problems.append("sampler.name: cma_es knows one objective only; take tpe, gp, random or grid")
        if self.pruner.name == "wilcoxon" and self.seeds < WILCOXON_MIN_SEEDS:
            problems.append(
                f"pruner.name: wilcoxon compares trials seed by seed; it needs seeds = {WILCOXON_MIN_SEEDS} or more"
            )
        earlier: list[str] = []
        for key, parameter in self.space.items():
            if parameter.when is not None and parameter.when.key not in earlier:
                problems.append(
                    f"space.{key}.when.key: {parameter.when.key} must be a parameter of the space that stands before it"
                )
            earlier.append(key)
        return problems

    def for_profile(self, profile: ProfileName) -> "Study":
        """Return the study of a profile.

        Raises:
            UserError: The study has no such profile.
        """
        if profile == "full":
            return self
        if profile not in self.profiles:
            raise UserError(f"study {self.name} has no [profiles.{profile}] table; add one or run --profile full")
        return self.profiles[profile]


def same_value(left: Any, right: Any) -> bool:
    """Tell whether two values are equal; ``True`` and ``1`` are not, ``1`` and ``1.0`` are."""
    return left == right and isinstance(left, bool) == isinstance(right, bool)
