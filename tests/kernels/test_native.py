"""Compiling kernels: once, for this machine, by whatever compiler there is, and from nobody else's file."""

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from resnet_bench.execution.execution import Execution
from resnet_bench.kernels import native, normalization

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler cc")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    native.forget()
    yield tmp_path / "cache" / "resnet-bench" / "kernels"
    native.forget()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "seven.c"
    path.write_text("int seven(void) { return 7 + EXTRA; }\n")
    return path


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often the compiler has made something."""
    log = tmp_path / "compiled"
    wrapper = tmp_path / "logging-cc"
    wrapper.write_text(f'#!/bin/sh\ncase "$*" in *-o*) echo "$*" >> {log};; esac\nexec cc "$@"\n')
    wrapper.chmod(0o700)
    monkeypatch.setenv("CC", str(wrapper))

    return lambda: len(log.read_text().splitlines()) if log.exists() else 0


def seven(source: Path, extra: int = 0) -> int:
    native.forget()
    return native.library(source, (f"EXTRA={extra}",)).seven()


@needs_compiler
def test_a_file_is_compiled_once_for_all_processes(source, compiled, empty_cache) -> None:
    assert [seven(source), seven(source)] == [7, 7]
    assert compiled() == 1
    assert [path.suffix for path in empty_cache.iterdir()] == [".so"]


@needs_compiler
def test_libraries_are_compiled_at_the_same_time_and_once(source, compiled) -> None:
    libraries = [(source, (f"EXTRA={extra}",)) for extra in range(3)]
    native.load_ahead(libraries)
    native.load_ahead(libraries)
    assert [native.library(*library).seven() for library in libraries] == [7, 8, 9]
    assert compiled() == 3


@needs_compiler
def test_other_text_and_other_names_are_compiled_for_themselves(source, compiled) -> None:
    assert [seven(source), seven(source, 1)] == [7, 8]
    source.write_text("int seven(void) { return 17 + EXTRA; }\n")
    assert seven(source) == 17
    assert compiled() == 3


@needs_compiler
def test_library_compiles_again_when_an_included_header_changes(source, compiled, tmp_path) -> None:
    (tmp_path / "outer.h").write_text('#include "inner.h"\n')
    source.write_text('#include "outer.h"\nint seven(void) { return SEVEN + EXTRA; }\n')
    for number in (7, 7, 17):
        (tmp_path / "inner.h").write_text(f"#define SEVEN {number}\n")
        assert seven(source) == number
    assert compiled() == 2


@needs_compiler
def test_a_damaged_file_is_made_again(source, compiled, empty_cache, tmp_path, monkeypatch) -> None:
    assert seven(source) == 7
    (kept,) = empty_cache.iterdir()
    # In another folder, because a library that is loaded is not loaded again from the same place.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    damaged = tmp_path / "other" / "resnet-bench" / "kernels" / kept.name
    damaged.parent.mkdir(parents=True, mode=0o700)
    damaged.write_bytes(b"\x7fELF cut short")
    assert seven(source) == 7
    assert compiled() == 2
    assert damaged.stat().st_size > 1000


@needs_compiler
def test_a_folder_that_others_can_write_to_is_not_trusted(source, compiled, empty_cache) -> None:
    empty_cache.mkdir(parents=True)
    empty_cache.chmod(0o777)
    assert [seven(source), seven(source)] == [7, 7]
    assert compiled() == 2
    assert not list(empty_cache.iterdir())


@needs_compiler
def test_a_cache_that_cannot_be_written_serves_what_it_has_and_costs_no_kernel(
    source, compiled, empty_cache, monkeypatch
) -> None:
    assert seven(source) == 7
    kept = sorted(empty_cache.iterdir())
    monkeypatch.setattr(os, "access", lambda _, mode: mode != os.W_OK)
    assert seven(source) == 7
    assert compiled() == 1
    source.write_text(source.read_text().replace("7", "17"))
    assert seven(source) == 17
    assert sorted(empty_cache.iterdir()) == kept


@needs_compiler
def test_a_new_folder_is_the_users_own(source, empty_cache) -> None:
    seven(source)
    assert not empty_cache.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)


@needs_compiler
def test_what_does_not_compile_is_said_and_leaves_nothing(source, empty_cache) -> None:
    source.write_text("int seven(void) { return }\n")
    with pytest.raises(native.CompileError, match=r"failed: .*seven\.c"):
        seven(source)
    assert not list(empty_cache.iterdir())


@needs_compiler
def test_what_cannot_be_loaded_is_said(source) -> None:
    # Linkers leave names open in a library; this one has to be found as it is loaded.
    source.write_text("extern int missing; int *seven = &missing;\n")
    with pytest.raises(native.CompileError, match="cannot be loaded"):
        seven(source)


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false", 'cc "'])
def test_without_a_compiler_training_does_without(compiler, monkeypatch) -> None:
    monkeypatch.setenv("CC", compiler)
    assert compiler in str(normalization.problem(torch.float32))
    execution = Execution.resolve("cpu", "fp32", mode="fast")
    assert execution.fast_paths
    assert not execution.fused_layers
