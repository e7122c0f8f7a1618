"""Heap retention: memory that is kept from step to step instead of being returned and faulted in again.

The C library returns blocks of more than 32 MiB to the operating system as they are freed. A training step allocates
the same activations as the one before it, so that it would fault in each of their pages again: hundreds of thousands of
page faults per epoch, each of which clears 4 KiB.
"""

import contextlib
import ctypes
import functools
import platform
from collections.abc import Iterator

# <malloc.h>
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3

_KEEP = {_M_MMAP_THRESHOLD: 2**30, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 64 * 2**20}
_RETURN = {_M_MMAP_THRESHOLD: 32 * 2**20, _M_TRIM_THRESHOLD: 64 * 2**20, _M_TOP_PAD: 0}
"""What glibc's thresholds grow to by default in a process that frees large blocks."""

_policies = [_RETURN]


@contextlib.contextmanager
def retain_heap(keep: bool) -> Iterator[None]:
    """Retain freed memory in this process within the context, or return it within such a context.

    Does nothing unless the C library is glibc.

    Args:
        keep: False returns memory to the system, to measure or to train as without heap retention.
    """
    _policies.append(_KEEP if keep else _RETURN)
    _apply()
    try:
        yield
    finally:
        _policies.pop()
        _apply()


def _apply() -> None:
    library = glibc()
    if library is None:
        return
    for parameter, value in _policies[-1].items():
        # Before 2.35 glibc refuses a larger threshold than its own largest one, and no longer adapts it all the same.
        if not library.mallopt(parameter, value) and parameter == _M_MMAP_THRESHOLD:
            library.mallopt(parameter, _RETURN[parameter])
    if _policies[-1] is _RETURN:
        library.malloc_trim(0)


@functools.cache
def glibc() -> ctypes.CDLL | None:
    """Return the C library if it is glibc."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
