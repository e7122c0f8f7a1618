"""The verb ``resnet-bench validate``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from resnet_bench.base.errors import UserError
from resnet_bench.cli.options import BenchmarkDir, help_text, new_app
from resnet_bench.cli.screen import BAD_INPUT, echo, print_error
from resnet_bench.recipe.files import load_benchmark_file
from resnet_bench.recipe.schema import InvalidTable
from resnet_bench.recipe.toml_files import read_toml
from resnet_bench.tuning.plan import load_study_file, plan_study

app = new_app()


@app.command(
    help=help_text(
        "Check benchmark and study files, and print every problem.",
        example="validate benchmarks/my-resnet9.toml",
        following="run my-resnet9 --profile smoke",
    )
)
def validate(
    files: Annotated[list[Path], typer.Argument(help="Benchmark or study files.", show_default=False)],
    benchmark_dir: BenchmarkDir = None,
) -> None:
    broken = 0
    for file in files:
        try:
            echo(f"{file}: valid, {_checked(file, benchmark_dir)}")
        except UserError as error:
            broken += 1
            for problem in _problems(error):
                print_error(problem)
    if broken:
        raise typer.Exit(BAD_INPUT)


def _checked(file: Path, benchmark_dir: Path | None) -> str:
    """Check a file of either kind; a study has keys that no benchmark has."""
    if read_toml(file).keys() & {"benchmark", "space", "budget"}:
        study = load_study_file(file)
        plan_study(study, "full", benchmarks=benchmark_dir)
        for profile in study.profiles:
            plan_study(study, profile, benchmarks=benchmark_dir)
        return f"a study of {study.benchmark}"
    benchmark = load_benchmark_file(file, benchmark_dir)

    # Imports torch, which a file that the schema refuses need not wait for.
    from resnet_bench.models.of_recipe import check_benchmark

    check_benchmark(benchmark)
    return f"recipe {benchmark.recipe.fingerprint}"


def _problems(error: UserError) -> Iterator[str]:
    yield from error.problems if isinstance(error, InvalidTable) else [str(error)]
