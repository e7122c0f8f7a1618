"""The verb ``resnet-bench compare``."""

import sys
from typing import Annotated, Literal

import typer
from rich.table import Table

from resnet_bench.cli.options import OnlyBenchmarks, Since, Sources, help_text, new_app, source_uri
from resnet_bench.cli.screen import FAILED, console, print_table

app = new_app()


@app.command(
    help=help_text(
        "Compare two sets of runs: what changed, and whether it is more than noise.",
        example="compare before/mlflow.db mlflow.db --fail-on-regression",
        following="report --from before/mlflow.db --from mlflow.db",
    )
)
def compare(
    a: Annotated[
        str,
        typer.Argument(
            help="A store, a folder of report tables, a tag KEY=VALUE, or a commit.",
            parser=source_uri,
            metavar="A",
            show_default=False,
        ),
    ],
    b: Annotated[
        str,
        typer.Argument(help="What to compare with it, likewise.", parser=source_uri, metavar="B", show_default=False),
    ],
    sources: Sources = None,
    benchmarks: OnlyBenchmarks = None,
    since: Since = None,
    style: Annotated[Literal["table", "markdown", "json"], typer.Option("--format", help="How to print it.")] = "table",
    fail_on_regression: Annotated[
        bool, typer.Option("--fail-on-regression", help="Exit with code 1 if B is worse by more than noise.")
    ] = False,
) -> None:
    # Pandas is imported when the verb is called, so that help and completion are quick.
    from resnet_bench.reporting import compare as comparing
    from resnet_bench.reporting import compare_text

    found = comparing.compare(a, b, sources=list(sources) if sources else None, benchmarks=benchmarks, since=since)
    if style == "table":
        for part in compare_text.table(found).renderables:
            if isinstance(part, Table):
                print_table(part)
            else:
                console.print(part, highlight=False, soft_wrap=True)
    else:
        # Not through rich, which would wrap lines that a program reads.
        write = compare_text.markdown if style == "markdown" else compare_text.as_json
        sys.stdout.write(write(found))
    if fail_on_regression and found.regressions:
        raise typer.Exit(FAILED)
