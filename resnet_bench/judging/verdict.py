"""Judge what runs say about a claim, and decide whether they may be judged at all.

Pure functions over plain numbers: accuracies are in percent, gaps in percentage points.
``docs/statistics.md`` explains each rule and its error rates.
"""

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from resnet_bench.judging.intervals import (
    Interval,
    image_variance,
    mean_interval,
    prediction_interval,
    standard_deviation,
)
from resnet_bench.judging.planned import left_out_sentence, missing_sentence
from resnet_bench.recipe.claims import Claim

Word = Literal["reproduced", "not reproduced", "exceeded", "inconclusive", "not judged"]

MIN_SEEDS = 3
"""Fewer seeds than this never judge a claim."""
RECOMMENDED_SEEDS = 5


# --- what may be judged --------------------------------------------------------------------------


def apart(profile: str, *, generated: bool) -> bool:
    """Return whether runs were made to try the software: in the smoke profile or on generated images."""
    return profile != "full" or generated


def obstacles(
    profile: str, *, generated: bool, same_dataset: bool = True, changed: Sequence[str] = ()
) -> tuple[str, ...]:
    """List why runs may not be judged by their source's claims; empty where they may.

    Args:
        profile: The profile of the runs.
        generated: The runs were made from generated images.
        same_dataset: The runs used the dataset that the claims are about.
        changed: Recipe keys in which the runs differ from the benchmark.
    """
    found = []
    if profile != "full":
        found.append("smoke profile")
    if generated:
        found.append("generated images")
    if not same_dataset:
        found.append("another dataset")
    if changed:
        found.append(f"changed recipe: {', '.join(changed)}")
    return tuple(found)


def may_judge(profile: str, *, generated: bool, same_dataset: bool = True, changed: Sequence[str] = ()) -> bool:
    """Return whether runs may be judged by their source's claims; see :func:`obstacles`."""
    return not obstacles(profile, generated=generated, same_dataset=same_dataset, changed=changed)


# --- the number that a claim is about ------------------------------------------------------------


def last_evaluation(accuracies: Mapping[int, float]) -> float | None:
    """Return the accuracy at the last epoch; None where nothing was evaluated."""
    return accuracies[max(accuracies)] if accuracies else None


def best_evaluation(accuracies: Mapping[int, float]) -> float | None:
    """Return the highest accuracy of any epoch; None where nothing was evaluated."""
    return max(accuracies.values(), default=None)


def selected(claim: Claim, accuracies: Mapping[int, float]) -> float | None:
    """Return a run's accuracy by the statistic that the claim states.

    Args:
        claim: The claim; its ``selection`` names the epoch. ``unknown`` counts as ``last`` here.
        accuracies: Accuracy under the epoch after which it was measured, on the claim's split.

    Returns:
        The accuracy, or None where the run was not evaluated at that epoch.
    """
    if claim.selection == "best":
        return best_evaluation(accuracies)
    if claim.selection == "epoch":
        return None if claim.epoch is None else accuracies.get(claim.epoch)
    return last_evaluation(accuracies)


def claimed_number(claim: Claim, mean: float) -> float:
    """Return the number of a claim that a mean is measured from: its value, its bound, or its nearest end."""
    low, high = claim.interval
    if claim.value is not None:
        return float(claim.value)
    return min(max(mean, low), high) if claim.range is not None else low


# --- the verdict ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What our runs say about a claim. Every number is in percent or, for the gap, in percentage points."""

    word: Word
    reason: str
    """Why, in one sentence that can stand beside the word."""
    n: int
    """Number of seeds."""
    mean: float | None = None
    sd: float | None = None
    interval: Interval | None = None
    """95% t interval of our mean: what a table prints."""
    decision_interval: Interval | None = None
    """90% t interval of our mean, two one-sided tests at 5%: what is compared with the claim. Where our images are
    others than the source's, it allows for that."""
    prediction: Interval | None = None
    """95% prediction interval for as many further runs of ours as the claim rests on, on the source's images."""
    gap: float | None = None
    """Our mean minus the claim; 0 inside a claimed range. None where the two cannot be compared."""
    reached: int | None = None
    """Seeds at or above an "at least" claim."""
    detectable: float | None = None
    """Where inconclusive: the smallest gap beyond the claim that these seeds would have shown with 80% power."""


def verdict(
    claim: Claim,
    runs: Sequence[Mapping[int, float]],
    *,
    profile: str,
    generated: bool,
    same_dataset: bool = True,
    changed: Sequence[str] = (),
    missing: Collection[int] = (),
    left_out: Collection[int] = (),
    other_images: int | None = None,
) -> Verdict:
    """Judge our runs by a claim, using the statistic that the claim states.

    Where the source does not say which epoch its number is from, both the last and the best are judged, and
    the verdict is inconclusive when they lead to different words.

    Args:
        claim: What the source claims.
        runs: For each seed, its accuracy in percent on the claim's split, under the epoch it was measured after.
        profile: The profile of the runs.
        generated: The runs were made from generated images.
        same_dataset: The runs used the dataset that the claim is about.
        changed: Recipe keys in which the runs differ from the benchmark.
        missing: Seeds that were planned with these runs and did not finish; the runs alone may be a selection.
        left_out: Seeds that were planned with them, finished, and are not among them: likewise.
        other_images: How many images ours were measured on, where they are others than the source's, of which there
            are as many; None where they are the same.

    Returns:
        The verdict, with the numbers that it rests on.
    """
    values = _finite(selected(claim, run) for run in runs)
    found = obstacles(profile, generated=generated, same_dataset=same_dataset, changed=changed)
    described = _describe(claim, values, other_images, with_gap=not found)
    absent = [missing_sentence(missing)] if missing else []
    absent += [left_out_sentence(left_out)] if left_out else []
    if reasons := (*found, *absent, *_too_few(claim, values)):
        return replace(described, reason="; ".join(reasons))
    word, reason = _judge(claim, values, other_images)
    decided_apart = False
    if claim.selection == "unknown":
        best_word, best_reason = _judge(claim, _finite(best_evaluation(run) for run in runs), other_images)
        if best_word != word:
            reason = (
                "the source does not say which epoch its number is from: "
                f"the last would be {word} ({reason}), the best {best_word} ({best_reason})"
            )
            decided_apart = "inconclusive" not in (word, best_word)
            word = "inconclusive"
    advice = "add seeds"
    if other_images is not None:
        reason += f"; the {other_images:,} {claim.split} images are not the source's, and the intervals allow for that"
        # The chance of the images is as large with any number of seeds.
        advice = "take the images from the published archive, which has the source's"
    # More seeds make two words that differ no more alike.
    if decided_apart or word != "inconclusive":
        return replace(described, word=word, reason=reason)
    detectable = _detectable(claim, values, other_images)
    seen = f"gaps below {detectable:.2f} pp are seen with less than 80% power"
    return replace(described, word=word, reason=f"{reason}; {seen}; {advice}", detectable=detectable)


def describe(values: Sequence[float]) -> Verdict:
    """Return the numbers of runs whose source claims nothing."""
    return Verdict(
        word="not judged",
        reason="the source claims no number",
        n=len(values),
        mean=statistics.fmean(values) if values else None,
        sd=standard_deviation(values) if len(values) > 1 else None,
        interval=mean_interval(values),
        decision_interval=mean_interval(values, confidence=0.90),
        prediction=prediction_interval(values),
    )


def _finite(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _describe(claim: Claim, values: Sequence[float], other_images: int | None, *, with_gap: bool) -> Verdict:
    decision, prediction = _compared(claim, values, other_images)
    described = replace(describe(values), decision_interval=decision, prediction=prediction)
    if described.mean is None:
        return described
    return replace(
        described,
        gap=described.mean - claimed_number(claim, described.mean) if with_gap else None,
        reached=_reached(claim, values),
    )


def _compared(
    claim: Claim, values: Sequence[float], other_images: int | None
) -> tuple[Interval | None, Interval | None]:
    """Return the two intervals that are compared with a claim: of our mean, and of further runs of ours."""
    chance = _chance(values, other_images)
    decision = mean_interval(values, confidence=0.90, known_variance=chance)
    return decision, prediction_interval(values, claim.runs, known_variance=chance)


def _chance(values: Sequence[float], other_images: int | None) -> float:
    """Return the variance that other images than the claim's add to a comparison with it, in squared points."""
    return image_variance(statistics.fmean(values), other_images) if other_images and values else 0.0


def _detectable(claim: Claim, values: Sequence[float], other_images: int | None) -> float:
    # Numpy and scipy.optimize, which most verdicts do without.
    from resnet_bench.judging.power import smallest_gap

    chance = _chance(values, other_images)
    return smallest_gap(standard_deviation(values), len(values), claim.runs, image_variance=chance)


def _reached(claim: Claim, values: Sequence[float]) -> int | None:
    return None if claim.at_least is None else sum(value >= claim.at_least for value in values)


def _too_few(claim: Claim, values: Sequence[float]) -> tuple[str, ...]:
    if not values:
        at = f" at epoch {claim.epoch}" if claim.selection == "epoch" else ""
        return (f"no finished run with {claim.split} accuracy{at}",)
    if len(values) < MIN_SEEDS:
        seeds = "1 seed" if len(values) == 1 else f"{len(values)} seeds"
        return (f"{seeds}: {', '.join(f'{value:.2f}' for value in values)}",)
    return ()


def _judge(claim: Claim, values: Sequence[float], other_images: int | None) -> tuple[Word, str]:
    claimed = Interval(*claim.interval)
    allowed = Interval(claimed.low - claim.margin, claimed.high + claim.margin)
    ours, further = _compared(claim, values, other_images)
    if ours is None or further is None:
        return "not judged", f"{len(values)} of the runs have a number, and one has no interval"
    reached = _reached(claim, values)
    seeds = "" if reached is None else f"; {reached} of {len(values)} seeds reached {claim.at_least:g}%"
    runs = "one more run of ours" if claim.runs == 1 else f"the mean of {claim.runs} more runs of ours"
    where = "" if other_images is None else " on the source's images"
    would_fall = f"{runs}{where} would fall in {_shown(further)}"
    if ours.within(allowed):
        return "reproduced", f"the 90% CI of our mean, {_shown(ours)}, lies in {_shown(allowed)}{seeds}"
    if further.high < claimed.low:
        return "not reproduced", f"{would_fall}, below {claim.text}{seeds}"
    if further.low > claimed.high:
        return "exceeded", f"{would_fall}, above {claim.text}{seeds}"
    return "inconclusive", f"{would_fall}, which leaves {claim.text} open{seeds}"


def _shown(interval: Interval) -> str:
    if math.isinf(interval.high):
        return f"{interval.low:.2f} and above"
    return f"{interval.low:.2f} to {interval.high:.2f}"
