"""The verbs of ``resnet-bench study``. Each parses, calls and prints; the work is done in ``tuning``."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.prompt import Confirm
from rich.table import Table

from resnet_bench.base.errors import UserError
from resnet_bench.cli.screen import (
    BAD_INPUT,
    DEFAULT_DATA,
    DEFAULT_RUNS,
    INTERRUPTED,
    BenchmarksFolder,
    DataFolder,
    Device,
    Precision,
    RunsFolder,
    TrackingURI,
    console,
    errors,
    precision_named,
    print_resume_command,
    profile_named,
    say,
)
from resnet_bench.recipe.benchmark import PROFILES, ProfileName
from resnet_bench.recipe.changes import short_names
from resnet_bench.recipe.files import find_file, search_folders, toml_files

if TYPE_CHECKING:
    from resnet_bench.tuning.plan import Plan
    from resnet_bench.tuning.results import StudyResult
    from resnet_bench.tuning.run import StudyRequest
    from resnet_bench.tuning.storage import StudyStorage
    from resnet_bench.tuning.study import Pruner, Sampler, Study
    from resnet_bench.tuning.trial_queue import TrialQueue

LONG_STUDY_SECONDS = 1800.0

study_app = typer.Typer(help="Tune a benchmark with Optuna, fairly against its source.", no_args_is_help=True)


def _complete_study(incomplete: str) -> list[str]:
    return [name for name in toml_files(search_folders("studies")) if name.startswith(incomplete)]


Name = Annotated[str, typer.Argument(help="A study's name.", autocompletion=_complete_study)]
StudiesFolder = Annotated[
    Path | None, typer.Option("--studies", metavar="DIR", help="A folder of study files; it comes before the shipped.")
]
Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        help="Optuna's storage: sqlite:///FILE, postgresql://…, journal:FILE, grpc://HOST:PORT; else optuna.db here.",
    ),
]
Profile = Annotated[
    str | None, typer.Option("--profile", help="full or smoke; else what this machine and the study are made for.")
]


# --- looking ---------------------------------------------------------------------------------------


@study_app.command("list")
def list_studies(studies: StudiesFolder = None) -> None:
    """List the studies: benchmark, searched keys, budget, sampler and pruner.

    Example: resnet-bench study list

    Next: resnet-bench study show resnet18-step-decay-cpu
    """
    from resnet_bench.tuning.plan import scan_studies

    found, problems = scan_studies(studies)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    # A name is there to be copied, so it is never folded.
    table.add_column("study", no_wrap=True)
    for column in ("benchmark", "made for", "searches", "trials", "epochs", "sampler", "pruner"):
        table.add_column(column, justify="right" if column in ("trials", "epochs") else "left", overflow="fold")
    for study in found.values():
        table.add_row(
            study.name,
            study.benchmark,
            study.made_for,
            ", ".join(short_names(list(study.space)).values()),
            str(study.budget.trials),
            str(study.budget.epochs or "all"),
            study.sampler.name,
            study.pruner.name,
        )
    console.print(table)
    for problem in problems.values():
        errors.print(f"[bold red]error:[/] {escape(problem)}", highlight=False, soft_wrap=True)
    if problems:
        raise typer.Exit(BAD_INPUT)


@study_app.command()
def show(
    name: Name,
    profile: Profile = None,
    storage: Storage = None,
    tracking: TrackingURI = None,
    studies: StudiesFolder = None,
    benchmarks: BenchmarksFolder = None,
) -> None:
    """Show a study: what it searches, its budget, and its trials where it was begun.

    Example: resnet-bench study show resnet18-step-decay-cpu

    Next: resnet-bench study run resnet18-step-decay-cpu
    """
    from resnet_bench.tuning.plan import load_study, plan_study
    from resnet_bench.tuning.trial_queue import study_names

    address = _storage(storage, tracking)
    begun = [] if not address.exists else study_names(address.open(create=False))
    if name not in begun or _is_file(name, studies):
        _print_plan(plan_study(load_study(name, studies), profile_named(profile) or "full", benchmarks=benchmarks))
    for found in _candidates(name, profile_named(profile)):
        if found in begun:
            _print_trials(_read(found, address))


def _is_file(name: str, studies: Path | None) -> bool:
    return name.endswith(".toml") or find_file(name, search_folders("studies", studies)) is not None


def _print_plan(plan: "Plan") -> None:
    from resnet_bench.tuning.space import retraining_recipe, trial_recipe

    study, source = plan.study, plan.source_settings
    console.print(f"[bold]{study.name}[/], profile {plan.profile}: tunes {plan.benchmark.name}", highlight=False)
    if study.notes:
        console.print(f"  {escape(study.notes)}", highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="Search space", title_justify="left")
    for column in ("key", "values", "the source's own"):
        table.add_column(column, overflow="fold")
    for key, parameter in study.space.items():
        table.add_row(key, escape(parameter.describe()), str(source.get(key, "–")))
    console.print(table)
    trial = trial_recipe(study, plan.base, source)
    final = retraining_recipe(study, plan.base, source)
    held_out = trial.data.validation
    assert held_out is not None
    for line in (
        f"objectives: {', '.join(study.objectives)}",
        f"trials: {study.budget.trials} of {trial.training.epochs} epochs, {_counted(study.seeds, 'seed')}, "
        f"on {trial.data.num_train} images, scored on {held_out.images} held out",
        f"final runs: {_counted(study.retrain.seeds, 'fresh seed')} a side, {final.training.epochs} epochs on "
        f"{final.data.num_train} images, judged once on {final.data.num_test} test images",
        f"sampler: {_with_options(study.sampler)}",
        f"pruner: {_with_options(study.pruner)}",
    ):
        console.print(f"  {line}", highlight=False, markup=False)


def _with_options(named: "Sampler | Pruner") -> str:
    if not named.options:
        return named.name
    return f"{named.name} with {', '.join(f'{key} = {json.dumps(value)}' for key, value in named.options.items())}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _print_trials(ledger: "TrialQueue") -> None:
    from resnet_bench.tuning.trial_queue import is_interrupted

    counts, best = ledger.counts(), ledger.best_trial()
    keys = list(ledger.definition.space)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"Trials of {ledger.name}", title_justify="left")
    for column in ("trial", *short_names(keys).values(), "epochs", "score", "state", "why"):
        table.add_column(column, justify="left" if column in ("state", "why") else "right", overflow="fold")
    for trial in ledger.trials():
        if trial.state.name == "WAITING":
            continue
        mark = "★ " if best is not None and trial.number == best.number else ""
        state = "interrupted" if is_interrupted(trial) else trial.state.name.lower()
        table.add_row(
            f"{mark}{trial.number}",
            *(_value(trial.params[key]) if key in trial.params else "–" for key in keys),
            str(trial.last_step or "–"),
            f"{trial.values[0]:.2%}" if trial.values else "–",
            state + (" (source)" if "source" in trial.user_attrs else ""),
            escape(str(trial.user_attrs.get("reason", ""))),
        )
    console.print(table)
    console.print(
        f"{counts.finished} of {counts.wanted} trials are through, {counts.pruned} pruned, {counts.failed} failed",
        highlight=False,
    )


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# --- running ---------------------------------------------------------------------------------------


@study_app.command()
def run(
    name: Name,
    profile: Profile = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes that share the work, one a GPU.")] = 1,
    trials: Annotated[int | None, typer.Option("--trials", min=1, help="Another number of trials.")] = None,
    as_name: Annotated[
        str | None, typer.Option("--name", help="Its name in the storage; a study of that name is taken up again.")
    ] = None,
    storage: Storage = None,
    device: Device = "auto",
    precision: Precision = "auto",
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same seed gives the same bits on the same machine.")
    ] = False,
    data: DataFolder = DEFAULT_DATA,
    download: Annotated[
        bool, typer.Option("--download/--offline", help="Whether CIFAR may be downloaded where it is missing.")
    ] = True,
    tracking: TrackingURI = None,
    runs: RunsFolder = DEFAULT_RUNS,
    studies: StudiesFolder = None,
    benchmarks: BenchmarksFolder = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before a long study.")] = False,
) -> None:
    """Run a study, or go on with it, and hold its best settings against the source's on the test set.

    Example: resnet-bench study run resnet18-step-decay-cpu --data ~/cifar

    Next: resnet-bench study best resnet18-step-decay-cpu
    """
    from resnet_bench.execution.execution import Execution
    from resnet_bench.tracking.stale_runs import close_stale_runs
    from resnet_bench.tracking.store import Store
    from resnet_bench.tuning.plan import load_study, plan_study
    from resnet_bench.tuning.run import Images, StudyRequest

    study = load_study(name, studies)
    store = Store.resolve(tracking, Path.cwd())
    address = _storage(storage, tracking)
    execution = Execution.resolve(device, precision_named(precision), deterministic=deterministic)
    chosen, why, dataset = _choose(
        study, profile_named(profile), execution.device_type, data, benchmarks, download=download
    )
    planned = plan_study(study, chosen, benchmarks=benchmarks, trials=trials)
    request = StudyRequest(
        plan=planned,
        name=as_name or _storage_name(study.name, chosen),
        storage=address,
        store=store,
        images=Images(planned.base.data.dataset, data, allow_generated=dataset.generated),
        runs_folder=runs.resolve(),
        device=device,
        precision=precision_named(precision),
        deterministic=deterministic,
        workers=workers,
    )
    seconds = _announce(request, why, dataset)
    ask = not yes and sys.stdin.isatty() and console.is_terminal
    if ask and seconds > LONG_STUDY_SECONDS and not Confirm.ask("Go on?", console=console, default=True):
        raise UserError("nothing was started")
    if store.is_server and (problem := store.check()):
        raise UserError(f"{store.shown}: a study needs its tracking store to begin: {problem}")
    store.prepare()
    close_stale_runs(store)
    result = _watch(request, dataset)
    if result is None:
        print_resume_command()
        raise typer.Exit(INTERRUPTED)
    _print_result(request, result)


def _choose(
    study: "Study",
    asked: ProfileName | None,
    device_type: str,
    folder: Path,
    benchmarks: Path | None,
    *,
    download: bool,
) -> tuple[ProfileName, str, Any]:
    """The profile, why it, and the images."""
    from resnet_bench.data.dataset import load_dataset
    from resnet_bench.tuning.plan import benchmark_of

    dataset = load_dataset(
        benchmark_of(study, benchmarks).recipe.data.dataset,
        folder,
        download=download,
        allow_generated=asked != "full",
        progress=say,
    )
    if asked is not None:
        return asked, "as asked", dataset
    if "smoke" not in study.profiles:
        return "full", "the study has no other", dataset
    if dataset.generated:
        return "smoke", "there is no real CIFAR here; resnet-bench data prepare fetches it", dataset
    if study.made_for == "gpu" and device_type == "cpu":
        return "smoke", "the study is sized for a GPU, and there is none; --profile full runs it all the same", dataset
    return "full", f"the study is made for a {study.made_for.upper()}", dataset


def _announce(request: "StudyRequest", why: str, dataset: Any) -> float:
    """Say what will run, why, on what, and for how long; return the seconds."""
    from resnet_bench.base.text import duration
    from resnet_bench.measure.estimate import estimate_seconds, measure_flops_per_second
    from resnet_bench.tuning.space import retraining_recipe, trial_recipe

    plan, execution = request.plan, request.execution()
    rate = measure_flops_per_second(execution)
    source = plan.source_settings
    trial_seconds = estimate_seconds(trial_recipe(plan.study, plan.base, source), rate) * plan.study.seeds
    final_seconds = estimate_seconds(retraining_recipe(plan.study, plan.base, source), rate)
    seconds = plan.study.budget.trials * trial_seconds + 2 * plan.study.retrain.seeds * final_seconds
    console.print(f"study {request.name} in the {plan.profile} profile: {why}.", highlight=False, markup=False)
    say(f"on {execution.device_name} ({execution.describe()}), {_counted(request.workers, 'worker')}")
    if dataset.generated:
        console.print(
            f"[bold yellow]{dataset.name}: GENERATED IMAGES[/], no CIFAR was found; every number below says nothing "
            "about the benchmarks. Put CIFAR into the data folder (--data DIR), or: resnet-bench data prepare",
            highlight=False,
        )
    else:
        say(f"{dataset.name} from {dataset.source} at {dataset.location}")
    say(f"trials in {request.storage.shown}, runs in {request.store.shown}")
    if notice := request.storage.notice():
        console.print(f"[yellow]{escape(notice)}[/]", highlight=False)
    say(f"about {duration(seconds / request.workers)} in all, less what is pruned or done already\n")
    return seconds / request.workers


def _watch(request: "StudyRequest", dataset: Any) -> "StudyResult | None":
    """Run the study on the screen; None where it was interrupted."""
    from resnet_bench.cli.live_study import LiveTable, Progress
    from resnet_bench.running.stopping import Stopped, stop_on_signals
    from resnet_bench.tuning.events import StudyFinished
    from resnet_bench.tuning.run import run_study

    plan = request.plan
    progress = Progress(
        trial_epochs=plan.epochs * plan.study.seeds,
        final_runs=2 * plan.study.retrain.seeds,
        final_epochs=plan.study.retrain.epochs or plan.base.training.epochs,
        workers=request.workers,
    )
    result = None
    try:
        with stop_on_signals() as stop, LiveTable(console, progress, list(plan.study.space)).shown() as table:
            for event in run_study(request, dataset, stop):
                table.take(event)
                if isinstance(event, StudyFinished):
                    result = event.result
    except (Stopped, KeyboardInterrupt):
        return None
    return result


def _print_result(request: "StudyRequest", result: "StudyResult") -> None:
    from resnet_bench.tuning.export import comparison_text

    console.print()
    _print_best(result)
    if not result.importances:
        say("too few complete trials to say how important each parameter is")
    for key, value in result.importances.items():
        console.print(f"  importance of {key}: {value:.0%}", highlight=False)
    console.print(f"\n[bold]{escape(comparison_text(result.comparison))}[/]", highlight=False, soft_wrap=True)
    for failure in result.comparison.failures if result.comparison is not None else ():
        say(f"  {failure}")
    say(f"\nMLflow: {result.url} (resnet-bench ui)")
    if request.storage.dashboard is not None:
        say(f"Optuna: optuna-dashboard {request.storage.dashboard}")
    say("report: resnet-bench report")
    say(f"next: resnet-bench study best {result.name}; resnet-bench study export {result.name}")


def _print_best(result: "StudyResult") -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"Best of {result.name}", title_justify="left")
    for column in ("", f"trial {result.best_number}", "the source's own"):
        table.add_column(column, justify="left" if not column else "right", overflow="fold")
    for key in dict.fromkeys([*result.best_settings, *result.source_settings]):
        best, source = result.best_settings.get(key), result.source_settings.get(key)
        table.add_row(
            key,
            f"[bold]{_value(best)}[/]" if key in result.changed else _value(best) if best is not None else "–",
            _value(source) if source is not None else "–",
        )
    table.add_row("validation accuracy", f"{result.best_validation:.2%}", f"{result.source_validation:.2%}")
    console.print(table)


# --- taking the result away ------------------------------------------------------------------------


@study_app.command()
def best(name: Name, profile: Profile = None, storage: Storage = None, tracking: TrackingURI = None) -> None:
    """Print the tuned recipe of a study, and what it gained.

    Example: resnet-bench study best resnet18-step-decay-cpu

    Next: resnet-bench study export resnet18-step-decay-cpu
    """
    from resnet_bench.tuning.export import budget_text, comparison_text, recipe_text

    ledger = _find(name, profile_named(profile), _storage(storage, tracking))
    result = _result(ledger)
    _print_best(result)
    say(f"{budget_text(ledger)}; {comparison_text(result.comparison)}\n")
    console.print(recipe_text(ledger, result), highlight=False, markup=False, soft_wrap=True)


@study_app.command()
def export(
    name: Name,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Else benchmarks/BENCHMARK-tuned.toml.")
    ] = None,
    profile: Profile = None,
    storage: Storage = None,
    tracking: TrackingURI = None,
    benchmarks: BenchmarksFolder = None,
) -> None:
    """Write the tuned recipe as a benchmark file that extends the original.

    Example: resnet-bench study export resnet18-step-decay-cpu --output benchmarks/resnet18-step-decay-tuned.toml

    Next: resnet-bench run resnet18-step-decay-tuned
    """
    from resnet_bench.tuning.export import export as write

    ledger = _find(name, profile_named(profile), _storage(storage, tracking))
    path = output or Path("benchmarks") / f"{ledger.benchmark.name}-tuned.toml"
    write(ledger, _result(ledger), path, benchmarks)
    if ledger.profile != "full" or ledger.recall("generated_images"):
        console.print(
            "[bold yellow]this is no result[/]: it comes of the smoke profile or of generated images, and its file "
            "says so",
            highlight=False,
        )
    say(f"wrote {path}; run it with: resnet-bench run {shlex.quote(str(path))}")


def _storage(url: str | None, tracking: str | None) -> "StudyStorage":
    from resnet_bench.tracking.store import Store
    from resnet_bench.tuning.storage import StudyStorage

    return StudyStorage.resolve(url, Path.cwd(), tracking_uri=Store.resolve(tracking, Path.cwd()).uri)


def _find(name: str, profile: ProfileName | None, address: "StudyStorage") -> "TrialQueue":
    """The study of a name, the full profile before the smoke one."""
    from resnet_bench.tuning.trial_queue import TrialQueue, study_names

    storage = address.open(create=False)
    names = study_names(storage)
    found = next((candidate for candidate in _candidates(name, profile) if candidate in names), name)
    return TrialQueue.read(found, storage)


def _read(name: str, address: "StudyStorage") -> "TrialQueue":
    from resnet_bench.tuning.trial_queue import TrialQueue

    return TrialQueue.read(name, address.open(create=False))


def _result(ledger: "TrialQueue") -> "StudyResult":
    from resnet_bench.tuning.results import study_result

    result = study_result(ledger)
    if result is None:
        raise UserError(
            f"study {ledger.name}: the source's own settings are not through yet; go on with: "
            f"resnet-bench study run {ledger.definition.name}"
        )
    return result


def _storage_name(name: str, profile: ProfileName) -> str:
    return name if profile == "full" else f"{name}-{profile}"


def _candidates(name: str, profile: ProfileName | None) -> list[str]:
    stem = Path(name).stem if name.endswith(".toml") else name
    return [_storage_name(stem, wanted) for wanted in ([profile] if profile else PROFILES)]
