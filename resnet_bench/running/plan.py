"""Choose the profile of each benchmark."""

from dataclasses import dataclass

from resnet_bench.execution.execution import Execution
from resnet_bench.recipe.benchmark import ProfileName

SHORT_SECONDS = 900.0
"""A whole recipe that is estimated to take no longer is run in full without a GPU, too."""


@dataclass(frozen=True)
class ProfileChoice:
    """Which profile is run, and why."""

    profile: ProfileName
    reason: str


def choose_profile(
    asked: ProfileName | None, execution: Execution, *, real_data: bool, full_seconds: float
) -> ProfileChoice:
    """``full`` where there are real images and a GPU, or little to do; else ``smoke``, unless one was asked for.

    Args:
        asked: What the user wants.
        execution: Where it would run.
        real_data: Whether there are images that a claim can be judged on.
        full_seconds: About how long the whole recipe takes.
    """
    if asked is not None:
        return ProfileChoice(asked, "as asked")
    if not real_data:
        return ProfileChoice("smoke", "there is no real CIFAR here; resnet-bench data prepare fetches it")
    if execution.device_type != "cpu":
        return ProfileChoice("full", "there are a GPU and real images")
    if full_seconds <= SHORT_SECONDS:
        return ProfileChoice("full", "it takes minutes, even without a GPU")
    return ProfileChoice("smoke", "there is no GPU here; --profile full trains as published, in hours or days")
