"""The verb ``resnet-bench schema``."""

import json
import sys
from typing import Annotated, Literal

import typer

from resnet_bench.cli.options import help_text, new_app

app = new_app()


@app.command(
    help=help_text(
        "Print the JSON schema of benchmark or study files, for editors.",
        example="schema benchmark",
        following="validate benchmarks/my-resnet9.toml",
    )
)
def schema(
    kind: Annotated[Literal["benchmark", "study"], typer.Argument(help="Which files.", show_default=False)],
) -> None:
    from resnet_bench.recipe.json_schema import benchmark_schema
    from resnet_bench.tuning.json_schema import study_schema

    found = benchmark_schema() if kind == "benchmark" else study_schema()
    sys.stdout.write(json.dumps(found, indent=1, allow_nan=False) + "\n")
