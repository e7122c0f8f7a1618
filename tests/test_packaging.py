"""What is built from the repository: the sdist, the wheel and what it is like when installed, the container files."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from resnet_bench.recipe.files import scan_benchmarks

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
OFFLINE = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet")


def python(*words: str | Path, folder: Path, path: Path | None = None) -> str:
    """Run Python in a folder; with a path, nothing of the checkout is imported."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MLFLOW_TRACKING_URI")}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**kept, "COLUMNS": "150", **({"PYTHONPATH": str(path)} if path else {})},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist as users of a package index do, in a folder."""
    folder = tmp_path_factory.mktemp("packages")
    python("-m", "hatchling", "build", "-t", "sdist", "-d", folder / "sdist", folder=REPOSITORY)
    (sdist,) = (folder / "sdist").glob("*.tar.gz")
    python("-m", "pip", "wheel", *OFFLINE, "--wheel-dir", folder / "wheel", sdist, folder=folder)
    (wheel,) = (folder / "wheel").glob("*.whl")
    python("-m", "pip", "install", *OFFLINE, "--target", folder / "installed", wheel, folder=folder)
    return folder / "installed"


@pytest.mark.slow
def test_an_installed_wheel_works_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    def typed(command: str) -> str:
        return python("-P", installed / "bin" / "resnet-bench", *command.split(), folder=tmp_path, path=installed)

    where = python("-P", "-c", "import resnet_bench; print(resnet_bench.__file__)", folder=tmp_path, path=installed)
    assert Path(where.strip()).is_relative_to(installed)
    assert typed("--version").strip() == f"resnet-bench {PROJECT['project']['version']}"
    listed = typed("list")
    assert all(name in listed for name in scan_benchmarks()[0])
    assert "reproduced" in typed("results")
    assert "resnet18-step-decay" in typed("study list")
    assert "svhn" in typed("data status")
    assert json.loads(typed("schema dataset")) == json.loads((REPOSITORY / "schemas" / "dataset.json").read_text())
    typed("copy speedrun-90 mine.toml")
    assert "mine.toml: valid, recipe " in typed("validate mine.toml")
    assert "report of " in typed("report --from " + str(installed / "resnet_bench" / "shipped" / "reference"))
    assert (tmp_path / "reports" / "latest" / "index.html").is_file()


@pytest.mark.slow
def test_the_metadata_of_a_wheel_is_what_a_package_index_shows(installed: Path) -> None:
    (distribution,) = importlib.metadata.distributions(name="resnet-bench", path=[str(installed)])
    shown, project = distribution.metadata, PROJECT["project"]
    urls = dict(line.split(", ") for line in shown.get_all("Project-URL") or ())
    assert urls == project["urls"]
    assert all(len(label) <= 32 and url.startswith("https://") for label, url in urls.items())
    assert shown["Summary"] == project["description"]
    assert shown["License-Expression"] == project["license"]
    assert shown["Description-Content-Type"] == "text/markdown"


@pytest.mark.slow
def test_a_wheel_of_the_sdist_holds_what_one_of_the_checkout_holds(installed: Path, tmp_path: Path) -> None:
    python("-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path, folder=REPOSITORY)
    (wheel,) = tmp_path.glob("*.whl")
    (ours,) = (installed.parent / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as expected, zipfile.ZipFile(ours) as found:
        names = set(expected.namelist())
        assert set(found.namelist()) == names
    kernels = {path.name for path in (REPOSITORY / "resnet_bench" / "kernels").glob("*.[ch]")}
    assert kernels == {Path(name).name for name in names if name.endswith((".c", ".h"))}
    for kind in ("benchmarks", "studies", "datasets"):
        shipped = {Path(name).name for name in names if name.startswith(f"resnet_bench/shipped/{kind}/")}
        assert shipped == {path.name for path in (REPOSITORY / kind).glob("*.toml")}
    with tarfile.open(next((installed.parent / "sdist").glob("*.tar.gz"))) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "Makefile", "requirements.lock", "mkdocs.yml", "docs/tutorial.md"} <= inside
    assert not [name for name in inside if re.match(r"(data|runs|mlruns|build)/|\.venv|mlflow\.db", name)]


# --- containers, which nothing here can build ------------------------------------------------------


def test_the_dockerfile_copies_what_the_package_is_made_of() -> None:
    lines = (REPOSITORY / "Dockerfile").read_text().splitlines()
    copied = [path for line in lines if line.startswith("COPY ") for path in line.split()[1:-1]]
    assert all((REPOSITORY / path).exists() for path in copied)
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [*wheel["packages"], *wheel["force-include"], *PROJECT["project"]["license-files"]]
    assert {*needed, PROJECT["project"]["readme"], "Makefile", "pyproject.toml", "requirements.lock"} <= set(copied)
    # What is not let in cannot be copied.
    let_in = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == let_in
    assert "Untested" in lines[0]


def test_the_base_images_have_a_python_that_the_package_takes() -> None:
    container = json.loads((REPOSITORY / ".devcontainer" / "devcontainer.json").read_text())
    assert "untested" in container["name"]
    (base,) = re.findall(r"^FROM (\S+)$", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE)
    for image in (base, container["image"]):
        version = re.fullmatch(r"python:3\.(\d+)(-slim)?", image)
        assert version, f"{image}: an official image, without the host of a registry"
        assert f"Programming Language :: Python :: 3.{version[1]}" in PROJECT["project"]["classifiers"]


@pytest.mark.parametrize("file", ["Dockerfile", ".devcontainer/devcontainer.json"])
def test_containers_set_up_by_a_target_that_exists(file: str) -> None:
    targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    used = re.findall(r"make ([a-z-]+)(?:\"|$)", (REPOSITORY / file).read_text(), re.MULTILINE)
    assert used
    assert set(used) <= set(targets)
