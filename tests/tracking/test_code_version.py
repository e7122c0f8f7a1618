"""What a checkout, an installed package, and a folder that git cannot be asked about say of their code."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CODE_VERSION = "from resnet_bench.tracking.environment import code_version; print(*code_version())"


def code_version_in(folder: Path, **environment: str) -> list[str]:
    """What a copy of the package says of itself."""
    done = subprocess.run(
        [sys.executable, "-c", CODE_VERSION],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "HOME": str(folder), "PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr == ""
    return done.stdout.split()


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    return subprocess.run(
        ["git", "-C", str(folder), *who, *words], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def copy_of_the_package(tmp_path: Path) -> Path:
    package = Path(__file__).parents[2] / "resnet_bench"
    shutil.copytree(package, tmp_path / "copy" / "resnet_bench", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "copy"


@pytest.fixture
def checkout(copy_of_the_package: Path) -> Path:
    folder = copy_of_the_package
    (folder / ".gitignore").write_text("__pycache__/\n")
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks" / "shipped.toml").write_text("# a recipe\n")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "first")
    return folder


@pytest.mark.parametrize(
    ("path", "dirty"),
    [
        ("resnet_bench/training/loop.py", "True"),
        ("resnet_bench/training/unknown_to_git.py", "True"),
        ("resnet_bench/kernels/unknown_to_git.c", "True"),
        ("resnet_bench/kernels/winograd.h", "True"),
        ("benchmarks/shipped.toml", "True"),
        ("resnet_bench/reporting/report.py", "False"),
        ("resnet_bench/training/notes.txt", "False"),
        ("benchmarks/mine.toml", "False"),
        ("notes.txt", "False"),
    ],
)
def test_only_code_and_recipes_that_decide_results_make_a_checkout_dirty(path: str, dirty: str, checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert code_version_in(checkout) == [commit, "False"]
    with (checkout / path).open("a") as file:
        file.write("\n")
    assert code_version_in(checkout) == [commit, dirty]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_a_checkout_of_another_user_is_read_all_the_same(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    for path in (checkout, checkout / ".git"):
        os.chown(path, 12345, 12345)
    asked = subprocess.run(
        ["git", "-C", str(checkout), "status"], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}
    )
    assert "dubious ownership" in asked.stderr, "or this test tests nothing"
    assert code_version_in(checkout) == [commit, "False"]
    (checkout / "resnet_bench" / "training" / "loop.py").write_text("# changed\n")
    assert code_version_in(checkout) == [commit, "True"]


def test_where_git_cannot_tell_the_code_is_unknown_and_not_the_release(checkout: Path) -> None:
    assert code_version_in(checkout, PATH="/nowhere") == ["unknown", "None"]
    shutil.rmtree(checkout / ".git" / "refs")
    assert code_version_in(checkout) == ["unknown", "None"]


def test_a_checkout_without_a_commit_is_unknown(copy_of_the_package: Path) -> None:
    git(copy_of_the_package, "init", "--quiet")
    git(copy_of_the_package, "add", ".")
    assert code_version_in(copy_of_the_package) == ["unknown", "None"]


def test_an_installed_package_is_named_by_its_version(copy_of_the_package: Path) -> None:
    folder = copy_of_the_package
    version, dirty = code_version_in(folder)
    assert version.startswith("v")
    assert dirty == "False"
    assert code_version_in(folder, PATH="/nowhere") == [version, "False"]
    # It lies in the checkout of something else, as a virtual environment does.
    (folder / ".gitignore").write_text("*\n")
    git(folder, "init", "--quiet")
    git(folder, "add", "--force", ".gitignore")
    git(folder, "commit", "--quiet", "-m", "another project")
    assert code_version_in(folder) == [version, "False"]
