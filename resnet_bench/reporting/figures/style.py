"""Share what all plots have in common: colors that follow the theme, marks, lines, axes and labels.

Every color that depends on the theme is a placeholder (see ``THEME``), which the page replaces.
Every series has its own mark or dash beside its color.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import Any, NamedTuple, TypeVar

import plotly.graph_objects as go

T = TypeVar("T")

INK, MUTED, GRID, SURFACE, SHADE = "#010101", "#020202", "#030303", "#040404", "#050505"
THEME: Mapping[str, str] = {"ink": INK, "muted": MUTED, "grid": GRID, "surface": SURFACE, "shade": SHADE}
"""Placeholder colors by the name of the page's CSS variable that replaces them."""
LIGHT: Mapping[str, str] = {
    "ink": "#1c1d20",
    "muted": "#65676d",
    "grid": "#e4e2dc",
    "surface": "#fdfcfa",
    "shade": "#ebe8df",
}
"""The page's light theme, for a plot that stands alone."""


class Style(NamedTuple):
    """What tells one series from another."""

    color: str
    symbol: str
    dash: str


STYLES = (
    Style("#2f74c0", "circle", "solid"),
    Style("#d1741f", "square", "dash"),
    Style("#2a9570", "diamond", "dot"),
    Style("#a8508f", "triangle-up", "dashdot"),
    Style("#8a7a17", "cross", "longdash"),
    Style("#5b6fd6", "x", "longdashdot"),
    Style("#c0504d", "star", "solid"),
    Style("#4b8a99", "hexagon", "dash"),
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

    @classmethod
    def of(cls, figure: go.Figure, id: str, title: str, caption: str, *, wide: bool = False) -> "Plot":  # noqa: A002
        """Return a finished figure with its words."""
        spec: dict[str, Any] = json.loads(figure.to_json())
        spec["layout"].pop("template", None)
        return cls(id, title, caption, spec, figure.layout.height, wide)


def present(*plots: Plot | None) -> tuple[Plot, ...]:
    """Return the plots that there are."""
    return tuple(plot for plot in plots if plot is not None)


def escaped(name: object) -> str:
    """Return a name as plotly prints it: its text is a small markup language, in which a name must mean nothing."""
    return str(name).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def styled(items: Iterable[T]) -> Iterator[tuple[T, Style]]:
    """Give every item its own style, as far as they reach."""
    return zip(items, cycle(STYLES), strict=False)


# --- series --------------------------------------------------------------------------------------


def new_figure() -> go.Figure:
    """Return an empty figure without plotly's own style."""
    return go.Figure(layout={"template": None})


def mark(symbol: str, size: float, color: str, edge: float = 0.0, edge_color: str | None = None) -> dict[str, Any]:
    """Describe a mark; with an edge it is drawn as wide and, where given, in another color."""
    found: dict[str, Any] = {"symbol": symbol, "size": size, "color": color}
    if edge:
        found["line"] = {"width": edge} | ({"color": edge_color} if edge_color else {})
    return found


def add_marks(
    figure: go.Figure,
    x: Iterable[Any],
    y: Iterable[Any],
    marker: Mapping[str, Any],
    *,
    name: str = "",
    hover: str | None = None,
    **trace: Any,
) -> None:
    """Draw marks.

    Args:
        figure: Changed in place.
        x: Places on the horizontal axis; numbers are rounded.
        y: Places on the vertical axis; numbers are rounded.
        marker: See :func:`mark`.
        name: Entry in the legend; none where empty.
        hover: What plotly says about a mark; its own words where not given, nothing where empty.
        trace: Further attributes of the trace.
    """
    _add(figure, x, y, {"mode": "markers", "marker": dict(marker)} | trace, name, hover)


def add_line(
    figure: go.Figure,
    x: Iterable[Any],
    y: Iterable[Any],
    *,
    color: str,
    width: float,
    dash: str = "solid",
    name: str = "",
    hover: str | None = None,
    **trace: Any,
) -> None:
    """Draw a line; see :func:`add_marks`. A trace may have a ``shape``, or be a line with marks by its ``mode``."""
    line: dict[str, Any] = {"color": color, "width": width} | ({"dash": dash} if dash != "solid" else {})
    if "shape" in trace:
        line["shape"] = trace.pop("shape")
    _add(figure, x, y, {"mode": "lines", "line": line} | trace, name, hover)


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points (cost, gain) that no other beats in both, by rising cost."""
    front: list[tuple[float, float]] = []
    for cost, gain in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or gain > front[-1][1]:
            front.append((cost, gain))
    return front


def add_front(figure: go.Figure, points: Iterable[tuple[float, float]]) -> None:
    """Draw the line that no point (cost, gain) is beyond."""
    costs, gains = zip(*pareto_front(points), strict=True)
    add_line(figure, costs, gains, color=MUTED, width=1.2, dash="dash", shape="hv", name="Pareto front", hover="")


def _add(
    figure: go.Figure, x: Iterable[Any], y: Iterable[Any], trace: dict[str, Any], name: str, hover: str | None
) -> None:
    if name:
        trace.setdefault("name", name)
    else:
        trace.setdefault("showlegend", False)
    if hover:
        trace["hovertemplate"] = hover
    elif hover is not None:
        trace["hoverinfo"] = "skip"
    figure.add_trace(go.Scatter(x=_drawable(x), y=_drawable(y), **trace))


def _drawable(values: Iterable[Any]) -> list[Any]:
    return [round(value, 4) if isinstance(value, float) else value for value in values]


def faded(color: str, opacity: float) -> str:
    """Return a color that lets through what is behind it."""
    red, green, blue = (int(color[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


# --- axes and labels -----------------------------------------------------------------------------


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
        margin={"l": 12 if named or y is None else 64, "r": 12, "t": 12, "b": 12 if named else 44},
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "font": {"size": 11}, "maxheight": 0.9},
        hoverlabel={"bgcolor": SURFACE, "bordercolor": MUTED, "font": {"color": INK}},
        hovermode="closest",
    )
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    if not named:
        # Where room is short plotly turns numbers upright, and they reach into the title below.
        figure.update_xaxes(tickangle=0)
    if x is not None:
        figure.update_xaxes(title={"text": x, "font": {"size": 11, "color": MUTED}, "standoff": 6})
    if y is not None:
        figure.update_yaxes(title={"text": y, "font": {"size": 11, "color": MUTED}, "standoff": 6})
    if x_range is not None:
        figure.update_xaxes(range=list(x_range))


def mark_whole_numbers(figure: go.Figure) -> None:
    """Where a horizontal axis of epochs or trials is short, mark every one and no half."""
    last = max((x for trace in figure.data if trace.x is not None for x in trace.x if x is not None), default=0)
    if last <= MAX_SINGLE_STEPS:
        figure.update_xaxes(dtick=1)


def finish_rows(
    figure: go.Figure, rows: int, *, x: str, x_range: tuple[float, float] | None = None, with_legend: bool = True
) -> None:
    """Finish a plot of rows at 0, −1, −2 …, each with room for its label; see :func:`finish`."""
    finish(figure, (110 if with_legend else 70) + ROW_HEIGHT * rows, x=x, x_range=x_range)
    figure.update_yaxes(visible=False, range=[0.45 - rows, 0.75])


def zero_line(figure: go.Figure) -> None:
    """Draw a thin vertical line at 0, behind everything else."""
    figure.add_vline(x=0, line={"color": MUTED, "width": 1, "dash": "dot"}, layer="below")


def label_row(figure: go.Figure, y: float, left: str, right: str, color: str = MUTED) -> None:
    """Write above a row what it is and, at its right end, its result; names must be escaped."""
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


# --- the specification ---------------------------------------------------------------------------


def light(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a specification in the colors of the light theme, for a plot that stands alone."""
    text = json.dumps(spec)
    for name, placeholder in THEME.items():
        text = text.replace(placeholder, LIGHT[name])
    found: dict[str, Any] = json.loads(text)
    return found
