"""Define what a section of a report is made from, and what its templates show."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import pandas as pd

from resnet_bench.base.text import DASH
from resnet_bench.reporting.claims import Claims
from resnet_bench.reporting.figures.style import Plot
from resnet_bench.reporting.reference import Reference, known_reference
from resnet_bench.reporting.runs import Run, RunGroup, by_run, group_labels, of_group
from resnet_bench.reporting.studies import StudyReport, tuned_accuracies
from resnet_bench.reporting.tables import Tables
from resnet_bench.reporting.wording import moment


@dataclass(frozen=True, eq=False)
class Results:
    """Everything that sections are built from."""

    tables: Tables
    runs: tuple[Run, ...]
    claims: Claims
    studies: tuple[StudyReport, ...]

    @cached_property
    def labels(self) -> Mapping[RunGroup, str]:
        """Every group in the order of the claims, with its name."""
        return group_labels(list(dict.fromkeys(row.group for row in (*self.claims.rows, *self.claims.apart))))

    @cached_property
    def full(self) -> Mapping[RunGroup, str]:
        """The groups that may be judged."""
        return {group: label for group, label in self.labels.items() if not group.apart}

    @property
    def compared(self) -> Mapping[RunGroup, str]:
        """The groups that are compared: those that may be judged or, where there are none, the others."""
        return self.full or self.labels

    @cached_property
    def datasets(self) -> list[str]:
        """The datasets of the groups that are compared."""
        return sorted({group.latest.dataset for group in self.compared})

    @cached_property
    def tuned(self) -> Mapping[str, Sequence[float]]:
        """Test accuracies of tuned hyperparameters on new seeds, by benchmark."""
        return tuned_accuracies(self.studies)

    @cached_property
    def reference(self) -> Reference:
        """The reference results of every benchmark that is shown or named as missing."""
        rows, missing = (*self.claims.rows, *self.claims.apart), self.claims.missing
        named = {row.benchmark for row in rows} | {each.benchmark.name for each in missing}
        return known_reference(sorted(named | {study.parent.benchmark for study in self.studies}))

    @property
    def several_stores(self) -> bool:
        """Whether a run must be named with its store."""
        return len(self.tables.stores) > 1

    def confusion(self, group: RunGroup) -> pd.DataFrame:
        """Return the confusions of the runs of a group."""
        return of_group(self._confusion, group, self.tables.confusion)

    def mistakes(self, group: RunGroup) -> pd.DataFrame:
        """Return the confidently wrong images of the runs of a group."""
        return of_group(self._mistakes, group, self.tables.mistakes)

    @cached_property
    def _confusion(self) -> Mapping[str, pd.DataFrame]:
        return by_run(self.tables.confusion)

    @cached_property
    def _mistakes(self) -> Mapping[str, pd.DataFrame]:
        return by_run(self.tables.mistakes)


@dataclass(frozen=True)
class View:
    """What the templates of a section show."""

    values: Mapping[str, Any] = field(default_factory=dict)
    """By the name that the templates use."""
    plots: tuple[Plot, ...] = ()
    """Every plot that its page template places."""


@dataclass(frozen=True)
class Section:
    """One section of a report; ``<id>.html.j2`` and, where Markdown has it, ``<id>.md.j2`` stand beside its module."""

    id: str
    title: str
    build: Callable[[Results], View | None]
    """Returns None where there is nothing to show; the section is left out then."""


# --- tables --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One cell of a table; a plain text stands for a cell without more."""

    text: str
    detail: str = ""
    """A second line on the page, in brackets in Markdown."""
    badge: str = ""
    code: bool = False
    lines: tuple[str, ...] = ()
    """On the page, what stands on separate lines in place of the text."""

    @property
    def is_plain(self) -> bool:
        """Whether it is its text alone: tables of thousands of runs are mostly such cells."""
        return not (self.detail or self.badge or self.code or self.lines)


class GridColumn(NamedTuple):
    """The head of a column."""

    title: str
    number: bool = False


@dataclass(frozen=True)
class Grid:
    """A table that looks the same on the page and in Markdown."""

    label: str
    """For a screen reader."""
    columns: tuple[GridColumn, ...]
    rows: tuple[tuple[Cell, ...], ...]
    style: str = ""
    """A further class on the page."""


def grid(label: str, titles: str, rows: Sequence[Sequence[str | Cell]], style: str = "") -> Grid:
    """Build a table.

    Args:
        label: What the table holds, for a screen reader.
        titles: Titles of the columns, separated by bars; one that begins with ``#`` is of numbers.
        rows: Rows of cells.
        style: A further class on the page.
    """
    return Grid(
        label,
        tuple(GridColumn(title.removeprefix("#"), title.startswith("#")) for title in titles.split("|")),
        tuple(tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in row) for row in rows),
        style,
    )


def apart_badge(group: RunGroup) -> str:
    """Return why the runs of a group are not judged; empty where they may be."""
    if not group.apart:
        return ""
    return f"{'generated images' if group.latest.generated else 'smoke profile'}: not judged"


def runs_grid(runs: Sequence[Run], *, with_store: bool) -> Grid:
    """Build the table of runs with what each was made from."""
    titles = "Run|#Seed|Status|Device|Precision|Code commit|Data fingerprint|Started (UTC)|MLflow run"
    rows: list[list[str | Cell]] = [
        [
            run.name,
            DASH if run.seed is None else str(run.seed),
            f"{run.status.lower()}: {run.reason}" if run.reason else run.status.lower(),
            run.device or DASH,
            run.precision or DASH,
            Cell(run.code_commit[:12] or DASH, "uncommitted changes" if run.code_dirty else "", code=True),
            Cell(run.data_fingerprint[:12] or DASH, code=True),
            moment(run.started),
            Cell(run.id, code=True),
            *([run.store] if with_store else []),
        ]
        for run in runs
    ]
    return grid("Runs", f"{titles}|Store" if with_store else titles, rows)
