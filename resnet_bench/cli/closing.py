"""The closing table of a run plan."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from resnet_bench.base.text import duration, percent
from resnet_bench.running.outcome import RunResult


def closing_table(results: Sequence[RunResult], verdicts: Sequence[str]) -> Table:
    """One row a run, with columns for what some runs have only.

    These are test-time augmentation, how many seeds shared the device, and whether a run was finished before.

    Args:
        results: What came of each run.
        verdicts: For each result, the verdict's word.
    """
    cached = any(result.cached for result in results)
    augmented = any(result.accuracy_augmented is not None for result in results)
    shared = any(result.seeds_per_device > 1 for result in results)
    table = Table(title="Results", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, justify in (
        ("benchmark", "left"),
        ("seed", "right"),
        ("epochs", "right"),
        ("accuracy", "right"),
        ("plain", "right"),
        *([("TTA", "right")] if augmented else []),
        ("claim", "right"),
        ("verdict", "left"),
        ("images/s", "right"),
        ("time", "right"),
        *([("seeds at once", "right")] if shared else []),
        *([("run", "left")] if cached else []),
    ):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]  # literals in a loop
    for result, verdict in zip(results, verdicts, strict=True):
        test_claim = result.request.benchmark.test_claim
        claim = test_claim.text if test_claim else "–"
        table.add_row(
            result.request.benchmark.name,
            str(result.request.seed),
            str(result.epochs or "–"),
            percent(result.accuracy),
            percent(result.accuracy_plain),
            *([percent(result.accuracy_augmented)] if augmented else []),
            claim,
            "failed" if result.failure else "interrupted" if result.interrupted else verdict,
            f"{result.images_per_second:,.0f}" if result.images_per_second else "–",
            duration(result.train_seconds) if result.train_seconds is not None else "–",
            *([str(result.seeds_per_device)] if shared else []),
            *(["cached" if result.cached else "new"] if cached else []),
        )
    return table
