"""Memory that is kept from step to step instead of given back and faulted in again.

The C library returns blocks of more than 32 MiB to the operating system as they are freed. A training step allocates
the same activations as the one before it, so that it would fault every page of them in again: hundreds of thousands of
page faults an epoch, each of which clears 4 KiB.
"""

import contextlib
import ctypes
import functools
import platform
from collections.abc import Iterator

# <malloc.h>
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3

_KEEP = {_M_MMAP_THRESHOLD: 2**30, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 64 * 2**20}
_GIVE_BACK = {_M_MMAP_THRESHOLD: 32 * 2**20, _M_TRIM_THRESHOLD: 64 * 2**20, _M_TOP_PAD: 0}
"""What glibc's thresholds grow to by themselves in a process that frees large blocks."""

_policies = [_GIVE_BACK]


@contextlib.contextmanager
def retain_heap(keep: bool) -> Iterator[None]:
    """Have this process keep freed memory (or, within such a context, give it back again) until the context is left.

    Does nothing where the C library is not glibc. Set `keep` to False to measure or to train as without it.
    """
    _policies.append(_KEEP if keep else _GIVE_BACK)
    _apply()
    try:
        yield
    finally:
        _policies.pop()
        _apply()


def _apply() -> None:
    library = _glibc()
    if library is None:
        return
    for parameter, value in _policies[-1].items():
        library.mallopt(parameter, value)
    if _policies[-1] is _GIVE_BACK:
        library.malloc_trim(0)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
