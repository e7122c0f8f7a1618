"""The verbs of ``resnet-bench runs``."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.prompt import Confirm

from resnet_bench.base.errors import UserError
from resnet_bench.base.text import DASH, duration, file_size, percent, plural
from resnet_bench.cli.options import (
    DEFAULT_RUNS,
    DoNotAsk,
    Json,
    OnlyBenchmarks,
    RunDir,
    TrackingURI,
    help_text,
    new_app,
)
from resnet_bench.cli.screen import (
    FAILED,
    can_ask,
    confirm_deletion,
    console,
    echo,
    new_table,
    note,
    print_error,
    print_json,
    print_table,
)
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.vocabulary import PREFIX, current_metrics

if TYPE_CHECKING:
    from resnet_bench.running.kept_runs import KeptRun, PrunePlan

app = new_app("List, show, delete and prune runs.")

RunName = Annotated[str, typer.Argument(metavar="RUN", help="Id of a run, its beginning, or the run's name.")]


@app.command(
    "list",
    help=help_text(
        "List runs, the newest first: status, test accuracy, and what they take on this disk.",
        example="runs list",
        following="runs show RUN",
    ),
)
def list_runs(
    benchmarks: OnlyBenchmarks = None,
    every: Annotated[bool, typer.Option("--all", help="Also studies, their trials and retraining runs.")] = False,
    tracking: TrackingURI = None,
    run_dir: RunDir = DEFAULT_RUNS,
    as_json: Json = False,
) -> None:
    from resnet_bench.running.kept_runs import read_runs

    store = Store.resolve(tracking, Path.cwd())
    found = [
        run
        for run in read_runs(store, run_dir)
        if (every or run.role == "run") and (not benchmarks or run.benchmark in benchmarks)
    ]
    if as_json:
        print_json("runs list", store=store.redacted_uri, runs=[_document(run, store) for run in found])
        return
    table = new_table("id", "run", "status", "test", "started", "on disk", right=["test", "on disk"])
    for run in found:
        status = f"{run.status.lower()}, can be resumed" if run.resumable else run.status.lower()
        table.add_row(
            run.run_id[:8],
            run.name,
            status,
            DASH if run.test_accuracy is None else percent(run.test_accuracy),
            _when(run.started),
            file_size(_bytes(run)),
        )
    print_table(table)
    echo(f"{plural(len(found), 'run')}, {file_size(sum(map(_bytes, found)))} on this disk")


@app.command(
    help=help_text(
        "Show a run: how it ended, its recipe and machine, and where its files are.",
        example="runs show 4f2a81c0",
        following="ui",
    )
)
def show(name: RunName, tracking: TrackingURI = None, run_dir: RunDir = DEFAULT_RUNS, as_json: Json = False) -> None:
    from resnet_bench.running.kept_runs import find_run, read_runs

    store = Store.resolve(tracking, Path.cwd())
    run = find_run(read_runs(store, run_dir), name)
    data = store.reader().get_run(run.run_id).data
    tags = {key.removeprefix(PREFIX): value for key, value in data.tags.items() if key.startswith(PREFIX)}
    final = {key: value for key, value in sorted(current_metrics(data.metrics).items()) if key.startswith("final/")}
    if as_json:
        document = _document(run, store)
        print_json("runs show", run=document, metrics=final, params=dict(data.params), tags=tags)
        return
    echo(run.name, style="bold")
    ended = "" if run.seconds is None else f", {duration(run.seconds)}"
    rows = {
        "id": run.run_id,
        "status": run.status.lower() + (f": {run.reason}" if run.reason else ""),
        "started": f"{_when(run.started)}{ended}",
        "benchmark": f"{run.benchmark}, {run.profile}, seed {run.seed}",
        "recipe": tags.get("fingerprint", DASH),
        "device": tags.get("device", DASH),
        "precision": tags.get("precision", DASH),
        "images": tags.get("dataset", DASH) + (", generated" if tags.get("generated") == "true" else ""),
        "page": store.run_url(run.run_id, run.experiment_id),
        "folder": DASH if run.folder is None else f"{run.folder} ({file_size(run.folder_bytes)})",
        "artifacts": "elsewhere" if run.artifact_bytes is None else file_size(run.artifact_bytes),
    }
    for key, value in rows.items():
        echo(f"  {key:<10} {value}")
    for key, number in final.items():
        echo(f"  {key:<34} {number:.6g}")
    if run.resumable:
        echo("  it can be resumed: give its command again, with --resume")


@app.command(
    help=help_text(
        "Delete runs: in MLflow, where they can be restored until they are pruned, and their folders.",
        example="runs delete 4f2a81c0 --yes",
        following="runs prune",
    )
)
def delete(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids of runs, or their names.")],
    yes: DoNotAsk = False,
    tracking: TrackingURI = None,
    run_dir: RunDir = DEFAULT_RUNS,
    as_json: Json = False,
) -> None:
    from resnet_bench.running.kept_runs import delete_runs, find_run, read_runs

    store = Store.resolve(tracking, Path.cwd())
    every = read_runs(store, run_dir)
    found = list(dict.fromkeys(find_run(every, name) for name in names))
    confirm_deletion(f"Delete {', '.join(run.name for run in found)}?", yes=yes, ask=not as_json)
    freed = delete_runs(store, found)
    if as_json:
        print_json("runs delete", deleted=[_document(run, store) for run in found], freed_bytes=freed)
        return
    for run in found:
        echo(f"deleted {run.name}; restore it with: {store.command(f'runs restore --run-id {run.run_id}')}")
    echo(f"{file_size(freed)} freed; resnet-bench runs prune removes their artifacts")


@app.command(
    help=help_text(
        "Remove what nobody needs any more: folders of runs that ended, deleted runs with their artifacts, and "
        "checkpoints beside a model. It says what it frees first. Runs that can be resumed stay.",
        example="runs prune",
        following="runs list",
    )
)
def prune(
    unfinished: Annotated[
        bool,
        typer.Option("--unfinished", help="Also runs that could be resumed, and measurements that no store has."),
    ] = False,
    yes: DoNotAsk = False,
    tracking: TrackingURI = None,
    run_dir: RunDir = DEFAULT_RUNS,
    as_json: Json = False,
) -> None:
    from resnet_bench.running.kept_runs import plan_prune
    from resnet_bench.running.kept_runs import prune as remove

    store = Store.resolve(tracking, Path.cwd())
    plan = plan_prune(store, run_dir, unfinished=unfinished)
    if not as_json:
        _print_plan(plan)
    wanted = yes
    if plan.leftovers and not yes and not as_json:
        if not can_ask():
            echo("nothing was removed; add --yes to remove it")
        elif not Confirm.ask("Remove it?", console=console, default=False):
            raise UserError("nothing was removed")
        else:
            wanted = True
    problems = {leftover: remove(store, leftover) for leftover in plan.leftovers} if wanted else {}
    failed = [problem for problem in problems.values() if problem]
    freed = sum(leftover.bytes for leftover, problem in problems.items() if not problem)
    if as_json:
        print_json(
            "runs prune",
            removed=wanted,
            leftovers=plan.leftovers,
            kept=plan.kept,
            notes=plan.notes,
            bytes=plan.bytes,
            freed_bytes=freed,
            problems=failed,
        )
    elif wanted:
        echo(f"{file_size(freed)} freed")
    for problem in failed:
        print_error(problem)
    if failed:
        raise typer.Exit(FAILED)


def _print_plan(plan: "PrunePlan") -> None:
    table = new_table("what", "name", "why", "size", right=["size"])
    for leftover in plan.leftovers:
        table.add_row(leftover.kind, leftover.name, leftover.why, file_size(leftover.bytes))
    if plan.leftovers:
        print_table(table)
    for kept in plan.kept:
        echo(f"{kept.name} stays: {kept.why} ({file_size(kept.bytes)})")
    for text in plan.notes:
        note(text)
    echo(f"{file_size(plan.bytes)} to free" if plan.leftovers else "nothing to remove")


def _document(run: "KeptRun", store: Store) -> dict[str, Any]:
    return {**vars(run), "started": _iso(run.started), "url": store.run_url(run.run_id, run.experiment_id)}


def _bytes(run: "KeptRun") -> int:
    return run.folder_bytes + (run.artifact_bytes or 0)


def _when(started: int) -> str:
    return datetime.fromtimestamp(started / 1000).astimezone().strftime("%Y-%m-%d %H:%M")


def _iso(started: int) -> str:
    return datetime.fromtimestamp(started / 1000, UTC).isoformat(timespec="seconds")
