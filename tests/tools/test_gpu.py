"""The command for a GPU, tried on a CPU: that each part works, and what it writes down."""

import json

import pytest

from tools import gpu


@pytest.mark.slow
def test_steps_and_epochs_are_measured_and_written_down(tmp_path, capsys) -> None:
    assert gpu.main(["--tiny", "--part", "steps", "--part", "epochs", "--out", str(tmp_path)]) == 0
    comparison = json.loads((tmp_path / "steps-he-resnet20.json").read_text())
    arms = {arm["name"]: arm for arm in comparison["arms"]}
    assert list(arms) == ["source", "plain", "uncaptured", "fast"]
    assert [name for name, arm in arms.items() if "CUDA graphs" in arm["execution"]] == ["fast"]
    for arm in arms.values():
        rate = arm["images_per_second"]["median"]
        assert rate > 0
        assert arm["milliseconds"]["median"] == pytest.approx(1000 * 20 / rate)
        stages = arm["stages"]
        assert min(stages[stage] for stage in ("augment", "forward", "backward", "optimizer", "evaluation")) > 0
    (row,) = json.loads((tmp_path / "epochs.json").read_text())
    assert row["captures"] == 1
    assert 0 < row["capture_seconds"] < row["setup_seconds"]
    assert len(row["epoch_seconds"]) == len(row["evaluation_seconds"]) == 2
    printed = capsys.readouterr().out
    assert "steps: done" in printed
    assert "epochs: done" in printed
    assert json.loads((tmp_path / "environment.json").read_text())["device"] == "cpu"


def test_a_part_that_fails_does_not_keep_the_others_from_being_done(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(gpu, "compare", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(gpu, "profile", lambda _: True)
    assert gpu.main(["--tiny", "--part", "steps", "--part", "profile", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "ZeroDivisionError" in printed
    assert "steps: FAILED" in printed
    assert "profile: done" in printed
    assert "failed: steps" in printed
