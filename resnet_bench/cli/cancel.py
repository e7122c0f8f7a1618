"""The verb ``resnet-bench cancel``."""

from typing import Annotated

import typer

from resnet_bench.base.errors import UserError
from resnet_bench.base.names import unknown_name
from resnet_bench.base.text import plural
from resnet_bench.cli.options import DEFAULT_RUNS, Json, RunDir, check_run_dir, help_text, new_app
from resnet_bench.cli.screen import FAILED, echo, note, print_json
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
    check_run_dir(run_dir)
    launches = {launch.name: launch for launch in find_launches(run_dir)}
    for name in names or ():
        if name not in launches:
            raise UserError(unknown_name("launch", name, launches))

    # They import torch, which a mistyped name need not wait for.
    from resnet_bench.running.launchers.cluster import find_cluster
    from resnet_bench.running.launchers.progress import look

    cancelled: dict[str, list[str]] = {}
    problems: list[str] = []
    for launch in [launches[name] for name in names or launches]:
        jobs = {row.job for row in look(launch)[0] if row.open}
        handles = [handle for handle in launch.handles if handle.id in jobs]
        if not handles:
            continue
        try:
            find_cluster(launch.options).cancel(handles)
        except UserError as error:
            # A cluster that is gone keeps no other launch from being cancelled.
            problems.append(f"{launch.name}: not cancelled: {error}")
            note(problems[-1])
            continue
        cancelled[launch.name] = [handle.id for handle in handles]
        echo(f"{launch.name}: cancelled {plural(len(handles), 'job')}")
    if not cancelled and not problems:
        echo("no job is waiting or running")
    if as_json:
        print_json("cancel", cancelled=cancelled, problems=problems)
    if problems:
        raise typer.Exit(FAILED)
