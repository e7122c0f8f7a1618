"""The verb ``resnet-bench copy``."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from resnet_bench.cli.options import BenchmarkDir, BenchmarkName, help_text, new_app
from resnet_bench.cli.screen import echo
from resnet_bench.recipe.writing import copy_benchmark

app = new_app()


@app.command(
    help=help_text(
        "Copy a benchmark to a file, to start your own recipe.",
        example="copy resnet9-onecycle-adam benchmarks/my-resnet9.toml",
        following="validate benchmarks/my-resnet9.toml",
    )
)
def copy(
    name: BenchmarkName,
    file: Annotated[Path, typer.Argument(help="File to write.", show_default=False)],
    benchmark_dir: BenchmarkDir = None,
) -> None:
    copy_benchmark(name, file, benchmark_dir)
    echo(f"wrote {file}; edit it, then: resnet-bench validate {shlex.quote(str(file))}")
