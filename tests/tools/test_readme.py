"""The README's table of claims and its picture, which a tool writes, say what the reference results say."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Result
from tools import readme

NUMBER = r"([\d.]+)"


def rows_of(text: str) -> dict[str, list[str]]:
    """The cells of a README's table of claims, by benchmark."""
    lines = text.partition(readme.BEGIN)[2].partition(readme.END)[0].strip().splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]
    return {cells[0]: cells for cells in rows}


def test_the_readme_has_the_numbers_seeds_and_verdicts_of_results(invoke: Callable[[str], Result]) -> None:
    found = json.loads(invoke("results --json").out)["results"]
    rows = rows_of(readme.README.read_text("utf-8"))
    assert [*rows] == [result["benchmark"] for result in found]
    for result in found:
        _, claim, ours, seeds, verdict, _, time, throughput = rows[result["benchmark"]]
        mean, half = map(float, re.findall(NUMBER, ours))
        assert (claim, int(seeds), verdict[2:]) == (result["claim"], result["seeds"], result["verdict"])
        assert mean == pytest.approx(result["mean"], abs=0.0051)
        assert half == pytest.approx((result["ci_high"] - result["ci_low"]) / 2, abs=0.0051)
        assert ("–" in (time, throughput)) == (result["train_seconds"] is None)
        assert time.startswith("about ") == bool(result["extrapolated_from"])


def test_the_readme_is_as_the_tool_writes_it() -> None:
    """After a change of the reference results: `python tools/readme.py`."""
    text = readme.README.read_text("utf-8")
    assert readme.with_table(text, readme.REFERENCE) == text


def test_the_picture_shows_the_seeds_and_verdicts_of_the_reference_results() -> None:
    """After a change of the reference results: `python tools/readme.py`."""
    assert readme.description_of(readme.PICTURE) == readme.description(readme.REFERENCE)


def test_a_readme_without_the_marks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"{readme.BEGIN}\nno end\n")
    with pytest.raises(SystemExit, match="claims table: end"):
        readme.main(["--readme", str(tmp_path / "README.md"), "--picture", str(tmp_path / "claims.png")])
    assert not (tmp_path / "claims.png").exists()


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(not any(map(shutil.which, readme.BROWSERS)), reason="needs Chromium on the PATH")
def test_the_tool_writes_both(tmp_path: Path) -> None:
    """In its own process, as one of Playwright may be running in that of the tests."""
    text = readme.README.read_text("utf-8")
    stale, drawn = tmp_path / "README.md", tmp_path / "claims.png"
    stale.write_text(text.replace("● reproduced", "✕ not reproduced"), "utf-8")
    command = [sys.executable, readme.__file__, "--readme", str(stale), "--picture", str(drawn)]
    subprocess.run(command, check=True, cwd=readme.REPOSITORY)
    assert stale.read_text("utf-8") == text
    assert readme.description_of(drawn) == readme.description(readme.REFERENCE)
    with Image.open(drawn) as image:
        assert image.width > 1000
        assert len(image.getcolors(1 << 24) or ()) > 20, "an empty plot"
