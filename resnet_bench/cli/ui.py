"""The verb ``resnet-bench ui``."""

from pathlib import Path
from typing import Annotated

import typer

from resnet_bench.cli.options import TrackingURI, help_text, new_app
from resnet_bench.cli.screen import echo
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.ui import serve_ui

app = new_app()


@app.command(help=help_text("Open MLflow on the runs, on this machine only.", example="ui --port 5001"))
def ui(
    tracking: TrackingURI = None,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Address to bind; loopback keeps others out.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="PORT", min=1, max=65535, help="Port to listen on.")] = 5000,
) -> None:
    raise typer.Exit(serve_ui(Store.resolve(tracking, Path.cwd()), host=host, port=port, say=echo))
