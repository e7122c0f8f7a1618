"""Show how the error changes with depth, for the benchmarks of the suite ``depth``."""

from resnet_bench.reporting.figures.depth import error_against_depth
from resnet_bench.reporting.figures.style import present
from resnet_bench.reporting.sections.section import Results, Section, View

SUITE = "depth"


def build(results: Results) -> View | None:
    """Build the section; None without runs of two depths of one family."""
    members = [
        group
        for group in results.compared
        if group.definition is not None and SUITE in group.definition.suites and not group.changed
    ]
    drawn = present(
        *(
            error_against_depth([group for group in members if group.latest.dataset == dataset], dataset)
            for dataset in results.datasets
        )
    )
    return View({"plots": drawn, "apart": not results.full}, drawn) if drawn else None


SECTION = Section("depth", "Depth", build)
