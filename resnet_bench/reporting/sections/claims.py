"""Show each claim beside our runs, and what is missing to judge the others."""

from collections.abc import Mapping, Sequence

from resnet_bench.base.text import DASH, duration
from resnet_bench.judging.run_times import included
from resnet_bench.reporting.claims import ClaimRow, Missing
from resnet_bench.reporting.executions import ExecutionCheck, execution_name, read_executions
from resnet_bench.reporting.figures.claims import forest, selection_effect
from resnet_bench.reporting.figures.style import present
from resnet_bench.reporting.reference import ReferenceResult
from resnet_bench.reporting.run_cost import median
from resnet_bench.reporting.runs import RunGroup
from resnet_bench.reporting.sections.section import (
    Cell,
    Grid,
    Results,
    Section,
    View,
    apart_badge,
    grid,
    runs_grid,
)
from resnet_bench.reporting.wall_times import wall_seconds
from resnet_bench.reporting.wording import interval, mean_with_interval, number, signed


def build(results: Results) -> View:
    """Build the section; it is never empty, as it names the benchmarks without runs."""
    claims = results.claims
    shown = [row.benchmark for row in (*claims.rows, *claims.apart)]
    references = results.reference.results
    checks = read_executions(benchmarks=shown)
    plots = present(forest(claims.rows, results.tuned), selection_effect(claims.rows, results.tuned))
    return View(
        {
            "rows": claims.rows,
            "apart": claims.apart,
            "open": not claims.headlines,
            "missing": _missing(claims.missing, references) if claims.missing else None,
            "numbers": _numbers,
            "reference": results.reference.beside,
            "notes": lambda row: (*row.notes, *_of_executions(row.group, checks)),
            "facts": _facts,
            "runs": lambda group: runs_grid(group.all_runs, with_store=results.several_stores),
            "badge": apart_badge,
            "plots": plots,
        },
        plots,
    )


SECTION = Section("claims", "Claims", build)


def _reference(found: ReferenceResult | None) -> Cell:
    """Return what the reference runs of a benchmark reached, such as ``90.20 ± 0.13%, reproduced``, and how."""
    if found is None:
        return Cell(DASH)
    verdict = found.row.verdict
    return Cell(f"{mean_with_interval(verdict)}%, {verdict.word}", found.trained)


def _of_executions(group: RunGroup, checks: Sequence[ExecutionCheck]) -> list[str]:
    """Return what was found of the executions that a group was trained with, whatever the length of the schedule."""
    used = {execution_name(run.execution) for run in group.runs}
    return [check.sentence for check in checks if check.benchmark == group.name and check.execution in used]


def _missing(missing: tuple[Missing, ...], references: Mapping[str, ReferenceResult]) -> Grid:
    rows: list[list[str | Cell]] = [
        [
            each.benchmark.name,
            each.benchmark.claims[0].text if each.benchmark.claims else "none",
            each.why,
            _reference(references.get(each.benchmark.name)),
            Cell(each.command, code=True),
        ]
        for each in missing
    ]
    return grid("Benchmarks without a judged run", "Benchmark|Claim|What is missing|Reference|Command to run", rows)


def _numbers(row: ClaimRow) -> list[tuple[str, str]]:
    """Return the numbers behind a verdict, each with its name."""
    claim, verdict = row.claim, row.verdict
    selection = DASH
    if claim is not None:
        selection = claim.selection if claim.epoch is None else f"{claim.selection} {claim.epoch}"
    gain = row.selection_gain
    return [
        ("selection of the claim", selection),
        ("mean at the last epoch", number(row.last_epoch, 2, "%")),
        ("standard accuracy (eval mode, per image, no TTA)", number(row.standard, 2, "%")),
        ("selection gain: best epoch minus last", "evaluated once" if gain is None else f"{signed(gain)} pp"),
        ("SD across seeds", f"{number(verdict.sd)} pp"),
        ("95% CI of the mean (t)", interval(verdict.interval) or DASH),
        ("90% CI of the mean, compared with the claim", interval(verdict.decision_interval) or DASH),
        ("95% prediction interval", interval(verdict.prediction) or DASH),
        *_times(row),
    ]


def _times(row: ClaimRow) -> list[tuple[str, str]]:
    """Return the time that the source states and ours with the same, where that is known; else our training time."""
    claim = row.claim
    if claim is None or claim.wall_seconds is None:
        return []
    ours = median(wall_seconds(run, claim) for run in row.group.devices[row.device])
    return [
        ("time that the source states", f"{duration(claim.wall_seconds)}, {included(claim.wall_includes)}"),
        ("our time with the same", duration(ours)) if ours is not None else ("our training time alone", row.cost.time),
    ]


def _facts(group: RunGroup) -> Grid | None:
    """Return what the recipe of a group rests on; None where its benchmark states no facts."""
    facts = group.definition.source.facts if group.definition is not None else ()
    if not facts:
        return None
    return grid(
        "Facts",
        "Fact|Status|Other reading",
        [[fact.fact, fact.status, fact.alternative or ""] for fact in facts],
        "facts",
    )
