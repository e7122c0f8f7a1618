"""The verb ``resnet-bench list``."""

import typer

from resnet_bench.base.text import listed
from resnet_bench.cli.options import BenchmarkDir, help_text, new_app
from resnet_bench.cli.screen import BAD_INPUT, new_table, note, print_error, print_table
from resnet_bench.recipe.files import scan_benchmarks, unrelated_files

app = new_app()


@app.command(
    help=help_text(
        "List the benchmarks: name, dataset, network, epochs and claim.",
        example="list",
        following="show resnet9-onecycle-adam",
    )
)
def list_benchmarks(benchmark_dir: BenchmarkDir = None) -> None:
    found, problems = scan_benchmarks(benchmark_dir)
    table = new_table("name", "dataset", "network", "epochs", "claim", right=["epochs"])
    for benchmark in found.values():
        recipe = benchmark.recipe
        claim = benchmark.test_claim.text if benchmark.test_claim else "–"
        table.add_row(benchmark.name, recipe.data.dataset, recipe.model.name, str(recipe.training.epochs), claim)
    print_table(table)
    if others := unrelated_files(folder=benchmark_dir, related={*found, *problems}):
        note(f"{listed([str(path) for path in others])}: not a benchmark; a benchmark has `recipe` or `extends`")
    for problem in problems.values():
        print_error(problem)
    if problems:
        raise typer.Exit(BAD_INPUT)
