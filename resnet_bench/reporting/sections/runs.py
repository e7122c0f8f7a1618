"""Show where every number is from: stores, environments, runs, and the rules of the verdicts."""

import json
from collections import defaultdict
from typing import Any

from resnet_bench.base.text import DASH, plural
from resnet_bench.reporting.runs import Run
from resnet_bench.reporting.sections.section import Results, Section, View, apart_badge, runs_grid


def build(results: Results) -> View:
    """Build the section; it is never empty, as it states the rules."""
    several = results.several_stores
    unfinished = [run for run in results.runs if run.role == "run" and not run.finished]
    return View(
        {
            "stores": results.tables.stores,
            "environments": _environments(results),
            "unfinished": unfinished,
            "unfinished_table": runs_grid(unfinished, with_store=several) if unfinished else None,
            "groups": [
                {
                    "label": label,
                    "run": group.latest,
                    "badge": apart_badge(group),
                    "table": runs_grid(group.all_runs, with_store=several),
                }
                for group, label in results.labels.items()
            ],
        }
    )


SECTION = Section("runs", "Runs", build)


def _environments(results: Results) -> list[dict[str, Any]]:
    together: dict[str, list[Run]] = defaultdict(list)
    for run in results.runs:
        if run.role == "run":
            together[json.dumps(run.environment, sort_keys=True)].append(run)
    found = []
    for members in together.values():
        environment = members[0].environment
        machine = environment.get("gpu") or environment.get("cpu") or "unnamed machine"
        torch, python = environment.get("torch") or DASH, environment.get("python") or DASH
        found.append(
            {
                "title": f"{machine}, torch {torch}, Python {python}: {plural(len(members), 'run')}",
                "runs": plural(len(members), "run"),
                "pairs": [(key, DASH if value is None else str(value)) for key, value in sorted(environment.items())],
            }
        )
    return found
