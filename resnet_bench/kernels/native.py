"""Kernels in C, compiled by the machine's compiler for its processor, and kept in the user's cache folder."""

import ctypes
import enum
import functools
import hashlib
import logging
import os
import re
import shlex
import shutil
import stat
import subprocess  # the user's own compiler  # nosec B404
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resnet_bench.base.files import cache_folder

COMPILE_SECONDS = 300
"""Only a compiler that hangs takes longer: the largest file takes 6 s of a slow core, which other work may share."""
FLAGS = ("-O3", "-march=native", "-fPIC", "-shared", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-w")
_log = logging.getLogger(__name__)

Library = tuple[Path, tuple[str, ...]]
"""A C file, and names that the preprocessor is to know."""


def by_type(source: Path) -> Mapping[torch.dtype, Library]:
    """Return what a C file is compiled to for maps of float32, and, with ``BF16`` defined, of bfloat16."""
    return {torch.bfloat16: (source, ("BF16",)), torch.float32: (source, ())}


class CompileError(Exception):
    """This machine has no compiler that makes the kernels; the message says which and why."""


def library(source: Path, defines: tuple[str, ...] = ()) -> ctypes.CDLL:
    """Load a C file as a library of this process, compiled unless that was done before; tried once per process.

    Args:
        source: The C file; it includes only the C library and, by quoted names, headers beside it.
        defines: Names that the preprocessor is to know.

    Raises:
        CompileError: There is no compiler, it fails, or what it makes cannot be loaded.
    """
    found = load_once(source, defines)
    if isinstance(found, CompileError):
        raise found
    return found


def problem(source: Path, defines: tuple[str, ...] = ()) -> str | None:
    """Explain why this machine cannot make the library, or return None; it is compiled for the answer."""
    try:
        library(source, defines)
    except CompileError as error:
        return str(error)
    return None


def call(kernels: ctypes.CDLL, name: str, *arguments: Tensor | float | None) -> None:
    """Call a function of a library that uses as many threads as torch does.

    Args:
        kernels: What :func:`library` gave.
        name: A function that takes the number of threads, an int, behind its arguments, and gives 0 if it had the
            memory that it needs.
        arguments: In the function's order: tensors become pointers to their values and None a null pointer, members
            of an enumeration an int, whole numbers an int64_t, and others a float.

    Raises:
        MemoryError: It had not.
    """
    if getattr(kernels, name)(*map(_as_c, arguments), ctypes.c_int(torch.get_num_threads())):
        raise MemoryError(f"no memory for what a layer is computed with ({name})")


def _as_c(argument: Tensor | float | None) -> Any:
    if argument is None or isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr() if argument is not None else None)
    if isinstance(argument, enum.IntEnum):
        return ctypes.c_int(argument)
    return ctypes.c_int64(argument) if isinstance(argument, int) else ctypes.c_float(argument)


_loads: dict[Library, "Future[ctypes.CDLL | CompileError]"] = {}
"""What this process has loaded, failed to load, or begun to."""


def load_once(source: Path, defines: tuple[str, ...]) -> ctypes.CDLL | CompileError:
    """Compile and load a library, or find out why that fails, once per process."""
    found = _loads.get((source, defines))
    if found is None:
        found = Future()
        found.set_result(_attempt(source, defines))
        _loads[source, defines] = found
    return found.result()


def load_ahead(libraries: Iterable[Library]) -> None:
    """Begin to compile and load libraries, all at the same time, and return at once; who needs one waits for it."""
    if new := [library for library in libraries if library not in _loads]:
        compilers = ThreadPoolExecutor(len(new), thread_name_prefix="compile")
        _loads.update({library: compilers.submit(_attempt, *library) for library in new})
        compilers.shutdown(wait=False)


def forget() -> None:
    """Have libraries loaded again, as by a new process."""
    _loads.clear()


def _attempt(source: Path, defines: tuple[str, ...]) -> ctypes.CDLL | CompileError:
    try:
        return _made(source, defines)
    except CompileError as error:
        return error


def _made(source: Path, defines: tuple[str, ...]) -> ctypes.CDLL:
    command = [*compiler_command(), *FLAGS, *(f"-D{name}" for name in defines)]
    folder = _cache_folder()
    if folder is not None:
        path = folder / f"{source.stem}-{_key(source, command)}.so"
        if path.is_file():
            try:
                return _load(path)
            except CompileError as error:
                _log.debug("compiling again: %s", error)
        if os.access(folder, os.W_OK):
            return _load(_compile(source, command, path))
    with tempfile.TemporaryDirectory(prefix="resnet-bench-") as temporary:
        return _load(_compile(source, command, Path(temporary) / "kernels.so"))


def compiler_command() -> list[str]:
    """Return the C compiler's command: ``CC``, or the machine's."""
    wanted = os.environ.get("CC", "")
    try:
        command = shlex.split(wanted) or ["cc"]
    except ValueError as error:
        raise CompileError(f"CC={wanted} is not a command: {error}") from None
    found = shutil.which(command[0])
    if found is None:
        raise CompileError(f"there is no C compiler {command[0]}")
    return [found, *command[1:]]


def compiler() -> str:
    """Return the C compiler's command and version, or why there is none: it decides which kernels there are."""
    return _compiler(os.environ.get("CC", ""), os.environ.get("PATH", ""))


@functools.cache
def _compiler(*_: str) -> str:
    """The same, once for each value of what names it."""
    try:
        command = compiler_command()
        return " ".join([*command, _run([command[0], "--version"])])
    except CompileError as error:
        return str(error)


def _key(source: Path, command: Sequence[str]) -> str:
    """Of everything that decides what is compiled: text, flags, compiler and processor."""
    processor = Path("/proc/cpuinfo")
    flags = [line for line in _lines(processor) if line.startswith(("model name", "flags", "Features"))]
    parts = [*_texts(source), *command, compiler(), *sorted(set(flags))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _texts(source: Path) -> list[str]:
    """Of a C file and of the headers that it includes from its folder."""
    text = source.read_text(encoding="utf-8")
    included = re.findall(r'^#include "(.+)"$', text, re.MULTILINE)
    return [text, *(part for name in included for part in _texts(source.with_name(name)))]


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines() if path.is_file() else []


def _cache_folder() -> Path | None:
    """Where compiled kernels are kept; None where others could put theirs in their place."""
    folder = cache_folder() / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
    except OSError as error:
        _log.debug("%s cannot be used (%s); kernels are compiled for this process only", folder, error)
        return None
    is_ours = found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return folder if is_ours else None


def _compile(source: Path, command: Sequence[str], path: Path) -> Path:
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            _run([*command, "-o", str(made), str(source), "-lm"])
            # Concurrent processes make the same file.
            made.replace(path)
    except OSError as error:
        raise CompileError(f"{path.parent}: {error.strerror or error}") from None
    return path


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - the same  # nosec B603
            command, capture_output=True, text=True, errors="replace", timeout=COMPILE_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompileError(f"{command[0]}: {error}") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it says nothing"]
        raise CompileError(f"{command[0]} failed: {lines[0]}")
    return done.stdout


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise CompileError(f"what the compiler made cannot be loaded: {error}") from None
