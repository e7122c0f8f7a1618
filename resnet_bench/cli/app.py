"""The verbs of the command line. Each parses, calls and prints; the work is done elsewhere."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from resnet_bench.base.errors import UserError
from resnet_bench.base.text import plural
from resnet_bench.cli.perf import perf
from resnet_bench.cli.record import record_app
from resnet_bench.cli.run import run
from resnet_bench.cli.screen import (
    BAD_INPUT,
    DEFAULT_DATA,
    DEFAULT_RUNS,
    FAILED,
    BenchmarkName,
    BenchmarksFolder,
    DataFolder,
    RunsFolder,
    TrackingURI,
    complete_benchmark,
    console,
    errors,
    say,
)
from resnet_bench.cli.study import study_app
from resnet_bench.models.of_recipe import check_benchmark
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.files import load_benchmark, load_benchmark_file, scan_benchmarks
from resnet_bench.recipe.writing import copy_benchmark

app = typer.Typer(
    name="resnet-bench",
    help="Fair, fast, tracked training of residual networks on CIFAR.\n\nStart with: resnet-bench list",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
data_app = typer.Typer(help="Look for CIFAR, or fetch it.", no_args_is_help=True)
tracking_app = typer.Typer(help="Look after the tracking store.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(tracking_app, name="tracking")
app.add_typer(study_app, name="study")
app.command()(perf)
app.add_typer(record_app, name="record")
app.command()(run)


def main() -> None:
    """Run the command line; what a user can put right ends in one sentence and exit code 2."""
    try:
        app()
    except UserError as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(BAD_INPUT)


# --- the registry --------------------------------------------------------------------------------


@app.command("list")
def list_benchmarks(benchmarks: BenchmarksFolder = None) -> None:
    """List the benchmarks: name, dataset, network, epochs and claim.

    Example: resnet-bench list

    Next: resnet-bench show resnet9-onecycle-adam
    """
    found, problems = scan_benchmarks(benchmarks)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    # A name is there to be copied, so it is never folded.
    table.add_column("name", no_wrap=True)
    for name in ("dataset", "network", "epochs", "claim"):
        table.add_column(name, justify="right" if name == "epochs" else "left", overflow="fold")
    for benchmark in found.values():
        claim = next((claim.text for claim in benchmark.claims if claim.split == "test"), "–")
        recipe = benchmark.recipe
        table.add_row(benchmark.name, recipe.data.dataset, recipe.model.name, str(recipe.training.epochs), claim)
    console.print(table)
    for problem in problems.values():
        errors.print(f"[bold red]error:[/] {escape(problem)}", highlight=False, soft_wrap=True)
    if problems:
        raise typer.Exit(BAD_INPUT)


@app.command()
def show(name: BenchmarkName, benchmarks: BenchmarksFolder = None) -> None:
    """Show a benchmark: its source, claims, facts with their status, and the whole recipe.

    Example: resnet-bench show resnet9-onecycle-adam

    Next: resnet-bench run resnet9-onecycle-adam --profile smoke
    """
    benchmark = load_benchmark(name, benchmarks)
    _print_source(benchmark)
    _print_claims(benchmark)
    _print_recipe(benchmark)
    _print_facts(benchmark)


@app.command()
def copy(
    name: BenchmarkName,
    file: Annotated[Path, typer.Argument(help="The file to write.")],
    benchmarks: BenchmarksFolder = None,
) -> None:
    """Copy a benchmark to a file, as the start of a recipe of your own.

    Example: resnet-bench copy resnet9-onecycle-adam benchmarks/my-resnet9.toml

    Next: resnet-bench validate benchmarks/my-resnet9.toml
    """
    copy_benchmark(name, file, benchmarks)
    console.print(f"wrote {file}; edit it, then: resnet-bench validate {shlex.quote(str(file))}", highlight=False)


@app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(help="Benchmark files.")], benchmarks: BenchmarksFolder = None
) -> None:
    """Check benchmark files against the schema and the networks that exist.

    Example: resnet-bench validate benchmarks/my-resnet9.toml

    Next: resnet-bench run my-resnet9 --profile smoke
    """
    broken = 0
    for file in files:
        try:
            benchmark = load_benchmark_file(file, benchmarks)
            check_benchmark(benchmark)
        except UserError as error:
            broken += 1
            errors.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        else:
            console.print(f"{file}: valid, recipe {benchmark.recipe.fingerprint}", highlight=False, soft_wrap=True)
    if broken:
        raise typer.Exit(BAD_INPUT)


def _print_source(benchmark: Benchmark) -> None:
    source = benchmark.source
    console.print(f"[bold]{escape(source.title)}[/]", highlight=False)
    details = [source.kind, source.author, source.published, source.url]
    console.print("  " + escape(", ".join(part for part in details if part)), highlight=False)
    if benchmark.extends:
        console.print(f"  extends {benchmark.extends}", highlight=False)
    if source.notes:
        console.print(f"  {escape(source.notes)}", highlight=False)


def _print_claims(benchmark: Benchmark) -> None:
    console.print("\n[bold]Claims[/]")
    if not benchmark.claims:
        console.print("  none")
    for claim in benchmark.claims:
        at = f"epoch {claim.epoch}" if claim.epoch is not None else f"{claim.selection} epoch"
        curve = f", with a curve of {len(claim.curve.epochs)} points" if claim.curve else ""
        runs = f", mean of {claim.runs} runs" if claim.runs > 1 else ""
        wall = f", in {claim.wall_seconds:g} s" if claim.wall_seconds else ""
        console.print(f"  {claim.split} {claim.metric} {claim.text} ({at}{runs}{curve}{wall})", highlight=False)
        if claim.quote:
            console.print(f"  “{escape(claim.quote)}”", highlight=False)


def _print_recipe(benchmark: Benchmark) -> None:
    status = {key: fact.status for fact in benchmark.source.facts for key in fact.keys}
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title=f"Recipe {benchmark.recipe.fingerprint}", title_justify="left"
    )
    for column in ("key", "value", "status"):
        table.add_column(column, overflow="fold")
    for key, value in benchmark.recipe.flat().items():
        table.add_row(key, escape(str(value)), _status_of(key, status))
    console.print()
    console.print(table)


def _status_of(key: str, status: Mapping[str, str]) -> str:
    while key:
        if key in status:
            return status[key]
        key = key.rpartition(".")[0]
    return ""


def _print_facts(benchmark: Benchmark) -> None:
    console.print("\n[bold]Facts[/]")
    for fact in benchmark.source.facts:
        other = f" (else: {fact.alternative})" if fact.alternative else ""
        console.print(f"  {fact.status:<10} {escape(fact.fact)}{escape(other)}", highlight=False)


# --- reports -------------------------------------------------------------------------------------


@app.command()
def report(
    sources: Annotated[
        list[str] | None,
        typer.Option(
            "--from", metavar="URI", help="A tracking store, or a folder of report tables; may be given again."
        ),
    ] = None,
    benchmarks: Annotated[
        list[str] | None,
        typer.Option("--benchmark", help="Only this benchmark; may be given again.", autocompletion=complete_benchmark),
    ] = None,
    study: Annotated[str | None, typer.Option("--study", help="Only this study.")] = None,
    since: Annotated[
        str | None, typer.Option("--since", help="Only runs since a date such as 2026-11-01, or 7d.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to write it.")] = Path("reports/latest"),
    folder: BenchmarksFolder = None,
) -> None:
    """Write a report of what MLflow holds: a page that needs no server, Markdown, and the tables behind it.

    Example: resnet-bench report --out reports/latest

    Next: open reports/latest/index.html
    """
    from resnet_bench.reporting.report import write
    from resnet_bench.tracking.store import Store

    chosen = [_source(text) for text in sources or []] or [Store.resolve(None, Path.cwd()).uri]
    result = write(chosen, out, benchmarks=benchmarks, study=study, since=since, benchmarks_folder=folder)
    for problem in result.problems:
        errors.print(escape(problem), highlight=False, soft_wrap=True)
    say(f"report of {plural(result.runs, 'run')}: {result.page.resolve()}")


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="A store, a folder of report tables, a tag KEY=VALUE, or a commit.")],
    b: Annotated[str, typer.Argument(help="What to hold against it, likewise.")],
    sources: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="URI", help="Where to look for tags and commits; may be given again."),
    ] = None,
    benchmarks: Annotated[
        list[str] | None,
        typer.Option("--benchmark", help="Only this benchmark; may be given again.", autocompletion=complete_benchmark),
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", help="Only runs since a date such as 2026-11-01, or 7d.")
    ] = None,
    style: Annotated[str, typer.Option("--format", help="table, markdown or json.")] = "table",
    fail_on_regression: Annotated[
        bool, typer.Option("--fail-on-regression", help="Exit with code 1 where B is worse by more than noise.")
    ] = False,
) -> None:
    """Say what changed between two sets of runs, and whether it is more than noise.

    Example: resnet-bench compare before/mlflow.db mlflow.db --fail-on-regression

    Next: resnet-bench report --from before/mlflow.db --from mlflow.db
    """
    from resnet_bench.reporting import compare as comparing

    if style not in ("table", "markdown", "json"):
        raise UserError(f"--format {style}: there is no such format; write table, markdown or json")
    found = comparing.compare(
        _source(a),
        _source(b),
        sources=[_source(text) for text in sources] if sources else None,
        benchmarks=benchmarks,
        since=since,
    )
    if style == "table":
        console.print(found.render())
    else:
        # Not through rich, which would wrap lines that a program reads.
        sys.stdout.write(found.markdown() if style == "markdown" else found.json())
    if fail_on_regression and found.regressions:
        raise typer.Exit(FAILED)


def _source(text: str) -> str:
    """A source as the reports take it: a database file stands for its SQLite URI, a report's table for its folder."""
    path = Path(text).expanduser()
    if path.is_file():
        return str(path.parent) if path.suffix == ".parquet" else f"sqlite:///{path.resolve()}"
    return text


# --- data, tracking, the machine -----------------------------------------------------------------


@data_app.command("status")
def data_status(data: DataFolder = DEFAULT_DATA) -> None:
    """Say which datasets are there, from which source, and whether they are decoded.

    Example: resnet-bench data status --data ~/cifar
    """
    from resnet_bench.data.dataset import dataset_status

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("dataset", "sources", "decoded", "fingerprint"):
        table.add_column(column, overflow="fold")
    for status in dataset_status(data):
        table.add_row(
            status.name,
            ", ".join(f"{kind} at {location}" for kind, location in status.sources)
            or "none; resnet-bench data prepare fetches it",
            status.cache,
            (status.fingerprint or "–")[:16],
        )
    console.print(table)


@data_app.command("prepare")
def data_prepare(
    datasets: Annotated[list[str] | None, typer.Argument(help="cifar10, cifar100; both by default.")] = None,
    data: DataFolder = DEFAULT_DATA,
    download: Annotated[bool, typer.Option("--download/--offline")] = True,
) -> None:
    """Fetch CIFAR where it is missing, check it, and decode it once.

    Example: resnet-bench data prepare cifar10

    Next: resnet-bench run resnet9-onecycle-adam
    """
    from resnet_bench.base.names import unknown_name
    from resnet_bench.data.dataset import load_dataset
    from resnet_bench.recipe.settings import NUM_CLASSES

    for name in datasets or list(NUM_CLASSES):
        if name not in NUM_CLASSES:
            raise UserError(unknown_name("dataset", name, NUM_CLASSES))
        dataset = load_dataset(name, data, download=download, progress=say)
        console.print(
            f"{name}: {len(dataset.train.labels)} + {len(dataset.test.labels)} images from {dataset.source} "
            f"at {dataset.location}, fingerprint {dataset.fingerprint[:16]}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


@app.command()
def doctor(data: DataFolder = DEFAULT_DATA, tracking: TrackingURI = None) -> None:
    """Say what resnet-bench would run on: Python, torch, GPU, data, tracking store.

    Example: resnet-bench doctor
    """
    from resnet_bench.cli.doctor import check_machine

    findings = check_machine(data, tracking)
    for finding in findings:
        mark = "[green]✓[/]" if finding.good else "[yellow]✗[/]"
        console.print(f"{mark} {finding.subject:<16} {escape(finding.text)}", highlight=False, soft_wrap=True)
        if finding.remedy:
            console.print(f"    {escape(finding.remedy)}", highlight=False, soft_wrap=True)
    if not all(finding.good for finding in findings if finding.required):
        raise typer.Exit(FAILED)


@app.command()
def ui(
    tracking: TrackingURI = None,
    host: Annotated[str, typer.Option("--host", help="Address to bind; loopback keeps others out.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 5000,
) -> None:
    """Open MLflow on the runs, on this machine only.

    Example: resnet-bench ui --port 5001
    """
    from resnet_bench.tracking.store import Store
    from resnet_bench.tracking.ui import serve_ui

    raise typer.Exit(serve_ui(Store.resolve(tracking, Path.cwd()), host=host, port=port, say=say))


@tracking_app.command("flush")
def tracking_flush(tracking: TrackingURI = None, runs: RunsFolder = DEFAULT_RUNS) -> None:
    """Deliver what could not be delivered while the tracking store was away.

    Example: resnet-bench tracking flush
    """
    from resnet_bench.tracking.store import Store
    from resnet_bench.tracking.uploader import flush_all

    if not flush_all(Store.resolve(tracking, Path.cwd()), runs, say=say):
        raise typer.Exit(FAILED)


if __name__ == "__main__":
    main()
