"""Draw how a study went, and compute the importance of what it searched, for reports and for a study's artifacts."""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import optuna
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from resnet_bench.base.text import DASH, listed, plural
from resnet_bench.recipe.changes import short_names
from resnet_bench.reporting import wording
from resnet_bench.reporting.figures.style import (
    GRID,
    INK,
    MUTED,
    STYLES,
    Plot,
    add_front,
    add_line,
    add_marks,
    escaped,
    finish,
    mark,
    mark_whole_numbers,
    new_figure,
    present,
)

MIN_TRIALS_FOR_IMPORTANCE = 4
"""Completed trials below which an importance would be an accident."""
ACCURACY = "validation accuracy, %"
HEIGHT = 320
_TRIAL = mark("circle-open", 8, STYLES[0].color)


@dataclass(frozen=True)
class PlottedTrial:
    """One trial, whether it comes from Optuna or from MLflow. Accuracies are in percent."""

    number: int | None
    state: str
    """``COMPLETE``, ``PRUNED``, ``FAIL`` or another of Optuna's."""
    value: float | None
    """Validation accuracy; only a completed trial has one."""
    params: Mapping[str, Any]
    curve: Mapping[int, float]
    """Validation accuracy by epoch."""
    seconds: float | None = None
    """Training time, where the study has it as its second objective."""


@dataclass(frozen=True)
class PlottedStudy:
    """Everything that is drawn of a study."""

    id: str
    """What the plots' ids end with."""
    trials: tuple[PlottedTrial, ...]
    source_params: Mapping[str, Any]
    """The source hyperparameters of what is searched."""
    source_value: float | None
    """The validation accuracy that they reach."""
    log_keys: frozenset[str]
    """Keys that are searched on a logarithmic scale."""
    importances: Mapping[str, float]

    @cached_property
    def complete(self) -> tuple[PlottedTrial, ...]:
        """The trials that ran to their end."""
        return tuple(trial for trial in self.trials if trial.value is not None)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The keys that completed trials have values of."""
        return tuple(sorted({key for trial in self.complete for key in trial.params}))


def importances(study: optuna.Study) -> dict[str, float]:
    """Return how much each key decides of the validation accuracy (PED-ANOVA), from 0 to 1, largest first.

    Empty where too few trials are complete, or their values do not differ.
    """
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len(complete) < MIN_TRIALS_FOR_IMPORTANCE or len({trial.values[0] for trial in complete}) < 2:
        return {}
    # PED-ANOVA takes low to be good in what it is told to look at; without being told, it knows the direction.
    target = _negative_first_objective if len(study.directions) > 1 else None
    with quiet():
        try:
            found = optuna.importance.get_param_importances(study, target=target)
        except (ValueError, RuntimeError, ZeroDivisionError):
            # Optuna refuses where, for instance, no key was in every trial.
            return {}
    return {key: float(value) for key, value in found.items() if math.isfinite(value)}


def plots(study: PlottedStudy) -> tuple[Plot, ...]:
    """Draw history, importances, intermediate values with what was pruned, slices and parallel coordinates."""
    if not study.complete:
        return ()
    return present(
        _history(study),
        _importances(study),
        _intermediate(study),
        _slices(study),
        _parallel(study),
        _objectives(study),
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna from announcing a study that it did not make, and from warning about what is experimental."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(level)


def is_number(value: Any) -> bool:
    """Return whether a hyperparameter is a finite number, and not a flag."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _negative_first_objective(trial: optuna.trial.FrozenTrial) -> float:
    return -float(trial.values[0])


# --- the plots -----------------------------------------------------------------------------------


def _history(study: PlottedStudy) -> Plot:
    numbers = [trial.number for trial in study.complete]
    values = [trial.value or 0.0 for trial in study.complete]
    best = list(accumulate(values, max))
    figure = new_figure()
    add_marks(figure, numbers, values, _TRIAL, name="trial", hover="trial %{x}: %{y:.2f}%<extra></extra>")
    add_line(figure, numbers, best, color=STYLES[1].color, width=2, shape="hv", name="best so far")
    finish(figure, HEIGHT, x="trial", y=ACCURACY)
    mark_whole_numbers(figure)
    note = ""
    if study.source_value is not None:
        figure.add_hline(y=study.source_value, line={"color": MUTED, "width": 1, "dash": "dash"})
        note = " The dashed line is what the source hyperparameters reach."
    caption = f"One mark per completed trial; the line is the best so far.{note}"
    return Plot.of(figure, f"optimization_history-{study.id}", "History", caption)


def _importances(study: PlottedStudy) -> Plot | None:
    if not study.importances:
        return None
    ranked = list(study.importances.items())
    figure = new_figure()
    figure.add_trace(
        go.Bar(
            x=[round(value, 4) for _, value in ranked],
            y=[escaped(key) for key, _ in ranked],
            orientation="h",
            marker={"color": STYLES[0].color},
            text=[wording.share(value) for _, value in ranked],
            textposition="auto",
            hovertemplate="%{y}: %{x:.1%}<extra></extra>",
            showlegend=False,
        )
    )
    finish(figure, 110 + 44 * len(ranked), x="importance, all together 100%", named=True)
    figure.update_xaxes(tickformat=".0%")
    figure.update_yaxes(autorange="reversed", type="category")
    caption = f"By Optuna's default evaluator, from {plural(len(study.complete), 'completed trial')}."
    return Plot.of(figure, f"param_importances-{study.id}", "Importances", caption)


def _intermediate(study: PlottedStudy) -> Plot | None:
    figure = new_figure()
    for state, name, style, symbol in (
        ("COMPLETE", "completed", STYLES[0], None),
        ("PRUNED", "pruned", STYLES[1], "x"),
    ):
        for place, trial in enumerate(trial for trial in study.trials if trial.state == state):
            count = len(trial.curve)
            add_line(
                figure,
                trial.curve,
                trial.curve.values(),
                color=style.color,
                width=1.1,
                dash="dot" if symbol else "solid",
                name=name,
                hover=f"trial {trial.number}, epoch %{{x}}: %{{y:.2f}}%<extra></extra>",
                mode="lines+markers" if symbol or count == 1 else "lines",
                # Only the place where a trial was stopped is marked.
                marker={
                    "symbol": symbol or "circle",
                    "color": style.color,
                    "size": [0] * (count - 1) + [8] if symbol else 5,
                },
                opacity=0.8,
                legendgroup=name,
                showlegend=place == 0,
            )
    if not any(len(trace.x) for trace in figure.data):
        return None
    finish(figure, HEIGHT, x="epoch", y=ACCURACY)
    mark_whole_numbers(figure)
    caption = "One line per trial; × is where one was pruned."
    # Beside the history or the importances it fills a row; as the third it has its own.
    return Plot.of(
        figure, f"intermediate_values-{study.id}", "Intermediate values", caption, wide=bool(study.importances)
    )


def _slices(study: PlottedStudy) -> Plot | None:
    if not study.keys:
        return None
    figure = make_subplots(rows=1, cols=len(study.keys), shared_yaxes=True, figure=new_figure())
    finish(figure, HEIGHT)
    figure.update_layout(margin_l=64, showlegend=False)
    title = {"font": {"size": 11, "color": MUTED}, "standoff": 6}
    figure.update_yaxes(title={"text": ACCURACY, **title}, col=1)
    for column, (key, name) in enumerate(zip(study.keys, short_names(study.keys).values(), strict=True), start=1):
        tried = [(trial.params[key], trial.value) for trial in study.complete if key in trial.params]
        values = [value for value, _ in tried]
        numbers = all(is_number(value) for value in values)
        figure.add_trace(
            go.Scatter(
                x=values if numbers else [escaped(_shown(value)) for value in values],
                y=[round(accuracy or 0.0, 4) for _, accuracy in tried],
                mode="markers",
                marker=_TRIAL,
                hovertemplate="%{x}: %{y:.2f}%<extra></extra>",
            ),
            row=1,
            col=column,
        )
        axis: dict[str, Any] = {"title": {"text": escaped(name), **title}, "nticks": 5, "exponentformat": "e"}
        if not numbers:
            axis["type"] = "category"
        elif key in study.log_keys and min(values) > 0:
            axis |= {"type": "log"} | ({"dtick": math.ceil(_decades(values) / 4)} if _decades(values) > 1.5 else {})
        figure.update_xaxes(**axis, col=column)
    caption = f"Validation accuracy against {listed(study.keys)}, one mark per completed trial."
    return Plot.of(figure, f"slice-{study.id}", "Slices", caption, wide=True)


def _parallel(study: PlottedStudy) -> Plot | None:
    """Draw parallel coordinates as plain lines: plotly's own need WebGL and ``eval``, which the page forbids."""
    if len(study.complete) < 2 or not study.keys:
        return None
    axes = ["accuracy, %", *short_names(study.keys).values()]
    scales = [_scale([trial.value for trial in study.complete], log=False)]
    for key in study.keys:
        values = [trial.params[key] for trial in study.complete if key in trial.params]
        scales.append(_scale(values, log=key in study.log_keys))
    ranked = sorted(study.complete, key=lambda trial: trial.value or 0.0)
    figure = new_figure()
    for place, trial in enumerate(ranked):
        best = place == len(ranked) - 1
        source = trial.params == study.source_params
        values = [trial.value, *(trial.params.get(key) for key in study.keys)]
        add_line(
            figure,
            range(len(axes)),
            [None if value is None else scale(value) for scale, value in zip(scales, values, strict=True)],
            color=STYLES[1].color if best else INK if source else STYLES[0].color,
            width=2.5 if best else 1.8 if source else 0.9,
            dash="dash" if source and not best else "solid",
            name="best trial" if best else "source hyperparameters" if source else "other trials",
            hover=f"trial {trial.number}: %{{customdata}}<extra></extra>",
            mode="lines+markers",
            showlegend=best or source or place == 0,
            opacity=1 if best or source else 0.25 + 0.5 * place / len(ranked),
            marker={"symbol": "diamond" if best else "circle", "size": 6 if best else 3},
            customdata=[escaped(_shown(value)) for value in values],
        )
    finish(figure, HEIGHT, named=True)
    for place, scale in enumerate(scales):
        for height, label in ((0, scale.low), (1, scale.high)):
            figure.add_annotation(
                x=place, y=height, text=escaped(label), showarrow=False, yshift=12 if height else -12,
                font={"size": 10, "color": MUTED},
            )  # fmt: skip
        figure.add_vline(x=place, line={"color": GRID, "width": 1}, layer="below")
    figure.update_xaxes(tickvals=list(range(len(axes))), ticktext=[escaped(axis) for axis in axes], showgrid=False)
    figure.update_yaxes(visible=False, range=[-0.14, 1.14])
    caption = (
        f"One line per completed trial through its validation accuracy and {listed(study.keys)}; "
        "logarithmic where searched so."
    )
    return Plot.of(figure, f"parallel_coordinate-{study.id}", "Parallel coordinates", caption, wide=True)


def _objectives(study: PlottedStudy) -> Plot | None:
    """Draw accuracy against training time, where the study has both as objectives."""
    points = [(trial.seconds, trial.value or 0.0, trial) for trial in study.complete if trial.seconds is not None]
    if not points:
        return None
    figure = new_figure()
    add_marks(
        figure,
        [seconds for seconds, _, _ in points],
        [value for _, value, _ in points],
        _TRIAL,
        name="trial",
        customdata=[trial.number for _, _, trial in points],
        hover="trial %{customdata}: %{y:.2f}% in %{x:,.1f} s<extra></extra>",
    )
    add_front(figure, [(seconds, value) for seconds, value, _ in points])
    finish(figure, HEIGHT, x="training time, seconds", y=ACCURACY)
    return Plot.of(figure, f"pareto_front-{study.id}", "Both objectives", "One mark per completed trial.")


# --- scales --------------------------------------------------------------------------------------


class _Scale:
    """Puts the values of one axis between 0 and 1."""

    def __init__(self, place: Callable[[Any], float], low: Any, high: Any) -> None:
        self._place = place
        self.low, self.high = _shown(low), _shown(high)

    def __call__(self, value: Any) -> float:
        return round(self._place(value), 4)


def _scale(values: Sequence[Any], *, log: bool) -> _Scale:
    if not all(is_number(value) for value in values):
        names = sorted(set(values), key=str)
        places = {name: place / max(1, len(names) - 1) for place, name in enumerate(names)}
        return _Scale(lambda value: places.get(value, 0.5), names[0], names[-1])
    low, high = min(values), max(values)
    if low == high:
        return _Scale(lambda _: 0.5, low, high)
    if log and low > 0:
        return _Scale(lambda value: math.log(value / low) / math.log(high / low), low, high)
    return _Scale(lambda value: (value - low) / (high - low), low, high)


def _decades(values: Iterable[float]) -> float:
    """Return the powers of ten between the smallest and the largest of some values above 0."""
    found = list(values)
    return math.log10(max(found) / min(found))


def _shown(value: Any) -> str:
    return DASH if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
