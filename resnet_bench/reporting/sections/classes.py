"""Show what predictions look like: accuracy by class, confusions, and confidently wrong images."""

from typing import Any

from resnet_bench.reporting.figures.classes import confusion_matrix, most_confused, per_class
from resnet_bench.reporting.figures.style import Plot, present
from resnet_bench.reporting.runs import RunGroup
from resnet_bench.reporting.sections.section import Results, Section, View, apart_badge


def build(results: Results) -> View | None:
    """Build the section; None without a finished run."""
    if not results.compared:
        return None
    groups: list[dict[str, Any]] = []
    drawn: list[Plot] = []
    for group, label in results.compared.items():
        confusion = results.confusion(group)
        plots = present(per_class(group, confusion), confusion_matrix(group, confusion))
        drawn += plots
        groups.append(
            {
                "label": label,
                "badge": apart_badge(group),
                "plots": plots,
                "confused": most_confused(confusion),
                "mistakes": _mistakes(results, group),
            }
        )
    return View({"groups": groups}, tuple(drawn))


SECTION = Section("classes", "Classes", build)


def _mistakes(results: Results, group: RunGroup) -> list[dict[str, Any]]:
    ordered = results.mistakes(group).sort_values("confidence", ascending=False)
    return [{str(key): value for key, value in row.items()} for row in ordered.to_dict("records")]
