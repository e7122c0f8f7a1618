"""The plots of a report, as plotly specifications that follow the page's light or dark theme.

Every colour that depends on the theme is written as a placeholder (see ``THEME``), which the page replaces.
Every series has a mark or a dash of its own beside its colour.
"""

from resnet_bench.reporting.figures.claim_plots import forest, ladder
from resnet_bench.reporting.figures.comparisons import (
    MAX_CLASSES_SHOWN,
    confusion_matrix,
    memory,
    most_confused,
    pareto,
    pareto_front,
    per_class,
    strip,
    throughput,
    time_to_accuracy,
)
from resnet_bench.reporting.figures.curves import curves
from resnet_bench.reporting.figures.style import (
    GRID,
    INK,
    MUTED,
    STYLES,
    THEME,
    Plot,
    escaped,
    group_label,
    mark_whole_numbers,
    restyled,
)

__all__ = [
    "GRID",
    "INK",
    "MAX_CLASSES_SHOWN",
    "MUTED",
    "STYLES",
    "THEME",
    "Plot",
    "confusion_matrix",
    "curves",
    "escaped",
    "forest",
    "group_label",
    "ladder",
    "mark_whole_numbers",
    "memory",
    "most_confused",
    "pareto",
    "pareto_front",
    "per_class",
    "restyled",
    "strip",
    "throughput",
    "time_to_accuracy",
]
