"""The verbs of ``resnet-bench tracking``."""

from pathlib import Path

import typer

from resnet_bench.cli.options import DEFAULT_RUNS, Json, RunDir, TrackingURI, help_text, new_app
from resnet_bench.cli.screen import FAILED, echo, print_json
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.uploader import flush_all

app = new_app("Look after the tracking store.")


@app.callback()
def _group() -> None:
    """Make Typer keep the one verb below the group's name."""


@app.command(
    help=help_text(
        "Upload what could not be uploaded while the tracking store was unreachable.", example="tracking flush"
    )
)
def flush(tracking: TrackingURI = None, run_dir: RunDir = DEFAULT_RUNS, as_json: Json = False) -> None:
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
