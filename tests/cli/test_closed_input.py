"""Every verb where standard input is closed, as services and batch jobs have it: nothing asks, and nothing breaks."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_bench.cli.app import VERBS, load
from tests import golden

REFERENCE = golden.ROOT / "reports" / "reference"
TYPED = {
    "cancel": ("", 0),
    "compare": (f"{REFERENCE} {REFERENCE}", 0),
    "copy": ("he-resnet20 benchmarks/my-copy.toml", 0),
    "data describe": ("photos", 0),
    "data prepare": ("cifar10 --offline", 2),
    "data status": ("", 0),
    "doctor": ("", 0),
    "evaluate": ("nosuch --dataset cifar10-1", 2),
    "export": ("nosuch", 2),
    "history": (f"resnet9-onecycle-adam --from {REFERENCE}", 0),
    "launcher list": ("", 0),
    "launcher show": ("inline", 0),
    "list": ("", 0),
    "perf": ("nosuch", 2),
    "plan": (f"speedrun-90 --effect 0.3 --from {REFERENCE}", 0),
    "record board": ("nosuch", 2),
    "record check": ("he-resnet20", 2),
    "record verify": ("nosuch", 2),
    "report": ("--from nosuch.db", 2),
    "results": ("", 0),
    "run": ("he-resnet20 --offline --profile full", 2),
    "runs delete": ("{run}", 2),
    "runs list": ("", 0),
    "runs prune": ("", 0),
    "runs show": ("{run}", 0),
    "schema": ("study", 0),
    "show": ("he-resnet20", 0),
    "status": ("", 0),
    "study best": ("golden-study-smoke", 0),
    "study delete": ("golden-study-smoke", 2),
    "study export": ("nosuch", 2),
    "study list": ("", 0),
    "study rename": ("nosuch other", 2),
    "study run": ("nosuch", 2),
    "study show": ("golden-study-smoke", 0),
    "study trials": ("golden-study-smoke", 0),
    "study work": ("nosuch", 2),
    "tracking flush": ("", 0),
    "tracking push": ("--to nosuch://store", 2),
    "tracking watch": ("--max-minutes 0", 2),
    "ui": ("--port 0", 2),
    "validate": (f"{golden.FOLDER / 'benchmarks' / 'golden-adam.toml'}", 0),
}
"""What is typed after each verb, and its exit code."""
NOTHING_DELETED = ("runs delete", "study delete")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project of version 0.1.0 with photos, to stand in."""
    folder = tmp_path_factory.mktemp("project")
    golden.unpack_store(folder)
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("daisy", "rose"):
            (folder / "photos" / split / name).mkdir(parents=True)
            Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"photos/{split}/{name}/0.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("MLFLOW_TRACKING_URI", "RESNET_BENCH_DATA"):
            patch.delenv(name, raising=False)
        yield folder


def test_every_verb_is_typed() -> None:
    verbs = {f"{verb} {name}".strip() for verb in VERBS for name in getattr(load(verb), "commands", {"": None})}
    assert set(TYPED) == verbs


@pytest.mark.parametrize("verb", TYPED)
def test_a_verb_whose_input_is_closed(verb: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words, code = TYPED[verb]
    (run,) = [id_ for name, id_ in golden.run_ids(project, "run").items() if name == "he-resnet20 seed 0"]
    # What Python makes of it.
    monkeypatch.setattr(sys, "stdin", None)
    result = golden.typed(f"{verb} {words.format(run=run)}")
    assert "Traceback" not in result.err
    assert result.code == code, result.err
    assert bool(result.out) == (code == 0)
    if verb in NOTHING_DELETED:
        assert "nothing was deleted; without a terminal, say so with --yes" in result.err


OF_FILES_AND_OTHERS = (
    "benchmark",
    "dataset",
    "fingerprints",
    "metrics",
    "params",
    "recipe",
    "run",
    "studies",
    "study",
    "tags",
)
"""Fields whose content is that of a file, a store or another verb."""


@pytest.mark.slow
@pytest.mark.parametrize("verb", [verb for verb, (_, code) in TYPED.items() if code == 0 and verb != "schema"])
def test_every_field_of_a_document_is_on_the_page(verb: str, project: Path) -> None:
    words, _ = TYPED[verb]
    (run,) = [id_ for name, id_ in golden.run_ids(project, "run").items() if name == "he-resnet20 seed 0"]
    document = json.loads(golden.typed(f"{verb} {words.format(run=run)} --json").out)
    assert (document.pop("schema"), document.pop("kind")) == (1, verb)
    page = (golden.ROOT / "docs" / "json.md").read_text()
    (row,) = re.findall(rf"^\| `{verb}` \| (.*) \|$", page, re.MULTILINE)
    listed = set(re.findall(r"\w+", row))
    for name, value in document.items():
        first = value[0] if isinstance(value, list) and value else value
        below = first if isinstance(first, dict) and name not in OF_FILES_AND_OTHERS else {}
        assert {name, *below} - listed == set()
