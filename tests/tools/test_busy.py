"""The tool that measures a step beside other work, and what it and the other tools load first."""

import ast
from pathlib import Path

import pytest

from tools import busy

TOOLS = sorted(Path(busy.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("path", TOOLS, ids=lambda path: path.stem)
def test_a_tool_sets_how_long_threads_spin_before_torch_is_loaded(path: Path) -> None:
    """OpenMP reads it when torch is loaded; the package's first import sets it."""
    named = [
        (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    rooms = [name.partition(".")[0] for name in named]
    if "torch" in rooms:
        assert rooms.index("resnet_bench") < rooms.index("torch")


@pytest.mark.slow
def test_busy_prints_a_line_for_each_combination(capsys: pytest.CaptureFixture[str]) -> None:
    words = "he-resnet20 --batch-size 2 --threads 1 2 --beside 0 1 --spins 300000 2000 --steps 2"
    busy.main(words.split(" "))
    lines = [line.split()[:3] for line in capsys.readouterr().out.splitlines()[1:]]
    assert lines == [
        [beside, threads, spins]
        for beside in ("0", "1")
        for threads, spins in (("1", "300000"), ("2", "300000"), ("2", "2000"))
    ]
