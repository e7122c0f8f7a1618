"""A suite that is killed anywhere, again and again, leaves what an undisturbed one leaves."""

import json
import os
from typing import Any

import pytest

from tests.reliability.tiny import run_alone


def harness(kills: int, seconds: float) -> dict[str, Any]:
    """Kill so many times, in a process that has one thread, and say what differed."""
    done = run_alone("kills", "--kills", str(kills), "--seconds", str(seconds))
    assert done.stdout, done.stderr[-3000:]
    summary: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (1 if summary["differences"] or summary["landed"] < kills else 0)
    return summary


@pytest.mark.slow
def test_killed_anywhere() -> None:
    """Fifty times; RESNET_BENCH_KILLS says how often in a nightly run."""
    kills = int(os.environ.get("RESNET_BENCH_KILLS", "50"))
    summary = harness(kills, max(240.0, 20.0 * kills))
    assert summary["differences"] == []
    # A harness that disturbed nothing has shown nothing.
    assert summary["landed"] == kills
    hit = {phase for moment in summary["by phase"] for phase in moment.split("+")}
    assert hit >= {"step", "checkpoint", "shipping", "report"}


def test_a_harness_whose_kills_do_not_land_fails() -> None:
    """No time is given, so that nothing is killed."""
    from tests.reliability import kills

    assert kills.verdict({"planned": 3, "landed": 2, "differences": []}) == 1
    assert kills.verdict({"planned": 3, "landed": 3, "differences": ["weights"]}) == 1
    assert kills.verdict({"planned": 3, "landed": 3, "differences": []}) == 0


def test_what_differs_is_told() -> None:
    from tests.reliability import kills

    expected = {"weights": "a", "metrics": {"step/loss": [(1, 2.0), (2, 1.0)]}, "files": ["x", "y"]}
    assert kills.differences(expected, expected) == []
    for change, said in (
        ({"weights": "b"}, "weights: a became b"),
        ({"metrics": {"step/loss": [(1, 2.0), (1, 2.0), (2, 1.0)]}}, "metrics step/loss: [(1, 2.0), (2, 1.0)] became"),
        ({"files": ["x", "y", ".y.unfinished"]}, "files: lacks [], has ['.y.unfinished']"),
    ):
        (difference,) = kills.differences(expected, {**expected, **change})
        assert difference.startswith(said)
