"""The verbs of ``resnet-bench launcher``."""

from typing import Annotated

import typer
from rich.text import Text

from resnet_bench.cli.options import Json, complete_launcher, help_text, new_app
from resnet_bench.cli.screen import echo, exit_with_problems, new_table, print_json, print_table
from resnet_bench.running.launchers.options import ENGINES, LOCAL, launcher_files, load_launcher, scan_launchers

app = new_app("List and show launchers: where runs train.")


@app.command(
    "list",
    help=help_text(
        "List the launchers: those of this machine, of clusters, and of the files in launchers/.",
        example="launcher list",
        following="launcher show slurm",
    ),
)
def list_launchers(as_json: Json = False) -> None:
    found, problems = scan_launchers()
    files = launcher_files()
    rows = [(name, "this machine", meaning) for name, meaning in LOCAL.items()]
    rows += [
        (name, str(files[name]) if name in files else "built in", options.describe()) for name, options in found.items()
    ]
    if as_json:
        launchers = [{"name": name, "from": where, "what": what} for name, where, what in rows]
        print_json("launcher list", launchers=launchers, problems=problems)
    else:
        table = new_table("launcher", "from", "what")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        print_table(table)
    exit_with_problems(problems, as_json=as_json)


@app.command(
    help=help_text(
        "Show a launcher: its options, and what each means.",
        example="launcher show slurm",
        following="run resnet9-onecycle-adam --launcher slurm",
    ),
)
def show(
    name: Annotated[str, typer.Argument(help="Name of a launcher.", autocompletion=complete_launcher)],
    as_json: Json = False,
) -> None:
    if name in LOCAL:
        if as_json:
            print_json("launcher show", launcher=name, options={})
        else:
            echo(f"{name}: {LOCAL[name]} It takes no options.")
        return
    options = load_launcher(name)
    values = options.model_dump(mode="json")
    if as_json:
        print_json("launcher show", launcher=name, options=values)
        return
    from resnet_bench.recipe.json_schema import meanings

    echo(ENGINES[options.launcher].meaning, style="bold")
    echo(f"  {options.describe()}")
    told = meanings(type(options))
    table = new_table("key", "value", "meaning")
    for key, value in values.items():
        table.add_row(key, Text("–" if value is None else str(value)), Text(told.get(key, "")))
    print_table(table)
