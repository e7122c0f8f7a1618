"""The verb ``resnet-bench validate``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from resnet_bench.base.errors import UserError
from resnet_bench.base.text import plural
from resnet_bench.cli.options import BenchmarkDir, Json, help_text, new_app
from resnet_bench.cli.screen import BAD_INPUT, echo, print_error, print_json
from resnet_bench.recipe.dataset_files import load_dataset_file
from resnet_bench.recipe.files import load_benchmark_file
from resnet_bench.recipe.limits import check_names, load_limits
from resnet_bench.recipe.schema import InvalidTable
from resnet_bench.recipe.toml_files import read_toml, search_folders, toml_files
from resnet_bench.running.launchers.options import is_launcher_table, load_launcher_file
from resnet_bench.tuning.plan import load_study_file, plan_study

app = new_app()


@app.command(
    help=help_text(
        "Check benchmark, study, dataset, launcher and limits files, and print every problem.",
        example="validate benchmarks/my-resnet9.toml",
        following="run my-resnet9 --profile smoke",
    )
)
def validate(
    files: Annotated[
        list[Path], typer.Argument(help="Benchmark, study, dataset, launcher or limits files.", show_default=False)
    ],
    benchmark_dir: BenchmarkDir = None,
    as_json: Json = False,
) -> None:
    documents: list[dict[str, Any]] = []
    for file in files:
        found, problems = None, []
        try:
            found = _checked(file, benchmark_dir)
        except UserError as error:
            problems = list(_problems(error))
        documents.append({"file": file, "valid": not problems, "found": found, "problems": problems})
        if as_json:
            continue
        if found is not None:
            echo(f"{file}: valid, {found}")
        for problem in problems:
            print_error(problem)
    if as_json:
        print_json("validate", files=documents)
    if not all(document["valid"] for document in documents):
        raise typer.Exit(BAD_INPUT)


def _checked(file: Path, benchmark_dir: Path | None) -> str:
    """Check a file of any kind; studies, datasets, launchers and limits have keys that no benchmark has."""
    table = read_toml(file)
    if "limits" in table:
        limits = load_limits(file)
        check_names(limits, toml_files(search_folders("benchmarks", benchmark_dir)), where=file)
        return plural(len(limits), "limit")
    if table.keys() & {"classes", "train", "test", "train_images", "test_images"}:
        return f"a dataset of {len(load_dataset_file(file).classes)} classes"
    if is_launcher_table(table):
        return f"a launcher: {load_launcher_file(file).describe()}"
    if table.keys() & {"benchmark", "space", "budget"}:
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
