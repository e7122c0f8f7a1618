"""The verbs of ``resnet-bench tracking``."""

from pathlib import Path
from typing import Annotated

import typer

from resnet_bench.cli.options import DEFAULT_RUNS, Json, RunDir, TrackingURI, help_text, new_app, store_uri
from resnet_bench.cli.screen import FAILED, echo, note, print_json
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.uploader import flush_all

app = new_app("Look after the tracking store.")


@app.command(
    help=help_text(
        "Upload what could not be uploaded while the tracking store was unreachable.", example="tracking flush"
    )
)
def flush(tracking: TrackingURI = None, run_dir: RunDir = DEFAULT_RUNS) -> None:
    named = Store.resolve(tracking, Path.cwd()) if tracking else None
    if not flush_all(named, run_dir, say=echo):
        raise typer.Exit(FAILED)


@app.command(
    help=help_text(
        "Copy the runs of one store to another: metrics, params, tags, artifacts and parents. Repeat it at will: "
        "nothing is copied twice, and what was interrupted is continued.",
        example="tracking push --from mlflow.db --to http://127.0.0.1:5000",
        following="report --from http://127.0.0.1:5000",
    )
)
def push(
    target: Annotated[
        str, typer.Option("--to", metavar="URI", parser=store_uri, help="MLflow store or database file to copy to.")
    ],
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STORE",
            parser=store_uri,
            help="MLflow store or database file to copy; MLFLOW_TRACKING_URI, else ./mlflow.db, by default.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    from resnet_bench.tracking.push import push as copy_runs

    report = copy_runs(Store.resolve(source), Store.resolve(target), say=note if as_json else echo)
    if as_json:
        print_json("tracking push", **vars(report))
    else:
        echo(report.sentence)
    if report.failed:
        raise typer.Exit(FAILED)
