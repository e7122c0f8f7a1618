"""Show on how many images the networks of two seeds differ: the floor under any other difference by image."""

import statistics
from typing import Any

from resnet_bench.base.text import DASH
from resnet_bench.reporting.runs import Run, RunGroup
from resnet_bench.reporting.sections.section import Grid, Results, Section, View, apart_badge, grid
from resnet_bench.reporting.wording import share


def build(results: Results) -> View | None:
    """Build the section; None where no two runs of an experiment kept predictions."""
    churn = {
        frozenset((row["run_id"], row["other_id"])): row["differing"] / row["images"]
        for row in results.tables.churn.to_dict("records")
        if row["images"] > 0
    }
    groups: list[dict[str, Any]] = []
    for group, label in results.labels.items():
        compared = [run for run in group.runs if any(run.id in pair for pair in churn)]
        values = [churn[pair] for pair in _pairs(compared) if pair in churn]
        if values:
            groups.append(
                {
                    "label": label,
                    "badge": apart_badge(group),
                    "median": share(statistics.median(values)),
                    "table": _matrix(group, compared, churn),
                }
            )
    return View({"groups": groups}) if groups else None


SECTION = Section("churn", "Churn between seeds", build)


def _pairs(runs: list[Run]) -> list[frozenset[str]]:
    return [frozenset((one.id, other.id)) for place, one in enumerate(runs) for other in runs[place + 1 :]]


def _matrix(group: RunGroup, runs: list[Run], churn: dict[frozenset[str], float]) -> Grid:
    def cell(one: Run, other: Run) -> str:
        found = churn.get(frozenset((one.id, other.id)))
        return DASH if one is other or found is None else share(found)

    titles = "|".join(("Seed", *(f"#{_seed(run)}" for run in runs)))
    return grid(f"Churn, {group.name}", titles, [[_seed(one), *(cell(one, other) for other in runs)] for one in runs])


def _seed(run: Run) -> str:
    return run.id[:8] if run.seed is None else str(run.seed)
