"""The trials of a study as rows, for programs and spreadsheets."""

import csv
from typing import Any, TextIO

from resnet_bench.tuning.stored_study import StoredStudy, is_interrupted, is_source, trained_epochs


def write_trials(stored: StoredStudy, file: TextIO) -> None:
    """Write a study's trials as CSV, a row per trial; objectives are fractions and seconds."""
    keys = list(stored.definition.space)
    writer = csv.writer(file)
    writer.writerow(
        ["trial", "state", *stored.definition.objectives, "epochs", *keys, "source", "reason", "seconds", "run_id"]
    )
    for trial in trial_rows(stored):
        writer.writerow(
            [
                trial["trial"],
                trial["state"],
                *(_cell(trial["values"].get(name)) for name in stored.definition.objectives),
                _cell(trial["epochs"]),
                *(_cell(trial["params"].get(key)) for key in keys),
                "yes" if trial["source"] else "",
                _cell(trial["reason"]),
                _cell(trial["seconds"]),
                _cell(trial["run_id"]),
            ]
        )


def trial_rows(stored: StoredStudy) -> list[dict[str, Any]]:
    """Return a study's trials in the order of their numbers; what a trial does not have is None."""
    return [
        {
            "trial": trial.number,
            "state": "INTERRUPTED" if is_interrupted(trial) else trial.state.name,
            "values": dict(zip(stored.definition.objectives, trial.values or (), strict=False)),
            "epochs": trained_epochs(trial) or None,
            "params": dict(trial.params),
            "source": is_source(trial),
            "reason": trial.user_attrs.get("reason"),
            "seconds": round(trial.duration.total_seconds(), 3) if trial.duration else None,
            "run_id": trial.user_attrs.get("mlflow_run_id"),
        }
        for trial in stored.trials()
    ]


def _cell(value: Any) -> Any:
    return "" if value is None else value
