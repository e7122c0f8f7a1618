"""The verbs of ``resnet-bench study``. Each parses, calls and prints; the work is done in ``tuning``."""

import json
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resnet_bench.base.errors import UserError
from resnet_bench.base.text import duration, percent, plural, setting
from resnet_bench.cli.options import (
    DEFAULT_DATA,
    DEFAULT_RUNS,
    BenchmarkDir,
    DataFolder,
    Deterministic,
    Device,
    DoNotAsk,
    Download,
    Json,
    LauncherName,
    MaxMinutes,
    Precision,
    Profile,
    RunDir,
    Storage,
    StudyDir,
    StudyName,
    TrackingURI,
    Yes,
    data_folder,
    deadline,
    help_text,
    new_app,
)
from resnet_bench.cli.screen import (
    INTERRUPTED,
    OUT_OF_TIME,
    announce_generated,
    ask_to_continue,
    can_ask,
    confirm_deletion,
    console,
    echo,
    exit_with_problems,
    new_table,
    paragraph,
    print_json,
    print_resume_command,
    print_table,
)
from resnet_bench.cli.stored_studies import (
    candidates,
    definition_document,
    find_study,
    result_of,
    storage_name,
    storage_of,
    stored_document,
    with_stored_budget,
)
from resnet_bench.cli.study_screen import print_best, print_exhausted, print_result, watch_study
from resnet_bench.cli.study_work import work
from resnet_bench.execution import choices
from resnet_bench.recipe.benchmark import ProfileName
from resnet_bench.recipe.changes import short_names
from resnet_bench.recipe.toml_files import find_file, search_folders
from resnet_bench.running.launchers.options import choose_launcher
from resnet_bench.tracking.sharing_rule import check_shared

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resnet_bench.running.context import Context
    from resnet_bench.tracking.store import Store
    from resnet_bench.tuning.events import StudyEvent
    from resnet_bench.tuning.plan import Plan
    from resnet_bench.tuning.storage import StudyStorage
    from resnet_bench.tuning.stored_study import StoredStudy
    from resnet_bench.tuning.study import Pruner, Sampler, Study

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
def list_studies(study_dir: StudyDir = None, as_json: Json = False) -> None:
    from resnet_bench.tuning.plan import scan_studies

    found, problems = scan_studies(study_dir)
    if as_json:
        print_json("study list", studies=[definition_document(study) for study in found.values()], problems=problems)
    else:
        _print_studies(found)
    exit_with_problems(problems, as_json=as_json)


def _print_studies(found: "Mapping[str, Study]") -> None:
    columns = ("study", "benchmark", "made for", "searches", "trials", "epochs", "sampler", "pruner")
    table = new_table(*columns, right=("trials", "epochs"))
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
    as_json: Json = False,
) -> None:
    from resnet_bench.tuning.plan import load_study, plan_study
    from resnet_bench.tuning.stored_study import StoredStudy, study_names

    address = storage_of(storage, tracking)
    opened = address.read() if address.exists else None
    begun = [] if opened is None else study_names(opened)
    plan = None
    if name not in begun or _is_file(name, study_dir):
        plan = plan_study(load_study(name, study_dir), profile or "full", benchmarks=benchmark_dir)
    found = [each for each in candidates(name, profile) if each in begun]
    stored = [StoredStudy.read(each, opened) for each in found] if opened is not None else []
    if as_json:
        definition = None if plan is None else {**definition_document(plan.study), "profile": plan.profile}
        print_json("study show", study=definition, stored=[stored_document(each) for each in stored])
        return
    if plan is not None:
        _print_plan(plan)
    for each in stored:
        _print_trials(each)


@app.command(
    help=help_text(
        "List the trials of a study: hyperparameters, score, epochs and state.",
        example="study trials resnet18-step-decay-cpu --csv",
        following="study best resnet18-step-decay-cpu",
    ),
)
def trials(
    name: StudyName,
    profile: Profile = None,
    storage: Storage = None,
    tracking: TrackingURI = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, a row per trial.")] = False,
    as_json: Json = False,
) -> None:
    from resnet_bench.tuning.trials_table import trial_rows, write_trials

    if as_csv and as_json:
        raise UserError("--csv and --json: give one of them")
    stored = find_study(name, profile, storage_of(storage, tracking))
    if as_json:
        print_json("study trials", study=stored.name, trials=trial_rows(stored))
    elif as_csv:
        write_trials(stored, sys.stdout)
    else:
        _print_trials(stored)


def _is_file(name: str, folder: Path | None) -> bool:
    return name.endswith(".toml") or find_file(name, search_folders("studies", folder)) is not None


def _print_plan(plan: "Plan") -> None:
    from resnet_bench.tuning.space import retraining_recipe, trial_recipe

    study, source = plan.study, plan.source_params
    echo(f"{study.name}, profile {plan.profile}: tunes {plan.benchmark.name}", style="bold")
    if study.notes:
        paragraph(study.notes)
    table = new_table("key", "values", "source", title="Search space")
    for key, parameter in study.space.items():
        table.add_row(key, parameter.describe(), setting(source.get(key)))
    print_table(table)
    trial = trial_recipe(study, plan.base, source)
    final = retraining_recipe(study, plan.base, source)
    validation = trial.data.validation
    scored_on = 0 if validation is None else validation.images
    for line in (
        f"objectives: {', '.join(study.objectives)}",
        f"trials: {study.budget.trials} of {plural(trial.training.epochs, 'epoch')}, {plural(study.seeds, 'seed')}, on "
        f"{trial.data.num_train} images of {trial.data.dataset}, scored on {scored_on} validation images",
        f"retraining: {plural(study.retrain.seeds, 'new seed')} per side, {plural(final.training.epochs, 'epoch')} on "
        f"{final.data.num_train} images, evaluated once on {final.data.num_test} test images",
        f"sampler: {_with_options(study.sampler)}",
        f"pruner: {_with_options(study.pruner)}",
    ):
        paragraph(line)


def _with_options(named: "Sampler | Pruner") -> str:
    if not named.options:
        return named.name
    return f"{named.name} with {', '.join(f'{key} = {json.dumps(value)}' for key, value in named.options.items())}"


def _print_trials(stored: "StoredStudy") -> None:
    from resnet_bench.tuning.stored_study import is_interrupted, is_source, trained_epochs

    counts, best = stored.counts(), stored.best_trial()
    keys = list(stored.definition.space)
    numbers = ("trial", *short_names(keys).values(), "epochs", "score")
    table = new_table(*numbers, "state", "why", right=numbers, title=f"Trials of {stored.name}")
    for trial in stored.trials():
        if trial.state.name == "WAITING" or "surplus" in trial.user_attrs:
            continue
        mark = "★ " if best is not None and trial.number == best.number else ""
        state = "interrupted" if is_interrupted(trial) else trial.state.name.lower()
        table.add_row(
            f"{mark}{trial.number}",
            *(setting(trial.params.get(key)) for key in keys),
            str(trained_epochs(trial) or "–"),
            percent(trial.values[0] if trial.values else None),
            state + (" (source)" if is_source(trial) else ""),
            str(trial.user_attrs.get("reason", "")),
        )
    print_table(table)
    echo(f"{counts.finished} of {counts.wanted} trials are finished, {counts.pruned} pruned, {counts.failed} failed")
    print_exhausted(stored.definition.budget.trials, counts.wanted)


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
    precision: Precision = choices.PrecisionChoice.AUTO,
    deterministic: Deterministic = False,
    data: DataFolder = None,
    download: Download = True,
    tracking: TrackingURI = None,
    run_dir: RunDir = DEFAULT_RUNS,
    study_dir: StudyDir = None,
    benchmark_dir: BenchmarkDir = None,
    max_minutes: MaxMinutes = None,
    launcher: LauncherName = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    until = deadline(max_minutes)
    chosen = choose_launcher(launcher, {}, device=device)
    if isinstance(chosen, str):
        raise UserError(f"--launcher {chosen}: a study on this machine takes --workers N alone; leave out --launcher")

    from resnet_bench.tracking.store import Store
    from resnet_bench.tuning.plan import load_study

    # The images need not be on this machine.
    folder = data_folder(data) if chosen is None else Path(data or DEFAULT_DATA)
    study = load_study(name, study_dir)
    store = Store.resolve(tracking, Path.cwd())
    address = storage_of(storage, tracking)
    if chosen is not None:
        check_shared(tracking=store.uri, storage=address.url, what=f"--launcher {launcher} runs on other hosts")

    # Torch is imported when the verb is called, so that help, completion and mistakes are quick.
    from resnet_bench.cli.live_runs import lasting
    from resnet_bench.data.dataset import ImageLocation
    from resnet_bench.execution.options import ExecutionOptions
    from resnet_bench.running.context import Context
    from resnet_bench.running.stopping import Stop
    from resnet_bench.tuning.elsewhere import run_study_elsewhere
    from resnet_bench.tuning.estimate import estimate_study
    from resnet_bench.tuning.run import run_study

    context = Context(
        store,
        run_dir.resolve(),
        ImageLocation(folder, download=download, allow_generated=profile != "full", typed=data is not None),
        ExecutionOptions(device=device, precision=precision, deterministic=deterministic, autotune=False),
        Stop(until),
    )
    plan, why = _plan(study, profile, context, benchmark_dir, trials, elsewhere=chosen is not None)
    stored_name = study_name or storage_name(study.name, plan.profile)
    if trials is None:
        plan = with_stored_budget(plan, stored_name, address)
    estimate = None
    if chosen is None:
        estimate = estimate_study(plan, context, workers)
        seconds = estimate.total(plan) / workers
        _announce(stored_name, plan, why, address, context, workers, seconds)
        if can_ask() and not yes and not as_json:
            ask_to_continue(seconds)
    else:
        echo(f"study {stored_name} in the {plan.profile} profile: {why}.")
        echo(f"on {chosen.describe()}, {plural(workers, 'worker')}")
        echo(f"trials in {address.redacted_url}, runs in {store.redacted_uri}\n")
    _get_ready(store)

    def begin(here: "Context") -> "Iterator[StudyEvent]":
        if chosen is not None:
            return run_study_elsewhere(stored_name, plan, address, here, chosen, workers=workers)
        return run_study(stored_name, plan, address, here, workers=workers, progress=echo)

    with lasting(console):
        result = watch_study(plan, context, workers, estimate, begin)
        # Nobody else can have asked for it once the time is up.
        out_of_time = result is None and until is not None and time.monotonic() >= until
        if result is None:
            print_resume_command(why="--max-minutes is used up" if out_of_time else "interrupted")
        else:
            print_result(result, plan, address, store)
    if as_json and result is not None:
        print_json("study run", result=result)
    if result is None:
        raise typer.Exit(OUT_OF_TIME if out_of_time else INTERRUPTED)


app.command(
    help=help_text(
        "Do one worker's share of a study, under any scheduler: start as many as you like, on as many hosts.",
        example="study work speedrun-90 --storage postgresql://db/optuna",
        following="study best resnet18-step-decay",
    ),
)(work)


def _plan(
    study: "Study",
    asked: ProfileName | None,
    context: "Context",
    benchmarks: Path | None,
    trials: int | None,
    *,
    elsewhere: bool,
) -> "tuple[Plan, str]":
    """Plan a study in the profile asked for, or in the one that fits this machine where it runs here; say why."""
    from resnet_bench.tuning.plan import plan_study

    def in_profile(profile: ProfileName) -> "Plan":
        return plan_study(study, profile, benchmarks=benchmarks, trials=trials)

    if asked is not None:
        return in_profile(asked), "as asked"
    full = in_profile("full")
    if elsewhere:
        return full, "--profile smoke tries the software"
    if "smoke" not in study.profiles:
        return full, "the study has no other"
    # Each profile names its images itself.
    if context.open_images(full.base.data.facts, echo).generated:
        return in_profile("smoke"), "there is no real CIFAR here; resnet-bench data prepare fetches it"
    if study.made_for == "gpu" and context.options.resolve().device_type == "cpu":
        return in_profile("smoke"), "the study is sized for a GPU, and there is none; --profile full runs it anyway"
    return full, f"the study is made for a {study.made_for.upper()}"


def _announce(
    name: str, plan: "Plan", why: str, address: "StudyStorage", context: "Context", workers: int, seconds: float
) -> None:
    """Print what will run, why, on what, and for how long."""
    dataset = context.open_images(plan.base.data.facts, echo)
    execution = context.options.resolve()
    echo(f"study {name} in the {plan.profile} profile: {why}.")
    echo(f"on {execution.device_name} ({execution.describe()}), {plural(workers, 'worker')}")
    if dataset.generated:
        announce_generated(dataset.name)
    else:
        echo(f"{dataset.name} from {dataset.source} at {dataset.location}")
    echo(f"trials in {address.redacted_url}, runs in {context.store.redacted_uri}")
    if notice := address.notice():
        echo(notice, style="yellow")
    echo(f"about {duration(seconds)} in all, less what is pruned or done already\n")


def _get_ready(store: "Store") -> None:
    from resnet_bench.tracking.stale_runs import close_stale_runs

    if store.is_server and (problem := store.check()):
        raise UserError(f"{store.redacted_uri}: a study needs its tracking store to begin: {problem}")
    store.prepare()
    close_stale_runs(store)


# --- taking the result away ------------------------------------------------------------------------


@app.command(
    help=help_text(
        "Print the tuned recipe of a study and the tuning gain.",
        example="study best resnet18-step-decay-cpu",
        following="study export resnet18-step-decay-cpu",
    ),
)
def best(
    name: StudyName,
    profile: Profile = None,
    storage: Storage = None,
    tracking: TrackingURI = None,
    as_json: Json = False,
) -> None:
    from resnet_bench.tuning.export import budget_text, comparison_text, recipe_text
    from resnet_bench.tuning.space import tuned_recipe

    stored = find_study(name, profile, storage_of(storage, tracking))
    result = result_of(stored)
    if as_json:
        recipe = tuned_recipe(stored.plan.base, result.best_settings)
        difference = result.comparison.difference if result.comparison is not None else None
        print_json("study best", result=result, difference=difference, recipe=recipe.model_dump(mode="json"))
        return
    print_best(result)
    echo(f"{budget_text(stored)}; {comparison_text(result.comparison)}\n")
    echo(recipe_text(stored, result))


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
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="File to write; benchmarks/BENCHMARK-tuned.toml by default."
        ),
    ] = None,
    profile: Profile = None,
    storage: Storage = None,
    tracking: TrackingURI = None,
    benchmark_dir: BenchmarkDir = None,
    as_json: Json = False,
) -> None:
    from resnet_bench.tuning.export import export as write

    stored = find_study(name, profile, storage_of(storage, tracking))
    path = output or Path("benchmarks") / f"{stored.plan.benchmark.name}-tuned.toml"
    write(stored, result_of(stored), path, benchmark_dir)
    if stored.plan.profile != "full" or stored.get_attr("generated_images"):
        echo(
            "this is not a result: it comes from the smoke profile or generated images, and its file says so",
            style="yellow",
        )
    echo(f"wrote {path}; run it with: resnet-bench run {shlex.quote(str(path))}")
    if as_json:
        print_json("study export", study=stored.name, file=path)


# --- looking after studies -------------------------------------------------------------------------


@app.command(
    help=help_text(
        "Give a study another name: in its storage, in MLflow and on disk.",
        example="study rename resnet18-step-decay-cpu first-try",
        following="study run resnet18-step-decay-cpu",
    ),
)
def rename(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a study in the storage.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Its new name.")],
    profile: Profile = None,
    storage: Storage = None,
    tracking: TrackingURI = None,
    run_dir: RunDir = DEFAULT_RUNS,
    as_json: Json = False,
) -> None:
    from resnet_bench.tracking.store import Store
    from resnet_bench.tuning.manage import rename_study

    address = storage_of(storage, tracking)
    found = find_study(name, profile, address).name
    runs = rename_study(found, new, address, Store.resolve(tracking, Path.cwd()), run_dir)
    echo(f"renamed {found} to {new}, with {plural(runs, 'run')} in MLflow")
    if as_json:
        print_json("study rename", old=found, new=new, runs=runs)


@app.command(
    help=help_text(
        "Delete a study: its trials for good, its runs in MLflow until they are pruned, and their folders.",
        example="study delete resnet18-step-decay-cpu --yes",
        following="runs prune",
    ),
)
def delete(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a study in the storage.")],
    profile: Profile = None,
    storage: Storage = None,
    tracking: TrackingURI = None,
    run_dir: RunDir = DEFAULT_RUNS,
    yes: DoNotAsk = False,
    as_json: Json = False,
) -> None:
    from resnet_bench.tracking.store import Store
    from resnet_bench.tuning.manage import delete_study

    address = storage_of(storage, tracking)
    stored = find_study(name, profile, address)
    question = f"Delete {stored.name} with {plural(len(stored.trials()), 'trial')}?"
    confirm_deletion(question, yes=yes, ask=not as_json)
    removed = delete_study(stored.name, address, Store.resolve(tracking, Path.cwd()), run_dir)
    echo(
        f"deleted {stored.name}: {plural(removed.trials, 'trial')}, and {plural(removed.runs, 'run')} in MLflow; "
        "resnet-bench runs prune removes their artifacts"
    )
    if as_json:
        print_json("study delete", study=stored.name, trials=removed.trials, runs=removed.runs)
