"""What stores hold, as four tidy tables; every number and every plot of a report is made from them.

``runs`` has a row a run, ``metrics`` a row a run, metric and step, ``confusion`` a row a run and pair of
classes, ``mistakes`` a row a run and image. They are kept beside a report as Parquet and CSV, and a folder that
holds them can be read in the place of an MLflow store.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

TAG = "resnet_bench."
SPLITS = ("train", "validation", "test")

RUN_DTYPES: Mapping[str, str] = {
    "run_id": "str",
    "store": "str",
    "experiment": "str",
    "name": "str",
    "role": "str",
    "status": "str",
    "reason": "str",
    "benchmark": "str",
    "profile": "str",
    "seed": "Int64",
    "fingerprint": "str",
    "dataset": "str",
    "data_source": "str",
    "data_fingerprint": "str",
    "generated": "bool",
    "device": "str",
    "device_type": "str",
    "precision": "str",
    "host": "str",
    "code_commit": "str",
    "code_dirty": "bool",
    "version": "str",
    "parameters": "Int64",
    "macs": "Int64",
    "started": "datetime64[ms, UTC]",
    "ended": "datetime64[ms, UTC]",
    "parent_run_id": "str",
    "study": "str",
    "sampler": "str",
    "pruner": "str",
    "arm": "str",
    "trial_number": "Int64",
    "trial_state": "str",
    "trial_params": "str",
    "search_space": "str",
    "execution": "str",
    "environment": "str",
    "recipe": "str",
    "tags": "str",
    "benchmark_json": "str",
}
"""Columns of the table of runs. ``execution``, ``environment``, ``recipe`` (the params), ``trial_params``,
``search_space`` and ``tags`` (those without a column of their own) are JSON. ``benchmark_json`` is filled for the
latest run of each recipe."""

METRIC_DTYPES: Mapping[str, str] = {
    "run_id": "str",
    "metric": "str",
    "split": "str",
    "axis": "str",
    "step": "int64",
    "value": "float64",
}
"""Columns of the table of metrics. ``axis`` says what ``step`` counts: ``epoch``, ``step`` (optimizer steps) or
``once`` (nothing)."""

CONFUSION_DTYPES: Mapping[str, str] = {
    "run_id": "str",
    "label": "str",
    "predicted": "str",
    "label_index": "int64",
    "predicted_index": "int64",
    "images": "int64",
}
"""Columns of the table of confusions; pairs that never happen are left out."""

MISTAKE_DTYPES: Mapping[str, str] = {
    "run_id": "str",
    "index": "int64",
    "label": "str",
    "predicted": "str",
    "confidence": "float64",
    "png_base64": "str",
}
"""Columns of the table of confidently wrong images."""


@dataclass(frozen=True)
class Tables:
    """The tidy tables of one or several stores."""

    runs: pd.DataFrame
    metrics: pd.DataFrame
    confusion: pd.DataFrame
    mistakes: pd.DataFrame
    stores: tuple[str, ...] = ()
    """Where they were read from, without passwords."""
    problems: tuple[str, ...] = ()
    """What could not be read, a sentence each."""


TABLES: Mapping[str, Mapping[str, str]] = {
    "runs": RUN_DTYPES,
    "metrics": METRIC_DTYPES,
    "confusion": CONFUSION_DTYPES,
    "mistakes": MISTAKE_DTYPES,
}


def public_name(source: str) -> str:
    """A store's name for a report that others may read.

    A path below the working directory is given from there; of another, which would tell how a machine is laid
    out, the last two parts.
    """
    path = source.removeprefix("sqlite:///")
    if "://" in path or not Path(path).is_absolute():
        return path
    folder = Path.cwd()
    if Path(path).is_relative_to(folder):
        return str(Path(path).relative_to(folder))
    return "/".join(("…", *Path(path).parts[1:][-2:]))


def hidden(source: str) -> str:
    """A source as it may be printed: without the user and password of its address."""
    return re.sub(r"://[^/@\s]*@", "://…@", source)


def tidy(rows: Sequence[Mapping[str, Any]], dtypes: Mapping[str, str]) -> pd.DataFrame:
    """A table with these columns and types, whether or not there are rows."""
    columns = {name: pd.Series([row[name] for row in rows], dtype=dtype) for name, dtype in dtypes.items()}
    return pd.DataFrame(columns)


def first_line(error: BaseException, limit: int = 160) -> str:
    """The first line of an error, without what a connection string could give away."""
    text = str(error).strip() or type(error).__name__
    line = hidden(text.splitlines()[0])
    return line if len(line) <= limit else line[: limit - 1] + "…"
