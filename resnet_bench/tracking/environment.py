"""What a run ran with: versions, machine, and the state of the code."""

import functools
import os
import platform
import subprocess  # fixed commands  # nosec B404
from importlib import metadata
from pathlib import Path
from typing import Any

from resnet_bench.base.files import SOURCE_SUFFIXES, source_digest
from resnet_bench.base.machine import processor

PACKAGE = "resnet-bench"
_GIT_TIMEOUT_SECONDS = 10
_NOT_KNOWN = 1
"""What git ends with where it does not know a file."""
_NO_ANSWER = -1
DECIDING_CODE = ("data/", "execution/", "kernels/", "models/", "training/", "recipe/settings.py", "recipe/recipe.py")
"""Rooms and modules whose code decides what a recipe gives; the others plan, track and show runs."""


def environment() -> dict[str, Any]:
    """Versions and hardware, as plain values; what is not there (a GPU, its driver) is None."""
    import psutil  # type: ignore[import-untyped]
    import torch

    from resnet_bench.execution.devices import nvidia_gpus

    gpus, driver = nvidia_gpus()
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": _version("torchvision"),
        "mlflow": _version("mlflow"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "driver": driver,
        "gpu": ", ".join(gpus) or None,
        **processor(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "os": platform.platform(),
    }


def package_version() -> str:
    """The version of resnet-bench."""
    return _version(PACKAGE) or "unknown"


@functools.cache
def code_version() -> tuple[str, bool | None]:
    """Return the commit that the code is at, and whether what decides results was changed since.

    Other files that git does not know, or that only plan, track and show runs, change no result.

    Returns:
        The checkout's commit and whether it is dirty; ``unknown`` and None where there is a checkout that git cannot
        be asked about; the tag of its version and False for an installed package.
    """
    package = Path(__file__).resolve().parent.parent
    if not any((folder / ".git").exists() for folder in package.parents):
        return f"v{package_version()}", False
    # A package installed below somebody's repository is not part of it: git must know this very file.
    known = _git(package, "ls-files", "--error-unmatch", str(Path(__file__).resolve()))
    if known.returncode == _NOT_KNOWN:
        return f"v{package_version()}", False
    commit = _git(package, "rev-parse", "HEAD")
    code = _git(package, "status", "--porcelain", "--untracked-files=all", "--", *DECIDING_CODE)
    # A recipe that is only being written is nobody else's; that of a run is recorded with it.
    recipes = _git(package, "status", "--porcelain", "--untracked-files=no", "--", ":/benchmarks")
    if any(answer.returncode != 0 for answer in (known, commit, code, recipes)):
        return "unknown", None
    changed = [line for line in code.stdout.splitlines() if line.strip('"').endswith(SOURCE_SUFFIXES)]
    return commit.stdout.strip(), bool(changed or recipes.stdout.strip())


@functools.cache
def code_fingerprint() -> str:
    """SHA-256, shortened to 16 digits, of the source files that decide what a recipe gives.

    A commit says less: one that touches only a report changes no result, and changes that are not committed do.
    """
    return source_digest(Path(__file__).resolve().parent.parent, DECIDING_CODE)[:16]


def _git(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    # Containers and shared disks often hold checkouts of other users, which git does not read unless it is told to.
    trust = ["-c", f"safe.directory={_checkout(folder)}", "-c", "core.fsmonitor=false"]
    command = ["git", *trust, "-C", str(folder), *arguments]
    try:
        return subprocess.run(  # noqa: S603 - fixed arguments  # nosec B603, B607
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=_GIT_TIMEOUT_SECONDS,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return subprocess.CompletedProcess(command, _NO_ANSWER, "", "")


def _checkout(folder: Path) -> Path:
    return next((parent for parent in folder.parents if (parent / ".git").exists()), folder)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
