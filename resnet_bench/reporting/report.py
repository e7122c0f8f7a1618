"""Write a report: a page, the same as Markdown, and the tables behind both."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import pandas as pd

from resnet_bench.base import files
from resnet_bench.base.errors import UserError
from resnet_bench.recipe.files import scan_benchmarks
from resnet_bench.reporting import claims as claim_rows
from resnet_bench.reporting import reading, runs, studies
from resnet_bench.reporting.anonymize import anonymized
from resnet_bench.reporting.claims import Claims
from resnet_bench.reporting.page import Report, render_markdown, render_page
from resnet_bench.reporting.reading import Source
from resnet_bench.reporting.sections import churn, claims, classes, comparison, costs, curves, depth, history
from resnet_bench.reporting.sections import runs as run_section
from resnet_bench.reporting.sections import studies as study_section
from resnet_bench.reporting.sections.section import Results
from resnet_bench.reporting.sources import as_known_today
from resnet_bench.reporting.tables import TABLES, Tables

PAGE = "index.html"
MARKDOWN = "report.md"
SECTIONS = (
    claims.SECTION,
    curves.SECTION,
    comparison.SECTION,
    depth.SECTION,
    classes.SECTION,
    churn.SECTION,
    costs.SECTION,
    history.SECTION,
    study_section.SECTION,
    run_section.SECTION,
)
"""In the order of the page."""


@dataclass(frozen=True)
class ReportResult:
    """What was written, and what a terminal prints about it."""

    page: Path
    markdown: Path
    claims: Claims
    runs: int
    """Runs that the report is made from."""
    problems: tuple[str, ...]
    """What could not be read or reported, one sentence each."""


def write(
    sources: Source | Sequence[Source],
    out: Path,
    *,
    benchmarks: Sequence[str] | None = None,
    study: str | None = None,
    since: str | datetime | None = None,
    benchmarks_folder: Path | None = None,
) -> ReportResult:
    """Read stores and write ``index.html``, ``report.md`` and the tables as Parquet and CSV.

    A store, a run or an artifact that cannot be read is named in the report and in ``problems``; everything else is
    reported.

    Args:
        sources: MLflow stores (tracking URIs), or folders with the tables of an earlier report.
        out: Folder to write to; it is created where it is missing, and other files in it stay.
        benchmarks: Only these benchmarks.
        study: Only this study, and, where no benchmarks are named, only its benchmark.
        since: Only runs started since then: a date or time in ISO format, or an age such as ``7d``.
        benchmarks_folder: Folder of benchmarks to search before the shipped ones.

    Raises:
        UserError: No store could be read, none holds a run of resnet-bench, or the folder cannot be written.
    """
    listed = [sources] if isinstance(sources, str | Path) or not isinstance(sources, Sequence) else list(sources)
    read = anonymized(reading.read(listed, benchmarks=benchmarks, study=study, since=since))
    if benchmarks is None and study is not None:
        benchmarks = sorted(set(read.runs["benchmark"]))
    report = build(read, benchmarks=benchmarks, benchmarks_folder=benchmarks_folder)
    contents = {
        **table_files(read),
        MARKDOWN: render_markdown(report).encode(),
        PAGE: render_page(report).encode(),
    }
    try:
        files.write_together(out, contents)
    except OSError as error:
        raise UserError(f"{out}: the report cannot be written there: {error.strerror or error}") from error
    return ReportResult(out / PAGE, out / MARKDOWN, report.claims, report.runs, report.problems)


def build(read: Tables, *, benchmarks: Sequence[str] | None = None, benchmarks_folder: Path | None = None) -> Report:
    """Build everything that a report shows, from the tables alone.

    Args:
        read: The tables of one or several stores.
        benchmarks: Name only these benchmarks among those without runs.
        benchmarks_folder: Folder of benchmarks to search before the shipped ones.
    """
    known, broken = scan_benchmarks(benchmarks_folder)
    loaded, left_out = runs.load(read)
    groups = [as_known_today(group, known) for group in runs.group(loaded)]
    found, untold = studies.usable(studies.find(loaded, known))
    problems = [*read.problems, *broken.values(), *left_out, *untold]
    if not groups:
        problems.append("no benchmark run has finished yet, so there is nothing to judge or to compare")
    results = Results(
        tables=read,
        runs=tuple(loaded),
        claims=claim_rows.build(groups, known, benchmarks),
        studies=tuple(found),
    )
    return Report(
        made=datetime.now(UTC),
        version=metadata.version("resnet-bench"),
        stores=read.stores,
        problems=tuple(problems),
        runs=len(loaded),
        claims=results.claims,
        sections=tuple((section, view) for section in SECTIONS if (view := section.build(results)) is not None),
    )


def table_files(read: Tables) -> dict[str, bytes]:
    """Return the tables as files: Parquet of each, CSV of those that people read."""
    contents = {}
    for name in TABLES:
        frame: pd.DataFrame = getattr(read, name)
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False, compression="zstd")
        contents[f"{name}.parquet"] = buffer.getvalue()
    for name in ("runs", "metrics"):
        frame = getattr(read, name).drop(columns=["benchmark_json"], errors="ignore")
        contents[f"{name}.csv"] = frame.to_csv(index=False, lineterminator="\n").encode()
    return contents
