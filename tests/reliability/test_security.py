"""What is promised to those who share a machine, and to those who open what others made."""

import ast
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from resnet_bench.base.errors import UserError
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.ui import ui_command

REPOSITORY = Path(__file__).resolve().parents[2]
AUDIT = runpy.run_path(str(REPOSITORY / ".ci" / "audit.py"), run_name="audit")
PAGE = REPOSITORY / "tests" / "reliability" / "README.md"

FLOORS = {
    "torch": "2.10",  # CVE-2025-32434 and CVE-2026-24747: weights_only could be got around
    "mlflow": "3.17",  # CVE-2025-14279, CVE-2026-2614: other web pages could reach the server
    "jinja2": "3.1.6",  # CVE-2025-27516: the sandbox could be left
}
"""The first versions without holes that this software would be open to."""


def locked() -> dict[str, Version]:
    """Each package of the lock file with its version."""
    found = re.findall(r"^([a-z0-9-]+)==([^\s;\\]+)", (REPOSITORY / "requirements.lock").read_text(), re.MULTILINE)
    return {name: Version(version) for name, version in found}


def test_the_lock_holds_no_version_with_a_hole_that_is_known_to_us() -> None:
    versions = locked()
    assert len(versions) > 100
    for name, floor in FLOORS.items():
        assert versions[name] >= Version(floor), name


def test_every_locked_package_is_pinned_by_hash() -> None:
    text = (REPOSITORY / "requirements.lock").read_text()
    packages = re.split(r"\n(?=[a-z0-9])", text)
    assert all("--hash=sha256:" in package for package in packages if "==" in package)
    assert "--require-hashes" in (REPOSITORY / "Makefile").read_text()


@pytest.mark.parametrize(
    ("packages", "said", "holes"),
    [
        ([], "NOT CHECKED. No advisory service answered", 0),
        ([{"name": "a", "skip_reason": "not found"}], "NOT CHECKED. No advisory service answered", 0),
        ([{"name": "a", "version": "1", "vulns": []}], "1 packages checked, 0 known holes", 0),
        (
            [{"name": "a", "version": "1", "vulns": []}, {"name": "b", "skip_reason": "not found"}],
            "NOT CHECKED: b",
            0,
        ),
        ([{"name": "a", "version": "1", "vulns": [{"id": "X-1", "fix_versions": ["2"]}]}], "X-1 (fixed in 2)", 1),
    ],
)
def test_an_audit_never_passes_off_as_checked_what_was_not(
    packages: list[dict[str, Any]], said: str, holes: int
) -> None:
    lines, found = AUDIT["verdict"](packages)
    assert said in "\n".join(lines)
    assert found == holes


def test_an_audit_takes_the_service_that_knows_something() -> None:
    unknown, known = [{"name": "a", "skip_reason": "x"}], [{"name": "a", "version": "1", "vulns": []}]
    assert AUDIT["first_answer"]([[], unknown, known]) == known
    assert AUDIT["first_answer"]([[], unknown]) == unknown
    assert AUDIT["first_answer"]([[], []]) == []


def test_pages_are_served_to_this_machine_unless_a_proxy_stands_in_front(tmp_path: Path) -> None:
    store = Store.resolve(None, tmp_path)
    command, _ = ui_command(store, port=5987)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    for host in ("0.0.0.0", "::", "192.168.0.7", "example.org"):
        with pytest.raises(UserError, match="served to this machine only"):
            ui_command(store, host=host, port=5987)
    dashboard = re.search(r"^dashboard:.*\n\t(.*)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert dashboard
    assert "--host 127.0.0.1" in dashboard[1]


def test_nothing_is_unpickled_but_behind_a_checksum_or_by_ray() -> None:
    """Of all calls that could run what a file or a message holds, these are the ones there are.

    What Ray's workers are sent, Ray unpickles itself: who may connect to a cluster may run code on it.
    """
    calls = set()
    for path in (REPOSITORY / "resnet_bench").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                call = ast.unparse(node.func)
                if call in {"torch.load", "pickle.load", "pickle.loads", "joblib.load", "numpy.load", "np.load"}:
                    arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                    calls.add((path.name, call, arguments.get("weights_only"), arguments.get("allow_pickle")))
                assert call not in {"os.system", "yaml.load", "tarfile.extractall"}, path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec"}, path
    assert calls == {
        ("checkpoint.py", "torch.load", "True", None),
        ("launch.py", "pickle.loads", None, None),
        ("own.py", "np.load", None, "False"),
        ("ray_job.py", "pickle.loads", None, None),
        ("shipping.py", "pickle.loads", None, None),
    }


def test_the_page_of_promises_names_tests_that_exist() -> None:
    names = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE.read_text())
    assert len(names) > 40
    for path, test in names:
        text = (REPOSITORY / path).read_text()
        assert re.search(rf"^def {test}\(", text, re.MULTILINE), f"{path}::{test}"
