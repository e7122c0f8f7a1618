"""Show how the error changes with depth, for the benchmarks of the suite ``depth``."""

from resnet_bench.reporting.figures.depth import error_against_depth
from resnet_bench.reporting.figures.style import present
from resnet_bench.reporting.runs import LENGTH, RunGroup
from resnet_bench.reporting.sections.section import Results, Section, View
from resnet_bench.reporting.wording import assignments

SUITE = "depth"
FOLLOWING = ("schedule.", "evaluation.")
"""What recipe keys begin with that may differ in shorter runs: a schedule is scaled to them."""


def build(results: Results) -> View | None:
    """Build the section; None without runs of two depths of one family.

    Runs that are shorter than the papers' have a figure for each length. Every figure has the errors that the papers
    state, marked as those of the full schedule where the runs are shorter.
    """
    members: dict[tuple[str, str], list[RunGroup]] = {}
    for group in results.compared:
        length = _shorter_by(group)
        if group.definition is not None and SUITE in group.definition.suites and length is not None:
            members.setdefault((group.latest.dataset, length), []).append(group)
    known = [each.benchmark for each in results.claims.missing]
    known += [group.definition for group in results.labels if group.definition is not None]
    stated = [benchmark for benchmark in known if SUITE in benchmark.suites]
    drawn = present(*(error_against_depth(members[each], *each, stated) for each in sorted(members)))
    return View({"plots": drawn, "apart": not results.full}, drawn) if drawn else None


SECTION = Section("depth", "Depth", build)


def _shorter_by(group: RunGroup) -> str | None:
    """Return what runs are shorter by, such as ``training.epochs = 16``; None where they differ in more than length."""
    if not all(key.startswith((*LENGTH, *FOLLOWING)) for key in group.changed):
        return None
    return assignments({key: group.latest.recipe.get(key) for key in LENGTH if key in group.changed})
