"""The verb ``resnet-bench validate``."""

from pathlib import Path
from typing import Annotated

import typer

from resnet_bench.base.errors import UserError
from resnet_bench.cli.options import BenchmarkDir, help_text, new_app
from resnet_bench.cli.screen import BAD_INPUT, echo, print_error
from resnet_bench.recipe.files import load_benchmark_file

app = new_app()


@app.command(
    help=help_text(
        "Check benchmark files: against the schema, and against the models that exist.",
        example="validate benchmarks/my-resnet9.toml",
        following="run my-resnet9 --profile smoke",
    )
)
def validate(
    files: Annotated[list[Path], typer.Argument(help="Benchmark files.", show_default=False)],
    benchmark_dir: BenchmarkDir = None,
) -> None:
    broken = 0
    for file in files:
        try:
            benchmark = load_benchmark_file(file, benchmark_dir)

            # Imports torch, which a file that the schema refuses need not wait for.
            from resnet_bench.models.of_recipe import check_benchmark

            check_benchmark(benchmark)
        except UserError as error:
            broken += 1
            print_error(str(error))
        else:
            echo(f"{file}: valid, recipe {benchmark.recipe.fingerprint}")
    if broken:
        raise typer.Exit(BAD_INPUT)
