"""The page in a real browser, opened from the file system."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resnet_bench.reporting import report
from resnet_bench.reporting.report import ReportResult

pytestmark = pytest.mark.browser

TIMEOUT = 120_000
"""Milliseconds to wait for the browser on a machine that has much else to do."""
SHEET_PIXELS = 182 / 25.4 * 96
"""Width of an A4 sheet between its margins; no other sheet in use is narrower."""
SHOTS = os.environ.get("RESNET_BENCH_SHOTS")
"""Folder to write screenshots to; none are taken where it is not set."""


class Tab:
    """A page, with everything that it said and asked for."""

    def __init__(self, browser: Any, path: Path, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.context.set_default_timeout(TIMEOUT)
        self.page = self.context.new_page()
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        started = time.perf_counter()
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-plots]", state="attached")
        self.seconds = time.perf_counter() - started

    def scroll_through(self) -> None:
        """Bring every plot that is not folded away into view, so that it is drawn."""
        self.page.evaluate("document.querySelectorAll('details.group').forEach(each => { each.open = true })")
        deadline = time.monotonic() + TIMEOUT / 1000
        for plot in self.page.query_selector_all("[data-plot]"):
            plot.evaluate("plot => plot.scrollIntoView()")
            # The page allows no scripts but its own, so that the browser cannot be told to look by itself.
            while not plot.evaluate("plot => plot.classList.contains('js-plotly-plot')"):
                assert time.monotonic() < deadline, f"{plot.get_attribute('data-plot')} was not drawn"
                self.page.wait_for_timeout(50)

    def shoot(self, name: str) -> None:
        if SHOTS:
            self.page.evaluate("scrollTo(0, 0)")
            self.page.wait_for_timeout(300)
            self.page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True)

    @property
    def theme(self) -> str:
        return str(self.page.evaluate("document.documentElement.dataset.theme"))


@pytest.fixture(scope="module")
def tab(chromium: Any, written: ReportResult) -> Iterator[Tab]:
    opened = Tab(chromium, written.page, viewport={"width": 1280, "height": 900}, color_scheme="light")
    yield opened
    opened.context.close()


def test_the_page_opens_from_the_file_system_without_a_request(tab: Tab, record_property: Any) -> None:
    record_property("load_seconds", round(tab.seconds, 2))
    assert tab.page.evaluate("document.documentElement.dataset.plots") == "ready"
    assert [url for url in tab.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert len([url for url in tab.requests if url.startswith("file:")]) == 1


def test_every_section_is_visible_and_reachable(tab: Tab) -> None:
    for name in ("claims", "curves", "comparison", "classes", "costs", "studies", "runs"):
        tab.page.click(f"nav a[href='#{name}']")
        box = tab.page.locator(f"#{name} > h2").bounding_box()
        assert box is not None
        assert 0 <= box["y"] < 900


def test_every_plot_is_drawn(tab: Tab) -> None:
    tab.scroll_through()
    drawn = tab.page.evaluate(
        "[...document.querySelectorAll('[data-plot]')].map(each => each.querySelectorAll('svg').length)"
    )
    assert len(drawn) > 40
    assert all(count > 0 for count in drawn)
    empty = tab.page.evaluate(
        "[...document.querySelectorAll('[data-plot]')].filter(each => !each.querySelector("
        "'.scatterlayer path, .scatterlayer .point, .barlayer path, .heatmaplayer image'))"
        ".map(each => each.dataset.plot)"
    )
    assert empty == []
    tab.shoot("desktop-light")


def test_nothing_is_wider_than_the_page(tab: Tab) -> None:
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 1280
    opened = "document.querySelectorAll('.claims details').forEach((row) => { row.open = true; })"
    tab.page.evaluate(opened)
    box = "document.querySelector('.claims').parentElement"
    needed, there = (tab.page.evaluate(f"{box}.{width}") for width in ("scrollWidth", "clientWidth"))
    assert needed <= there, "what a row opens makes no table wider"
    tab.page.evaluate(opened.replace("true", "false"))


def test_a_row_opens_with_the_keyboard(tab: Tab) -> None:
    summary = tab.page.locator("#claims .more summary").first
    opened = tab.page.locator("#claims .more details").first
    assert opened.get_attribute("open") is None
    summary.focus()
    tab.page.keyboard.press("Enter")
    assert opened.get_attribute("open") is not None
    assert "optimizer.weight_decay" in opened.inner_text()
    assert opened.locator("text=Bootstrap interval").is_visible()
    tab.shoot("desktop-row-open")
    tab.page.keyboard.press("Enter")
    assert opened.get_attribute("open") is None


def test_the_theme_switches_and_takes_the_plots_along(tab: Tab) -> None:
    def colours() -> tuple[str, str]:
        return (
            tab.page.evaluate("getComputedStyle(document.body).backgroundColor"),
            tab.page.evaluate("getComputedStyle(document.querySelector('[data-plot=forest] .xtick text')).fill"),
        )

    assert tab.theme == "light"
    light = colours()
    tab.page.click("#theme")
    assert tab.theme == "dark"
    assert tab.page.get_attribute("#theme", "aria-pressed") == "true"
    dark = colours()
    assert light[0] != dark[0]
    assert light[1] != dark[1]
    tab.shoot("desktop-dark")
    tab.page.click("#theme")
    assert colours() == light


def test_printing_opens_everything_in_light_and_restores_it(tab: Tab) -> None:
    tab.page.evaluate("document.querySelector('details.group').open = false")
    tab.page.click("#theme")
    tab.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.theme == "light"
    assert tab.page.evaluate("document.querySelectorAll('details.group:not([open])').length") == 0
    tab.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.theme == "dark"
    assert tab.page.evaluate("document.querySelectorAll('details.group:not([open])').length") == 1
    tab.page.click("#theme")


def test_plots_are_printed_as_wide_as_a_sheet(tab: Tab) -> None:
    def width() -> float:
        return float(tab.page.evaluate("document.querySelector('[data-plot=forest] .main-svg').clientWidth"))

    screen = width()
    tab.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    undrawn = tab.page.evaluate("document.querySelectorAll('[data-plot]:not(.js-plotly-plot)').length")
    widest = tab.page.evaluate("Math.max(...[...document.querySelectorAll('.main-svg')].map(each => each.clientWidth))")
    assert undrawn == 0
    assert 0.9 * SHEET_PIXELS < width() == widest < SHEET_PIXELS
    tab.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert width() == screen


def test_every_column_of_a_table_is_on_the_printed_sheet(chromium: Any, written: ReportResult) -> None:
    tab = Tab(chromium, written.page, viewport={"width": round(SHEET_PIXELS), "height": 900})
    try:
        tab.page.emulate_media(media="print")
        tab.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        tab.page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
        beyond = tab.page.evaluate(
            "[...document.querySelectorAll('th, td')].filter(each => each.getBoundingClientRect().right >"
            " document.body.getBoundingClientRect().right + 1).map(each => each.textContent.slice(0, 40))"
        )
        assert beyond == []
    finally:
        tab.context.close()


def test_every_image_and_plot_has_words(tab: Tab) -> None:
    unnamed = tab.page.evaluate(
        "[...document.querySelectorAll('img, [role=img], [role=region], button, section')]"
        ".filter(each => !(each.alt || each.getAttribute('aria-label') || each.getAttribute('aria-labelledby')))"
        ".map(each => each.outerHTML.slice(0, 80))"
    )
    assert unnamed == []
    broken = tab.page.evaluate("[...document.images].filter(each => each.complete && !each.naturalWidth).length")
    assert broken == 0


def test_the_page_says_nothing_in_the_console(tab: Tab) -> None:
    assert tab.messages == []


def test_text_stands_out_from_its_ground(tab: Tab) -> None:
    """Contrast of every verdict and of muted text, in both themes, as WCAG AA asks for."""
    script = """() => {
        const parse = (colour) => colour.match(/\\d+(\\.\\d+)?/g).slice(0, 3).map(Number);
        const light = (colour) => {
            const linear = (v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
            const [r, g, b] = parse(colour).map((v) => linear(v / 255));
            return .2126 * r + .7152 * g + .0722 * b;
        };
        const ground = light(getComputedStyle(document.body).backgroundColor);
        return [...document.querySelectorAll('.verdict, .title, .meta, nav a, summary, a')].map((each) => {
            const ink = light(getComputedStyle(each).color);
            return [(Math.max(ink, ground) + .05) / (Math.min(ink, ground) + .05), each.className || each.tagName];
        }).sort((one, other) => one[0] - other[0])[0];
    }"""
    for _ in range(2):
        worst, name = tab.page.evaluate(script)
        assert worst >= 4.5, f"{name} in the {tab.theme} theme"
        tab.page.click("#theme")


def test_on_a_phone(chromium: Any, written: ReportResult) -> None:
    tab = Tab(
        chromium,
        written.page,
        viewport={"width": 390, "height": 844},
        color_scheme="dark",
        has_touch=True,
        is_mobile=True,
    )
    try:
        assert tab.theme == "dark", "as the system prefers"
        tab.scroll_through()
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
        button = tab.page.locator("#theme").bounding_box()
        assert button is not None
        assert button["x"] + button["width"] <= 390
        assert tab.page.evaluate("document.querySelector('[data-plot=forest]').layout.dragmode") is False
        assert tab.messages == []
        tab.shoot("phone-dark")
    finally:
        tab.context.close()


def test_names_that_try_to_break_out_are_shown_as_text(
    chromium: Any, nasty_uri: str, benchmarks_folder: Path, tmp_path: Path
) -> None:
    written = report.write(nasty_uri, tmp_path, benchmarks_folder=benchmarks_folder)
    tab = Tab(chromium, written.page)
    try:
        tab.scroll_through()
        assert tab.page.title() == "resnet-bench: Do the claims hold?"
        assert tab.messages == []
        assert [url for url in tab.requests if not url.startswith(("file:", "data:", "blob:"))] == []
        links = tab.page.evaluate("[...document.querySelectorAll('svg a')].map(each => each.getAttribute('href'))")
        assert links == []
    finally:
        tab.context.close()


def test_without_the_means_to_unpack_plots_the_tables_remain(chromium: Any, written: ReportResult) -> None:
    context = chromium.new_context()
    context.set_default_timeout(TIMEOUT)
    try:
        context.add_init_script("delete window.DecompressionStream")
        page = context.new_page()
        page.goto(written.page.as_uri())
        page.wait_for_selector("html[data-plots=failed]", state="attached")
        assert page.locator("#plots-failed").is_visible()
        assert page.locator("#claims table").first.is_visible()
    finally:
        context.close()
