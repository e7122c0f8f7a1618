"""The verb ``resnet-bench schema``."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from resnet_bench.base.errors import UserError
from resnet_bench.base.files import write_atomically
from resnet_bench.cli.options import help_text, new_app
from resnet_bench.cli.screen import echo

app = new_app()


@app.command(
    help=help_text(
        "Print the JSON schema of benchmark, study, dataset, launcher or limits files, for editors.",
        example="schema benchmark",
        following="validate benchmarks/my-resnet9.toml",
    )
)
def schema(
    kind: Annotated[
        Literal["benchmark", "study", "dataset", "launcher", "limits"],
        typer.Argument(help="Which files.", show_default=False),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="File to write; printed by default.")
    ] = None,
) -> None:
    from resnet_bench.recipe.json_schema import benchmark_schema, dataset_schema, limits_schema
    from resnet_bench.running.launchers.json_schema import launcher_schema
    from resnet_bench.tuning.json_schema import study_schema

    schemas = {
        "benchmark": benchmark_schema,
        "study": study_schema,
        "dataset": dataset_schema,
        "launcher": launcher_schema,
        "limits": limits_schema,
    }
    found = schemas[kind]()
    text = json.dumps(found, indent=1, allow_nan=False) + "\n"
    if output is None:
        sys.stdout.write(text)
        return
    try:
        write_atomically(output, text.encode())
    except OSError as error:
        raise UserError(f"{output}: cannot be written: {error.strerror or error}") from None
    echo(f"wrote {output}")
