"""The verbs of ``resnet-bench tracking``."""

from pathlib import Path

import typer

from resnet_bench.cli.options import DEFAULT_RUNS, RunDir, TrackingURI, help_text, new_app
from resnet_bench.cli.screen import FAILED, echo
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
def flush(tracking: TrackingURI = None, run_dir: RunDir = DEFAULT_RUNS) -> None:
    named = Store.resolve(tracking, Path.cwd()) if tracking else None
    if not flush_all(named, run_dir, say=echo):
        raise typer.Exit(FAILED)
