"""The verb ``resnet-bench list``."""

from collections.abc import Mapping
from typing import Any

from resnet_bench.base.text import listed
from resnet_bench.cli.options import BenchmarkDir, Json, help_text, new_app
from resnet_bench.cli.screen import exit_with_problems, new_table, note, print_json, print_table
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.files import scan_benchmarks, unrelated_files

app = new_app()


@app.command(
    help=help_text(
        "List the benchmarks: name, dataset, network, epochs and claim.",
        example="list",
        following="show resnet9-onecycle-adam",
    )
)
def list_benchmarks(benchmark_dir: BenchmarkDir = None, as_json: Json = False) -> None:
    found, problems = scan_benchmarks(benchmark_dir)
    if as_json:
        print_json("list", benchmarks=[_document(benchmark) for benchmark in found.values()], problems=problems)
    else:
        _print_benchmarks(found)
        if others := unrelated_files(folder=benchmark_dir, related={*found, *problems}):
            note(f"{listed([str(path) for path in others])}: not a benchmark; a benchmark has `recipe` or `extends`")
    exit_with_problems(problems, as_json=as_json)


def _print_benchmarks(found: Mapping[str, Benchmark]) -> None:
    table = new_table("name", "dataset", "network", "epochs", "claim", right=["epochs"])
    for benchmark in found.values():
        recipe = benchmark.recipe
        claim = benchmark.test_claim.text if benchmark.test_claim else "–"
        table.add_row(benchmark.name, recipe.data.dataset, recipe.model.name, str(recipe.training.epochs), claim)
    print_table(table)


def _document(benchmark: Benchmark) -> dict[str, Any]:
    recipe = benchmark.recipe
    return {
        "name": benchmark.name,
        "title": benchmark.source.title,
        "kind": benchmark.source.kind,
        "dataset": recipe.data.dataset,
        "network": recipe.model.name,
        "epochs": recipe.training.epochs,
        "claim": benchmark.test_claim.text if benchmark.test_claim else None,
        "fingerprint": recipe.fingerprint,
    }
