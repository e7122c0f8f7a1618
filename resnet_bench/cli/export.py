"""The verb ``resnet-bench export``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from resnet_bench.cli.options import Json, TrackingURI, help_text, new_app
from resnet_bench.cli.screen import echo, print_json
from resnet_bench.tracking.store import Store

app = new_app()


@app.command(
    help=help_text(
        "Export a trained network: weights, config.json and a model card for the Hugging Face Hub.",
        example="export 3f2a91c0 --format torch",
    )
)
def export(
    run: Annotated[str, typer.Argument(help="Id of an MLflow run (its beginning is enough), its name, or its folder.")],
    format: Annotated[  # noqa: A002 - the option's name
        Literal["safetensors", "torch", "onnx"],
        typer.Option("--format", help="safetensors holds the weights; torch and onnx hold the whole network."),
    ] = "safetensors",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder to write; exports/BENCHMARK-seedN by default."),
    ] = None,
    tracking: TrackingURI = None,
    as_json: Json = False,
) -> None:
    store = Store.resolve(tracking, Path.cwd())

    # Torch is imported when the verb is called, so that help and completion are quick.
    from resnet_bench.running.export import check_format, export_run
    from resnet_bench.running.trained import find_trained

    check_format(format)
    trained = find_trained(run, store)
    folder = output or Path("exports") / f"{trained.benchmark.name}-seed{trained.tag('seed')}"
    written = export_run(trained, format, folder)
    for path in written:
        echo(str(path))
    if as_json:
        print_json("export", run=trained.name, run_id=trained.run_id, format=format, folder=folder, files=written)
