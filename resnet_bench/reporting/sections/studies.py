"""Show studies: source hyperparameters and tuned ones, and how the tuning went; beside them those of the reference."""

from collections.abc import Mapping, Sequence
from typing import Any

from resnet_bench.base.text import plural, setting
from resnet_bench.judging.power import smallest_difference
from resnet_bench.reporting.figures.style import Plot
from resnet_bench.reporting.sections.section import Cell, Grid, Results, Section, View, grid
from resnet_bench.reporting.studies import StudyReport, accuracies, named
from resnet_bench.reporting.study_plots import plots
from resnet_bench.reporting.wording import assignments, mean_of, number, signed, signed_interval


def build(results: Results) -> View:
    """Build the section; without a study it says how to list those there are."""
    drawn: list[Plot] = []
    studies = []
    for study in results.studies:
        made = plots(study.plotted)
        drawn += made
        studies.append(_study(study) | {"plots": made})
    return View({"studies": studies, "reference": _reference(_others(results))}, tuple(drawn))


SECTION = Section("studies", "Studies", build)


def _others(results: Results) -> list[StudyReport]:
    """Return the reference studies of the report's benchmarks, but for those that it shows anyway."""
    shown = {study.parent.id for study in results.studies}
    return [study for study in results.reference.studies if study.parent.id not in shown]


def _reference(found: Sequence[StudyReport]) -> Grid | None:
    rows: list[list[str | Cell]] = [
        [
            Cell(study.name, f"of {study.parent.benchmark}"),
            Cell(f"{plural(len(study.counted), 'trial')}", assignments(study.budget)),
            _values(study.source_params),
            _values(study.best_params),
            mean_of(accuracies(study.source)),
            mean_of(accuracies(study.tuned)),
            Cell(_outcome(study), plural(len(study.tuned or study.source), "seed")),
        ]
        for study in found
    ]
    titles = "Study|Budget|Source|Best|#Source, test|#Tuned, test|Tuning gain"
    return grid("Studies of the reference results", titles, rows) if rows else None


def _values(params: Mapping[str, Any]) -> Cell:
    values = tuple(f"{key.rpartition('.')[2]} {setting(value)}" for key, value in sorted(params.items()))
    return Cell(", ".join(values), lines=values)


def _study(study: StudyReport) -> dict[str, Any]:
    badge = ""
    if study.apart:
        badge = f"{'generated images' if study.parent.generated else 'smoke profile'}: not judged"
    return {
        "name": study.name,
        "badge": badge,
        "apart": study.apart,
        "benchmark": study.parent.benchmark,
        "sampler": named(study.parent.sampler) or "an unnamed sampler",
        "pruner": named(study.parent.pruner).replace("none", "") or "no",
        "counts": _counts(study),
        "budget": assignments(study.budget),
        "table": _table(study),
        "outcome": _outcome(study),
        "sentence": _sentence(study),
        "best": [(key, setting(value)) for key, value in sorted(study.best_params.items())],
    }


def _counts(study: StudyReport) -> str:
    counts = (
        f"{plural(len(study.counted), 'trial')}: {study.count('COMPLETE')} completed, "
        f"{study.count('PRUNED')} pruned, {study.count('FAIL')} failed"
    )
    saved = study.parent.number("study/epochs_saved")
    if saved is not None:
        counts += f"; pruning saved {plural(round(saved), 'epoch')}"
    interrupted = len(study.trials) - len(study.counted)
    if interrupted:
        counts += f". {interrupted} more {'trial was' if interrupted == 1 else 'trials were'} interrupted and run again"
    return f"{counts}."


def _table(study: StudyReport) -> Grid:
    return grid(
        "Source and tuned hyperparameters",
        "Hyperparameters|#Validation, same budget|#Test, new seeds|#Seeds",
        [
            [name, number(value, 2, "%"), mean_of(tested := accuracies(arm)), str(len(tested))]
            for name, value, arm in (
                ("source", study.validation_source, study.source),
                ("tuned", study.validation_best, study.tuned),
            )
        ],
    )


def _outcome(study: StudyReport) -> str:
    """Return the result in a few words."""
    if study.source_won:
        return "the source hyperparameters won"
    if study.difference is None:
        return "not compared"
    ends = study.difference.interval
    return f"{signed(study.difference.value)} pp" + (f", 95% CI {signed_interval(ends)}" if ends is not None else "")


def _sentence(study: StudyReport) -> str:
    if study.source_won:
        return "No hyperparameters were better than the source's on the validation images, so the tuning gain is 0."
    if study.difference is None:
        return "The source's and the best hyperparameters have not both been retrained, so the tuning gain is unknown."
    ends = study.difference.interval
    certainty = f" (95% CI {signed_interval(ends)})" if ends is not None else "; too few seeds for an interval"
    return f"Tuning gain on the test set: {signed(study.difference.value)} pp{certainty}.{_detectable(study)}"


def _detectable(study: StudyReport) -> str:
    """Say what a comparison that saw no difference could have seen."""
    ends = study.difference.interval if study.difference is not None else None
    if ends is None or not ends.low <= 0 <= ends.high:
        return ""
    seen = smallest_difference(accuracies(study.source), accuracies(study.tuned))
    return "" if seen is None else f" That is unclear: gains below {seen:.2f} pp are seen with less than 80% power."
