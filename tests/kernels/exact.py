"""What the tests of several kernels check alike."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def assert_exact(compute: Callable[[], Sequence[Tensor]], expected: Sequence[Tensor], threads: int) -> None:
    """Check results, computed by some threads, against float64: equal once that is rounded to their type."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = compute()
    finally:
        torch.set_num_threads(before)
    for result, exact in zip(found, expected, strict=True):
        assert torch.equal(result, exact.to(result.dtype))
