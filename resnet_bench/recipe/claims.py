"""Claims of a source, in percent, with its published learning curve."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from resnet_bench.base.names import shown
from resnet_bench.recipe.schema import PRINTED_NUMBER, Schema, rises
from resnet_bench.recipe.settings import SplitName

REPRODUCTION_MARGIN = 1.0
"""Percentage points by which our mean may miss a claimed number and still reproduce it (see docs/statistics.md)."""

WallPart = Literal["setup", "evaluation", "tta"]


class Curve(Schema):
    """A learning curve that the source prints."""

    epochs: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)]
    """Epochs of the points, rising; 0 is before training."""
    values: Annotated[tuple[Annotated[float, Field(ge=0, le=100)], ...], Field(strict=False)]
    """Accuracy at the end of each of these epochs, in percent."""
    note: str | None = None
    """The recipe that the curve belongs to, where it is another one."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.epochs) != len(self.values) or not self.epochs:
            raise ValueError(
                f"a curve needs as many values as epochs, got {len(self.epochs)} epochs and {len(self.values)} values"
            )
        if not rises(self.epochs):
            raise ValueError(f"the epochs of a curve must rise, got {shown(list(self.epochs))}")
        return self


def _current_metric(value: Any) -> Any:
    """Return today's name of a metric; files of version 0.1.0 stay valid."""
    return "accuracy_tta" if value == "accuracy_augmented" else value


class Claim(Schema):
    """One accuracy that the source states, in percent.

    Give exactly one of ``value``, ``at_least`` and ``range``. The page on statistics says how runs are judged by it.
    """

    metric: Annotated[Literal["accuracy", "accuracy_tta"], BeforeValidator(_current_metric)] = "accuracy"
    """What was measured: ``accuracy`` by the source's protocol, ``accuracy_tta`` with test-time augmentation."""
    split: SplitName = "test"
    """The split that it was measured on."""
    value: Annotated[str, Field(pattern=PRINTED_NUMBER)] | None = None
    """The number exactly as printed, in quotation marks: ``"82.87"``. Its last digit says how far it was rounded."""
    at_least: Annotated[float, Field(ge=0, le=100)] | None = None
    """The bound where the source says "at least" or "over": ``90.0``."""
    range: (
        Annotated[
            tuple[Annotated[float, Field(ge=0, le=100)], Annotated[float, Field(ge=0, le=100)]],
            Field(strict=False),
        ]
        | None
    ) = None
    """Both ends where the source gives a range: ``[62.0, 63.0]``."""
    selection: Literal["last", "best", "epoch", "unknown"] = "last"
    """Which epoch of the source's run the number is from: the last, the best, a certain one, or unknown."""
    epoch: Annotated[int, Field(ge=0)] | None = None
    """That epoch, with ``selection = "epoch"``."""
    runs: Annotated[int, Field(ge=1)] = 1
    """How many runs of the source the number is the mean of."""
    curve: Curve | None = None
    """The learning curve that the source prints."""
    wall_seconds: Annotated[float, Field(gt=0)] | None = None
    """The training time that the source states, in seconds."""
    wall_includes: Annotated[tuple[WallPart, ...], Field(strict=False)] | None = None
    """What that time includes beside the training steps: ``evaluation`` after epochs, ``setup`` before the first step,
    ``tta`` alone; ``[]`` for nothing. Without it nobody knows, and no time of ours is compared with it."""
    quote: str | None = None
    """The claim word for word, so that readers find it in the source."""

    @model_validator(mode="after")
    def _one_number(self) -> Self:
        given = [name for name in ("value", "at_least", "range") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a claim needs exactly one of value, at_least and range, got {', '.join(given) or 'none'}"
            )
        if self.value is not None and float(self.value) > 100:
            raise ValueError(f"value is a percentage, got {self.value!r}")
        if self.range is not None and self.range[0] > self.range[1]:
            raise ValueError(f"range runs from low to high, got {list(self.range)}")
        if self.wall_includes is not None and self.wall_seconds is None:
            raise ValueError("wall_includes says what wall_seconds includes; give that, too")
        if (self.selection == "epoch") != (self.epoch is not None):
            raise ValueError('epoch = … and selection = "epoch" are given together')
        return self

    @property
    def is_tta(self) -> bool:
        """Whether the claim is about the TTA accuracy."""
        return self.metric != "accuracy"

    @property
    def interval(self) -> tuple[float, float]:
        """Lowest and highest value, in percent, that is printed as the claim."""
        if self.at_least is not None:
            return self.at_least, math.inf
        if self.range is not None:
            return self.range
        if self.value is None:
            raise ValueError("a claim needs exactly one of value, at_least and range")
        digits = len(self.value.partition(".")[2])
        half_unit = 0.5 * 10.0**-digits
        return float(self.value) - half_unit, float(self.value) + half_unit

    @property
    def margin(self) -> float:
        """Percentage points added on both sides of the interval before a mean is compared with it."""
        return REPRODUCTION_MARGIN if self.value is not None else 0.0

    @property
    def text(self) -> str:
        """The claim as tables print it, such as ``82.87%``, ``≥ 90%``, ``62–63%`` or ``≥ 94% (TTA)``."""
        suffix = " (TTA)" if self.is_tta else ""
        if self.at_least is not None:
            return f"≥ {self.at_least:g}%{suffix}"
        if self.range is not None:
            return f"{self.range[0]:g}–{self.range[1]:g}%{suffix}"
        return f"{self.value}%{suffix}"
