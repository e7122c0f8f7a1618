"""One definition of a run's throughput."""

import statistics
from collections.abc import Sequence


def settled_throughput(by_epoch: Sequence[float]) -> float | None:
    """Return the median throughput of the epochs after the first, which a device warms up in.

    A run of one epoch has no other; without any there is no throughput.

    Args:
        by_epoch: Images/s of each epoch, in order.
    """
    settled = by_epoch[1:] or by_epoch
    return statistics.median(settled) if settled else None
