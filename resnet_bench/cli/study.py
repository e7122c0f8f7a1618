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
from resnet_bench.base.text import duration, plural, setting
from resnet_bench.cli.options import (
    DEFAULT_RUNS,
    BenchmarkDir,
    DataFolder,
    Deterministic,
    Device,
    Download,
    Precision,
    Profile,
    RunDir,
    Storage,
    StudyDir,
    StudyName,
    TrackingURI,
    Yes,
    data_folder,
    help_text,
    new_app,
)
from resnet_bench.cli.screen import (
    BAD_INPUT,
    INTERRUPTED,
    announce_generated,
    console,
    echo,
    print_error,
    print_resume_command,
    print_table,
)
from resnet_bench.recipe.benchmark import PROFILES, ProfileName
from resnet_bench.recipe.changes import short_names
from resnet_bench.recipe.files import find_file, search_folders

if TYPE_CHECKING:
    from resnet_bench.tuning.plan import Plan
    from resnet_bench.tuning.results import StudyResult
    from resnet_bench.tuning.run import StudyRequest
    from resnet_bench.tuning.storage import StudyStorage
    from resnet_bench.tuning.study import Pruner, Sampler, Study
    from resnet_bench.tuning.trial_queue import TrialQueue

LONG_STUDY_SECONDS = 1800.0

app = new_app("Tune a benchmark with Optuna.")


# --- looking ---------------------------------------------------------------------------------------


@app.command(
    "list",
    help=help_text(
        "List the studies: benchmark, searched keys, budget, sampler and pruner.",
        example="study list",
        following="study show resnet18-step-decay-cpu",
    ),
)
def list_studies(study_dir: StudyDir = None) -> None:
    from resnet_bench.tuning.plan import scan_studies

    found, problems = scan_studies(study_dir)
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
    print_table(table)
    for problem in problems.values():
        print_error(problem)
    if problems:
        raise typer.Exit(BAD_INPUT)


@app.command(
    help=help_text(
        "Show a study: what it searches, its budget, and its trials so far.",
        example="study show resnet18-step-decay-cpu",
        following="study run resnet18-step-decay-cpu",
    ),
)
def show(
    name: StudyName,
    profile: Profile = None,
    storage: Storage = None,
    tracking: TrackingURI = None,
    study_dir: StudyDir = None,
    benchmark_dir: BenchmarkDir = None,
) -> None:
    from resnet_bench.tuning.plan import load_study, plan_study
    from resnet_bench.tuning.trial_queue import study_names

    address = _storage(storage, tracking)
    begun = [] if not address.exists else study_names(address.open(create=False))
    if name not in begun or _is_file(name, study_dir):
        _print_plan(plan_study(load_study(name, study_dir), profile or "full", benchmarks=benchmark_dir))
    for found in _candidates(name, profile):
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
    print_table(table)
    trial = trial_recipe(study, plan.base, source)
    final = retraining_recipe(study, plan.base, source)
    held_out = trial.data.validation
    assert held_out is not None
    for line in (
        f"objectives: {', '.join(study.objectives)}",
        f"trials: {study.budget.trials} of {trial.training.epochs} epochs, {plural(study.seeds, 'seed')}, "
        f"on {trial.data.num_train} images, scored on {held_out.images} held out",
        f"final runs: {plural(study.retrain.seeds, 'fresh seed')} a side, {final.training.epochs} epochs on "
        f"{final.data.num_train} images, judged once on {final.data.num_test} test images",
        f"sampler: {_with_options(study.sampler)}",
        f"pruner: {_with_options(study.pruner)}",
    ):
        console.print(f"  {line}", highlight=False, markup=False)


def _with_options(named: "Sampler | Pruner") -> str:
    if not named.options:
        return named.name
    return f"{named.name} with {', '.join(f'{key} = {json.dumps(value)}' for key, value in named.options.items())}"


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
            *(setting(trial.params[key]) if key in trial.params else "–" for key in keys),
            str(trial.last_step or "–"),
            f"{trial.values[0]:.2%}" if trial.values else "–",
            state + (" (source)" if "source" in trial.user_attrs else ""),
            escape(str(trial.user_attrs.get("reason", ""))),
        )
    print_table(table)
    console.print(
        f"{counts.finished} of {counts.wanted} trials are through, {counts.pruned} pruned, {counts.failed} failed",
        highlight=False,
    )


# --- running ---------------------------------------------------------------------------------------


@app.command(
    help=help_text(
        "Run or resume a study, and compare its best hyperparameters with the source's on the test set.",
        example="study run resnet18-step-decay-cpu --data ~/cifar",
        following="study best resnet18-step-decay-cpu",
    ),
)
def run(
    name: StudyName,
    profile: Profile = None,
    workers: Annotated[
        int, typer.Option("--workers", metavar="N", min=1, help="Processes that share the trials, one per GPU.")
    ] = 1,
    trials: Annotated[int | None, typer.Option("--trials", metavar="N", min=1, help="Run N trials in all.")] = None,
    study_name: Annotated[
        str | None,
        typer.Option("--study-name", metavar="NAME", help="Name in the storage; a study of that name is resumed."),
    ] = None,
    storage: Storage = None,
    device: Device = "auto",
    precision: Precision = "auto",
    deterministic: Deterministic = False,
    data: DataFolder = None,
    download: Download = True,
    tracking: TrackingURI = None,
    run_dir: RunDir = DEFAULT_RUNS,
    study_dir: StudyDir = None,
    benchmark_dir: BenchmarkDir = None,
    yes: Yes = False,
) -> None:
    from resnet_bench.tracking.store import Store
    from resnet_bench.tuning.plan import load_study, plan_study

    folder = data_folder(data)
    study = load_study(name, study_dir)
    store = Store.resolve(tracking, Path.cwd())

    # Torch is imported when the verb is called, so that help, completion and mistakes are quick.
    from resnet_bench.execution.execution import Execution
    from resnet_bench.tracking.stale_runs import close_stale_runs
    from resnet_bench.tuning.run import Images, StudyRequest

    address = _storage(storage, tracking)
    execution = Execution.resolve(device, precision, deterministic=deterministic)
    chosen, why, dataset = _choose(study, profile, execution.device_type, folder, benchmark_dir, download=download)
    planned = plan_study(study, chosen, benchmarks=benchmark_dir, trials=trials)
    request = StudyRequest(
        plan=planned,
        name=study_name or _storage_name(study.name, chosen),
        storage=address,
        store=store,
        images=Images(planned.base.data.dataset, folder, allow_generated=dataset.generated),
        runs_folder=run_dir.resolve(),
        device=device,
        precision=precision,
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
        progress=echo,
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
    from resnet_bench.measure.estimate import estimate_seconds, measure_flops_per_second
    from resnet_bench.tuning.space import retraining_recipe, trial_recipe

    plan, execution = request.plan, request.execution()
    rate = measure_flops_per_second(execution)
    source = plan.source_settings
    trial_seconds = estimate_seconds(trial_recipe(plan.study, plan.base, source), rate) * plan.study.seeds
    final_seconds = estimate_seconds(retraining_recipe(plan.study, plan.base, source), rate)
    seconds = plan.study.budget.trials * trial_seconds + 2 * plan.study.retrain.seeds * final_seconds
    console.print(f"study {request.name} in the {plan.profile} profile: {why}.", highlight=False, markup=False)
    echo(f"on {execution.device_name} ({execution.describe()}), {plural(request.workers, 'worker')}")
    if dataset.generated:
        announce_generated(dataset.name)
    else:
        echo(f"{dataset.name} from {dataset.source} at {dataset.location}")
    echo(f"trials in {request.storage.shown}, runs in {request.store.shown}")
    if notice := request.storage.notice():
        console.print(f"[yellow]{escape(notice)}[/]", highlight=False)
    echo(f"about {duration(seconds / request.workers)} in all, less what is pruned or done already\n")
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
        echo("too few complete trials to say how important each parameter is")
    for key, value in result.importances.items():
        console.print(f"  importance of {key}: {value:.0%}", highlight=False)
    console.print(f"\n[bold]{escape(comparison_text(result.comparison))}[/]", highlight=False, soft_wrap=True)
    for failure in result.comparison.failures if result.comparison is not None else ():
        echo(f"  {failure}")
    echo(f"\nMLflow: {result.url} (resnet-bench ui)")
    if request.storage.dashboard is not None:
        echo(f"Optuna: optuna-dashboard {request.storage.dashboard}")
    echo("report: resnet-bench report")
    echo(f"next: resnet-bench study best {result.name}; resnet-bench study export {result.name}")


def _print_best(result: "StudyResult") -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"Best of {result.name}", title_justify="left")
    for column in ("", f"trial {result.best_number}", "the source's own"):
        table.add_column(column, justify="left" if not column else "right", overflow="fold")
    for key in dict.fromkeys([*result.best_settings, *result.source_settings]):
        best, source = result.best_settings.get(key), result.source_settings.get(key)
        table.add_row(
            key,
            f"[bold]{setting(best)}[/]" if key in result.changed else setting(best) if best is not None else "–",
            setting(source) if source is not None else "–",
        )
    table.add_row("validation accuracy", f"{result.best_validation:.2%}", f"{result.source_validation:.2%}")
    print_table(table)


# --- taking the result away ------------------------------------------------------------------------


@app.command(
    help=help_text(
        "Print the tuned recipe of a study, and what it gained.",
        example="study best resnet18-step-decay-cpu",
        following="study export resnet18-step-decay-cpu",
    ),
)
def best(name: StudyName, profile: Profile = None, storage: Storage = None, tracking: TrackingURI = None) -> None:
    from resnet_bench.tuning.export import budget_text, comparison_text, recipe_text

    ledger = _find(name, profile, _storage(storage, tracking))
    result = _result(ledger)
    _print_best(result)
    echo(f"{budget_text(ledger)}; {comparison_text(result.comparison)}\n")
    console.print(recipe_text(ledger, result), highlight=False, markup=False, soft_wrap=True)


@app.command(
    help=help_text(
        "Write the tuned recipe as a benchmark file that extends the original.",
        example="study export resnet18-step-decay-cpu",
        following="run resnet18-step-decay-tuned",
    ),
)
def export(
    name: StudyName,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Else benchmarks/BENCHMARK-tuned.toml.")
    ] = None,
    profile: Profile = None,
    storage: Storage = None,
    tracking: TrackingURI = None,
    benchmark_dir: BenchmarkDir = None,
) -> None:
    from resnet_bench.tuning.export import export as write

    ledger = _find(name, profile, _storage(storage, tracking))
    path = output or Path("benchmarks") / f"{ledger.benchmark.name}-tuned.toml"
    write(ledger, _result(ledger), path, benchmark_dir)
    if ledger.profile != "full" or ledger.recall("generated_images"):
        console.print(
            "[bold yellow]this is no result[/]: it comes of the smoke profile or of generated images, and its file "
            "says so",
            highlight=False,
        )
    echo(f"wrote {path}; run it with: resnet-bench run {shlex.quote(str(path))}")


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
