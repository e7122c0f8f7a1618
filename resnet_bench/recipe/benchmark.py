"""What a benchmark is: a source, its claims and one recipe, as a strict schema.

Everything that decides a result is a field of :class:`Recipe`; nothing that only decides the speed is.
Two runs whose recipes have the same :meth:`Recipe.fingerprint` are repeats of one experiment.
"""

from typing import Annotated, Literal, Self, get_args

from pydantic import (
    Field,
    model_validator,
)

from resnet_bench.base.errors import UserError
from resnet_bench.base.names import MAX_NAME_LENGTH, NAME_PATTERN, unknown_name
from resnet_bench.recipe.changes import OPTIONS_PREFIX
from resnet_bench.recipe.claims import Claim
from resnet_bench.recipe.recipe import Recipe, recipe_keys
from resnet_bench.recipe.schema import ADDRESS_PATTERN, Schema

ProfileName = Literal["full", "smoke"]

PROFILES: tuple[ProfileName, ...] = get_args(ProfileName)


class Fact(Schema):
    """One fact of a recipe and how sure it is."""

    fact: str
    status: Literal["stated", "recovered", "inferred", "ambiguous"]
    keys: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Dotted recipe keys that rest on this fact, such as ``optimizer.lr``."""
    alternative: str | None = None
    """For an ambiguous fact: the other reading, and the benchmark that runs it where there is one."""


class Source(Schema):
    """Who published the recipe, and what its parts rest on."""

    title: str
    kind: Literal["tutorial", "blog", "course", "paper", "variant", "tuned", "ours"]
    author: str | None = None
    published: str | None = None
    url: Annotated[str, Field(pattern=ADDRESS_PATTERN)] | None = None
    notes: str | None = None
    compares_with: Annotated[str, Field(pattern=NAME_PATTERN, max_length=MAX_NAME_LENGTH)] | None = None
    """The benchmark of a source that reaches for the same accuracy, for a recipe of our own."""
    facts: Annotated[tuple[Fact, ...], Field(strict=False)] = ()


class Tuned(Schema):
    """What the study that found a tuned recipe measured; written by ``resnet-bench study export``."""

    study: str
    trials: Annotated[int, Field(ge=1)]
    validation_source: float
    """Validation accuracy of the source's settings in the study, percent."""
    validation_tuned: float
    test_source: float | None = None
    """Mean test accuracy of the source's settings retrained with fresh seeds, percent."""
    test_tuned: float | None = None
    test_difference: float | None = None
    test_interval: Annotated[tuple[float, float], Field(strict=False)] | None = None
    """95% interval of the difference, points."""
    seeds: Annotated[int, Field(ge=0)] = 0


class Benchmark(Schema):
    """One file of ``benchmarks/``: a source, its claims and one recipe."""

    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=MAX_NAME_LENGTH)]
    extends: str | None = None
    source: Source
    claims: Annotated[tuple[Claim, ...], Field(strict=False)] = ()
    recipe: Recipe
    profiles: dict[Literal["smoke"], Recipe] = Field(default_factory=dict)
    """The whole recipe of each profile, its differences already merged in."""
    tuned: Tuned | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        for claim in self.claims:
            if claim.epoch is not None and claim.epoch > self.recipe.training.epochs:
                raise ValueError(
                    f"claims: epoch {claim.epoch} lies beyond training.epochs = {self.recipe.training.epochs}"
                )
            if claim.curve is not None and claim.curve.epochs[-1] > self.recipe.training.epochs:
                raise ValueError(
                    f"claims: the curve runs to epoch {claim.curve.epochs[-1]}, beyond training.epochs = "
                    f"{self.recipe.training.epochs}"
                )
            if claim.metric == "accuracy_augmented" and self.recipe.evaluation.test_time_augmentation is None:
                raise ValueError('claims: metric = "accuracy_augmented" needs evaluation.test_time_augmentation')
            if claim.metric == "accuracy_augmented" and claim.selection != "last":
                raise ValueError('claims: metric = "accuracy_augmented" is measured after the last epoch only')
            if claim.split == "validation" and self.recipe.data.validation is None:
                raise ValueError('claims: split = "validation" needs recipe.data.validation')
        valid = recipe_keys()
        for fact in self.source.facts:
            for key in fact.keys:
                if key not in valid and not key.startswith(OPTIONS_PREFIX):
                    raise ValueError(f"source.facts: {unknown_name('recipe key', key, valid)}")
        return self

    def recipe_for(self, profile: ProfileName) -> Recipe:
        """The recipe of a profile.

        Raises:
            UserError: The benchmark has no such profile.
        """
        if profile == "full":
            return self.recipe
        if profile not in self.profiles:
            raise UserError(f"benchmark {self.name} has no [profiles.{profile}] table; add one or run --profile full")
        return self.profiles[profile]
