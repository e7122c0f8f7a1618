"""What this machine offers: each thing that resnet-bench needs, whether it is there, and what to type if not."""

import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from resnet_bench.base.errors import UserError
from resnet_bench.data.dataset import dataset_status
from resnet_bench.execution.execution import Execution
from resnet_bench.kernels import normalization
from resnet_bench.tracking.store import Store

MIN_PYTHON = (3, 11)
MIN_FREE_BYTES = 5 * 10**9
_ONE_PLACE = "install torch and torchvision from one place, as make does"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    good: bool
    text: str
    remedy: str | None = None
    required: bool = True
    """Whether nothing works without it."""


def check_machine(data_folder: Path, tracking_uri: str | None) -> list[Finding]:
    """Look at Python, torch, the devices, the disk, the images and the tracking store."""
    return [
        _python(),
        _torch(),
        _gpu(),
        _compiler(),
        _execution(),
        _disk(),
        *_datasets(data_folder),
        _store(tracking_uri),
    ]


def _python() -> Finding:
    return Finding(
        "Python",
        sys.version_info >= MIN_PYTHON,
        f"{platform.python_version()} on {platform.platform()}",
        None if sys.version_info >= MIN_PYTHON else "install Python 3.11 or newer",
    )


def _torch() -> Finding:
    # Importing torchvision takes longer than everything else together.
    try:
        version, wanted = metadata.version("torchvision"), metadata.requires("torchvision") or []
    except metadata.PackageNotFoundError:
        return Finding("torch", False, f"{torch.__version__}, but torchvision is not installed", _ONE_PLACE)
    installed = _numbers(torch.__version__)
    for sign, needed in re.findall(r"^torch\b\s*\(?(==|>=)\s*([\d.]+)", "\n".join(wanted), re.MULTILINE):
        if installed < _numbers(needed) or (sign == "==" and installed != _numbers(needed)):
            text = f"{torch.__version__}, but torchvision {version} needs torch {sign} {needed}"
            return Finding("torch", False, text, _ONE_PLACE)
    return Finding("torch", True, f"{torch.__version__}, torchvision {version}")


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3]]


def _gpu() -> Finding:
    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        remedy = "training runs on the CPU; make bench takes the smoke profile there"
        return Finding("GPU", False, f"none that torch can use ({built})", remedy, required=False)
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory = [torch.cuda.get_device_properties(i).total_memory / 2**30 for i in range(len(names))]
    text = ", ".join(
        f"cuda:{i} {name} ({size:.0f} GiB)" for i, (name, size) in enumerate(zip(names, memory, strict=True))
    )
    return Finding("GPU", True, f"{text}, CUDA {torch.version.cuda}")


def _execution() -> Finding:
    execution = Execution.resolve()
    return Finding("execution", True, f"{execution.describe()} on {execution.device_name}")


def _compiler() -> Finding:
    if problem := normalization.problem(torch.float32):
        remedy = "for faster training on the CPU install gcc, named by CC=gcc-15 if cc is another; all works without"
        return Finding("C compiler", False, problem, remedy, required=False)
    return Finding("C compiler", True, "makes the kernels that training on the CPU uses")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    good = free >= MIN_FREE_BYTES
    remedy = None if good else "checkpoints and artifacts may not fit; make room or run in another folder"
    return Finding("disk", good, f"{free / 1e9:.0f} GB free in {Path.cwd()}", remedy, required=False)


def _datasets(folder: Path) -> Iterator[Finding]:
    try:
        found = dataset_status(folder)
    except UserError as error:
        yield Finding("data", False, str(error), "put it right, or name another folder with --data DIR")
        return
    for status in found:
        if status.sources:
            kind, location = status.sources[0]
            yield Finding(status.name, True, f"{kind} at {location}, decoded copy {status.cache}")
        elif status.problem is None:
            remedy = f"type: resnet-bench data prepare {status.name}, or name a folder that has it with --data DIR"
            yield Finding(status.name, False, f"not in {folder.resolve()}", remedy, required=False)


def _store(uri: str | None) -> Finding:
    try:
        store = Store.resolve(uri, Path.cwd())
    except UserError as error:
        return Finding("tracking", False, str(error))
    # What is wrong says what to do, for this store.
    problem = store.check()
    return Finding("tracking", problem is None, problem or store.redacted_uri)
