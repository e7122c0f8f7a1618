"""Writes a report: a page that needs no server and no network, the same as Markdown, and the tables behind both."""

import base64
import gzip
import hashlib
import io
import json
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from resnet_bench.recipe.files import scan_benchmarks
from resnet_bench.reporting import claims as claim_rows
from resnet_bench.reporting import figures, files, results, schema, studies, text
from resnet_bench.reporting import table as tables
from resnet_bench.reporting.claims import Claims
from resnet_bench.reporting.figures.style import Plot
from resnet_bench.reporting.published import published
from resnet_bench.reporting.results import Group, Run
from resnet_bench.reporting.schema import Tables
from resnet_bench.reporting.statistics import Interval, TimesToAccuracy
from resnet_bench.reporting.studies import Study
from resnet_bench.reporting.table import Source

TEMPLATES = Path(__file__).parent / "templates"
PAGE = "index.html"
MARKDOWN = "report.md"
MAX_TARGETS = 4
MAX_CONFUSED_PAIRS = 8
_WRAPPED = re.compile(
    r"(?P<licence>/\*.*?\*/)\s*"
    r"\(\s*function\(root, factory\).*?, \(\) => \{\n(?P<body>.*)\nreturn Plotly;\n\}\)\);\s*",
    re.DOTALL,
)


@dataclass(frozen=True)
class ReportResult:
    """What was written, and what there is to say about it in a terminal."""

    page: Path
    markdown: Path
    claims: Claims
    runs: int
    """Runs that the report is made from."""
    problems: tuple[str, ...]
    """What could not be read or reported, a sentence each."""


@dataclass(frozen=True)
class CostRow:
    """What one benchmark costs on one device: medians over its runs."""

    group: Group
    label: str
    device: str
    precision: str
    n: int
    seconds: float | None
    seconds_range: Interval | None
    images_per_second: float | None
    flops: float | None
    """Model FLOP/s: three forward passes an image, two operations a multiply-add."""
    peak_share: float | None
    """Of what the device was measured to reach."""
    peak_memory: float | None
    joules: float | None
    counter: str
    """Whose counter the joules are from; empty where there are none."""


@dataclass(frozen=True)
class Targets:
    """When each benchmark on each device reached some accuracies of one dataset."""

    dataset: str
    targets: tuple[float, ...]
    rows: tuple[tuple[str, str, tuple[TimesToAccuracy | None, ...]], ...]
    """Label, device, and the times for each target."""


@dataclass(frozen=True)
class Pictures:
    """What one group's predictions look like."""

    group: Group
    label: str
    plots: tuple[Plot, ...]
    confused: tuple[tuple[str, str, float], ...]
    mistakes: tuple[Mapping[str, Any], ...]
    missing: str
    """Why there are no pictures of mistakes; empty where there are."""


@dataclass(frozen=True)
class Report:
    """Everything that the templates show."""

    made: datetime
    version: str
    stores: tuple[str, ...]
    problems: tuple[str, ...]
    runs: tuple[Run, ...]
    claims: Claims
    claim_plots: tuple[Plot, ...]
    curves: tuple[tuple[Group, str, tuple[Plot, ...]], ...]
    curves_shown: tuple[Group, ...]
    """The groups whose curves are not folded away: those that are judged, or where there are none, those compared."""
    compared_apart: bool
    """The comparisons are of runs that are never judged, because there are no others."""
    compare_plots: tuple[Plot, ...]
    targets: tuple[Targets, ...]
    pictures: tuple[Pictures, ...]
    costs: tuple[CostRow, ...]
    studies: tuple[tuple[Study, tuple[Plot, ...]], ...]
    unfinished: tuple[Run, ...]
    environments: tuple[tuple[Mapping[str, Any], tuple[Run, ...]], ...]

    @property
    def plots(self) -> list[Plot]:
        """Every plot of the page."""
        return [
            *self.claim_plots,
            *(plot for _, _, plots in self.curves for plot in plots),
            *self.compare_plots,
            *(plot for pictures in self.pictures for plot in pictures.plots),
            *(plot for _, plots in self.studies for plot in plots),
        ]

    @property
    def verdict_counts(self) -> dict[str, int]:
        """How many benchmarks have each verdict by their first claim."""
        counts: dict[str, int] = {}
        for word in text.VERDICT_MARKS:
            number = sum(row.verdict.word == word and row.claim is not None for row in self.claims.headlines)
            if number:
                counts[word] = number
        return counts


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

    A store or an artifact that cannot be read is named in the report and in ``problems``; everything else is
    reported.

    Args:
        sources: MLflow stores (tracking URIs), or folders with the tables of an earlier report.
        out: Folder to write to; it is made where it is missing, and other files in it are left alone.
        benchmarks: Only these benchmarks.
        study: Only this study, and, where no benchmarks are named, only its benchmark.
        since: Only runs started since then: a date or time in ISO format, or an age such as ``7d``.
        benchmarks_folder: Folder of benchmarks to look through before the shipped ones.

    Raises:
        UserError: No store could be read, none holds a run of the suite, or the folder cannot be written.
    """
    listed = [sources] if isinstance(sources, str | Path) or not isinstance(sources, Sequence) else list(sources)
    read = published(tables.read(listed, benchmarks=benchmarks, study=study, since=since))
    if benchmarks is None and study is not None:
        benchmarks = sorted(set(read.runs["benchmark"]))
    report = build(read, benchmarks=benchmarks, benchmarks_folder=benchmarks_folder)
    contents = {
        **table_files(read),
        MARKDOWN: render_markdown(report).encode(),
        PAGE: render_page(report).encode(),
    }
    files.write_all(out, contents)
    return ReportResult(out / PAGE, out / MARKDOWN, report.claims, len(report.runs), report.problems)


def build(read: Tables, *, benchmarks: Sequence[str] | None = None, benchmarks_folder: Path | None = None) -> Report:
    """Everything that a report shows, from the tables alone.

    Args:
        read: The tables of one or several stores.
        benchmarks: Name only these benchmarks among those without runs.
        benchmarks_folder: Folder of benchmarks to look through before the shipped ones.
    """
    problems = list(read.problems)
    known, broken = scan_benchmarks(benchmarks_folder)
    problems += broken.values()
    runs = results.load(read)
    groups = results.group(runs)
    if not groups:
        problems.append("no benchmark run has finished yet, so there is nothing to judge or to compare")
    claims = claim_rows.build(groups, known, benchmarks)
    found = studies.find(runs)
    tuned = studies.tuned_accuracies(found)
    ordered = list(dict.fromkeys(row.group for row in (*claims.rows, *claims.apart)))
    full = [group for group in ordered if not group.apart]
    compared = full or ordered
    return Report(
        made=datetime.now(UTC),
        version=metadata.version("resnet-bench"),
        stores=read.stores,
        problems=tuple(problems),
        runs=tuple(runs),
        claims=claims,
        claim_plots=_plots(figures.forest(claims.rows, tuned), figures.ladder(claims.rows, tuned)),
        curves=tuple((group, _label(group, ordered), tuple(figures.curves(group))) for group in ordered),
        curves_shown=tuple(group for group in full if not group.changed) or tuple(compared),
        compared_apart=not full,
        compare_plots=_compare_plots(compared),
        targets=tuple(_targets(compared, dataset) for dataset in _datasets(compared)),
        pictures=tuple(_pictures(group, compared, read) for group in compared),
        costs=tuple(_costs(ordered)),
        studies=tuple((study, tuple(study.plots())) for study in found),
        unfinished=tuple(run for run in runs if run.role == "run" and not run.finished),
        environments=_environments(runs),
    )


# --- rendering -----------------------------------------------------------------------------------


def render_page(report: Report) -> str:
    """The whole page: markup, style, scripts, data and plotly, in one file."""
    environment = _environment(autoescape=True)
    script = (TEMPLATES / "page.js").read_text("utf-8")
    specs = {plot.id: plot.spec for plot in report.plots}
    return environment.get_template("page.html.j2").render(
        report=report,
        style=(TEMPLATES / "page.css").read_text("utf-8"),
        script=script,
        script_hash=_csp_hash(script),
        plotly=_plotly(),
        specs=specs,
        theme=figures.THEME,
    )


def render_markdown(report: Report) -> str:
    """The same report for a terminal, a pull request or a README."""
    return _markdown("report.md.j2", report)


def render_claims(report: Report) -> str:
    """The table of claims alone, as Markdown."""
    return _markdown("claims.md.j2", report)


def _markdown(template: str, report: Report) -> str:
    environment = _environment(autoescape=False)
    environment.filters["md"] = markdown_text
    environment.finalize = lambda value: value if value is not None else ""
    rendered = environment.get_template(template).render(report=report)
    return re.sub(r"\n{3,}", "\n\n", rendered).strip() + "\n"


def markdown_text(value: object) -> str:
    """A text in which nothing is Markdown or HTML, on one line."""
    single = " ".join(str(value).split())
    return re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", single).replace("\\<", "&lt;").replace("\\>", "&gt;")


def table_files(read: Tables) -> dict[str, bytes]:
    """The tables as files: Parquet of each, CSV of those that people read."""
    contents = {}
    for name in schema.TABLES:
        frame: pd.DataFrame = getattr(read, name)
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False, compression="zstd")
        contents[f"{name}.parquet"] = buffer.getvalue()
    for name in ("runs", "metrics"):
        frame = getattr(read, name).drop(columns=["benchmark_json"], errors="ignore")
        contents[f"{name}.csv"] = frame.to_csv(index=False, lineterminator="\n").encode()
    return contents


def _environment(*, autoescape: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=autoescape,  # noqa: S701 - off for Markdown only, whose names pass markdown_text  # nosec B701
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in (
        "number", "signed", "interval", "mean_with_interval", "duration", "size", "flops", "energy", "share",
        "reached", "listed", "plural", "mean_of", "setting", "seeds",
    ):  # fmt: skip
        environment.filters[name] = getattr(text, name)
    environment.filters["slug"] = lambda value: re.sub(r"[^a-z0-9]+", "-", str(value).lower()).strip("-")
    environment.filters["sentence"] = lambda value: value[:1].upper() + value[1:]
    environment.filters["when"] = lambda value: value.strftime("%Y-%m-%d %H:%M")
    environment.globals.update(DASH=text.DASH, MARKS=text.VERDICT_MARKS)
    return environment


@cache
def _plotly() -> str:
    """plotly.js, compressed for the page.

    The package ships one bundle of 4.8 MB; compressed it is a third of that, and every browser since 2023 can
    unpack it.
    """
    from plotly.offline import get_plotlyjs

    packed = gzip.compress(unwrapped(get_plotlyjs()).encode(), compresslevel=9, mtime=0)
    return base64.b64encode(packed).decode("ascii")


def unwrapped(library: str) -> str:
    """plotly.js without the function around all of it, which serves module loaders.

    A browser reads a function once to find its end and once more when it is called; of a function of 4.8 MB that is
    a third of a second of waiting for the first plot. Where the library is wrapped in another way, nothing changes.
    """
    found = _WRAPPED.fullmatch(library)
    return f"{found['licence']}\n{found['body']}\n" if found else library


def _csp_hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


# --- the parts of a report -----------------------------------------------------------------------


def _plots(*made: Plot | None) -> tuple[Plot, ...]:
    return tuple(plot for plot in made if plot is not None)


def _compare_plots(groups: Sequence[Group]) -> tuple[Plot, ...]:
    by_dataset = [
        plot
        for dataset in _datasets(groups)
        for plot in (
            figures.pareto(groups, dataset),
            figures.time_to_accuracy(groups, dataset),
            figures.strip(groups, dataset),
        )
    ]
    return _plots(*by_dataset, figures.throughput(groups), figures.memory(groups))


def _datasets(groups: Sequence[Group]) -> list[str]:
    return sorted({group.latest.dataset for group in groups})


def _label(group: Group, groups: Sequence[Group]) -> str:
    return figures.group_label(group, groups)


def _targets(groups: Sequence[Group], dataset: str) -> Targets:
    shown = [group for group in groups if group.latest.dataset == dataset]
    targets = _round_targets(shown)
    rows = [
        (
            _label(group, groups),
            device,
            tuple(claim_rows.times_to_accuracy(group, target, device) for target in targets),
        )
        for group in shown
        for device in group.devices
    ]
    return Targets(dataset, targets, tuple(row for row in rows if any(row[2])))


def _round_targets(groups: Sequence[Group]) -> tuple[float, ...]:
    """A few round accuracies that some runs reach and that tell the benchmarks apart."""
    best = [
        max(values)
        for group in groups
        if (values := [value for run in group.runs for _, value in run.timed_accuracy(group.curve_split)])
    ]
    if not best:
        return ()
    step = 1.0 if max(best) - min(best) < 5 else 5.0
    top = math.floor(max(best) / step) * step
    return tuple(reversed([top - step * place for place in range(MAX_TARGETS) if top - step * place > 0]))


def _pictures(group: Group, groups: Sequence[Group], read: Tables) -> Pictures:
    confusion = results.of_run_ids(read.confusion, group.runs)
    mistakes = results.of_run_ids(read.mistakes, group.runs)
    missing = ""
    if mistakes.empty:
        missing = "its runs logged no confident_mistakes.json, or it could not be read"
    return Pictures(
        group,
        _label(group, groups),
        _plots(figures.per_class(group, confusion), figures.confusion_matrix(group, confusion)),
        tuple(figures.most_confused(confusion, MAX_CONFUSED_PAIRS)),
        tuple(_records(mistakes.sort_values("confidence", ascending=False))),
        missing,
    )


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def _costs(groups: Sequence[Group]) -> list[CostRow]:
    return [
        _cost(group, _label(group, groups), device, runs) for group in groups for device, runs in group.devices.items()
    ]


def _cost(group: Group, label: str, device: str, runs: Sequence[Run]) -> CostRow:
    seconds = [run.train_seconds for run in runs if run.train_seconds is not None]
    shares = [
        run.flops / peak for run in runs if run.flops is not None and (peak := run.once.get("device/peak_flops", 0)) > 0
    ]
    joules = claim_rows.median(run.once.get("energy/joules") for run in runs)
    return CostRow(
        group=group,
        label=label,
        device=device,
        precision=", ".join(sorted({run.precision for run in runs})),
        n=len(runs),
        seconds=statistics.median(seconds) if seconds else None,
        seconds_range=Interval(min(seconds), max(seconds)) if len(seconds) > 1 else None,
        images_per_second=claim_rows.median(run.images_per_second for run in runs),
        flops=claim_rows.median(run.flops for run in runs),
        peak_share=statistics.median(shares) if shares else None,
        peak_memory=claim_rows.median(run.peak_memory for run in runs),
        joules=joules,
        counter="" if joules is None else "CPU packages" if runs[0].device_type == "cpu" else "GPU board",
    )


def _environments(runs: Sequence[Run]) -> tuple[tuple[Mapping[str, Any], tuple[Run, ...]], ...]:
    together: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if run.role == "run":
            together[json.dumps(run.environment, sort_keys=True)].append(run)
    return tuple((json.loads(environment), tuple(members)) for environment, members in together.items())
