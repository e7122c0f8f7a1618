"""From a folder of images to a report, by the commands of docs/data.md."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"


def commands() -> list[list[str]]:
    """The commands below the heading on your own images."""
    section = PAGE.read_text().partition("## Train on your own images")[2]
    block = re.search(r"```bash\n(.*?)```", section, re.DOTALL)
    assert block is not None
    return [shlex.split(line) for line in block[1].splitlines()]


def write_photos(folder: Path) -> None:
    """Three classes of one color each, as PNG of one size and JPEG of another."""
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for color, name in enumerate(("daisy", "rose", "tulip")):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                height, width, suffix = ((40, 52, "jpg"), (36, 36, "png"))[index % 2]
                pixels = random.integers(0, 100, (height, width, 3), dtype=np.uint8)
                pixels[:, :, color] += 120
                Image.fromarray(pixels).save(folder / split / name / f"{index}.{suffix}")


@pytest.mark.slow
def test_own_images_are_trained_and_reported_by_the_documented_commands(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    shown = commands()
    assert len(shown) == 6
    printed = ""
    for program, *words in shown:
        assert program == "resnet-bench"
        done = subprocess.run(
            [sys.executable, "-m", "resnet_bench", *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        printed += done.stdout
    assert "training.batch_size = 3" in printed
    report = tmp_path / "reports" / "latest"
    assert "the source claims no number" in (report / "report.md").read_text()
    assert {"daisy", "rose", "tulip"} <= set(re.findall(r"\w+", (report / "index.html").read_text()))
