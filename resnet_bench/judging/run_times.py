"""Compare times like with like: the time that a source states often includes more than training."""

from collections.abc import Sequence
from dataclasses import dataclass

from resnet_bench.base.text import listed
from resnet_bench.recipe.claims import WallPart

_NAMES = {"setup": "set-up", "evaluation": "evaluation", "tta": "test-time augmentation"}


@dataclass(frozen=True)
class RunTimes:
    """What parts of a run took, in seconds.

    Attributes:
        train: The training steps.
        setup: From images in host memory to the first step, without compilation; None where it is not known.
        evaluation: Evaluations after epochs, without test-time augmentation (TTA); None where it is not known.
        tta: TTA; 0 where the recipe has none.
    """

    train: float
    setup: float | None = None
    evaluation: float | None = None
    tta: float = 0.0

    def including(self, parts: Sequence[WallPart] | None) -> float | None:
        """Return the seconds of training and of further parts; None where one, or which they are, is not known."""
        if parts is None:
            return None
        seconds: float | None = self.train
        if "setup" in parts:
            seconds = _sum(seconds, self.setup)
        if "evaluation" in parts:
            seconds = _sum(seconds, self.evaluation)
        # What is claimed by TTA is evaluated by it.
        return _sum(seconds, self.tta) if {"evaluation", "tta"} & set(parts) else seconds


def included(parts: Sequence[WallPart] | None) -> str:
    """Say what a time includes, such as ``evaluation included``; None stands for what nobody knows."""
    if parts is None:
        return "what it includes is not known"
    return f"{listed([_NAMES[part] for part in parts])} included" if parts else "training alone"


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other
