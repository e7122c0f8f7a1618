"""The verbs of ``resnet-bench tracking``."""

import contextlib
import time
from pathlib import Path
from typing import Annotated

import typer

from resnet_bench.base.errors import UserError
from resnet_bench.cli.options import (
    DEFAULT_RUNS,
    Json,
    MaxMinutes,
    RunDir,
    TrackingURI,
    check_run_dir,
    deadline,
    help_text,
    new_app,
    store_uri,
)
from resnet_bench.cli.screen import FAILED, OUT_OF_TIME, echo, note, print_json
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.uploader import flush_all

app = new_app("Look after the tracking store.")


@app.command(
    help=help_text(
        "Upload what could not be uploaded while the tracking store was unreachable.", example="tracking flush"
    )
)
def flush(tracking: TrackingURI = None, run_dir: RunDir = DEFAULT_RUNS, as_json: Json = False) -> None:
    check_run_dir(run_dir)
    named = Store.resolve(tracking, Path.cwd()) if tracking else None
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        echo(text)

    complete = flush_all(named, run_dir, say=say)
    if as_json:
        print_json("tracking flush", complete=complete, messages=said)
    if not complete:
        raise typer.Exit(FAILED)


@app.command(
    help=help_text(
        "Copy the runs of one store to another: metrics, params, tags, artifacts and parents. Repeat it at will: "
        "nothing is copied twice, and what was interrupted is continued.",
        example="tracking push --to http://127.0.0.1:5000",
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


@app.command(
    help=help_text(
        "Mark runs as killed whose host shows no sign of life, until interrupted; one such command per server will do.",
        example="tracking watch --tracking http://127.0.0.1:5000",
    )
)
def watch(
    tracking: TrackingURI = None,
    max_minutes: MaxMinutes = None,
) -> None:
    until = deadline(max_minutes)

    from resnet_bench.tracking.leases import BEAT_SECONDS, LeaseWatch, close_lost_runs

    store = Store.resolve(tracking)
    if problem := store.check(to_write=False):
        raise UserError(f"{store.redacted_uri} cannot be watched: {problem}")
    if not store.is_shared:
        raise UserError(
            f"{store.redacted_uri} is a file of one host, where runs show no sign of life; "
            "name a server with --tracking"
        )
    leases = LeaseWatch()
    with contextlib.suppress(KeyboardInterrupt):
        while until is None or time.monotonic() < until:
            for run in close_lost_runs(store, leases):
                echo(f"{run.name}: {run.reason}")
            time.sleep(BEAT_SECONDS if until is None else max(0.0, min(BEAT_SECONDS, until - time.monotonic())))
        raise typer.Exit(OUT_OF_TIME)
