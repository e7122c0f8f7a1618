"""A study on the screen: while it runs, and its result."""

import shlex
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.text import Text

from resnet_bench.base.text import percent, setting
from resnet_bench.cli.screen import console, echo, new_table, print_table
from resnet_bench.cli.stored_studies import command_text

if TYPE_CHECKING:
    from resnet_bench.running.context import Context
    from resnet_bench.tracking.store import Store
    from resnet_bench.tuning.estimate import StudyEstimate
    from resnet_bench.tuning.events import StudyEvent
    from resnet_bench.tuning.plan import Plan
    from resnet_bench.tuning.results import StudyResult
    from resnet_bench.tuning.storage import StudyStorage


def watch_study(
    plan: "Plan",
    context: "Context",
    workers: int,
    estimate: "StudyEstimate | None",
    run: "Callable[[Context], Iterable[StudyEvent]]",
) -> "StudyResult | None":
    """Run a study on the screen.

    Args:
        plan: The study in its profile.
        context: Where it runs; its ``stop`` has the deadline.
        workers: How many share the work.
        estimate: What its parts take; None where that is not known.
        run: Runs it, given the context with the ``stop`` that signals set.

    Returns:
        Its result; None where it was interrupted.
    """
    from resnet_bench.cli.live_study import LiveStudy, StudyProgress
    from resnet_bench.running.stopping import Stopped, stop_on_signals
    from resnet_bench.tuning.events import StudyFinished

    study, trial_epochs = plan.study, plan.epochs * plan.study.seeds
    retraining_epochs = study.retrain.epochs or plan.base.training.epochs
    progress = StudyProgress(
        trial_epochs=trial_epochs,
        retraining_runs=2 * study.retrain.seeds,
        retraining_epochs=retraining_epochs,
        trials_per_retraining=(
            estimate.retraining / estimate.trial if estimate is not None else retraining_epochs / trial_epochs
        ),
        seconds_per_trial=None if estimate is None else estimate.trial,
        workers=workers,
    )
    result = None
    try:
        announce = "stopping; the trial in progress is queued again"
        with (
            stop_on_signals(announce=announce, deadline=context.stop.deadline) as stop,
            LiveStudy(console, progress, list(study.space)).shown() as live,
        ):
            for event in run(replace(context, stop=stop)):
                live.take(event)
                if isinstance(event, StudyFinished):
                    result = event.result
    except (Stopped, KeyboardInterrupt):
        return None
    return result


def print_result(result: "StudyResult", plan: "Plan", address: "StudyStorage", store: "Store") -> None:
    """Print the result of a study, and where to read more."""
    from resnet_bench.tracking.store import login_note, option, where_to_see
    from resnet_bench.tuning.export import comparison_text

    console.print()
    print_best(result)
    print_exhausted(plan.study.budget.trials, result.counts.wanted)
    if not result.importances:
        echo("too few complete trials, or too alike, to tell how important each hyperparameter is")
    for key, value in result.importances.items():
        echo(f"  importance of {key}: {value:.0%}")
    echo(f"\n{comparison_text(result.comparison)}", style="bold")
    for failure in result.comparison.failures if result.comparison is not None else ():
        echo(f"  {failure}")
    echo(f"\nMLflow: {result.url}; {where_to_see(store)}")
    if address.dashboard is not None:
        echo(f"Optuna: optuna-dashboard {shlex.quote(address.dashboard)}")
    source = ["--from" if word == "--tracking" else word for word in option(store)]
    echo(f"report: {command_text('report', *source)}{login_note(store)}")
    best, export = (command_text("study", verb, result.name, *address.option) for verb in ("best", "export"))
    echo(f"next: {best}; {export}")


def print_best(result: "StudyResult") -> None:
    """Print the best hyperparameters beside the source's."""
    numbers = (f"trial {result.best_number}", "source")
    table = new_table("", *numbers, right=numbers, title=f"Best of {result.name}")
    for key in dict.fromkeys([*result.best_settings, *result.source_settings]):
        best, source = result.best_settings.get(key), result.source_settings.get(key)
        table.add_row(
            key,
            Text(setting(best), style="bold" if key in result.changed else ""),
            setting(source),
        )
    table.add_row("validation accuracy", percent(result.best_validation), percent(result.source_validation))
    print_table(table)


def print_exhausted(budget: int, wanted: int) -> None:
    """Say where a study ends before its budget."""
    if wanted < budget:
        echo(f"every point of the search space was tried: {wanted} trials of {budget}")
