"""Seeds that one command was to train: a verdict needs all of them, or the rest might be a selection.

A plan is kept with each run as text such as ``0-9,12``. Stores hold plans of several commands; together they are one.
"""

import re
from collections.abc import Iterable

from resnet_bench.base.text import plural

MAX_PLANNED = 100_000
"""Seeds per plan; text that stands for more is not a plan."""
_PLAN = re.compile(r"\d{1,19}(-\d{1,19})?(,\d{1,19}(-\d{1,19})?)*", re.ASCII)


def seeds_text(seeds: Iterable[int]) -> str:
    """Return seeds as text, consecutive ones as a range: ``0-9,12``."""
    ranges: list[list[int]] = []
    for seed in sorted(set(seeds)):
        if ranges and seed == ranges[-1][1] + 1:
            ranges[-1][1] = seed
        else:
            ranges.append([seed, seed])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def parse_seeds(text: str) -> frozenset[int]:
    """Return the seeds that a text stands for; none where it is not a plan."""
    if not _PLAN.fullmatch(text):
        return frozenset()
    ends = [[int(end) for end in part.split("-")] for part in text.split(",")]
    if any(each[0] > each[-1] for each in ends):
        return frozenset()
    ranges = [range(each[0], each[-1] + 1) for each in ends]
    if sum(each[-1] + 1 - each[0] for each in ends) > MAX_PLANNED:
        return frozenset()
    return frozenset(seed for each in ranges for seed in each)


def missing_sentence(missing: Iterable[int]) -> str:
    """Say which planned seeds have not finished."""
    return _sentence(missing, "did not finish", "did not finish")


def left_out_sentence(left_out: Iterable[int]) -> str:
    """Say which planned seeds finished and are not among those that are judged."""
    return _sentence(left_out, "finished before and is left out", "finished before and are left out")


def _sentence(seeds: Iterable[int], of_one: str, of_several: str) -> str:
    listed = sorted(seeds)
    shown = seeds_text(listed).replace(",", ", ")
    if len(shown) > 60:
        shown = f"{shown[:60].rpartition(', ')[0]}, …"
    return f"{plural(len(listed), 'planned seed')} {of_one if len(listed) == 1 else of_several} ({shown})"
