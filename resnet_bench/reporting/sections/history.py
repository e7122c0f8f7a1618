"""Show each benchmark over commits and torch versions, where there are several."""

from resnet_bench.reporting.history import NOTE, TITLES, histories, rows, title
from resnet_bench.reporting.sections.section import Results, Section, View, grid

_NUMBERS = ("seeds", "accuracy, %", "runs", "images/s")


def build(results: Results) -> View | None:
    """Build the section; None where no benchmark was run by two commits or two versions of torch."""
    titles = "|".join(f"{'#' if name in _NUMBERS else ''}{name}" for name in TITLES)
    shown = [
        {
            "title": title(history),
            "step": any(
                measured.change is not None and measured.change.step
                for point in history.points
                for measured in (point.accuracy, *point.throughput.values())
            ),
            "table": grid(title(history), titles, rows(history)),
        }
        for history in histories(results.runs)
        if len(history.points) > 1
    ]
    return View({"histories": shown, "note": NOTE}) if shown else None


SECTION = Section("history", "History", build)
