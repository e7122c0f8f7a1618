"""What a study leaves with its parent run: plots to look at and to click on, its trials, and the tuned recipe."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import optuna
import plotly.graph_objects as go
import tomli_w

from resnet_bench.judging.intervals import Difference
from resnet_bench.reporting.figures.style import light
from resnet_bench.reporting.study_plots import PlottedStudy, PlottedTrial, importances, plots, quiet
from resnet_bench.tuning.export import recipe_text, tuned_benchmark_text
from resnet_bench.tuning.results import StudyResult
from resnet_bench.tuning.stored_study import StoredStudy
from resnet_bench.tuning.trials_table import write_trials


def write_artifacts(stored: StoredStudy, result: StudyResult, folder: Path) -> None:
    """Write everything that the parent run keeps of a study.

    Args:
        stored: The study.
        result: What came of it.
        folder: Where to; it is made where it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.toml").write_text(study_text(stored), encoding="utf-8")
    (folder / "best_recipe.toml").write_text(recipe_text(stored, result), encoding="utf-8")
    (folder / "tuned_benchmark.toml").write_text(tuned_benchmark_text(stored, result), encoding="utf-8")
    (folder / "importances.json").write_text(json.dumps(result.importances, indent=1), encoding="utf-8")
    (folder / "result.json").write_text(json.dumps(_result_table(result), indent=1), encoding="utf-8")
    with (folder / "trials.csv").open("w", encoding="utf-8", newline="") as file:
        write_trials(stored, file)
    write_plots(stored, folder / "plots")


def study_text(stored: StoredStudy) -> str:
    """The study's definition as TOML."""
    table = stored.definition.model_dump(mode="json", exclude_none=True, exclude={"profiles", "name"})
    return f"# study {stored.name}, profile {stored.plan.profile}\n{tomli_w.dumps(table)}"


def _result_table(result: StudyResult) -> dict[str, Any]:
    difference = result.comparison.difference if result.comparison is not None else None
    return {
        **dataclasses.asdict(result),
        "test_difference": difference and _difference_table(difference),
    }


def _difference_table(difference: Difference) -> dict[str, float | None]:
    low, high = difference.interval or (None, None)
    return {"value": difference.value, "low": low, "high": high}


# --- plots -----------------------------------------------------------------------------------------


def write_plots(stored: StoredStudy, folder: Path) -> list[str]:
    """Draw a study as interactive pages, which share one copy of plotly.js: the plots of a report, and contours.

    Plots that need more trials than there are (the importance of hyperparameters) are left out.

    Returns:
        The names of the plots that were drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {plot.id.partition("-")[0]: go.Figure(light(plot.spec)) for plot in plots(_plotted(stored))}
    if (contour := _contour(stored)) is not None:
        drawn["contour"] = contour
    for name, figure in drawn.items():
        figure.update_layout(title=f"{stored.name}: {name.replace('_', ' ')}", margin_t=60)
        figure.write_html(folder / f"{name}.html", include_plotlyjs="directory", full_html=True)
    return list(drawn)


def _plotted(stored: StoredStudy) -> PlottedStudy:
    source = stored.source_trial()
    trials = tuple(_plotted_trial(trial) for trial in stored.trials())
    return PlottedStudy(
        id=stored.name,
        trials=trials,
        source_params=source.params if source is not None else {},
        source_value=100 * source.values[0] if source is not None else None,
        log_keys=frozenset(
            key
            for trial in stored.trials()
            for key, distribution in trial.distributions.items()
            if getattr(distribution, "log", False)
        ),
        importances=importances(stored.study),
    )


def _plotted_trial(trial: optuna.trial.FrozenTrial) -> PlottedTrial:
    values = trial.values if trial.state == optuna.trial.TrialState.COMPLETE else None
    return PlottedTrial(
        number=trial.number,
        state=trial.state.name,
        value=100 * values[0] if values else None,
        params=trial.params,
        curve={epoch: 100 * value for epoch, value in trial.intermediate_values.items()},
        seconds=values[1] if values and len(values) > 1 else None,
    )


def _contour(stored: StoredStudy) -> go.Figure | None:
    """Draw the accuracy over each pair of hyperparameters; None where there are not enough of either."""
    if len(stored.definition.space) < 2:
        return None
    several = len(stored.definition.objectives) > 1
    with quiet():
        try:
            return optuna.visualization.plot_contour(
                stored.study,
                target=(lambda trial: float(trial.values[0])) if several else None,
                target_name="validation accuracy",
            )
        except (ValueError, RuntimeError):
            return None
