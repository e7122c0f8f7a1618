"""Times of runs that include what the time that a source states includes."""

from collections.abc import Sequence
from itertools import accumulate

from resnet_bench.judging.run_times import RunTimes
from resnet_bench.recipe.claims import Claim, WallPart
from resnet_bench.reporting.runs import Run
from resnet_bench.tracking.vocabulary import EVALUATION_SECONDS, FINAL_TTA_SECONDS, SETUP_SECONDS, TRAIN_SECONDS


def clock(run: Run, parts: Sequence[WallPart]) -> dict[int, float] | None:
    """Return the time of a run at the end of each epoch, in seconds.

    Args:
        run: Of one recipe.
        parts: What is counted beside training steps.

    Returns:
        By epoch; None where the run does not tell how long one of these parts took.
    """
    trained = run.series(TRAIN_SECONDS)
    evaluated = {epoch: seconds for epoch, seconds in run.series(EVALUATION_SECONDS).items() if epoch > 0}
    measured = {epoch for split in ("test", "validation") for epoch in run.series(f"{split}/accuracy") if epoch > 0}
    knows_evaluation = bool(measured) and measured <= evaluated.keys()
    so_far = dict(zip(evaluated, accumulate(evaluated.values()), strict=True))
    tta = run.number(FINAL_TTA_SECONDS) or 0.0
    found: dict[int, float] = {}
    for epoch, train in trained.items():
        before = [seconds for end, seconds in so_far.items() if end <= epoch]
        times = RunTimes(
            train,
            setup=run.number(SETUP_SECONDS),
            evaluation=(before[-1] if before else 0.0) if knows_evaluation else None,
            tta=tta if epoch == run.epochs else 0.0,
        )
        seconds = times.including(parts)
        if seconds is None:
            return None
        found[epoch] = seconds
    return found


def wall_seconds(run: Run, claim: Claim) -> float | None:
    """Return the whole time of a run with what the time of a claim includes, in seconds; None where it is not known."""
    times = None if claim.wall_includes is None else clock(run, claim.wall_includes)
    return times.get(run.epochs) if times and run.epochs is not None else None


def comparable_parts(runs: Sequence[Run], claims: Sequence[Claim]) -> Sequence[WallPart]:
    """Return what the time of the first claim that runs can be compared with includes; nothing where there is none."""
    for claim in claims:
        parts = claim.wall_includes
        if claim.wall_seconds is not None and parts is not None and all(clock(run, parts) is not None for run in runs):
            return parts
    return ()
