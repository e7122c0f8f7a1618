"""The verb ``resnet-bench results``."""

import csv
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from resnet_bench.cli.options import Json, OnlyBenchmarks, chosen_style, help_text, new_app
from resnet_bench.cli.screen import echo, new_table, print_json, print_table

app = new_app()


@app.command(
    help=help_text(
        "Print the reference results: which claims hold, on which device, with how many seeds.",
        example="results",
        following="report --from reports/reference",
    )
)
def results(
    benchmarks: OnlyBenchmarks = None,
    folder: Annotated[
        Path | None,
        typer.Option("--from", metavar="DIR", help="Report tables to read; by default those that come along."),
    ] = None,
    style: Annotated[
        Literal["table", "csv", "json"],
        typer.Option("--format", help="How to print it; CSV has the claims alone, without the executions."),
    ] = "table",
    as_json: Json = False,
) -> None:
    # Pandas is imported when the verb is called, so that help and completion are quick.
    from resnet_bench.reporting.executions import read_executions
    from resnet_bench.reporting.reference import read_reference
    from resnet_bench.reporting.wording import mean_with_interval

    style = chosen_style(style, as_json=as_json)
    found = list(read_reference(folder, benchmarks).results.values())
    rows = [each.asdict() for each in found]
    checks = read_executions(folder, benchmarks)
    if style == "json":
        print_json("results", results=rows, executions=[check.asdict() for check in checks])
    elif style == "csv":
        if rows:
            writer = csv.DictWriter(sys.stdout, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    else:
        table = new_table("benchmark", "claim", "ours, 95% CI", "seeds", "verdict", right=["seeds"])
        for each in found:
            row = each.row
            mean = mean_with_interval(row.verdict)
            table.add_row(each.benchmark, row.claim_text, mean, str(row.verdict.n), row.verdict.word)
        print_table(table)
        for each in found:
            cost = each.row.cost
            where = f"extrapolated from {cost.extrapolated_from}" if cost.extrapolated_from else f"on {cost.device}"
            timed = where if cost.seconds is None else f"{cost.time} {where}"
            echo(f"{each.benchmark}: {each.row.verdict.reason} ({timed}, {each.precision})")
        for check in checks:
            echo(f"{check.benchmark}: {check.sentence}")
