"""The verb ``resnet-bench show``."""

from collections.abc import Mapping

from rich.text import Text

from resnet_bench.base.text import duration
from resnet_bench.cli.options import BenchmarkDir, BenchmarkName, Json, help_text, new_app
from resnet_bench.cli.screen import echo, new_table, paragraph, print_json, print_table
from resnet_bench.judging.run_times import included
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.files import load_benchmark

app = new_app()


@app.command(
    help=help_text(
        "Show a benchmark: its source, claims, recipe and facts. A fact says where the source states it, or how it "
        "was found.",
        example="show resnet9-onecycle-adam",
        following="run resnet9-onecycle-adam --profile smoke",
    )
)
def show(name: BenchmarkName, benchmark_dir: BenchmarkDir = None, as_json: Json = False) -> None:
    benchmark = load_benchmark(name, benchmark_dir)
    if as_json:
        profiles = {name: recipe.fingerprint for name, recipe in benchmark.profiles.items()}
        print_json(
            "show",
            benchmark=benchmark.model_dump(mode="json"),
            fingerprints={"full": benchmark.recipe.fingerprint, **profiles},
        )
        return
    _print_source(benchmark)
    _print_claims(benchmark)
    _print_recipe(benchmark)
    _print_facts(benchmark)


def _print_source(benchmark: Benchmark) -> None:
    source = benchmark.source
    echo(source.title, style="bold")
    echo("  " + ", ".join(part for part in (source.kind, source.author, source.published) if part))
    if source.url:
        echo(f"  {source.url}")
    if benchmark.extends:
        echo(f"  extends {benchmark.extends}")
    if source.notes:
        paragraph(source.notes)


def _print_claims(benchmark: Benchmark) -> None:
    echo("\nClaims", style="bold")
    if not benchmark.claims:
        echo("  none")
    for claim in benchmark.claims:
        at = f"epoch {claim.epoch}" if claim.epoch is not None else f"{claim.selection} epoch"
        curve = f", with a curve of {len(claim.curve.epochs)} points" if claim.curve else ""
        runs = f", mean of {claim.runs} runs" if claim.runs > 1 else ""
        includes = included(claim.wall_includes)
        wall = f", in {duration(claim.wall_seconds)}, {includes}" if claim.wall_seconds else ""
        paragraph(f"{claim.split} {claim.metric} {claim.text} ({at}{runs}{curve}{wall})")
        if claim.quote:
            paragraph(f"“{claim.quote}”")


def _print_recipe(benchmark: Benchmark) -> None:
    status = {key: fact.status for fact in benchmark.source.facts for key in fact.keys}
    table = new_table("key", "value", "status", title=f"Recipe {benchmark.recipe.fingerprint}")
    for key, value in benchmark.recipe.flat().items():
        table.add_row(key, Text(str(value)), _status_of(key, status))
    echo("")
    print_table(table)


def _status_of(key: str, status: Mapping[str, str]) -> str:
    """Find the status of a key, or of the table that holds it."""
    while key:
        if key in status:
            return status[key]
        key = key.rpartition(".")[0]
    return ""


def _print_facts(benchmark: Benchmark) -> None:
    table = new_table("status", "fact", title="Facts")
    for fact in benchmark.source.facts:
        other = f" (else: {fact.alternative})" if fact.alternative else ""
        table.add_row(fact.status, Text(f"{fact.fact}{other}"))
    echo("")
    print_table(table)
