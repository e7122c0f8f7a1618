"""The verb ``resnet-bench cancel``."""

from typing import Annotated

import typer

from resnet_bench.base.errors import UserError
from resnet_bench.base.names import unknown_name
from resnet_bench.base.text import plural
from resnet_bench.cli.options import DEFAULT_RUNS, Json, RunDir, help_text, new_app
from resnet_bench.cli.screen import echo, print_json
from resnet_bench.running.launchers.launch import find_launches

app = new_app()


@app.command(
    help=help_text(
        "Cancel jobs on clusters, with a checkpoint each; `run --resume` continues their runs.",
        example="cancel 20261128-101500-slurm",
        following="status",
    )
)
def cancel(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="LAUNCH", help="Launches, as status names them; all by default.")
    ] = None,
    run_dir: RunDir = DEFAULT_RUNS,
    as_json: Json = False,
) -> None:
    launches = {launch.name: launch for launch in find_launches(run_dir)}
    for name in names or ():
        if name not in launches:
            raise UserError(unknown_name("launch", name, launches))

    # They import torch, which a mistyped name need not wait for.
    from resnet_bench.running.launchers.cluster import find_cluster
    from resnet_bench.running.launchers.progress import look

    cancelled: dict[str, list[str]] = {}
    for launch in [launches[name] for name in names or launches]:
        jobs = {row.job for row in look(launch)[0] if row.open}
        handles = [handle for handle in launch.handles if handle.id in jobs]
        if handles:
            find_cluster(launch.options).cancel(handles)
            cancelled[launch.name] = [handle.id for handle in handles]
            echo(f"{launch.name}: cancelled {plural(len(handles), 'job')}")
    if not cancelled:
        echo("no job is waiting or running")
    if as_json:
        print_json("cancel", cancelled=cancelled)
