"""What the long test of many runs says of its samples."""

from dataclasses import fields
from pathlib import Path

import pytest

from tools.soak import QUANTITIES, Sample, fifths, growth, plot

SAMPLES = [
    Sample(process, kind, number, *(float(number) for _ in fields(Sample)[3:]))
    for process in (0, 1)
    for kind, number in [("run", 0), ("run", 1), ("run", 2), ("trial", 3), ("trial", 4)]
]


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_every_quantity_has_its_growth_in_a_hundred_runs(quantity: str) -> None:
    assert growth(SAMPLES, quantity) == pytest.approx(100)
    assert fifths(SAMPLES, quantity) == (0, 4)


def test_samples_are_drawn(tmp_path: Path) -> None:
    plot(SAMPLES, tmp_path / "soak.png")
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")
