"""What the reference results that come with the package say about each claim, and their studies."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from resnet_bench.base.errors import UserError
from resnet_bench.judging.intervals import Interval, prediction_interval
from resnet_bench.recipe.files import scan_benchmarks
from resnet_bench.recipe.toml_files import reference_folder
from resnet_bench.reporting import reading, runs, studies
from resnet_bench.reporting.claims import ClaimRow, read_claims
from resnet_bench.reporting.studies import StudyReport
from resnet_bench.reporting.wording import mean_with_interval


@dataclass(frozen=True)
class ReferenceResult:
    """What the reference runs of a benchmark reached, for its first claim.

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


def reference_results(folder: Path | None = None, benchmarks: Sequence[str] | None = None) -> list[ReferenceResult]:
    """Read the reference results.

    Args:
        folder: A folder of report tables; that of the package where not given.
        benchmarks: Only these.

    Returns:
        One for each benchmark that was trained in full on the published images, in the order of ``list``.

    Raises:
        UserError: The folder holds no tables of a report.
    """
    found = read_claims([folder or reference_folder()], benchmarks)
    return [ReferenceResult(row) for row in found.headlines]


def beside_the_reference(found: ReferenceResult, accuracies: Sequence[float], fingerprint: str) -> str:
    """Say whether one's own runs agree with the reference runs of the same benchmark.

    Args:
        found: The reference.
        accuracies: One's own, in percent, by the statistic of the claim; may be empty.
        fingerprint: Of the recipe that they were trained by.
    """
    verdict, row = found.row.verdict, found.row
    said = (
        f"{found.benchmark}: the reference reached {mean_with_interval(verdict)}% in full ({verdict.n} seeds, "
        f"{row.device}, {found.precision}); its claim of {row.claim_text}: {verdict.word}"
    )
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


def known_references(benchmarks: Sequence[str]) -> dict[str, ReferenceResult]:
    """Return the reference results of some benchmarks by name; empty where the package's tables are missing."""
    try:
        return {found.benchmark: found for found in reference_results(benchmarks=benchmarks)}
    except UserError:
        return {}


def reference_studies(benchmarks: Sequence[str]) -> list[StudyReport]:
    """Return the reference studies of some benchmarks by name; empty where the package's tables are missing."""
    try:
        read = reading.read([reference_folder()], benchmarks=benchmarks)
    except UserError:
        return []
    known, _ = scan_benchmarks()
    return [study for study in studies.find(runs.load(read)[0], known) if not study.apart]
