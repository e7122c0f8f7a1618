"""The verb ``resnet-bench history``."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from resnet_bench.base.text import plural
from resnet_bench.cli.options import Json, Since, Sources, complete_benchmark, help_text, new_app
from resnet_bench.cli.screen import echo, new_table, print_json, print_table, reading_aloud

if TYPE_CHECKING:
    from resnet_bench.reporting.history import History, PointValues

app = new_app()


@app.command(
    help=help_text(
        "Follow a benchmark over commits and torch versions: accuracy, throughput, and steps in them.",
        example="history resnet9-onecycle-adam",
        following="compare COMMIT COMMIT",
    )
)
def history(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A benchmark.", autocompletion=complete_benchmark, show_default=False),
    ],
    sources: Sources = None,
    since: Since = None,
    as_json: Json = False,
) -> None:
    # Pandas is imported when the verb is called, so that help and completion are quick.
    from resnet_bench.reporting import history as following
    from resnet_bench.reporting import reading, runs

    with reading_aloud():
        tables = reading.read(sources or [reading.default_store()], benchmarks=[name], since=since)
        loaded, left_out = runs.load(tables)
    found = following.histories(loaded)
    problems = [*tables.problems, *left_out]
    if as_json:
        print_json("history", benchmark=name, histories=[_document(each) for each in found], problems=problems)
        return
    for problem in problems:
        echo(problem)
    if not found:
        echo(f"{name}: no run has finished")
    for each in found:
        echo(following.title(each), style="bold")
        table = new_table(*following.TITLES, right=["seeds", "runs"])
        for row in following.rows(each):
            table.add_row(*row)
        print_table(table)
    shared = sum(point.shared_runs for each in found for point in each.points)
    if shared:
        echo(
            f"{plural(shared, 'run')} shared the device and {'is' if shared == 1 else 'are'} left out of the throughput"
        )
    if any(len(each.points) > 1 for each in found):
        echo(following.NOTE)


def _document(found: "History") -> dict[str, Any]:
    from resnet_bench.reporting.history import NOTHING

    points = [
        {
            "commit": point.commit or None,
            "uncommitted_changes": point.dirty,
            "torch": point.torch or None,
            "started": point.started,
            "accuracy": _quantity(point.accuracy),
            # Of one kind of machine, for programs that know no others.
            "throughput": _quantity(max(point.throughput.values(), key=lambda of: len(of.values), default=NOTHING)),
            "throughput_by_machine": [
                {"machine": machine or None, **_quantity(measured)} for machine, measured in point.throughput.items()
            ],
            "shared_runs": point.shared_runs,
        }
        for point in found.points
    ]
    names = ("profile", "generated", "fingerprint", "data_fingerprint", "device", "precision", "split", "metric")
    return {**{name: getattr(found, name) for name in (*names, "machines")}, "points": points}


def _quantity(measured: "PointValues") -> dict[str, Any]:
    return {
        "runs": len(measured.values),
        "mean": measured.mean,
        "interval": measured.interval,
        "change": measured.change,
    }
