"""The verb ``resnet-bench copy``."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from resnet_bench.cli.options import BenchmarkDir, BenchmarkName, Json, complete_dataset, help_text, new_app
from resnet_bench.cli.screen import echo, print_json
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
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            metavar="NAME",
            help="Train on this dataset, such as your own; sizes that do not fit it are brought down to it.",
            autocompletion=complete_dataset,
        ),
    ] = None,
    benchmark_dir: BenchmarkDir = None,
    as_json: Json = False,
) -> None:
    changes = list(copy_benchmark(name, file, benchmark_dir, dataset))
    for change in changes:
        echo(change)
    echo(f"wrote {file}; edit it, then: resnet-bench validate {shlex.quote(str(file))}")
    if as_json:
        print_json("copy", file=file, changes=changes)
