"""The verb ``resnet-bench compare``."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from resnet_bench.base.errors import UserError
from resnet_bench.base.text import plural
from resnet_bench.cli.options import (
    Json,
    OnlyBenchmarks,
    Since,
    Sources,
    chosen_style,
    help_text,
    new_app,
    source_uri,
)
from resnet_bench.cli.screen import FAILED, console, echo, new_table, print_json, print_table, reading_aloud
from resnet_bench.recipe.limits import LIMITS_FILE, check_names, load_limits
from resnet_bench.recipe.toml_files import search_folders, toml_files
from resnet_bench.tracking.store import Store

if TYPE_CHECKING:
    from resnet_bench.judging.networks import NetworkComparison
    from resnet_bench.reporting.predictions import ImageComparison

app = new_app()

SHOWN_IMAGES = 20


@app.command(
    help=help_text(
        "Compare two sets of runs: what changed, and whether it is more than noise.",
        example="compare before/mlflow.db mlflow.db --fail-on-regression",
        following="report --from before/mlflow.db --from mlflow.db",
    )
)
def compare(
    a: Annotated[
        str,
        typer.Argument(
            help="A store, a folder of report tables, a tag KEY=VALUE, or a commit.",
            parser=source_uri,
            metavar="A",
            show_default=False,
        ),
    ],
    b: Annotated[
        str,
        typer.Argument(help="What to compare with it, likewise.", parser=source_uri, metavar="B", show_default=False),
    ],
    sources: Sources = None,
    benchmarks: OnlyBenchmarks = None,
    since: Since = None,
    style: Annotated[Literal["table", "markdown", "json"], typer.Option("--format", help="How to print it.")] = "table",
    as_json: Json = False,
    images: Annotated[
        bool, typer.Option("--images", help="Compare two runs of the store, A and B, image by image.")
    ] = False,
    fail_on_regression: Annotated[
        bool, typer.Option("--fail-on-regression", help="Exit with code 1 if B is worse by more than noise.")
    ] = False,
    limits_file: Annotated[
        Path | None,
        typer.Option(
            "--limits",
            metavar="FILE",
            help="What each benchmark may lose; ./limits.toml, where there is one, with --fail-on-regression.",
        ),
    ] = None,
) -> None:
    # Pandas is imported when the verb is called, so that help and completion are quick.
    from resnet_bench.reporting import compare as comparing
    from resnet_bench.reporting import compare_text
    from resnet_bench.reporting.limits import CheckedLimits, check_limits
    from resnet_bench.reporting.predictions import compare_images

    style = chosen_style(style, as_json=as_json)
    if images:
        of_seeds = {
            "--benchmark": benchmarks,
            "--since": since,
            "--fail-on-regression": fail_on_regression,
            "--limits": limits_file,
        }
        if given := [option for option, value in of_seeds.items() if value]:
            raise UserError(f"{given[0]} is about runs of several seeds, and --images about two networks; drop one")
        if style == "markdown":
            raise UserError("--images prints a table or JSON; leave --format markdown out")
        if sources and len(sources) > 1:
            raise UserError("--images compares two runs of one store; give --from once")
        store = Store.resolve(str(sources[0]) if sources else None, Path.cwd())
        between = compare_images(a, b, store)
        if style == "json":
            print_json("compare images", **_images_document(between))
        else:
            _print_images(between)
        return

    if limits_file is None and fail_on_regression and LIMITS_FILE.is_file():
        limits_file = LIMITS_FILE
    limits = None if limits_file is None else load_limits(limits_file)
    with reading_aloud():
        a_side, b_side = comparing.read_sides(
            a, b, sources=list(sources) if sources else None, benchmarks=benchmarks, since=since
        )
    found, checked = comparing.compare_runs(a_side, b_side), None
    if limits_file is not None and limits is not None:
        with_runs = {run.benchmark for run in (*a_side.runs, *b_side.runs)}
        check_names(limits, with_runs | toml_files(search_folders("benchmarks")).keys(), where=limits_file)
        checked = check_limits(limits, a_side, b_side)
    if style == "table":
        for part in compare_text.table(found, checked).renderables:
            if isinstance(part, Table):
                print_table(part)
            else:
                console.print(part, soft_wrap=True)
    else:
        # Not through rich, which would wrap lines that a program reads.
        write = compare_text.markdown if style == "markdown" else compare_text.as_json
        sys.stdout.write(write(found, checked))
    decided = checked or CheckedLimits()
    if fail_on_regression and (decided.broken or any(not decided.decide(row) for row in found.regressions)):
        raise typer.Exit(FAILED)


def _images_document(found: "ImageComparison") -> dict[str, Any]:
    return {
        "a": {"run_id": found.first.run_id, "name": found.first.name},
        "b": {"run_id": found.second.run_id, "name": found.second.name},
        "images": found.overall.images,
        "overall": _counts(found.overall),
        "classes": [
            {"class": found.class_name(label), **_counts(part)} for label, part in sorted(found.classes.items())
        ],
        "floor_churn": None if found.floor is None else found.floor.churn,
        "differing": [each.index for each in found.differing],
        "differing_images": found.differing,
    }


def _counts(part: "NetworkComparison") -> dict[str, Any]:
    return {
        "both_right": part.both_right,
        "only_a": part.only_first,
        "only_b": part.only_second,
        "both_wrong": part.both_wrong,
        "difference": part.difference,
        "p": part.p,
        "churn": part.churn,
    }


def _print_images(found: "ImageComparison") -> None:
    overall = found.overall
    echo("This compares two networks, never two recipes: a recipe's verdict rests on seeds.", style="bold")
    echo(f"A: {found.first.name}\nB: {found.second.name}")
    table = new_table("images", "B right", "B wrong", right=["B right", "B wrong"])
    table.add_row("A right", f"{overall.both_right:,}", f"{overall.only_first:,}")
    table.add_row("A wrong", f"{overall.only_second:,}", f"{overall.both_wrong:,}")
    print_table(table)
    echo(f"B − A: {overall.difference:+.2f} pp; McNemar's exact p {overall.p:.3g}")
    floor = (
        "no seed of A's recipe beside A and B kept predictions" if found.floor is None else f"{found.floor.churn:.1%}"
    )
    echo(f"churn {overall.churn:.1%} of the images; between two seeds of A's recipe: {floor}")
    by_class = new_table(
        "class", "images", "only A right", "only B right", right=["images", "only A right", "only B right"]
    )
    for label, part in sorted(found.classes.items(), key=lambda item: -len(item[1].differing)):
        by_class.add_row(found.class_name(label), f"{part.images:,}", str(part.only_first), str(part.only_second))
    print_table(by_class)
    if not found.differing:
        echo("they differ on no image")
        return
    images = new_table("differing image", "class", "A says", "B says")
    for each in found.differing[:SHOWN_IMAGES]:
        images.add_row(each.image or f"image {each.index} of the test images", each.label, each.a, each.b)
    print_table(images)
    if len(found.differing) > SHOWN_IMAGES:
        echo(f"… and {plural(len(found.differing) - SHOWN_IMAGES, 'more image', 'more images')}; --json has all")
    if found.differing[0].image is None:
        echo("Images are counted in the order of their content; these runs did not keep what their source calls them.")
