"""The verb ``resnet-bench status``."""

import time
from collections.abc import Collection, Iterable
from typing import Annotated, Any

import typer
from rich.text import Text

from resnet_bench.base.errors import UserError
from resnet_bench.base.text import DASH, percent
from resnet_bench.cli.options import DEFAULT_RUNS, Json, RunDir, check_run_dir, help_text, new_app
from resnet_bench.cli.screen import console, echo, new_table, note, print_json, print_table
from resnet_bench.running.launchers.launch import Launch, find_launches

app = new_app()

WATCH_SECONDS = 5.0


@app.command(
    help=help_text(
        "Show the jobs on clusters: their state, node and progress. Launches whose tasks have all ended are left out.",
        example="status --watch",
        following="cancel",
    )
)
def status(
    run_dir: RunDir = DEFAULT_RUNS,
    watch: Annotated[bool, typer.Option("--watch", help="Show it every 5 s, until all jobs have ended.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Show launches that have ended too.")] = False,
    as_json: Json = False,
) -> None:
    if watch and as_json:
        raise UserError("--watch is for a person's screen; with --json, look again when you need to know")
    check_run_dir(run_dir)
    watched: set[str] = set()
    while True:
        launches = find_launches(run_dir)
        rows, notes = _look(launches, everything=everything, also=watched)
        # The last table shows how each job has ended.
        watched |= {row["launch"] for row in rows}
        if watch and console.is_terminal:
            console.clear()
        if as_json:
            print_json("status", tasks=rows, problems=notes)
        else:
            _print(rows, hidden=not everything and bool(launches))
            for problem in notes:
                note(problem)
        if not watch or not any(row["open"] for row in rows):
            return
        time.sleep(WATCH_SECONDS)


def _look(
    launches: Iterable[Launch], *, everything: bool, also: Collection[str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """A row per task, also of some launches that have ended, and what could not be found out."""
    # The events import torch.
    from resnet_bench.running.launchers.progress import look

    rows, notes = [], []
    for launch in launches:
        found, problem = look(launch)
        if everything or launch.name in also or any(row.open for row in found):
            rows += [{"launch": launch.name, **vars(row)} for row in found]
            notes += [problem] if problem else []
    return rows, notes


def _print(rows: list[dict[str, Any]], *, hidden: bool) -> None:
    if not rows:
        echo("no job is waiting or running" + ("; --all shows how those before have ended" if hidden else ""))
        return
    numbers = ("epoch", "accuracy", "attempt")
    table = new_table("launch", "task", "job", "state", "node", *numbers, "why", right=numbers)
    for row in rows:
        epochs = f"{row['epoch']}/{row['epochs']}" if row["epochs"] else DASH
        cells = (row["launch"], row["task"], row["job"], row["state"], row["node"], epochs)
        table.add_row(
            *(Text(cell) for cell in cells),
            percent(row["accuracy"]),
            str(row["attempt"] + 1),
            Text(row["reason"] or ""),
        )
    print_table(table)
