"""An NVIDIA GPU that computes nothing, so that what the host does for one can be tested where there is none.

The CUDA build of torch runs on it as it is: devices, streams, copies, captured graphs and memory are answered for by a
library that is loaded before it (``device.c``, ``libraries.c``). Its memory holds zeros, whatever is written to it.
"""

import ctypes
import functools
import importlib.util
import subprocess
from pathlib import Path

import pytest
import torch

from resnet_bench.kernels import native

NAME = "idle device"
SOURCES = Path(__file__).parent
LIBRARY = "libcuda.so.1"
"""The driver's own name: torch asks for it when it first captures or differentiates."""


class Unavailable(Exception):
    """There can be no idle GPU here; the message says why."""


def is_idle() -> bool:
    """Whether this process has the GPU that computes nothing."""
    return torch.cuda.is_available() and torch.cuda.get_device_name() == NAME


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
"""For tests that an idle one serves as well."""

needs_computing_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or is_idle(), reason="needs an NVIDIA GPU that computes"
)


def build(folder: Path) -> Path:
    """Compile the library, which torch has to find there before its own: ``LD_PRELOAD``.

    Raises:
        Unavailable: There is a GPU, or torch, its headers or a compiler is missing.
    """
    if torch.cuda.is_available():
        raise Unavailable("this machine has an NVIDIA GPU")
    if torch.version.cuda is None:
        raise Unavailable("this torch knows no CUDA")
    try:
        compiler = native.compiler_command()
    except native.CompileError as problem:
        raise Unavailable(str(problem)) from None
    packages = importlib.util.find_spec("nvidia")
    homes = [Path(home) for home in packages.submodule_search_locations or ()] if packages else []
    major = torch.version.cuda.split(".")[0]
    headers = [
        folder
        for home in homes
        for folder in (home / f"cu{major}" / "include", home / "cudnn" / "include")
        if folder.is_dir()
    ]
    if len(headers) != 2:
        raise Unavailable("needs the headers of CUDA and cuDNN that torch's packages bring")
    library = folder / LIBRARY
    sources = [str(SOURCES / name) for name in ("device.c", "libraries.c")]
    command = [*compiler, "-std=gnu11", "-O1", "-fPIC", "-shared", "-w", f"-Wl,-soname,{LIBRARY}"]
    command += [f"-I{path}" for path in (SOURCES, *headers)]
    finished = subprocess.run([*command, "-o", str(library), *sources, "-lpthread"], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return library


class Counts(ctypes.Structure):
    """What the device was asked for since the process began."""

    _fields_ = [(name, ctypes.c_long) for name in ("launches", "captured", "replays", "waits", "copies", "stray")]


@functools.cache
def counts() -> Counts:
    """The live counts of this process."""
    function = ctypes.CDLL(LIBRARY).idle_gpu_counts
    function.restype = ctypes.POINTER(Counts)
    return function().contents
