"""What a run ran with: versions, machine, and the state of the code."""

import functools
import hashlib
import os
import platform
import subprocess  # fixed commands  # nosec B404
from importlib import metadata
from pathlib import Path
from typing import Any

from resnet_bench.base.machine import cpu_name

PACKAGE = "resnet-bench"
_GIT_TIMEOUT_SECONDS = 10
DECIDING_CODE = ("data/", "execution/", "kernels/", "models/", "training/", "recipe/settings.py", "recipe/recipe.py")
"""Rooms and modules whose code decides what a recipe gives; the others plan, track and show runs."""


def environment() -> dict[str, Any]:
    """Versions and hardware, as plain values; what is not there (a GPU, its driver) is None."""
    import psutil  # type: ignore[import-untyped]
    import torch

    gpus, driver = _nvidia()
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": _version("torchvision"),
        "mlflow": _version("mlflow"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "driver": driver,
        "gpu": ", ".join(gpus) or None,
        "cpu": cpu_name(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "os": platform.platform(),
    }


def package_version() -> str:
    """The version of resnet-bench."""
    return _version(PACKAGE) or "unknown"


@functools.cache
def code_version() -> tuple[str, bool]:
    """The commit that the code is at, and whether it was changed since.

    Returns:
        The checkout's commit and whether its tree is dirty; for an installed package, or without git, the tag
        of its version and False.
    """
    folder = Path(__file__).resolve().parent
    # A package installed below somebody's repository is not part of it: git must know this very file.
    if _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is not None:
        commit = _git(folder, "rev-parse", "HEAD")
        changes = _git(folder, "status", "--porcelain")
        if commit is not None and changes is not None:
            return commit.strip(), bool(changes.strip())
    return f"v{package_version()}", False


@functools.cache
def code_fingerprint() -> str:
    """SHA-256, shortened to 16 digits, of the source files that decide what a recipe gives.

    A commit says less: one that touches only a report changes no result, and changes that are not committed do.
    """
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for file in sorted([*root.rglob("*.py"), *root.rglob("*.c")]):
        name = file.relative_to(root).as_posix()
        if name.startswith(DECIDING_CODE):
            content = file.read_bytes()
            digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments  # nosec B603, B607
            ["git", "-C", str(folder), *arguments],  # noqa: S607 - wherever the user keeps git
            capture_output=True,
            text=True,
            check=True,
            timeout=_GIT_TIMEOUT_SECONDS,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _nvidia() -> tuple[list[str], str | None]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return [], None
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return [str(pynvml.nvmlDeviceGetName(handle)) for handle in handles], str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return [], None
    finally:
        pynvml.nvmlShutdown()
