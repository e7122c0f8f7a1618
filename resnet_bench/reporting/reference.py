"""What the reference results that come with the package say about each claim, and their studies."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from resnet_bench.base.errors import UserError
from resnet_bench.base.text import listed, plural
from resnet_bench.judging.intervals import Interval, prediction_interval
from resnet_bench.recipe.files import scan_benchmarks
from resnet_bench.recipe.toml_files import reference_folder
from resnet_bench.reporting import claims, reading, runs, studies
from resnet_bench.reporting.claims import ClaimRow
from resnet_bench.reporting.runs import devices_text
from resnet_bench.reporting.studies import StudyReport
from resnet_bench.reporting.wording import mean_with_interval


@dataclass(frozen=True)
class ReferenceResult:
    """What the reference runs of a benchmark reached, for one claim.

    Attributes:
        row: The runs, the claim and the verdict, as a report shows them.
    """

    row: ClaimRow

    @property
    def benchmark(self) -> str:
        """Its name."""
        return self.row.benchmark

    @property
    def fingerprint(self) -> str:
        """Of the recipe that was trained."""
        return self.row.group.latest.fingerprint

    @property
    def trained(self) -> str:
        """How many seeds were trained, on what and in which precision, for a sentence."""
        group = self.row.group
        return ", ".join(
            (
                plural(self.row.verdict.n, "seed"),
                devices_text(group),
                listed(sorted({run.precision for run in group.runs})),
            )
        )

    @property
    def precision(self) -> str:
        """In which most seeds were trained, on :attr:`ClaimRow.device`."""
        return self.row.group.devices[self.row.device][0].precision

    def expected(self, seeds: int) -> Interval | None:
        """Return where the mean of further seeds falls with 95% probability; None with fewer than two of ours."""
        return prediction_interval(list(self.row.seeds.values()), seeds)

    def asdict(self) -> dict[str, object]:
        """Return everything as plain values; accuracies in percent, times in seconds."""
        verdict, group = self.row.verdict, self.row.group
        low, high = verdict.interval or (None, None)
        return {
            "benchmark": self.benchmark,
            "claim": self.row.claim_text,
            "mean": verdict.mean,
            "ci_low": low,
            "ci_high": high,
            "seeds": verdict.n,
            "verdict": verdict.word,
            "reason": verdict.reason,
            "device": self.row.device,
            "precision": self.precision,
            "train_seconds": self.row.cost.seconds,
            "extrapolated_from": self.row.cost.extrapolated_from,
            "fingerprint": self.fingerprint,
            "code_commit": group.latest.code_commit,
        }


@dataclass(frozen=True)
class Reference:
    """The reference results of some benchmarks.

    Attributes:
        results: By benchmark, in the order of ``list``: those that were trained in full. Of several recipes, that of
            today's file counts, else the latest. Each is about the first claim.
        studies: Studies at the budget that their file gives.
        further: What the same runs reached for the other claims.
    """

    results: Mapping[str, ReferenceResult] = field(default_factory=dict)
    studies: tuple[StudyReport, ...] = ()
    further: tuple[ReferenceResult, ...] = ()

    def beside(self, row: ClaimRow) -> str:
        """Say what the reference reached for the claim of a row, and whether the runs of the row agree.

        Returns:
            A sentence; empty where there is no such reference, or where the row is of the reference runs themselves.
        """
        found = self.results.get(row.benchmark)
        if not row.headline:
            same = (row.benchmark, row.claim_text)
            found = next((each for each in self.further if (each.benchmark, each.row.claim_text) == same), None)
        if found is None:
            return ""
        theirs = {run.id for run in found.row.group.all_runs}
        own = [run for run in row.group.runs if run.id not in theirs]
        if not own:
            return ""
        may_agree = not row.group.apart and row.group.published_images
        accuracies = [value for run in own if may_agree and (value := found.row.accuracy(run)) is not None]
        return beside_the_reference(found, accuracies, row.group.latest.fingerprint)


def read_reference(folder: Path | None = None, benchmarks: Sequence[str] | None = None) -> Reference:
    """Read the reference results.

    Args:
        folder: A folder of report tables; that of the package where not given.
        benchmarks: Only these.

    Raises:
        UserError: The folder holds no tables of a report.
    """
    registry, _ = scan_benchmarks()
    loaded, _ = runs.load(reading.read([folder or reference_folder()], benchmarks=benchmarks))
    built = claims.build(runs.group(loaded), registry, benchmarks)
    first = {row.benchmark: ReferenceResult(row) for row in built.headlines}
    found = studies.find(loaded, registry)
    return Reference(
        first,
        tuple(study for study in found if not study.apart),
        tuple(
            ReferenceResult(row)
            for row in built.rows
            if not row.headline and row.group is first[row.benchmark].row.group
        ),
    )


def known_reference(benchmarks: Sequence[str]) -> Reference:
    """Return the package's reference results of some benchmarks by name; none where its tables are missing."""
    try:
        return read_reference(benchmarks=benchmarks)
    except UserError:
        return Reference()


def beside_the_reference(found: ReferenceResult, accuracies: Sequence[float], fingerprint: str) -> str:
    """Say what the reference reached, and whether one's own runs of the same recipe agree with it.

    Args:
        found: The reference.
        accuracies: One's own, in percent, by the statistic of the claim; may be empty.
        fingerprint: Of the recipe that they were trained by.
    """
    row = found.row
    said = f"the reference reached {mean_with_interval(row.verdict)}% in full ({found.trained})"
    if row.claim is not None:
        said += f"; its claim of {row.claim_text}: {row.verdict.word}"
    expected = found.expected(len(accuracies)) if accuracies and fingerprint == found.fingerprint else None
    if expected is None:
        return f"{said}."
    mine = statistics.fmean(accuracies)
    agrees = expected.low <= mine <= expected.high
    whose = "your run" if len(accuracies) == 1 else f"your {len(accuracies)} runs"
    return (
        f"{said}. {mine:.2f}% of {whose} {'agrees' if agrees else 'does not agree'} with it: "
        f"{expected.low:.2f} to {expected.high:.2f}% is expected."
    )
