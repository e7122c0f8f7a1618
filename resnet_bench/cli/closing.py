"""What a command prints when its runs have ended: the closing table, verdicts and links."""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from resnet_bench.base.text import duration, percent
from resnet_bench.cli.screen import new_table
from resnet_bench.judging.run_times import included
from resnet_bench.judging.verdict import may_judge, selected, verdict
from resnet_bench.recipe.claims import WallPart
from resnet_bench.recipe.files import load_benchmark
from resnet_bench.recipe.recipe import unequal_keys
from resnet_bench.running.job import Job
from resnet_bench.running.outcome import Outcome

if TYPE_CHECKING:
    from resnet_bench.reporting.reference import ReferenceResult

Result = tuple[Job, Outcome]


def closing_table(results: Sequence[Result], verdicts: Sequence[str]) -> Table:
    """Return one row per run, and the mean of each benchmark that several seeds finished.

    Columns for test-time augmentation, for how many seeds shared the device, and for whether a run was finished before
    are there where some run has them.

    Args:
        results: Jobs and their outcomes, benchmark by benchmark.
        verdicts: For each result, the verdict's word.
    """
    cached = any(outcome.cached for _, outcome in results)
    augmented = any(outcome.accuracy_tta is not None for _, outcome in results)
    shared = any(outcome.sharing > 1 for _, outcome in results)
    left = ("benchmark", "verdict", "run")
    columns = (
        ("benchmark", "seed", "epochs", "accuracy", "standard")
        + (("TTA",) if augmented else ())
        + ("claim", "verdict", "images/s", "time")
        + (("seeds in parallel",) if shared else ())
        + (("run",) if cached else ())
    )
    table = new_table(*columns, right=[name for name in columns if name not in left], title="Results")
    for i, ((job, outcome), word) in enumerate(zip(results, verdicts, strict=True)):
        claim = job.benchmark.test_claim
        table.add_row(
            job.benchmark.name,
            str(job.seed),
            str(outcome.epochs or "–"),
            percent(outcome.accuracy),
            percent(outcome.accuracy_standard),
            *([percent(outcome.accuracy_tta)] if augmented else []),
            claim.text if claim else "–",
            "failed" if outcome.failure else "interrupted" if outcome.interrupted else word,
            f"{outcome.images_per_second:,.0f}" if outcome.images_per_second else "–",
            duration(outcome.train_seconds) if outcome.train_seconds is not None else "–",
            *([str(outcome.sharing)] if shared else []),
            *(["cached" if outcome.cached else "new"] if cached else []),
        )
        is_last = i + 1 == len(results) or results[i + 1][0].benchmark.name != job.benchmark.name
        finished = _finished(results, job.benchmark.name)
        if is_last and len(finished) > 1:
            rates = _mean(outcome.images_per_second for outcome in finished)
            seconds = _mean(outcome.train_seconds for outcome in finished)
            table.add_row(
                "",
                f"mean of {len(finished)}",
                "",
                percent(_mean(outcome.accuracy for outcome in finished)),
                percent(_mean(outcome.accuracy_standard for outcome in finished)),
                *([percent(_mean(outcome.accuracy_tta for outcome in finished))] if augmented else []),
                "",
                "",
                f"{rates:,.0f}" if rates else "–",
                duration(seconds) if seconds is not None else "–",
                style="bold",
            )
    return table


def _finished(results: Sequence[Result], name: str) -> list[Outcome]:
    return [
        outcome
        for job, outcome in results
        if job.benchmark.name == name
        and not outcome.failure
        and not outcome.interrupted
        and outcome.accuracy is not None
    ]


def _mean(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there else None


def print_closing(
    results: Sequence[Result],
    references: Mapping[str, "ReferenceResult"],
    echo: Callable[[str | Table], None],
    finished_before: Callable[[str], Collection[int]],
) -> None:
    """Print the closing table, why runs failed, why each verdict is what it is, and where the runs can be seen.

    Args:
        results: Jobs and their outcomes.
        references: What the reference runs of each benchmark reached, by name.
        echo: Prints.
        finished_before: Returns every seed that the tracking store has finished of the experiment of a run, by its id.
    """
    verdicts = find_verdicts(results, finished_before)
    echo(closing_table(results, [word for word, _ in verdicts]))
    remarks = [f"{job.label} failed: {outcome.failure}" for job, outcome in results if outcome.failure]
    for (job, _), (word, reason) in zip(results, verdicts, strict=True):
        if reason:
            remarks.append(f"{job.benchmark.name}: {word} ({reason})")
    beside = [
        *compare_with_references(results, references),
        *beside_the_article(results),
    ]
    for sentence in [*dict.fromkeys(remarks), *beside]:
        echo(sentence)


def compare_with_references(results: Sequence[Result], references: Mapping[str, "ReferenceResult"]) -> list[str]:
    """Return what the reference runs of each benchmark reached, and whether full runs on the same images agree."""
    # Pandas is imported here, when torch has been already.
    from resnet_bench.reporting.reference import beside_the_reference

    sentences = []
    for name, reference in references.items():
        mine = [(job, outcome) for job, outcome in results if job.benchmark.name == name]
        claim = reference.row.claim
        compared: list[float] = []
        for job, outcome in mine:
            if claim is None or claim.split != "test" or outcome.interrupted or outcome.failure is not None:
                continue
            if not may_judge(job.profile, generated=outcome.generated, same_dataset=outcome.official):
                continue
            if accuracies := outcome.accuracies(claim.metric):
                chosen = selected(claim, {epoch: 100 * value for epoch, value in accuracies.items()})
                compared += [] if chosen is None else [chosen]
        if mine:
            said = beside_the_reference(reference, compared, mine[0][0].recipe.fingerprint)
            sentences.append(f"{name}: {said}")
    return sentences


def beside_the_article(results: Sequence[Result]) -> list[str]:
    """Return what our own recipe reached in full, beside the article that reaches for the same.

    Both times include the same, where that is known; else each is named with what it includes.
    """
    sentences = []
    parts: tuple[WallPart, ...] | None
    for job, outcome in results:
        claim, compared = job.benchmark.test_claim, job.benchmark.source.compares_with
        judged = may_judge(job.profile, generated=outcome.generated)
        if compared is None or claim is None or not judged or outcome.times is None:
            continue
        if outcome.sharing > 1:
            # Its time says nothing about a run that has the machine to itself.
            continue
        accuracies = outcome.accuracies(claim.metric)
        if not accuracies:
            continue
        article = load_benchmark(compared)
        theirs = article.test_claim
        ours, parts, said = outcome.times.train, (), ""
        if theirs is not None:
            said = f"; “{article.source.title}” says {theirs.text}"
            if theirs.wall_seconds is not None:
                said += f" in {duration(theirs.wall_seconds)} ({included(theirs.wall_includes)})"
                if (same := outcome.times.including(theirs.wall_includes)) is not None:
                    ours, parts = same, theirs.wall_includes
            said += ", on a GPU"
        sentences.append(
            f"{job.label}: {percent(accuracies[max(accuracies)])} after {duration(ours)} ({included(parts)}) "
            f"on {outcome.device}{said}."
        )
    return sentences


def find_verdicts(
    results: Sequence[Result], finished_before: Callable[[str], Collection[int]]
) -> list[tuple[str, str]]:
    """Return a word and a reason for each result; seeds of one benchmark are judged together."""
    curves: dict[str, list[dict[int, float]]] = defaultdict(list)
    for job, outcome in results:
        claim = job.benchmark.test_claim
        if claim is not None and outcome.is_finished and (accuracies := outcome.accuracies(claim.metric)):
            curves[job.benchmark.name].append({epoch: 100 * value for epoch, value in accuracies.items()})
    absent = _absent_seeds(results, finished_before)
    verdicts = []
    for job, outcome in results:
        claim, accuracy = job.benchmark.test_claim, outcome.accuracy
        unjudged = not outcome.is_finished or accuracy is None or math.isnan(accuracy)
        if claim is None or unjudged:
            verdicts.append(("–", ""))
            continue
        missing, left_out = absent[job.benchmark.name]
        judged = verdict(
            claim,
            curves[job.benchmark.name],
            profile=job.profile,
            changed=_changed_keys(job),
            generated=outcome.generated,
            same_dataset=outcome.official,
            missing=missing,
            left_out=left_out,
        )
        verdicts.append((judged.word, judged.reason))
    return verdicts


def _changed_keys(job: Job) -> list[str]:
    """List the recipe keys in which a job differs from its benchmark, whatever was written on the command line."""
    return unequal_keys(job.recipe.flat(), job.benchmark.recipe_for(job.profile).flat())


def _absent_seeds(
    results: Sequence[Result], finished_before: Callable[[str], Collection[int]]
) -> dict[str, tuple[set[int], set[int]]]:
    """Return for each benchmark the seeds that were planned, now or with a cached run, and are not finished here.

    Returns:
        Those that did not finish, and those that an earlier command finished.
    """
    planned: dict[str, set[int]] = defaultdict(set)
    finished: dict[str, set[int]] = defaultdict(set)
    cached: dict[str, str] = {}
    for job, outcome in results:
        name = job.benchmark.name
        planned[name] |= {*job.planned, *outcome.planned}
        if outcome.is_finished:
            finished[name].add(job.seed)
        if outcome.cached and outcome.run_id:
            cached[name] = outcome.run_id
    found = {}
    for name, seeds in planned.items():
        absent = seeds - finished[name]
        before = absent & set(finished_before(cached[name])) if absent and name in cached else set()
        found[name] = absent - before, before
    return found
