"""Write numbers the same way in the terminal, in Markdown and on the page."""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime

from resnet_bench.base.text import DASH, duration
from resnet_bench.judging.intervals import Interval, standard_deviation
from resnet_bench.judging.target import TimesToAccuracy
from resnet_bench.judging.verdict import Verdict

VERDICT_MARKS = {
    "reproduced": "●",
    "exceeded": "▲",
    "not reproduced": "✕",
    "inconclusive": "◐",
    "not judged": "○",
}
"""A mark beside each word, so that no color carries a meaning alone."""


def number(value: float | None, digits: int = 2, unit: str = "") -> str:
    """Return a number with a fixed number of digits, or a dash."""
    if value is None or math.isnan(value):
        return DASH
    return f"∞{unit}" if math.isinf(value) else f"{value:,.{digits}f}{unit}"


def markdown_text(value: object) -> str:
    """Return a text in which nothing is Markdown or HTML, on one line."""
    single = " ".join(str(value).split())
    return re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", single).replace("\\<", "&lt;").replace("\\>", "&gt;")


def accuracy_name(split: str, metric: str) -> str:
    """Return what an accuracy is called: ``test accuracy``, or ``test accuracy (TTA)``."""
    return f"{split} accuracy{' (TTA)' if metric == 'accuracy_tta' else ''}"


def signed(value: float | None, digits: int = 2) -> str:
    """Return a difference with its sign, or a dash."""
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def interval(ends: Interval | None, digits: int = 2) -> str:
    """Return both ends of an interval, or nothing where there is none."""
    if ends is None:
        return ""
    return f"{number(ends.low, digits)} to {number(ends.high, digits)}"


def signed_interval(ends: Interval) -> str:
    """Return both ends of an interval of a difference, with their signs."""
    return f"{signed(ends.low)} to {signed(ends.high)}"


def mean_with_interval(verdict: Verdict) -> str:
    """Return a mean with half the width of its 95% CI, such as ``82.61 ± 0.35``."""
    if verdict.mean is None:
        return DASH
    if verdict.interval is None:
        return number(verdict.mean)
    return f"{verdict.mean:.2f} ± {verdict.interval.high - verdict.mean:.2f}"


def assignments(values: Mapping[str, object]) -> str:
    """Return recipe keys with their values, such as ``training.epochs = 9``, separated by commas."""
    return ", ".join(f"{key} = {value}" for key, value in values.items())


def size(count: float | None) -> str:
    """Return bytes in powers of two, such as ``1.4 GiB``."""
    return _scaled(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def flops(rate: float | None) -> str:
    """Return floating-point operations per second, such as ``12.3 TFLOP/s``."""
    return _scaled(rate, 1000, ("FLOP/s", "kFLOP/s", "MFLOP/s", "GFLOP/s", "TFLOP/s", "PFLOP/s"))


def energy(joules: float | None) -> str:
    """Return energy, such as ``12.3 kJ``."""
    return _scaled(joules, 1000, ("J", "kJ", "MJ", "GJ"))


def share(fraction: float | None) -> str:
    """Return a fraction as whole percent or, below ten, with one digit."""
    if fraction is None or not math.isfinite(fraction):
        return DASH
    return f"{100 * fraction:.{0 if fraction >= 0.1 else 1}f}%"


def held(times: TimesToAccuracy) -> str:
    """Return how many runs held a target and from when, such as ``3 of 5 held it; 4 min 10 s (4 min 1 s to ∞)``."""
    if times.reached == 0:
        return f"0 of {len(times.times)} held it"
    low, high = times.range
    return (
        f"{times.reached} of {len(times.times)} held it; {duration(times.median)} ({duration(low)} to {duration(high)})"
    )


def seeds(values: Mapping[str, float]) -> str:
    """Return accuracies with the seeds that they belong to."""
    return ", ".join(f"{seed}: {value:.2f}" for seed, value in values.items()) or DASH


def mean_of(values: Sequence[float]) -> str:
    """Return the mean of accuracies in percent, with the SD across seeds where there are several."""
    if not values:
        return DASH
    spread = f" (SD {standard_deviation(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}%{spread}"


def moment(time: datetime) -> str:
    """Return a date and time to the minute."""
    return time.strftime("%Y-%m-%d %H:%M")


def _scaled(value: float | None, base: int, units: Sequence[str]) -> str:
    if value is None or not math.isfinite(value):
        return DASH
    place = 0
    while abs(value) >= base and place < len(units) - 1:
        value /= base
        place += 1
    digits = 0 if place == 0 or abs(value) >= 100 else 1
    return f"{value:.{digits}f} {units[place]}"
