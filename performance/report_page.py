"""How long a reader waits for a report: until the text stands, until the first plot, until all plots are drawn.

Several pages are measured in turn, such as one report made by two versions of the code, and compared with the first:

    resnet-bench report --from reports/reference --out /tmp/page
    python performance/report_page.py /tmp/page/index.html [OTHER/index.html ...]

The browser runs without its developer tools, which read plotly's code again whenever a script throws, and so would
measure themselves. A small script is added to a copy of the page, which tells a server on this machine the times. Other
work on the machine adds to the times, and hardly to the processor time of the browser.
"""

import argparse
import base64
import hashlib
import http.server
import json
import os
import queue
import shutil
import statistics
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psutil

TIMEOUT_SECONDS = 300
WATCHER = """
(() => {
  const tell = (stage) => fetch(`/told?stage=${stage}&seconds=${performance.now() / 1000}`);
  const observer = new MutationObserver(() => {
    if (!document.querySelector(".js-plotly-plot .main-svg")) return;
    observer.disconnect();
    requestAnimationFrame(() => setTimeout(async () => {
      await tell("first plot");
      // What is printed is drawn, seen or not.
      dispatchEvent(new Event("beforeprint"));
      requestAnimationFrame(() => setTimeout(() => tell("all plots")));
    }));
  });
  addEventListener("load", () => {
    tell("text");
    // Plots are drawn when they come near the window, and the first may stand below a long table.
    document.querySelector("[data-plot]")?.scrollIntoView();
    observer.observe(document, { subtree: true, childList: true });
  });
})();
"""
STAGES = ("text", "first plot", "all plots")


def main() -> None:
    """Measure and print a table, and the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE", help="index.html of a report")
    parser.add_argument("--repeats", type=int, default=5, help="times that each page is opened")
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("google-chrome"))
    arguments = parser.parse_args()
    if arguments.chromium is None:
        parser.error("no Chromium on the PATH: name one with --chromium")

    measured: dict[Path, list[dict[str, tuple[float, float]]]] = {page: [] for page in arguments.pages}
    for _ in range(arguments.repeats):
        for page in arguments.pages:
            measured[page].append(opened(page, arguments.chromium))

    print(f"{'':12}{'seconds':>34}{'processor seconds':>34}")
    first = None
    for page, times in measured.items():
        print(page)
        figures = {}
        for stage in STAGES:
            columns = list(zip(*(each[stage] for each in times), strict=True))
            medians = [statistics.median(column) for column in columns]
            figures[stage] = medians
            cells = [
                f"{median:.2f} ({min(column):.2f} to {max(column):.2f})"
                + (f" ×{median / first[stage][place]:.2f}" if first else "")
                for place, (median, column) in enumerate(zip(medians, columns, strict=True))
            ]
            print(f"  {stage:10}{cells[0]:>34}{cells[1]:>34}")
        first = first or figures
    print(json.dumps({str(page): times for page, times in measured.items()}))


def opened(page: Path, chromium: str) -> dict[str, tuple[float, float]]:
    """Open a page in a fresh browser.

    Returns:
        By stage, seconds since the page was asked for, and processor seconds of the browser since it was started.
    """
    told: queue.Queue[tuple[str, float]] = queue.Queue()
    with served(watched(page.read_text("utf-8")).encode(), told) as address, tempfile.TemporaryDirectory() as profile:
        command = [chromium, "--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        command += [f"--user-data-dir={profile}", "--window-size=1280,900"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            command.append("--no-sandbox")  # Chromium refuses its sandbox to root
        browser = psutil.Popen(
            [*command, address],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            found = {}
            while len(found) < len(STAGES):
                try:
                    stage, seconds = told.get(timeout=TIMEOUT_SECONDS)
                except queue.Empty:
                    raise SystemExit(f"error: {page} was not drawn within {TIMEOUT_SECONDS} seconds") from None
                found[stage] = (seconds, processor_seconds(browser))
            return found
        finally:
            for process in (*browser.children(recursive=True), browser):
                process.kill()
            browser.wait()


def watched(page: str) -> str:
    """A page with the watcher in it, and a policy that lets it speak."""
    digest = base64.b64encode(hashlib.sha256(WATCHER.encode()).digest()).decode()
    policy = f"connect-src 'self'; script-src 'sha256-{digest}' "
    if "script-src " not in page:
        raise SystemExit("error: this is no page of resnet-bench report")
    return page.replace("script-src ", policy, 1).replace("</title>", f"</title><script>{WATCHER}</script>", 1)


@contextmanager
def served(page: bytes, told: queue.Queue[tuple[str, float]]) -> Iterator[str]:
    """Serve a page, and take down what it tells; yields its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            if asked.path == "/told":
                answer = parse_qs(asked.query)
                told.put((answer["stage"][0], float(answer["seconds"][0])))
            elif asked.path == "/":
                self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def processor_seconds(process: psutil.Process) -> float:
    """Of a process and everything that it started."""
    return sum(sum(each.cpu_times()[:2]) for each in (process, *process.children(recursive=True)))


if __name__ == "__main__":
    main()
