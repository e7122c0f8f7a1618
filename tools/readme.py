"""Write the README's table of claims and its picture from the reference results, after these have changed.

    python tools/readme.py

The picture is the plot of the report, taken by Chromium, which must be on the PATH. It also holds what it shows as
text, so that a test sees when it is stale.
"""

import argparse
import io
import os
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image, PngImagePlugin

from resnet_bench.base.errors import UserError
from resnet_bench.base.files import write_together
from resnet_bench.reporting import report
from resnet_bench.reporting.claims import ClaimRow, read_claims
from resnet_bench.reporting.wording import VERDICT_MARKS, mean_with_interval, number, seeds, signed

REPOSITORY = Path(__file__).resolve().parents[1]
REFERENCE = REPOSITORY / "reports" / "reference"
README = REPOSITORY / "README.md"
PICTURE = REFERENCE / "amd-epyc-2-cores" / "claims.png"
BEGIN, END = "<!-- claims table: begin -->", "<!-- claims table: end -->"
HEADING = """
| benchmark | claim | ours, 95% CI | seeds | verdict | gap | time | images/s |
|---|--:|--:|--:|---|--:|--:|--:|
"""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DESCRIPTION = "Description"
"""The keyword of PNG under which the picture says what it shows."""


def table(reference: Path) -> str:
    """Return the table of first claims in Markdown."""
    return HEADING + "".join(f"| {' | '.join(_cells(row))} |\n" for row in read_claims([reference]).headlines)


def with_table(text: str, reference: Path) -> str:
    """Return a README with today's table between its two marks.

    Raises:
        UserError: A mark is missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"the table of claims belongs between the lines {BEGIN} and {END}: write both")
    return f"{before}{BEGIN}\n{table(reference)}\n{END}{after}"


def description(reference: Path) -> str:
    """Return what the picture shows: a line per claim with verdict and the accuracy of each seed in percent."""
    rows = [row for row in read_claims([reference]).rows if row.claim is not None]
    return "\n".join(f"{row.benchmark}, {row.claim_text}: {row.verdict.word}; {seeds(row.seeds)}" for row in rows)


def description_of(picture: Path) -> str:
    """Return what a picture that was written here says it shows; empty for another."""
    with Image.open(picture) as image:
        return str(image.info.get(DESCRIPTION, ""))


def picture(reference: Path) -> bytes:
    """Return the plot of all claims as PNG.

    Raises:
        UserError: There is no Chromium.
    """
    with tempfile.TemporaryDirectory() as folder:
        shot = _screenshot(report.write(reference, Path(folder)).page)
    told = PngImagePlugin.PngInfo()
    told.add_itxt(DESCRIPTION, description(reference))
    written = io.BytesIO()
    with Image.open(io.BytesIO(shot)) as image:
        image.convert("RGB").save(written, "PNG", pnginfo=told, optimize=True)
    return written.getvalue()


def _screenshot(page: Path) -> bytes:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        raise UserError("the picture is taken by Chromium, and none is on the PATH: install it")
    from playwright.sync_api import sync_playwright

    # Chromium refuses its sandbox to root.
    arguments = ["--disable-gpu", *(["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        tab = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
        tab.set_default_timeout(120_000)
        tab.goto(page.as_uri())
        plot = tab.locator("[data-plot=forest]")
        plot.scroll_into_view_if_needed()
        tab.wait_for_selector("[data-plot=forest].js-plotly-plot .legend")
        shot: bytes = plot.screenshot()
        browser.close()
    return shot


def _cells(row: ClaimRow) -> tuple[str, ...]:
    verdict = row.verdict
    return (
        row.benchmark,
        row.claim_text,
        mean_with_interval(verdict),
        str(verdict.n),
        f"{VERDICT_MARKS[verdict.word]} {verdict.word}",
        signed(verdict.gap),
        row.cost.time,
        number(row.cost.images_per_second, 0),
    )


def main(words: list[str] | None = None) -> None:
    """Write both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, default=REFERENCE, metavar="DIR", help="tables of reports")
    parser.add_argument("--readme", type=Path, default=README, metavar="FILE")
    parser.add_argument("--picture", type=Path, default=PICTURE, metavar="FILE")
    given = parser.parse_args(words)
    try:
        text, drawn = with_table(given.readme.read_text("utf-8"), given.reference), picture(given.reference)
    except UserError as error:
        sys.exit(f"{given.readme}: {error}")
    write_together(given.readme.parent, {given.readme.name: text.encode()})
    write_together(given.picture.parent, {given.picture.name: drawn})


if __name__ == "__main__":
    main()
