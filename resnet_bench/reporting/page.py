"""Render a report: as a page that needs no server and no network, and as Markdown."""

import base64
import gzip
import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

import jinja2

from resnet_bench.base import text
from resnet_bench.reporting import wording
from resnet_bench.reporting.claims import Claims
from resnet_bench.reporting.figures.style import THEME
from resnet_bench.reporting.sections.section import Grid, Section, View
from resnet_bench.reporting.wording import markdown_text

ROOT = Path(__file__).parent
TEMPLATES = ROOT / "templates"
SECTION_FOLDER = ROOT / "sections"
FILTERS = (
    text.duration,
    text.plural,
    wording.interval,
    wording.mean_with_interval,
    wording.moment,
    wording.number,
    wording.seeds,
    wording.share,
    wording.signed,
)
"""What templates write numbers with, by its own name."""

_WRAPPED = re.compile(
    r"(?P<licence>/\*.*?\*/)\s*"
    r"\(\s*function\(root, factory\).*?, \(\) => \{\n(?P<body>.*)\nreturn Plotly;\n\}\)\);\s*",
    re.DOTALL,
)


@dataclass(frozen=True)
class Report:
    """Everything that the templates show."""

    made: datetime
    version: str
    stores: tuple[str, ...]
    problems: tuple[str, ...]
    runs: int
    claims: Claims
    sections: tuple[tuple[Section, View], ...]
    """Those that have something to show."""

    @property
    def verdict_counts(self) -> dict[str, int]:
        """How many benchmarks have each verdict by their first claim."""
        words = [row.verdict.word for row in self.claims.headlines if row.claim is not None]
        return {word: words.count(word) for word in wording.VERDICT_MARKS if word in words}


@dataclass(frozen=True)
class Board:
    """The scoreboard of records, as its templates show it."""

    tables: tuple[tuple[str, Grid], ...]
    """A title and a table for each target; bundles that hold first, then the largest speedup, then the shortest."""
    refused: Grid | None


def render_page(report: Report) -> str:
    """Return the whole page: markup, style, scripts, data and plotly, in one file."""
    script = (TEMPLATES / "page.js").read_text("utf-8")
    specs = {plot.id: plot.spec for _, view in report.sections for plot in view.plots}
    return (
        _environment(autoescape=True)
        .get_template("templates/page.html.j2")
        .render(
            report=report,
            style=(TEMPLATES / "page.css").read_text("utf-8"),
            script=script,
            script_hash=csp_hash(script),
            plotly=_plotly(),
            specs=specs,
            theme=THEME,
        )
    )


def render_markdown(report: Report) -> str:
    """Return the same report for a terminal, a pull request or a README."""
    templates = {path.name for path in SECTION_FOLDER.glob("*.md.j2")}
    return _markdown("report", report=report, templates=templates)


def board_page(board: Board) -> str:
    """Return the scoreboard of records as a page in one file, without scripts."""
    style = (TEMPLATES / "page.css").read_text("utf-8")
    return _environment(autoescape=True).get_template("templates/board.html.j2").render(board=board, style=style)


def board_markdown(board: Board) -> str:
    """Return the same scoreboard as Markdown."""
    return _markdown("board", board=board)


def _markdown(template: str, **values: object) -> str:
    environment = _environment(autoescape=False)
    environment.filters["md"] = markdown_text
    environment.finalize = lambda value: value if value is not None else ""
    rendered = environment.get_template(f"templates/{template}.md.j2").render(**values)
    lines = "\n".join(line.rstrip() for line in rendered.splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines).strip() + "\n"


def csp_hash(script: str) -> str:
    """Return the source expression by which a content security policy allows a script."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def unwrapped(library: str) -> str:
    """Return plotly.js without the function around all of it, which serves module loaders.

    A browser reads a function once to find its end and once more when it is called; for a function of 4.8 MB that
    adds a third of a second to the first plot. Where the library is wrapped in another way, nothing changes.
    """
    found = _WRAPPED.fullmatch(library)
    return f"{found['licence']}\n{found['body']}\n" if found else library


@cache
def _plotly() -> str:
    """Return plotly.js, compressed for the page.

    The package ships one bundle of 4.8 MB; compressed it is a third of that, and every browser since 2023 can
    unpack it.
    """
    from plotly.offline import get_plotlyjs

    packed = gzip.compress(unwrapped(get_plotlyjs()).encode(), compresslevel=9, mtime=0)
    return base64.b64encode(packed).decode("ascii")


def _environment(*, autoescape: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT),
        autoescape=autoescape,  # noqa: S701 - off for Markdown only, whose names pass markdown_text  # nosec B701
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {write.__name__: write for write in FILTERS}
    environment.filters["slug"] = lambda value: re.sub(r"[^a-z0-9]+", "-", str(value).lower()).strip("-")
    environment.filters["sentence"] = lambda value: value[:1].upper() + value[1:]
    environment.globals.update(DASH=text.DASH, MARKS=wording.VERDICT_MARKS)
    return environment
