"""Which runs of an experiment count, where a seed finished more than once or seeds ran on several devices."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol, TypeVar


class Seeded(Protocol):
    """What decides which runs of an experiment count."""

    @property
    def id(self) -> str: ...

    @property
    def seed(self) -> int | None: ...

    @property
    def device(self) -> str: ...

    @property
    def started(self) -> datetime: ...


_Seeded = TypeVar("_Seeded", bound=Seeded)


def one_per_seed(runs: Sequence[_Seeded]) -> list[_Seeded]:
    """Return the finished runs of an experiment that count.

    Args:
        runs: Oldest first.

    Returns:
        For each seed its latest run on the device with most seeds; other devices add only the seeds that it lacks.
    """
    counted: dict[object, _Seeded] = {}
    for there in by_place(runs, lambda run: run.device).values():
        counted = {run.seed if run.seed is not None else run.id: run for run in there} | counted
    return list(counted.values())


def by_place(runs: Sequence[_Seeded], place_of: Callable[[_Seeded], str]) -> dict[str, list[_Seeded]]:
    """Return runs by their place: that of most seeds first, and of as many that of the latest run.

    Args:
        runs: Oldest first.
        place_of: Returns the name of a run's place.
    """
    places: dict[str, list[_Seeded]] = defaultdict(list)
    for run in runs:
        places[place_of(run)].append(run)

    def seeds_and_age(place: str) -> tuple[int, float]:
        return len({run.seed for run in places[place]}), places[place][-1].started.timestamp()

    return {place: places[place] for place in sorted(places, key=seeds_and_age, reverse=True)}
