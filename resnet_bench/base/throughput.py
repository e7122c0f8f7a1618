"""One definition of what an epoch of a run took, and of its throughput."""

import statistics
from collections.abc import Sequence


def settled(by_epoch: Sequence[float]) -> float | None:
    """Return the median over the epochs after the first, which a device warms up in.

    A run counts once: three runs of ten epochs taken as thirty samples raise 53% false alarms. A run of one epoch has
    no other; without any there is None.

    Args:
        by_epoch: What each epoch measured, in order.
    """
    settled = by_epoch[1:] or by_epoch
    return statistics.median(settled) if settled else None
