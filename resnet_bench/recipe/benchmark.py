"""The schema of a benchmark: a source with its facts, its claims, one recipe and its profiles."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from resnet_bench.base.errors import UserError
from resnet_bench.base.names import MAX_NAME_LENGTH, NAME_PATTERN, unknown_name
from resnet_bench.recipe.changes import OPTIONS_PREFIX
from resnet_bench.recipe.claims import Claim
from resnet_bench.recipe.recipe import Recipe, recipe_keys
from resnet_bench.recipe.schema import ADDRESS_PATTERN, BrokenRules, Schema

ProfileName = Literal["full", "smoke"]

PROFILES: tuple[ProfileName, ...] = get_args(ProfileName)


class Fact(Schema):
    """One fact of a recipe and how sure it is."""

    fact: str
    """The fact in one sentence."""
    status: Literal["stated", "recovered", "inferred", "ambiguous"]
    """How sure it is: stated by the source, recovered from its code, inferred, or ambiguous."""
    keys: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Dotted recipe keys that this fact supports, such as ``optimizer.lr``."""
    alternative: str | None = None
    """The other reading of an ambiguous fact, and the benchmark that runs it, if any."""


class Source(Schema):
    """Who published the recipe, and the facts that support it."""

    title: str
    """The title of the publication."""
    kind: Literal["tutorial", "blog", "course", "paper", "variant", "tuned", "ours"]
    """What was published; ``ours`` for your own recipe."""
    author: str | None = None
    """Who wrote it."""
    published: str | None = None
    """The date, such as ``2015-12-10``."""
    url: Annotated[str, Field(pattern=ADDRESS_PATTERN)] | None = None
    """Its address."""
    notes: str | None = None
    """Whatever else readers should know."""
    compares_with: Annotated[str, Field(pattern=NAME_PATTERN, max_length=MAX_NAME_LENGTH)] | None = None
    """For our own recipes: the benchmark of a source that aims at the same accuracy."""
    facts: Annotated[tuple[Fact, ...], Field(strict=False)] = ()
    """What the keys of the recipe rest on."""


class Tuned(Schema):
    """Results of the study that found a tuned recipe; written by ``resnet-bench study export``."""

    study: str
    """Name of the study."""
    trials: Annotated[int, Field(ge=1)]
    """Number of finished trials."""
    validation_source: float
    """Validation accuracy of the source hyperparameters in the study, in percent."""
    validation_tuned: float
    """Validation accuracy of the best trial, in percent."""
    test_source: float | None = None
    """Mean test accuracy of the source hyperparameters retrained with new seeds, in percent."""
    test_tuned: float | None = None
    """Mean test accuracy of the tuned hyperparameters, likewise."""
    test_difference: float | None = None
    """Tuned minus source, in percentage points."""
    test_interval: Annotated[tuple[float, float], Field(strict=False)] | None = None
    """95% CI of the difference, in percentage points."""
    seeds: Annotated[int, Field(ge=0)] = 0
    """Number of new seeds that each was retrained with."""


class Benchmark(Schema):
    """One file of ``benchmarks/``: a source, its claims and one recipe."""

    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=MAX_NAME_LENGTH)]
    extends: str | None = None
    """The benchmark whose source, recipe and profiles this file inherits."""
    suites: Annotated[tuple[Annotated[str, Field(pattern=NAME_PATTERN)], ...], Field(strict=False)] = ()
    """What it belongs to: ``run @depth`` trains every benchmark of the suite ``depth``. Never inherited."""
    source: Source
    """Who published the recipe."""
    claims: Annotated[tuple[Claim, ...], Field(strict=False)] = ()
    """The accuracies that the source states; runs are judged by the first one about the test set."""
    recipe: Recipe
    """Everything that decides the result."""
    profiles: dict[Literal["smoke"], Recipe] = Field(default_factory=dict)
    """``[profiles.smoke]``: changes that make a run of minutes, which tries the software and is never judged."""
    # Once a file is loaded, each is a whole recipe with these changes merged in.
    tuned: Tuned | None = None
    """What a study found, in a file that ``study export`` wrote."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if broken := [*self._broken_claims(), *self._broken_facts()]:
            raise BrokenRules(broken)
        return self

    def _broken_claims(self) -> Iterator[str]:
        epochs = self.recipe.training.epochs
        for claim in self.claims:
            if claim.epoch is not None and claim.epoch > epochs:
                yield f"claims: epoch {claim.epoch} lies beyond training.epochs = {epochs}"
            if claim.curve is not None and claim.curve.epochs[-1] > epochs:
                last = claim.curve.epochs[-1]
                yield f"claims: the curve runs to epoch {last}, beyond training.epochs = {epochs}"
            if claim.is_tta and self.recipe.evaluation.test_time_augmentation is None:
                yield f'claims: metric = "{claim.metric}" needs evaluation.test_time_augmentation'
            if claim.is_tta and claim.selection != "last":
                yield f'claims: metric = "{claim.metric}" is measured after the last epoch only'
            if claim.split == "validation" and self.recipe.data.validation is None:
                yield 'claims: split = "validation" needs recipe.data.validation'

    def _broken_facts(self) -> Iterator[str]:
        valid = recipe_keys()
        for fact in self.source.facts:
            for key in fact.keys:
                if key not in valid and not key.startswith(OPTIONS_PREFIX):
                    yield f"source.facts: {unknown_name('recipe key', key, valid)}"

    @property
    def test_claim(self) -> Claim | None:
        """The claim that runs are judged by: the first one about the test set."""
        return next((claim for claim in self.claims if claim.split == "test"), None)

    def recipe_for(self, profile: ProfileName) -> Recipe:
        """Return the recipe of a profile.

        Raises:
            UserError: The benchmark has no such profile.
        """
        if profile == "full":
            return self.recipe
        if profile not in self.profiles:
            raise UserError(f"benchmark {self.name} has no [profiles.{profile}] table; add one or run --profile full")
        return self.profiles[profile]
