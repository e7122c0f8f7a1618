"""What the reference results that come with the package say about each claim, and their studies."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from resnet_bench.base.errors import UserError
from resnet_bench.base.text import listed
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


@dataclass(frozen=True)
class Reference:
    """The reference results of some benchmarks.

    Attributes:
        results: By benchmark, in the order of ``list``: those that were trained in full. Of several recipes, that of
            today's file counts, else the latest.
        studies: Studies at the budget that their file gives.
    """

    results: Mapping[str, ReferenceResult] = field(default_factory=dict)
    studies: tuple[StudyReport, ...] = ()


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
    rows = claims.build(runs.group(loaded), registry, benchmarks).headlines
    found = studies.find(loaded, registry)
    return Reference(
        {row.benchmark: ReferenceResult(row) for row in rows}, tuple(study for study in found if not study.apart)
    )


def known_reference(benchmarks: Sequence[str]) -> Reference:
    """Return the package's reference results of some benchmarks by name; none where its tables are missing."""
    try:
        return read_reference(benchmarks=benchmarks)
    except UserError:
        return Reference()


def beside_the_reference(found: ReferenceResult, accuracies: Sequence[float], fingerprint: str) -> str:
    """Say whether one's own runs agree with the reference runs of the same benchmark.

    Args:
        found: The reference.
        accuracies: One's own, in percent, by the statistic of the claim; may be empty.
        fingerprint: Of the recipe that they were trained by.
    """
    verdict, row = found.row.verdict, found.row
    precisions = listed(sorted({run.precision for run in row.group.runs}))
    said = (
        f"{found.benchmark}: the reference reached {mean_with_interval(verdict)}% in full ({verdict.n} seeds, "
        f"{devices_text(row.group)}, {precisions}); its claim of {row.claim_text}: {verdict.word}"
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
