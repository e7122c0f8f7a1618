"""What a study leaves with its parent run: plots to look at and to click on, its trials, and the tuned recipe."""

import csv
import dataclasses
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from resnet_bench.tuning.export import recipe_text, tuned_benchmark_text
from resnet_bench.tuning.results import StudyResult
from resnet_bench.tuning.stored_study import StoredStudy, is_interrupted

PNG_DPI = 120


def write_artifacts(ledger: StoredStudy, result: StudyResult, folder: Path) -> None:
    """Write everything that the parent run keeps of a study.

    Args:
        ledger: The study.
        result: What came of it.
        folder: Where to; it is made where it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.toml").write_text(study_text(ledger), encoding="utf-8")
    (folder / "best_recipe.toml").write_text(recipe_text(ledger, result), encoding="utf-8")
    (folder / "tuned_benchmark.toml").write_text(tuned_benchmark_text(ledger, result), encoding="utf-8")
    (folder / "importances.json").write_text(json.dumps(result.importances, indent=1), encoding="utf-8")
    (folder / "result.json").write_text(json.dumps(_result_table(result), indent=1), encoding="utf-8")
    _write_trials(ledger, folder / "trials.csv")
    write_plots(ledger, folder / "plots")


def study_text(ledger: StoredStudy) -> str:
    """The study's definition as TOML."""
    table = ledger.definition.model_dump(mode="json", exclude_none=True, exclude={"profiles", "name"})
    return f"# study {ledger.name}, profile {ledger.plan.profile}\n{tomli_w.dumps(table)}"


def _result_table(result: StudyResult) -> dict[str, Any]:
    difference = result.comparison.difference if result.comparison is not None else None
    return {
        **dataclasses.asdict(result),
        "test_difference": dataclasses.asdict(difference) if difference is not None else None,
    }


def _write_trials(ledger: StoredStudy, path: Path) -> None:
    keys = list(ledger.definition.space)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["trial", "state", *ledger.definition.objectives, "epochs", *keys, "source", "reason", "seconds", "run_id"]
        )
        for trial in ledger.trials():
            duration = trial.duration
            writer.writerow(
                [
                    trial.number,
                    "INTERRUPTED" if is_interrupted(trial) else trial.state.name,
                    *(trial.values or [""] * len(ledger.definition.objectives)),
                    trial.last_step or "",
                    *(trial.params.get(key, "") for key in keys),
                    "yes" if "source" in trial.user_attrs else "",
                    trial.user_attrs.get("reason", ""),
                    round(duration.total_seconds(), 3) if duration else "",
                    trial.user_attrs.get("mlflow_run_id", ""),
                ]
            )


# --- plots -----------------------------------------------------------------------------------------


def write_plots(ledger: StoredStudy, folder: Path) -> list[str]:
    """Draw a study as interactive pages, which share one copy of plotly.js, and as PNG.

    What cannot be drawn yet (the importance of parameters needs several complete trials) is left out.

    Returns:
        The names of the plots that were drawn.
    """
    import optuna

    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    with warnings.catch_warnings():
        # Optuna's drawing with matplotlib is an experiment of theirs, and says so on every call.
        warnings.simplefilter("ignore")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        for name, options in _plots(ledger).items():
            try:
                _draw_page(ledger, name, options, folder)
                _draw_png(ledger, name, options, folder)
            except (ValueError, RuntimeError, ImportError):
                for suffix in (".html", ".png"):
                    (folder / f"{name}{suffix}").unlink(missing_ok=True)
                continue
            drawn.append(name)
    return drawn


def _plots(ledger: StoredStudy) -> dict[str, dict[str, Any]]:
    """Optuna's function of each plot, without its ``plot_``, and what it is called with."""
    objectives = ledger.definition.objectives
    scored: dict[str, Any] = {"target_name": "validation accuracy"}
    importance = dict(scored)
    if len(objectives) > 1:
        scored["target"] = _first_objective
        importance["target"] = _negative_first_objective
    plots = {
        "optimization_history": scored,
        "param_importances": importance,
        "slice": scored,
        "parallel_coordinate": scored,
    }
    if len(ledger.definition.space) > 1:
        plots["contour"] = scored
    if len(objectives) > 1:
        plots["pareto_front"] = {"target_names": list(objectives)}
    else:
        plots["intermediate_values"] = {}
    return plots


def _first_objective(trial: Any) -> float:
    return float(trial.values[0])


def _negative_first_objective(trial: Any) -> float:
    # PED-ANOVA takes low to be good of what it is told to look at.
    return -float(trial.values[0])


def _draw_page(ledger: StoredStudy, name: str, options: Mapping[str, Any], folder: Path) -> None:
    import optuna

    draw: Callable[..., Any] = getattr(optuna.visualization, f"plot_{name}")
    figure = draw(ledger.study, **options)
    figure.update_layout(title=f"{ledger.name}: {name.replace('_', ' ')}")
    figure.write_html(folder / f"{name}.html", include_plotlyjs="directory", full_html=True)


def _draw_png(ledger: StoredStudy, name: str, options: Mapping[str, Any], folder: Path) -> None:
    import matplotlib as mpl
    import optuna
    from matplotlib import pyplot as plt

    # Without a screen nothing else can draw, and with one no window is wanted.
    mpl.use("Agg")
    draw: Callable[..., Any] = getattr(optuna.visualization.matplotlib, f"plot_{name}")
    try:
        axes = draw(ledger.study, **options)
        figure = (axes.flat[0] if hasattr(axes, "flat") else axes).figure
        figure.savefig(folder / f"{name}.png", dpi=PNG_DPI, bbox_inches="tight")
    finally:
        plt.close("all")
