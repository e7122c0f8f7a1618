"""What ``--json`` prints, whatever is in it."""

import dataclasses
import enum
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from resnet_bench.base.json_document import json_document
from resnet_bench.cli.app import VERBS, load
from tests.golden import typed


class Word(enum.Enum):
    GOOD = "good"


@dataclasses.dataclass
class Row:
    value: float
    path: Path


def test_a_document_is_strict_json_with_its_kind_and_version() -> None:
    text = json_document(
        "a kind",
        {
            "numbers": (float("nan"), float("inf"), -0.5, np.float32(0.25), np.array([1, 2]), True),
            "row": Row(float("-inf"), Path("runs/a")),
            "when": datetime(2026, 11, 28, tzinfo=UTC),
            "word": Word.GOOD,
            3: "≥ 90 “quoted”",
        },
    )
    assert text.isascii()
    assert text.endswith("}\n")
    assert json.loads(text, parse_constant=pytest.fail) == {
        "schema": 1,
        "kind": "a kind",
        "numbers": [None, None, -0.5, 0.25, [1, 2], True],
        "row": {"value": None, "path": "runs/a"},
        "when": "2026-11-28T00:00:00+00:00",
        "word": "good",
        "3": "≥ 90 “quoted”",
    }
    with pytest.raises(TypeError, match="object has no place"):
        json_document("a kind", {"thing": object()})


SAYS_NOTHING = {"ui", "schema", "study work", "tracking watch"}
"""Verbs without --json: one prints JSON anyway, the others run until they are stopped."""


def test_every_verb_has_json_and_its_kind_is_on_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "json.md").read_text()
    kinds, without = [], set()
    for verb in VERBS:
        command = load(verb)
        for name, below in getattr(command, "commands", {"": command}).items():
            kind = f"{verb} {name}".strip()
            if any("--json" in parameter.opts for parameter in below.params):
                kinds.append(kind)
            else:
                without.add(kind)
    assert without == SAYS_NOTHING
    assert [kind for kind in kinds if f"| `{kind}` |" not in page] == []


def test_problems_are_in_the_document_and_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.toml").write_text("[source]\ntitle = 3\n[recipe]\n")
    for line in ("validate broken.toml --json", "list --benchmark-dir . --json"):
        result = typed(line)
        assert (result.code, result.err) == (2, ""), line
        assert json.loads(result.out)["kind"] == line.split()[0]
    (file,) = json.loads(typed("validate broken.toml --json").out)["files"]
    assert not file["valid"]
    assert any("source.title" in problem for problem in file["problems"])
