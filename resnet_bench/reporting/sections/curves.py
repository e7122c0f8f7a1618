"""Show the curves of every group of runs."""

from resnet_bench.reporting.figures.curves import curves
from resnet_bench.reporting.sections.section import Results, Section, View, apart_badge


def build(results: Results) -> View | None:
    """Build the section; None without a finished run."""
    if not results.labels:
        return None
    # Folded away: what is not judged and, where anything is, what others are compared with.
    unfolded = {group for group in results.full if not group.changed} or set(results.compared)
    drawn = {group: curves(group) for group in results.labels}
    groups = [
        {"label": label, "badge": apart_badge(group), "open": group in unfolded, "plots": drawn[group]}
        for group, label in results.labels.items()
    ]
    return View({"groups": groups}, tuple(plot for plots in drawn.values() for plot in plots))


SECTION = Section("curves", "Curves", build)
