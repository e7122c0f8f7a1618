"""The verb ``resnet-bench report``."""

from pathlib import Path
from typing import Annotated

import typer

from resnet_bench.base.text import plural
from resnet_bench.cli.options import (
    BenchmarkDir,
    Json,
    OnlyBenchmarks,
    Since,
    Sources,
    complete_study,
    help_text,
    new_app,
)
from resnet_bench.cli.screen import echo, note, print_json, reading_aloud
from resnet_bench.tracking.store import Store

app = new_app()


@app.command(
    help=help_text(
        "Write a report of the tracked runs: a page that needs no server, Markdown, and the tables behind it.",
        example="report --output reports/latest",
    )
)
def report(
    sources: Sources = None,
    benchmarks: OnlyBenchmarks = None,
    study: Annotated[
        str | None,
        typer.Option("--study", metavar="NAME", help="Only this study.", autocompletion=complete_study),
    ] = None,
    since: Since = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write.")] = Path(
        "reports/latest"
    ),
    benchmark_dir: BenchmarkDir = None,
    as_json: Json = False,
) -> None:
    # Pandas is imported when the verb is called, so that help and completion are quick.
    from resnet_bench.reporting.report import write
    from resnet_bench.tracking.leases import name_silent_runs

    chosen = sources or [Store.resolve(None, Path.cwd()).uri]
    with reading_aloud():
        result = write(chosen, output, benchmarks=benchmarks, study=study, since=since, benchmarks_folder=benchmark_dir)
    for problem in result.problems:
        note(problem)
    for source in chosen:
        if source.startswith(("http://", "https://")):
            name_silent_runs(Store.resolve(source), note)
    echo(f"report of {plural(result.runs, 'run')}: {result.page.resolve()}")
    if as_json:
        print_json(
            "report",
            page=result.page.resolve(),
            markdown=result.markdown.resolve(),
            runs=result.runs,
            problems=result.problems,
        )
