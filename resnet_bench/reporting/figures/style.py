"""What all plots share: colours that follow the theme, axes, labels, and the specification for the page."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from resnet_bench.reporting.results import Group

INK, MUTED, GRID, SURFACE, SHADE = "#010101", "#020202", "#030303", "#040404", "#050505"
THEME: Mapping[str, str] = {"ink": INK, "muted": MUTED, "grid": GRID, "surface": SURFACE, "shade": SHADE}
"""Placeholder colours by the name of the page's CSS variable that takes their place."""

STYLES = (
    ("#2f74c0", "circle", "solid"),
    ("#d1741f", "square", "dash"),
    ("#2a9570", "diamond", "dot"),
    ("#a8508f", "triangle-up", "dashdot"),
    ("#8a7a17", "cross", "longdash"),
    ("#5b6fd6", "x", "longdashdot"),
    ("#c0504d", "star", "solid"),
    ("#4b8a99", "hexagon", "dash"),
)
ROW_HEIGHT = 54
MAX_SINGLE_STEPS = 12
"""Epochs or trials up to which each is marked on its axis."""
LABEL_OFFSET = 0.30
"""How far above its row, in rows, a label stands."""


@dataclass(frozen=True)
class Plot:
    """One plot with the words that go with it."""

    id: str
    title: str
    caption: str
    """What is shown and what every mark and band means; also what a screen reader reads."""
    spec: Mapping[str, Any]
    """``data`` and ``layout`` as plotly.js takes them."""
    height: int
    wide: bool = False


def escaped(name: object) -> str:
    """A name as plotly shows it: its text is a little markup language, in which a name must mean nothing."""
    return str(name).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def restyled(figure: go.Figure, height: int) -> dict[str, Any]:
    """The specification of a plot that another library made, in the style of the page."""
    figure.update_layout(template=None, title=None)
    finish(figure, height, named=True)
    for axis in (*figure.select_xaxes(), *figure.select_yaxes()):
        axis.title.font = {"size": 11, "color": MUTED}
        axis.title.standoff = 6
    return specification(figure)


def new_figure() -> go.Figure:
    """An empty figure without plotly's own style."""
    return go.Figure(layout={"template": None})


def finish(
    figure: go.Figure,
    height: int,
    *,
    x: str | None = None,
    y: str | None = None,
    x_range: tuple[float, float] | None = None,
    named: bool = False,
) -> None:
    """Give a plot its height, its axes and the style that all share.

    Args:
        figure: Changed in place.
        height: Pixels.
        x: Title of the horizontal axis.
        y: Title of the vertical axis.
        x_range: Ends of the horizontal axis; found from the data where not given.
        named: The marks of an axis are names, which need room according to their length. Numbers get a fixed
            margin, because plotly otherwise may redraw again and again to settle on one.
    """
    axis = {
        "gridcolor": GRID,
        "zerolinecolor": GRID,
        "linecolor": MUTED,
        "tickcolor": MUTED,
        "ticks": "outside",
        "ticklen": 4,
        "automargin": named,
        "tickfont": {"color": MUTED, "size": 11},
        "zeroline": False,
    }
    figure.update_layout(
        height=height,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK, "size": 12},
        margin={"l": 12 if named or y is None else 58, "r": 12, "t": 12, "b": 12 if named else 44},
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "font": {"size": 11}, "maxheight": 0.9},
        hoverlabel={"bgcolor": SURFACE, "bordercolor": MUTED, "font": {"color": INK}},
        hovermode="closest",
    )
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    if x is not None:
        figure.update_xaxes(title={"text": x, "font": {"size": 11, "color": MUTED}, "standoff": 6})
    if y is not None:
        figure.update_yaxes(title={"text": y, "font": {"size": 11, "color": MUTED}, "standoff": 6})
    if x_range is not None:
        figure.update_xaxes(range=list(x_range))


def mark_whole_numbers(figure: go.Figure) -> None:
    """Where a horizontal axis of epochs or trials is short, mark every one and no half."""
    last = max((max(trace.x, default=0) for trace in figure.data if trace.x is not None), default=0)
    if last <= MAX_SINGLE_STEPS:
        figure.update_xaxes(dtick=1)


def specification(figure: go.Figure) -> dict[str, Any]:
    """``data`` and ``layout`` as plain values."""
    spec: dict[str, Any] = json.loads(figure.to_json())
    spec["layout"].pop("template", None)
    return spec


def label_row(figure: go.Figure, y: float, left: str, right: str, color: str = MUTED) -> None:
    """Write above a row what it is and, at its right end, what came of it; names must be escaped."""
    for content, place, anchor, ink in ((left, 0, "left", INK), (right, 1, "right", color)):
        figure.add_annotation(
            x=place,
            xref="x domain",
            y=y + LABEL_OFFSET,
            yref="y",
            text=content,
            showarrow=False,
            xanchor=anchor,
            yanchor="middle",
            font={"size": 12, "color": ink},
        )


def group_label(group: Group, groups: Sequence[Group]) -> str:
    """The benchmark's name, with what tells it from another group of the same name."""
    label = _own_label(group)
    # Smoke runs and generated images carry a badge, so that they need no other name.
    alike = [
        other for other in groups if other is not group and other.apart == group.apart and _own_label(other) == label
    ]
    return f"{label} ({group.latest.fingerprint[:6]})" if alike else label


def _own_label(group: Group) -> str:
    if not group.changed:
        return group.name
    return f"{group.name} ({group.changed[0] if len(group.changed) == 1 else 'changed recipe'})"


def rounded(values: Iterable[float], digits: int = 4) -> list[float]:
    """Numbers with no more digits than a plot can show, which keeps the page small."""
    return [round(value, digits) for value in values]
