"""Rules that keep the code easy to change: private names stay private, and classes and files stay small."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = sorted((REPOSITORY / "resnet_bench").rglob("*.py"))
TESTS = sorted((REPOSITORY / "tests").rglob("*.py"))
MOST_LINES = 600
MOST_METHODS = 15
OF_OTHERS = {"_asdict", "_call_stack", "_exit", "_get_alembic_config", "_hard_delete_run", "_tracking_client"}
OF_OTHERS |= {"_trial_id", "_C", "_local_scalar_dense"}
"""Private names of Python and of libraries, for which there is no public one."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name not in OF_OTHERS


def private_names(tree: ast.AST) -> Iterator[str]:
    """Names that are imported, patched, or reached through anything but ``self`` and ``cls``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("resnet_bench", "tools")):
            yield from (alias.name for alias in node.names if is_private(alias.name))
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                yield node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr":
            texts = [each.value for each in node.args[:2] if isinstance(each, ast.Constant)]
            yield from (text for text in texts if isinstance(text, str) and is_private(text.rpartition(".")[2]))


@pytest.mark.parametrize(
    "text", ["from resnet_bench.a import _b", "a._b()", "p.setattr(a, '_b', 1)", "p.setattr('a._b', 1)"]
)
def test_a_private_name_is_found(text: str) -> None:
    assert [*private_names(ast.parse(text))] == ["_b" if "'a._b'" not in text else "a._b"]


def test_tests_use_public_names() -> None:
    used = {
        f"{path.relative_to(REPOSITORY)}: {name}"
        for path in TESTS
        for name in private_names(ast.parse(path.read_text()))
    }
    assert not used


def test_classes_are_small_and_named_once() -> None:
    classes = [
        node for path in PACKAGE for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)
    ]
    large = {
        each.name
        for each in classes
        if sum(isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) for inner in each.body) > MOST_METHODS
    }
    assert not large
    names = [each.name for each in classes]
    assert sorted(set(names)) == sorted(names)


def test_files_are_short() -> None:
    assert not {path.name for path in PACKAGE if len(path.read_text().splitlines()) > MOST_LINES}
