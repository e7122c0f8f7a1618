"""What tells one state of the code from another."""

import shutil
from pathlib import Path

import pytest

import resnet_bench
from resnet_bench.tracking import environment


def test_the_fingerprint_of_the_code_follows_what_decides_a_result_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "resnet_bench"
    shutil.copytree(Path(resnet_bench.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(environment, "__file__", str(package / "tracking" / "environment.py"))
    fingerprint = environment.code_fingerprint.__wrapped__
    before = fingerprint()
    assert len(before) == 16
    for name in ("reporting/report.py", "cli/app.py", "tracking/tracker.py"):
        (package / name).write_text("changed")
    assert fingerprint() == before
    seen = {before}
    for name in (
        "training/loop.py",
        "models/resnet9.py",
        "data/loader.py",
        "execution/execution.py",
        "recipe/recipe.py",
    ):
        (package / name).write_text("changed")
        seen.add(fingerprint())
    assert len(seen) == 6
    (package / "models" / "new.py").write_text("")
    assert fingerprint() not in seen
