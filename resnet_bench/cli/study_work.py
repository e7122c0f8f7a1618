"""``resnet-bench study work``: one worker of a study, in plain lines for the log of a scheduler."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resnet_bench.base.errors import UserError
from resnet_bench.base.text import percent
from resnet_bench.cli.options import (
    DEFAULT_RUNS,
    BenchmarkDir,
    DataFolder,
    Deterministic,
    Device,
    Download,
    MaxMinutes,
    Precision,
    RunDir,
    Storage,
    StudyDir,
    StudyName,
    TrackingURI,
    data_folder,
    deadline,
)
from resnet_bench.cli.screen import INTERRUPTED, OUT_OF_TIME, echo, print_resume_command
from resnet_bench.cli.stored_studies import storage_name, storage_of, with_stored_budget
from resnet_bench.execution import choices
from resnet_bench.recipe.benchmark import ProfileName

if TYPE_CHECKING:
    from resnet_bench.tuning.events import StudyEvent


def work(
    name: StudyName,
    profile: Annotated[ProfileName, typer.Option("--profile", help="The same for all workers of a study.")] = "full",
    study_name: Annotated[str | None, typer.Option("--study-name", metavar="NAME", help="Name in the storage.")] = None,
    storage: Storage = None,
    device: Device = "auto",
    precision: Precision = choices.PrecisionChoice.AUTO,
    deterministic: Deterministic = False,
    data: DataFolder = None,
    download: Download = True,
    tracking: TrackingURI = None,
    run_dir: RunDir = DEFAULT_RUNS,
    study_dir: StudyDir = None,
    benchmark_dir: BenchmarkDir = None,
    max_minutes: MaxMinutes = None,
) -> None:
    until = deadline(max_minutes)

    from resnet_bench.tracking.store import Store
    from resnet_bench.tuning.plan import load_study, plan_study

    folder = data_folder(data)
    plan = plan_study(load_study(name, study_dir), profile, benchmarks=benchmark_dir)
    store = Store.resolve(tracking, Path.cwd())
    address = storage_of(storage, tracking)
    if store.is_server and (problem := store.check()):
        raise UserError(f"{store.redacted_uri}: a study needs its tracking store to begin: {problem}")

    # Torch is imported when the verb is called, so that help, completion and mistakes are quick.
    from resnet_bench.data.dataset import ImageLocation
    from resnet_bench.execution.options import ExecutionOptions
    from resnet_bench.running.context import Context
    from resnet_bench.running.stopping import Stopped, stop_on_signals
    from resnet_bench.tuning.run import work_on_study

    stored_name = study_name or storage_name(plan.study.name, profile)
    plan = with_stored_budget(plan, stored_name, address)
    with stop_on_signals(announce="stopping; the trial in progress is queued again", deadline=until) as stop:
        context = Context(
            store,
            run_dir.resolve(),
            ImageLocation(folder, download=download, allow_generated=profile != "full", typed=data is not None),
            ExecutionOptions(device=device, precision=precision, deterministic=deterministic, autotune=False),
            stop,
        )
        try:
            for event in work_on_study(stored_name, plan, address, context, progress=echo):
                if line := line_of(event):
                    echo(line)
        except (Stopped, KeyboardInterrupt):
            print_resume_command(why="--max-minutes is used up" if stop.is_out_of_time else "interrupted")
            raise typer.Exit(OUT_OF_TIME if stop.is_out_of_time else INTERRUPTED) from None


def line_of(event: "StudyEvent") -> str | None:
    """Return what a log says of an event; None where that is not worth a line."""
    from resnet_bench.tuning.events import Retrained, StudyFinished, StudyOpened, TrialEnded

    match event:
        case StudyOpened():
            return f"study {event.name}: {len(event.earlier)} of {event.wanted} trials are finished; {event.url}"
        case TrialEnded():
            return f"trial {event.number}: {event.state.lower()}, {_result(event.values, event.reason)}"
        case Retrained():
            return f"{event.arm} seed {event.seed}: {event.reason or percent(event.accuracy)}"
        case StudyFinished():
            return f"study finished: trial {event.result.best_number} is the best"
    return None


def _result(values: tuple[float, ...], reason: str | None) -> str:
    return reason or percent(values[0] if values else None)
