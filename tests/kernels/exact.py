"""What the tests of several kernels check alike: exact results, and the same bits from every number of threads."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def computed_by(threads: int, compute: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
    """What is computed while torch has that many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return compute()
    finally:
        torch.set_num_threads(before)


def assert_exact(compute: Callable[[], Sequence[Tensor]], expected: Sequence[Tensor], threads: int) -> None:
    """Check results, computed by some threads, against float64: equal once that is rounded to their type."""
    for result, exact in zip(computed_by(threads, compute), expected, strict=True):
        assert torch.equal(result, exact.to(result.dtype))


def assert_same_bits(compute: Callable[[], Sequence[Tensor]]) -> None:
    """Check that one, two and three threads compute the same bits, and one thread the same twice."""
    found = [computed_by(threads, compute) for threads in (1, 1, 2, 3)]
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            assert torch.equal(one, other)
