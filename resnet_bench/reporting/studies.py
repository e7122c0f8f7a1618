"""Studies: the source's settings against tuned ones, and how the tuning went."""

import contextlib
import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from resnet_bench.recipe.changes import short_names
from resnet_bench.reporting import figures, text
from resnet_bench.reporting import statistics as rules
from resnet_bench.reporting.figures.style import Plot
from resnet_bench.reporting.results import Run
from resnet_bench.reporting.statistics import Difference, Interval

if TYPE_CHECKING:
    import optuna

MIN_TRIALS_FOR_IMPORTANCE = 4
"""Completed trials below which an importance would be an accident."""


@dataclass(frozen=True, eq=False)
class Study:
    """One study as its runs tell it. Accuracies are in percent, differences in points."""

    parent: Run
    trials: tuple[Run, ...]
    source: tuple[Run, ...]
    """Runs retrained with the source's settings and fresh seeds."""
    tuned: tuple[Run, ...]
    """Runs retrained with the best settings and fresh seeds."""

    @property
    def name(self) -> str:
        """The study's name."""
        return self.parent.study or self.parent.name

    @property
    def benchmark(self) -> str:
        """The benchmark whose recipe it searches."""
        return self.parent.benchmark

    @property
    def apart(self) -> bool:
        """Whether it was made to try the software: in the smoke profile or on generated images."""
        return self.parent.profile != "full" or self.parent.generated

    @property
    def interrupted(self) -> int:
        """Trials whose process ended, or was told to; each was run again as another trial."""
        return sum(_is_interrupted(trial) for trial in self.trials)

    @cached_property
    def counted(self) -> tuple[Run, ...]:
        """The trials of the budget: complete, pruned, or failed by themselves."""
        return tuple(trial for trial in self.trials if not _is_interrupted(trial))

    @cached_property
    def source_params(self) -> Mapping[str, Any]:
        """The source's own settings of what is searched, which are always tried first."""
        return next((trial.trial_params for trial in self.trials if trial.trial_number == 0), {})

    @property
    def source_won(self) -> bool:
        """Whether no settings were better than the source's own."""
        return bool(self.best_params) and self.best_params == self.source_params

    @property
    def sampler(self) -> str:
        """Optuna's sampler by name."""
        return _named(self.parent.sampler)

    @property
    def pruner(self) -> str:
        """Optuna's pruner by name."""
        return _named(self.parent.pruner)

    def accuracies(self, arm: Sequence[Run]) -> list[float]:
        """Test accuracy of each retrained run that finished."""
        found = (run.last_accuracy("test") for run in arm if run.finished)
        return [value for value in found if value is not None]

    @cached_property
    def difference(self) -> Difference | None:
        """Tuned minus source on the test set, from the retrained runs or, without them, as the study logged it."""
        source, tuned = self.accuracies(self.source), self.accuracies(self.tuned)
        if source and tuned:
            return rules.welch(source, tuned)
        once = self.parent.once
        if "study/test_difference" not in once:
            return None
        ends = [once.get(f"study/test_difference_{end}") for end in ("low", "high")]
        interval = None if None in ends else Interval(*(100 * end for end in ends if end is not None))
        return Difference(100 * once["study/test_difference"], interval)

    @property
    def validation_best(self) -> float | None:
        """Validation accuracy of the best trial."""
        found = [value for trial in self.trials if (value := _objective(trial)) is not None]
        return max(found) if found else self._percent("study/best_validation_accuracy")

    @property
    def validation_source(self) -> float | None:
        """Validation accuracy of the source's settings, which are always trial 0, at the same budget."""
        tried = (trial for trial in self.trials if trial.trial_params == self.source_params)
        found = [value for trial in tried if (value := _objective(trial)) is not None]
        return found[0] if found else self._percent("study/source_validation_accuracy")

    def count(self, state: str) -> int:
        """Trials in a state: ``COMPLETE``, ``PRUNED`` or ``FAIL``."""
        return sum(trial.trial_state == state for trial in self.counted)

    @property
    def epochs_saved(self) -> float | None:
        """Epochs that pruning spared."""
        return self.parent.once.get("study/epochs_saved")

    @cached_property
    def best_params(self) -> Mapping[str, Any]:
        """Settings of the best completed trial."""
        complete = [trial for trial in self.trials if _objective(trial) is not None]
        return max(complete, key=lambda trial: _objective(trial) or -math.inf).trial_params if complete else {}

    @cached_property
    def importances(self) -> dict[str, float]:
        """Optuna's importance of each searched key; empty with too few completed trials."""
        if self.count("COMPLETE") < MIN_TRIALS_FOR_IMPORTANCE:
            return {}
        import optuna

        with _quiet():
            try:
                return optuna.importance.get_param_importances(self.rebuilt)
            except (ValueError, RuntimeError, ZeroDivisionError):
                # Optuna refuses where, for instance, every trial has the same value.
                return {}

    @cached_property
    def rebuilt(self) -> "optuna.Study":
        """The same study in Optuna's memory, from what MLflow holds."""
        import optuna

        with _quiet():
            study = optuna.create_study(direction="maximize", study_name=self.name)
            for trial in self.trials:
                with contextlib.suppress(ValueError):  # a value outside the space that was logged
                    study.add_trial(self._trial(trial))
        return study

    def plots(self) -> list[Plot]:
        """History, importances, slices, parallel coordinates, and intermediate values with what was pruned."""
        if not any(_objective(trial) is not None for trial in self.trials):
            return []
        made = [
            _history(self),
            _importances(self),
            _intermediate(self),
            _slices(self),
            _parallel(self),
            _objectives(self),
        ]
        return [plot for plot in made if plot is not None]

    def _percent(self, key: str) -> float | None:
        value = self.parent.once.get(key)
        return None if value is None else 100 * value

    def _trial(self, trial: Run) -> "optuna.trial.FrozenTrial":
        import optuna

        params = {key: value for key, value in trial.trial_params.items() if key in self._distributions}
        state = getattr(optuna.trial.TrialState, trial.trial_state, optuna.trial.TrialState.FAIL)
        value = _objective(trial)
        if state == optuna.trial.TrialState.COMPLETE and value is None:
            state = optuna.trial.TrialState.FAIL
        return optuna.trial.create_trial(
            state=state,
            value=value if state == optuna.trial.TrialState.COMPLETE else None,
            params=params,
            distributions={key: self._distributions[key] for key in params},
            intermediate_values=trial.accuracy("validation"),
        )

    @cached_property
    def _distributions(self) -> dict[str, "optuna.distributions.BaseDistribution"]:
        keys = sorted({key for trial in self.trials for key in trial.trial_params})
        found = {}
        for key in keys:
            values = [trial.trial_params[key] for trial in self.trials if key in trial.trial_params]
            found[key] = _distribution(self.parent.search_space.get(key), values)
        return found


def find(runs: Sequence[Run]) -> list[Study]:
    """Every study among the runs, with its trials in order and its retrained runs."""
    studies = []
    for parent in runs:
        if parent.role != "study":
            continue
        children = [run for run in runs if run.parent_run_id == parent.id]
        trials = [run for run in children if run.role == "trial"]
        retrained = [run for run in children if run.role == "retrain"]
        studies.append(
            Study(
                parent,
                tuple(sorted(trials, key=lambda run: (run.trial_number is None, run.trial_number or 0))),
                _arm(retrained, "source"),
                _arm(retrained, "tuned"),
            )
        )
    return studies


def _arm(retrained: Sequence[Run], arm: str) -> tuple[Run, ...]:
    """The runs of one arm: of the settings that were retrained last, each seed once.

    A study that was given a longer budget may have found better settings since it was first compared, and a run
    that failed may have been made again.
    """
    runs = sorted((run for run in retrained if run.arm == arm), key=lambda run: (run.finished, run.started))
    latest = {run.seed: run for run in runs if run.fingerprint == runs[-1].fingerprint}
    return tuple(latest[seed] for seed in sorted(latest, key=lambda seed: -1 if seed is None else seed))


def tuned_accuracies(studies: Sequence[Study]) -> dict[str, list[float]]:
    """Test accuracies of tuned settings on fresh seeds by benchmark, from its latest study that has them."""
    return {study.benchmark: values for study in studies if (values := study.accuracies(study.tuned))}


# --- plots ---------------------------------------------------------------------------------------


def _history(study: Study) -> Plot:
    from optuna import visualization

    with _quiet():
        figure = visualization.plot_optimization_history(study.rebuilt, target_name="validation accuracy, %")
    figure.update_traces(marker={"color": figures.STYLES[0][0], "symbol": "circle-open", "size": 8})
    figure.update_traces(selector={"mode": "lines"}, line={"color": figures.STYLES[1][0], "width": 2, "shape": "hv"})
    figure.update_traces(selector={"mode": "lines"}, name="best so far")
    figure.update_xaxes(title_text="trial")
    figures.mark_whole_numbers(figure)
    source = study.validation_source
    if source is not None:
        figure.add_hline(y=source, line={"color": figures.MUTED, "width": 1, "dash": "dash"})
    note = " The dashed line is what the source's settings reach." if source is not None else ""
    return _plot(study, "history", "History", f"A mark a completed trial; the line is the best so far.{note}", figure)


def _importances(study: Study) -> Plot | None:
    if not study.importances:
        return None
    ranked = list(study.importances.items())
    figure = go.Figure(
        go.Bar(
            x=[round(value, 4) for _, value in ranked],
            y=[figures.escaped(key) for key, _ in ranked],
            orientation="h",
            marker={"color": figures.STYLES[0][0]},
            text=[text.share(value) for _, value in ranked],
            textposition="auto",
            hovertemplate="%{y}: %{x:.1%}<extra></extra>",
            showlegend=False,
        )
    )
    figure.update_xaxes(title_text="importance, all together 100%", tickformat=".0%")
    figure.update_yaxes(autorange="reversed", type="category")
    caption = f"By Optuna's default evaluator, from {text.plural(study.count('COMPLETE'), 'completed trial')}."
    return _plot(study, "importances", "Importances", caption, figure, height=110 + 44 * len(ranked))


def _intermediate(study: Study) -> Plot | None:
    pruned = [trial for trial in study.trials if trial.trial_state == "PRUNED"]
    others = [trial for trial in study.trials if trial.trial_state == "COMPLETE"]
    figure = go.Figure()
    for trials, name, color, dash, symbol in (
        (others, "completed", figures.STYLES[0][0], "solid", None),
        (pruned, "pruned", figures.STYLES[1][0], "dot", "x"),
    ):
        for place, trial in enumerate(trials):
            curve = trial.accuracy("validation")
            figure.add_trace(
                go.Scatter(
                    x=list(curve),
                    y=[round(value, 3) for value in curve.values()],
                    mode="lines+markers" if symbol or len(curve) == 1 else "lines",
                    line={"color": color, "width": 1.1, "dash": dash},
                    # Only the place where a trial was stopped is marked.
                    marker={
                        "symbol": symbol or "circle",
                        "color": color,
                        "size": [0] * (len(curve) - 1) + [8] if symbol else 5,
                    },
                    opacity=0.8,
                    name=name,
                    legendgroup=name,
                    showlegend=place == 0,
                    hovertemplate=f"trial {trial.trial_number}, epoch %{{x}}: %{{y:.2f}}%<extra></extra>",
                )
            )
    if not any(len(trace.x) for trace in figure.data):
        return None
    figure.update_xaxes(title_text="epoch")
    figures.mark_whole_numbers(figure)
    figure.update_yaxes(title_text="validation accuracy, %")
    caption = "A line a trial; × is where one was pruned."
    # Beside the history or the importances it fills a row; as the third it has one of its own.
    wide = bool(study.importances)
    return _plot(study, "intermediate", "Intermediate values", caption, figure, wide=wide)


def _slices(study: Study) -> Plot | None:
    from optuna import visualization

    keys = list(study.rebuilt.best_trial.params)
    if not keys:
        return None
    with _quiet():
        figure = visualization.plot_slice(study.rebuilt, target_name="validation accuracy, %")
    figure.update_traces(
        marker={"color": figures.STYLES[0][0], "symbol": "circle-open", "size": 8, "showscale": False, "line": {}}
    )
    figure.update_layout(showlegend=False)
    figure.update_xaxes(tickangle=0, nticks=5, exponentformat="e")
    for axis, key, name in zip(figure.select_xaxes(), sorted(keys), short_names(sorted(keys)).values(), strict=False):
        axis.title.text = figures.escaped(name)
        if axis.type == "log" and _decades(trial.params.get(key) for trial in study.rebuilt.trials) > 1.5:
            axis.dtick = 1
    caption = f"Validation accuracy against {_listed(sorted(keys))}, a mark a completed trial."
    return _plot(study, "slice", "Slices", caption, figure, wide=True)


def _parallel(study: Study) -> Plot | None:
    """Parallel coordinates as plain lines: plotly's own need WebGL and ``eval``, which the page forbids."""
    complete = [trial for trial in study.trials if _objective(trial) is not None]
    keys = sorted({key for trial in complete for key in trial.trial_params})
    if len(complete) < 2 or not keys:
        return None
    objectives = [_objective(trial) or 0.0 for trial in complete]
    axes = ["accuracy, %", *short_names(keys).values()]
    scales = [_scale(objectives, log=False)]
    for key in keys:
        values = [trial.trial_params[key] for trial in complete if key in trial.trial_params]
        scales.append(_scale(values, log=_is_log(study.parent.search_space.get(key))))
    ranked = sorted(zip(objectives, complete, strict=True), key=lambda pair: pair[0])
    figure = go.Figure()
    for place, (objective, trial) in enumerate(ranked):
        best = place == len(ranked) - 1
        first = trial.trial_params == study.source_params
        values = [objective, *(trial.trial_params.get(key) for key in keys)]
        figure.add_trace(
            go.Scatter(
                x=list(range(len(axes))),
                y=[None if value is None else scale(value) for scale, value in zip(scales, values, strict=True)],
                mode="lines+markers",
                name="best trial" if best else "source's settings" if first else "other trials",
                showlegend=best or first or place == 0,
                line={
                    "color": figures.STYLES[1][0] if best else figures.INK if first else figures.STYLES[0][0],
                    "width": 2.5 if best else 1.8 if first else 0.9,
                    "dash": "dash" if first and not best else "solid",
                },
                opacity=1 if best or first else 0.25 + 0.5 * place / len(ranked),
                marker={"symbol": "diamond" if best else "circle", "size": 6 if best else 3},
                hovertemplate=f"trial {trial.trial_number}: %{{customdata}}<extra></extra>",
                customdata=[figures.escaped(_shown(value)) for value in values],
            )
        )
    for place, scale in enumerate(scales):
        for height, label in ((0, scale.low), (1, scale.high)):
            figure.add_annotation(
                x=place, y=height, text=figures.escaped(label), showarrow=False, yshift=12 if height else -12,
                font={"size": 10, "color": figures.MUTED},
            )  # fmt: skip
        figure.add_vline(x=place, line={"color": figures.GRID, "width": 1}, layer="below")
    figure.update_xaxes(
        tickvals=list(range(len(axes))), ticktext=[figures.escaped(axis) for axis in axes], showgrid=False
    )
    figure.update_yaxes(visible=False, range=[-0.14, 1.14])
    caption = (
        f"A line a completed trial through its validation accuracy and {_listed(keys)}; logarithmic where searched so."
    )
    return _plot(study, "parallel", "Parallel coordinates", caption, figure, wide=True)


def _objectives(study: Study) -> Plot | None:
    """Accuracy against training time, where the study has both as objectives."""
    points = [
        (seconds, objective, trial)
        for trial in study.trials
        if (objective := _objective(trial)) is not None
        and (seconds := trial.once.get("study/training_seconds")) is not None
    ]
    if not points:
        return None
    front = figures.pareto_front((seconds, objective) for seconds, objective, _ in points)
    figure = go.Figure()
    figure.add_trace(
        go.Scatter(
            x=[round(seconds, 3) for seconds, _, _ in points],
            y=[round(objective, 3) for _, objective, _ in points],
            mode="markers",
            name="trial",
            marker={"color": figures.STYLES[0][0], "symbol": "circle-open", "size": 8},
            customdata=[trial.trial_number for _, _, trial in points],
            hovertemplate="trial %{customdata}: %{y:.2f}% in %{x:,.1f} s<extra></extra>",
        )
    )
    figure.add_trace(
        go.Scatter(
            x=[round(seconds, 3) for seconds, _ in front],
            y=[round(objective, 3) for _, objective in front],
            mode="lines",
            name="Pareto front",
            line={"color": figures.MUTED, "width": 1.2, "dash": "dash", "shape": "hv"},
            hoverinfo="skip",
        )
    )
    figure.update_xaxes(title_text="training time, seconds")
    figure.update_yaxes(title_text="validation accuracy, %")
    return _plot(study, "objectives", "Both objectives", "A mark a completed trial.", figure)


def _decades(values: Iterable[Any]) -> float:
    """Powers of ten between the smallest and the largest of some values above 0."""
    found = [value for value in values if _is_number(value) and value > 0]
    return math.log10(max(found) / min(found)) if found else 0.0


def _listed(keys: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(keys[:-1]), keys[-1]) if part)


class _Scale:
    """Puts the values of one axis between 0 and 1."""

    def __init__(self, places: Mapping[Any, float] | None, ends: tuple[float, float], log: bool) -> None:
        self._places = places
        self._ends = ends
        self._log = log
        names = list(places) if places is not None else list(ends)
        self.low, self.high = _shown(names[0]), _shown(names[-1])

    def __call__(self, value: Any) -> float:
        if self._places is not None:
            return self._places.get(value, 0.5)
        low, high = (math.log(end) if self._log else end for end in self._ends)
        place = math.log(value) if self._log else value
        return round((place - low) / (high - low), 4) if high > low else 0.5


def _scale(values: Sequence[Any], *, log: bool) -> _Scale:
    if all(_is_number(value) for value in values):
        low, high = min(values), max(values)
        return _Scale(None, (low, high), log and low > 0)
    names = sorted(set(values), key=str)
    return _Scale({name: place / max(1, len(names) - 1) for place, name in enumerate(names)}, (0, 1), log=False)


def _plot(
    study: Study, kind: str, title: str, caption: str, figure: go.Figure, *, height: int = 320, wide: bool = False
) -> Plot:
    return Plot(f"{kind}-{study.parent.id[:12]}", title, caption, figures.restyled(figure, height), height, wide)


# --- rebuilding a study --------------------------------------------------------------------------


def _objective(trial: Run) -> float | None:
    """A completed trial's validation accuracy in percent."""
    if trial.trial_state != "COMPLETE":
        return None
    value = trial.once.get("study/value")
    if value is None or not math.isfinite(value):
        return trial.last_accuracy("validation")
    return 100 * value


def _is_interrupted(trial: Run) -> bool:
    """Whether a trial ended because its process did: one that failed by itself is marked as failed in MLflow too."""
    return trial.trial_state == "FAIL" and trial.status == "KILLED"


def _named(text: str) -> str:
    """The name in a sampler's or pruner's JSON; the text itself where it is none."""
    try:
        return str(json.loads(text)["name"])
    except (ValueError, TypeError, KeyError):
        return text


def _distribution(described: Any, values: Sequence[Any]) -> "optuna.distributions.BaseDistribution":
    """The range of a searched key as it was logged, else one that holds the values that were tried."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    numbers = [value for value in values if _is_number(value)]
    if isinstance(described, Mapping) and isinstance(described.get("choices"), list):
        return CategoricalDistribution([*dict.fromkeys([*described["choices"], *values])])
    if len(numbers) < len(values):
        return CategoricalDistribution([*dict.fromkeys(values)])
    ends = [*numbers]
    if isinstance(described, Mapping):
        ends += [end for end in (described.get("low"), described.get("high")) if _is_number(end)]
    log = _is_log(described) and min(ends) > 0
    if all(isinstance(end, int) for end in ends):
        return IntDistribution(min(ends), max(ends), log=log and min(ends) >= 1)
    return FloatDistribution(min(ends), max(ends), log=log)


def _is_log(described: Any) -> bool:
    if not isinstance(described, Mapping):
        return False
    return described.get("type") == "log-float" or described.get("log") is True


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: Any) -> str:
    return text.DASH if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from announcing a study that it did not make."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(level)
