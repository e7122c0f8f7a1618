"""Hold what stores contain as five tidy tables; every number and plot of a report comes from them.

``runs`` has one row per run, ``metrics`` one per run, metric and step, ``confusion`` one per run and pair of
classes, ``mistakes`` one per run and image, ``churn`` one per pair of runs. A report keeps them as Parquet and CSV,
and a folder that holds them can be read in place of an MLflow store.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd

from resnet_bench.base.machine import machine_kind
from resnet_bench.tracking.vocabulary import LARGEST_MEASUREMENT, PREFIX, current_metric, recipe_params, restored

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

GROUP_COLUMNS = ("benchmark", "profile", "fingerprint", "data_fingerprint", "generated")
"""Columns in which runs must agree to be repeats of one experiment: what is trained, and on which images."""
MAX_SEED = 2**64 - 1

Place = tuple[str, tuple[str, ...]]
"""A device's name and the kind of its machine: times of two places have nothing to do with one another."""


# --- the columns of the table of runs ------------------------------------------------------------


@dataclass(frozen=True)
class StoredRun:
    """A run as an MLflow store holds it, with what the reader knows about its surroundings."""

    run: "MlflowRun"
    store: str
    experiment: str
    benchmark_json: str = ""

    def tag(self, name: str) -> str:
        """Return one of our tags; empty where the run has none of that name."""
        return str(self.run.data.tags.get(f"{PREFIX}{name}", ""))


@dataclass(frozen=True)
class Kind:
    """What a column holds: its type in the table, and how its values are written and read."""

    dtype: str
    empty: Callable[[], Any] = lambda: None
    """Makes what a :class:`RunRow` has where the column is empty."""
    parse: Callable[[Any], Any] = str
    """From what MLflow holds to the table."""
    load: Callable[[Any], Any] = str
    """From the table to a :class:`RunRow`."""


@dataclass(frozen=True)
class Column:
    """One column of the table of runs."""

    name: str
    field: str
    kind: Kind
    origin: Callable[[StoredRun], Any]

    def cell(self, stored: StoredRun) -> Any:
        """Return what the table holds for a run."""
        return self.kind.parse(self.origin(stored))

    def value(self, cell: Any) -> Any:
        """Return what a :class:`RunRow` has for a cell."""
        return self.kind.empty() if cell is pd.NA or cell is pd.NaT or cell is None else self.kind.load(cell)


def _whole_number(low: int, high: int) -> Callable[[str], int | None]:
    def parse(text: str) -> int | None:
        # Tags are text, and stay whole numbers: a float would lose the digits of a seed beyond 2^53.
        number = int(text) if re.fullmatch(r"-?\d{1,20}", text) else None
        return number if number is not None and low <= number <= high else None

    return parse


def json_object(text: Any) -> dict[str, Any]:
    """Return the object in a text of JSON; an empty one where it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _moment(milliseconds: int | None) -> Any:
    return pd.Timestamp(milliseconds, unit="ms", tz="UTC") if milliseconds else pd.NaT


TEXT = Kind("str", empty=str)
FLAG = Kind("bool", empty=bool, parse=lambda text: text == "true", load=bool)
NUMBER = Kind("Int64", parse=_whole_number(-(2**63), 2**63 - 1), load=int)
SEED = Kind("UInt64", parse=_whole_number(0, MAX_SEED), load=int)
MOMENT = Kind("datetime64[ms, UTC]", parse=_moment, load=lambda moment: moment.to_pydatetime())
OBJECT = Kind("str", load=json_object, empty=dict)


def _column(
    kind: Kind = TEXT, origin: Callable[[StoredRun], Any] | None = None, *, name: str = "", repr_: bool = True
) -> Any:
    """Declare a column; by default it is the tag of its name.

    Args:
        kind: What it holds.
        origin: Where it comes from in MLflow.
        name: Its name in the table, where that is not the field's.
        repr_: Whether a run is printed with it.
    """
    return field(default_factory=kind.empty, repr=repr_, metadata={"column": (kind, origin, name)})


def _other_tags(stored: StoredRun) -> str:
    """Return the tags without their own column, as JSON."""
    own = {f"{PREFIX}{column.name}" for column in RUN_COLUMNS}
    tags = stored.run.data.tags
    return json.dumps(
        {key: value for key, value in tags.items() if key not in own and not key.startswith("mlflow.")}, sort_keys=True
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class RunRow:
    """One row of the table of runs. Each column is declared here, and nowhere else."""

    id: str = _column(TEXT, lambda stored: stored.run.info.run_id, name="run_id")
    store: str = _column(TEXT, lambda stored: stored.store)
    experiment: str = _column(TEXT, lambda stored: stored.experiment, repr_=False)
    name: str = _column(TEXT, lambda stored: stored.run.info.run_name or "")
    role: str = _column()
    status: str = _column(TEXT, lambda stored: stored.run.info.status)
    reason: str = _column()
    benchmark: str = _column()
    profile: str = _column()
    seed: int | None = _column(SEED)
    fingerprint: str = _column()
    dataset: str = _column()
    data_source: str = _column()
    data_fingerprint: str = _column()
    generated: bool = _column(FLAG)
    device: str = _column()
    device_type: str = _column()
    precision: str = _column()
    host: str = _column()
    code_commit: str = _column()
    code_dirty: bool = _column(FLAG)
    version: str = _column()
    parameters: int | None = _column(NUMBER)
    macs: int | None = _column(NUMBER)
    started: datetime = _column(MOMENT, lambda stored: stored.run.info.start_time)  # noqa: RUF009 - it makes a field
    ended: datetime | None = _column(MOMENT, lambda stored: stored.run.info.end_time, repr_=False)  # noqa: RUF009
    parent_run_id: str = _column(TEXT, lambda stored: stored.run.data.tags.get("mlflow.parentRunId", ""))
    study: str = _column()
    sampler: str = _column(repr_=False)
    pruner: str = _column(repr_=False)
    arm: str = _column()
    trial_number: int | None = _column(NUMBER)
    trial_state: str = _column()
    trial_params: Mapping[str, Any] = _column(OBJECT, repr_=False)
    search_space: Mapping[str, Any] = _column(OBJECT, repr_=False)
    execution: Mapping[str, Any] = _column(OBJECT, repr_=False)
    environment: Mapping[str, Any] = _column(OBJECT, repr_=False)
    recipe: Mapping[str, str] = _column(
        OBJECT, lambda stored: json.dumps(recipe_params(stored.run.data.params), sort_keys=True), repr_=False
    )
    """Dotted recipe keys and their values as text: the params in MLflow."""
    tags: Mapping[str, str] = _column(OBJECT, _other_tags, repr_=False)
    """Tags without their own column, under their full names."""
    benchmark_json: str = _column(TEXT, lambda stored: stored.benchmark_json, repr_=False)
    """The benchmark as its latest run recorded it; only the latest finished run of each experiment has it."""

    @cached_property
    def machine(self) -> tuple[str, ...]:
        """The kind of machine that times are of; of a GPU nothing beyond the device's name."""
        return machine_kind(self.environment if self.device_type == "cpu" else {})

    @property
    def place(self) -> Place:
        """The device and kind of machine that its times are of."""
        return self.device, self.machine

    @classmethod
    def fields_of(cls, row: Mapping[Any, Any]) -> dict[str, Any]:
        """Return the fields of a run from a row of the table."""
        return {column.field: column.value(row[column.name]) for column in RUN_COLUMNS}


def _columns() -> tuple[Column, ...]:
    found = []
    for each in fields(RunRow):
        kind, origin, name = each.metadata["column"]
        name = name or each.name
        found.append(Column(name, each.name, kind, origin or _from_tag(name)))
    return tuple(found)


def _from_tag(name: str) -> Callable[[StoredRun], str]:
    return lambda stored: stored.tag(name)


RUN_COLUMNS = _columns()


# --- the tables ----------------------------------------------------------------------------------

RUN_DTYPES: Mapping[str, str] = {column.name: column.kind.dtype for column in RUN_COLUMNS}

METRIC_DTYPES: Mapping[str, str] = {
    "run_id": "str",
    "metric": "str",
    "split": "str",
    "axis": "str",
    "step": "int64",
    "value": "float64",
}
"""Columns of the table of metrics. ``axis`` is what ``step`` counts: ``epoch``, ``step`` (optimizer steps) or
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
    "image": "str",
    "label": "str",
    "predicted": "str",
    "confidence": "float64",
    "png_base64": "str",
}
"""Columns of the table of confidently wrong images; ``image`` is what an image is called in its source."""

_ADDED_COLUMNS = {"image": ""}
"""Columns that version 0.1.0 did not write, and what its tables are read as."""

CHURN_DTYPES: Mapping[str, str] = {
    "run_id": "str",
    "other_id": "str",
    "images": "int64",
    "only_first": "int64",
    "only_second": "int64",
    "differing": "int64",
}
"""Columns of the table of churn: pairs of runs of one experiment on the same test images."""

TABLES: Mapping[str, Mapping[str, str]] = {
    "runs": RUN_DTYPES,
    "metrics": METRIC_DTYPES,
    "confusion": CONFUSION_DTYPES,
    "mistakes": MISTAKE_DTYPES,
    "churn": CHURN_DTYPES,
}
OF_PREDICTIONS = ("confusion", "mistakes", "churn")
"""Tables that a folder may lack: where no run kept predictions, and in reports of earlier versions."""


@dataclass(frozen=True)
class Tables:
    """The tidy tables of one or several stores."""

    runs: pd.DataFrame
    metrics: pd.DataFrame
    confusion: pd.DataFrame
    mistakes: pd.DataFrame
    churn: pd.DataFrame = field(default_factory=lambda: tidy([], CHURN_DTYPES))
    stores: tuple[str, ...] = ()
    """Where they were read from, without passwords."""
    problems: tuple[str, ...] = ()
    """What could not be read, one sentence each."""

    def keep(self, runs: pd.DataFrame) -> "Tables":
        """Return the tables of these of their runs alone."""
        frames = {name: getattr(self, name) for name in ("metrics", *OF_PREDICTIONS)}
        kept = {name: frame[frame["run_id"].isin(runs["run_id"])] for name, frame in frames.items()}
        return replace(self, **{name: frame.reset_index(drop=True) for name, frame in {"runs": runs, **kept}.items()})


def tidy(rows: Sequence[Mapping[str, Any]], dtypes: Mapping[str, str]) -> pd.DataFrame:
    """Build a table with these columns and types, whether or not there are rows."""
    columns = {name: pd.Series([row[name] for row in rows], dtype=dtype) for name, dtype in dtypes.items()}
    return pd.DataFrame(columns)


def conformed(frame: pd.DataFrame, dtypes: Mapping[str, str]) -> pd.DataFrame:
    """Bring a table that an older version wrote to today's columns, types and metric names.

    Raises:
        ValueError: A column is missing, or has another kind of values.
        TypeError: Likewise.
    """
    frame = frame.assign(**{name: value for name, value in _ADDED_COLUMNS.items() if name not in frame.columns})
    if missing := [column for column in dtypes if column not in frame.columns]:
        raise ValueError(f"it lacks the column {missing[0]!r}")
    frame = frame[list(dtypes)].copy()
    for name, dtype in dtypes.items():
        if dtype.startswith("UInt") and pd.api.types.is_signed_integer_dtype(frame[name].dtype):
            # Version 0.1.0 kept seeds with a sign, and a negative one would wrap around.
            frame[name] = frame[name].where(frame[name] >= 0)
    frame = frame.astype(dict(dtypes))
    texts = [name for name, dtype in dtypes.items() if dtype == "str"]
    frame[texts] = frame[texts].fillna("")
    if "metric" in dtypes:
        names = {name: current_metric(name) for name in frame["metric"].unique()}
        frame["metric"] = frame["metric"].map(names).astype("str")
        large = frame["value"].abs() >= LARGEST_MEASUREMENT
        frame.loc[large, "value"] = frame.loc[large, "value"].map(restored)
    return frame
