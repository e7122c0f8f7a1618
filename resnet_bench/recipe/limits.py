"""Limits of what a change may cost each benchmark: ``limits.toml``, which ``compare --fail-on-regression`` reads."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from resnet_bench.base.errors import UserError
from resnet_bench.base.names import NAME_PATTERN, unknown_name
from resnet_bench.recipe.benchmark import ProfileName
from resnet_bench.recipe.schema import BrokenRules, Schema, parse
from resnet_bench.recipe.toml_files import read_toml

LIMITS_FILE = Path("limits.toml")
"""In the working directory; what is read where no other file is named."""


LEAST_TIME_FACTOR = 1.05
"""Smaller changes of a time are never flagged; see ``judging/intervals``."""


class Limit(Schema):
    """What one benchmark may lose."""

    benchmark: Annotated[str, Field(pattern=NAME_PATTERN)]
    """Its name."""
    device: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    """Only on this device: cpu, cuda or mps, or a part of its name, such as H200; on every device by default."""
    profile: ProfileName | None = None
    """Only in this profile; in each by default."""
    drop: Annotated[float, Field(ge=0, le=100)] | None = None
    """Percentage points by which the accuracy may fall."""
    time_factor: Annotated[float, Field(ge=LEAST_TIME_FACTOR, le=100)] | None = None
    """How many times as long an epoch may take, at least 1.05."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.drop is None and self.time_factor is None:
            raise ValueError("limits nothing: give drop, time_factor or both")
        return self

    @property
    def scope(self) -> str:
        """What it is for, such as ``he-resnet20, smoke, on H200``."""
        profile = f", {self.profile}" if self.profile else ""
        return f"{self.benchmark}{profile}{f', on {self.device}' if self.device else ''}"


class LimitsFile(Schema):
    """A file of limits."""

    limits: Annotated[tuple[Limit, ...], Field(strict=False)]
    """Each is checked by itself."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        # As a length it would be reported in place of what is wrong in the first limit.
        if not self.limits:
            raise ValueError("limits: there is none")
        scopes = [limit.scope for limit in self.limits]
        if twice := [scope for place, scope in enumerate(scopes) if scope in scopes[:place]]:
            raise BrokenRules([f"limits: {scope} is there twice" for scope in dict.fromkeys(twice)])
        return self


def load_limits(path: Path) -> tuple[Limit, ...]:
    """Load a file of limits.

    Raises:
        UserError: The file is missing or wrong.
    """
    return parse(LimitsFile, read_toml(path), where=str(path)).limits


def check_names(limits: Iterable[Limit], known: Iterable[str], *, where: Path) -> None:
    """Check that each limit is of a benchmark that exists: a mistyped name would limit nothing.

    Raises:
        UserError: One is not, with the nearest name.
    """
    names = set(known)
    for place, limit in enumerate(limits):
        if limit.benchmark not in names:
            raise UserError(f"{where}: limits[{place}].benchmark: {unknown_name('benchmark', limit.benchmark, names)}")
