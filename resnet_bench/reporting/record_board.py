"""The scoreboard of speed records: one page that needs no server and no network, and the same as Markdown."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from resnet_bench.base import files
from resnet_bench.base.errors import UserError
from resnet_bench.base.text import DASH, duration
from resnet_bench.reporting.page import Board, board_markdown, board_page
from resnet_bench.reporting.sections.section import Cell, grid
from resnet_bench.reporting.wording import energy, number

PAGE = "board.html"
MARKDOWN = "board.md"
TITLES = "Record|Holds|#Seeds|#Mean (SD)|#Lower bound|#Clock, median|#Speedup|#Energy|Device|Commit|Folder"


@dataclass(frozen=True)
class BoardRecord:
    """One bundle that verifies. Accuracies are in percent."""

    folder: str
    benchmark: str
    dataset: str
    claim: str
    device_type: str
    device: str
    holds: bool
    seeds: int
    mean: float | None
    sd: float | None
    lower_bound: float | None
    seconds: float | None
    baseline: str | None
    speedup: float | None
    joules: float | None
    commit: str
    note: str = ""
    """What was not recomputed."""


@dataclass(frozen=True)
class Refused:
    """One bundle that does not verify."""

    folder: str
    reason: str


def build(records: Sequence[BoardRecord], refused: Sequence[Refused]) -> Board:
    """Sort records by target, and the records of a target by what they reach."""
    targets: dict[tuple[str, str, str], list[BoardRecord]] = defaultdict(list)
    for record in records:
        targets[record.dataset, record.claim, record.device_type].append(record)
    tables = []
    for (dataset, claim, device_type), rows in sorted(targets.items()):
        title = f"{dataset}, {claim}, {'GPU' if device_type == 'cuda' else device_type.upper()}"
        tables.append((title, grid(title, TITLES, [_row(row) for row in sorted(rows, key=_order)])))
    last = grid("Bundles that do not verify", "Folder|Why", [[each.folder, each.reason] for each in refused])
    return Board(tuple(tables), last if refused else None)


def write(board: Board, folder: Path) -> Path:
    """Write ``board.html`` and ``board.md``.

    Returns:
        The page.

    Raises:
        UserError: The folder cannot be written.
    """
    try:
        files.write_together(folder, {PAGE: board_page(board).encode(), MARKDOWN: board_markdown(board).encode()})
    except OSError as error:
        raise UserError(f"{folder}: the board cannot be written there: {error.strerror or error}") from error
    return folder / PAGE


def _order(record: BoardRecord) -> tuple[bool, float, float, str]:
    seconds = float("inf") if record.seconds is None else record.seconds
    return not record.holds, -(record.speedup or 0.0), seconds, record.folder


def _row(record: BoardRecord) -> list[str | Cell]:
    speedup = DASH if record.speedup is None else f"{record.speedup:.1f}×"
    return [
        record.benchmark,
        Cell("yes" if record.holds else "no", record.note),
        str(record.seeds),
        DASH if record.mean is None else f"{record.mean:.2f} ({number(record.sd)})",
        number(record.lower_bound),
        duration(record.seconds),
        Cell(speedup, "" if record.baseline is None else f"over {record.baseline}"),
        "not readable" if record.joules is None else energy(record.joules),
        record.device,
        record.commit[:12],
        record.folder,
    ]
