"""Read stores and folders into tables, join them, and keep what was asked for."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd

from resnet_bench.base.describe_error import describe_error
from resnet_bench.base.errors import UserError
from resnet_bench.base.names import unknown_name
from resnet_bench.recipe.toml_files import search_folders, toml_files
from resnet_bench.reporting.anonymize import public_name
from resnet_bench.reporting.mlflow_reader import StoreReader
from resnet_bench.reporting.tables import OF_PREDICTIONS, TABLES, Tables, conformed, tidy
from resnet_bench.tracking.store import Store

Source = str | Path | Store
"""A tracking URI, a folder with the tables of a report, or a store that is already resolved."""


def read(
    sources: Sequence[Source],
    *,
    benchmarks: Sequence[str] | None = None,
    study: str | None = None,
    since: str | datetime | None = None,
) -> Tables:
    """Read every run of the suite from one or several stores.

    A store that cannot be read is named in ``problems``, and the others are read all the same.

    Args:
        sources: MLflow stores, folders with the tables of a report, and folders of such folders.
        benchmarks: Only runs of these benchmarks.
        study: Only this study, and, where no benchmarks are named, only its benchmark.
        since: Only runs started since then: a date or time in ISO format, or an age such as ``7d`` or ``12h``.

    Raises:
        UserError: No source could be read, or none holds a run of the suite.
    """
    start = parse_since(since)
    parts, problems = [], []
    for source in (each for given in sources for each in _folders_of(given)):
        try:
            parts.append(_read_one(source, start))
        except UserError as error:
            problems.append(str(error))
    if not parts:
        raise UserError("; ".join(problems) or "name at least one store to read")
    everything = _joined(parts, problems)
    tables = _filtered(everything, benchmarks, study, start)
    if tables.runs.empty:
        raise UserError(_nothing_found(everything, benchmarks, study, since))
    return tables


def parse_since(since: str | datetime | None) -> datetime | None:
    """Return the moment that a date, a time or an age such as ``7d`` names.

    Raises:
        UserError: It is none of these.
    """
    if since is None or isinstance(since, datetime):
        return since if since is None or since.tzinfo else since.astimezone()
    if age := re.fullmatch(r"(\d{1,5})([dhm])", since.strip()):
        unit = {"d": "days", "h": "hours", "m": "minutes"}[age[2]]
        return datetime.now(UTC) - timedelta(**{unit: int(age[1])})
    try:
        moment = datetime.fromisoformat(since.strip())
        # The first and the last day have no such moment in every time zone.
        moment = moment if moment.tzinfo else moment.astimezone()
    except (ValueError, OverflowError):
        raise UserError(f"since: {since!r} is not a date; write 2026-11-01, 2026-11-01T09:30 or 7d") from None
    return moment


def default_store() -> Store:
    """Return the store that runs are logged to by default."""
    return Store.resolve()


def is_table_folder(source: Source) -> bool:
    """Return whether a source is a folder with the tables of a report."""
    return isinstance(source, str | Path) and "://" not in str(source) and (Path(source) / "runs.parquet").is_file()


def _folders_of(source: Source) -> list[Source]:
    """Return the source, or each folder of tables below it (as in ``reports/reference``)."""
    if isinstance(source, Store) or "://" in str(source) or is_table_folder(source):
        return [source]
    below = sorted(path.parent for path in Path(source).glob("*/runs.parquet"))
    return [*below] or [source]


def read_folder(folder: Path) -> Tables:
    """Read the tables of a report from a folder.

    Raises:
        UserError: A table is missing or damaged, or has other columns.
    """
    frames: dict[str, pd.DataFrame] = {}
    for name, dtypes in TABLES.items():
        path = folder / f"{name}.parquet"
        if not path.is_file() and name in OF_PREDICTIONS:
            frames[name] = tidy([], dtypes)
            continue
        try:
            frame = pd.read_parquet(path)
        # The file's metadata for pandas may be damaged too, which raises anything.
        except Exception as error:
            raise UserError(
                f"{path} is not a readable table of a report: {describe_error(error, limit=160)}"
            ) from error
        try:
            frames[name] = conformed(frame, dtypes)
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{path} is not a table of a report: {describe_error(error, limit=160)}") from error
    return Tables(
        frames["runs"],
        frames["metrics"],
        frames["confusion"],
        frames["mistakes"],
        frames["churn"],
        (public_name(str(folder)),),
    )


def _read_one(source: Source, start: datetime | None) -> Tables:
    if is_table_folder(source):
        return read_folder(Path(str(source)))
    if isinstance(source, Path) or (isinstance(source, str) and "://" not in source):
        if Path(source).is_dir():
            raise UserError(f"{source} holds no report table (runs.parquet) and is not a tracking URI")
        if not Path(source).exists():
            raise UserError(f"{source} does not exist; name a tracking URI, a database file or a folder of tables")
    store = source if isinstance(source, Store) else Store.resolve(str(source))
    return StoreReader(store).read(start)


def _joined(parts: Sequence[Tables], problems: Sequence[str]) -> Tables:
    runs = pd.concat([part.runs for part in parts], ignore_index=True).drop_duplicates("run_id")
    frames = {}
    for name in ("metrics", *OF_PREDICTIONS):
        # A run that two sources hold, such as a store and a copy of it, is taken from the first.
        seen: set[str] = set()
        kept = []
        for part in parts:
            frame: pd.DataFrame = getattr(part, name)
            kept.append(frame[~frame["run_id"].isin(seen)])
            seen |= set(part.runs["run_id"])
        frames[name] = pd.concat(kept, ignore_index=True)
    return Tables(
        runs=runs.reset_index(drop=True),
        metrics=frames["metrics"],
        confusion=frames["confusion"],
        mistakes=frames["mistakes"],
        churn=frames["churn"],
        stores=tuple(dict.fromkeys(store for part in parts for store in part.stores)),
        problems=(*problems, *(problem for part in parts for problem in part.problems)),
    )


def _filtered(tables: Tables, benchmarks: Sequence[str] | None, study: str | None, start: datetime | None) -> Tables:
    runs = tables.runs
    if study is not None:
        of_study = runs["study"] == study
        if benchmarks is None and of_study.any():
            benchmarks = sorted(set(runs.loc[of_study, "benchmark"]))
        runs = runs[of_study | ((runs["study"] == "") & bool(of_study.any()))]
    if benchmarks is not None:
        runs = runs[runs["benchmark"].isin(list(benchmarks))]
    if start is not None:
        runs = runs[runs["started"] >= pd.Timestamp(start)]
    return tables.keep(runs)


def _nothing_found(
    everything: Tables, benchmarks: Sequence[str] | None, study: str | None, since: str | datetime | None
) -> str:
    where = " and ".join(everything.stores)
    wanted = [
        f"of {', '.join(benchmarks)}" if benchmarks else "",
        f"of the study {study}" if study else "",
        f"since {since}" if since else "",
    ]
    asked = " ".join(part for part in wanted if part)
    advice = _advice(everything, benchmarks or (), study)
    return "; ".join((f"{where} holds no run {asked}".rstrip() + f": {advice}", *everything.problems))


def _advice(everything: Tables, benchmarks: Sequence[str], study: str | None) -> str:
    """Return what to ask for instead, or how to make what was asked for."""
    shipped = toml_files(search_folders("benchmarks"))
    benchmarks_there, studies_there = ({*everything.runs[column]} - {""} for column in ("benchmark", "study"))
    if study is not None and study not in studies_there:
        return unknown_name("study", study, studies_there) if studies_there else "it holds no study"
    for name in benchmarks:
        if name not in benchmarks_there and name not in shipped:
            return unknown_name("benchmark", name, {*benchmarks_there, *shipped})
    first = next(iter(benchmarks), "resnet9-onecycle-adam")
    return f"make one with resnet-bench run {first} --profile smoke"
