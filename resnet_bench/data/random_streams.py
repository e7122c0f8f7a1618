"""Random numbers as a function of what they are for, so that no generator's state need be kept.

A number depends on (seed, stream, purpose, epoch, position) alone: the Philox counter-based generator is keyed by
the first two and counts from the others. Only its raw 64-bit output is used, because the methods of NumPy's and
torch's generators may change what they draw between releases, and raw Philox output may not.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RANDOM_STREAM_VERSION = 1
"""Part of every key. Raise it when the use of the draws changes: other images are then drawn for a seed."""


def _word(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


@dataclass(frozen=True)
class RandomStream:
    """An endless supply of uniform 64-bit integers, addressed instead of consumed.

    Attributes:
        seed: The run's seed, from 0 to 2**64 - 1.
        name: What the stream serves, such as "train"; different names are independent.
    """

    seed: int
    name: str

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"a seed lies between 0 and 2**64 - 1; this one is {self.seed}")

    def raw(self, purpose: str, epoch: int, count: int) -> npt.NDArray[np.uint64]:
        """The first `count` numbers of an epoch for one purpose: uint64 `[count]`.

        Args:
            purpose: What they decide, such as "flip"; each purpose has separate numbers.
            epoch: Epoch, counted from 0.
            count: How many positions; position i has the same number whatever `count` is.
        """
        key = np.array([self.seed, _word(f"{self.name}/{RANDOM_STREAM_VERSION}")], dtype=np.uint64)
        # The first word counts the positions; the last two keep epochs and purposes apart.
        counter = np.array([0, 0, _word(purpose), epoch], dtype=np.uint64)
        return np.random.Philox(key=key, counter=counter).random_raw(count)

    def permutation(self, epoch: int, size: int) -> npt.NDArray[np.int64]:
        """A uniformly random order of `range(size)`: int64 `[size]`."""
        return np.argsort(self.raw("order", epoch, size), kind="stable").astype(np.int64)

    def integers(self, purpose: str, epoch: int, count: int, below: int) -> npt.NDArray[np.int64]:
        """Uniform integers from 0 to `below` - 1: int64 `[count]`.

        They are the upper 32 bits scaled, not a remainder; no value is off by more than `below` / 2**32.
        """
        upper = self.raw(purpose, epoch, count) >> np.uint64(32)
        return ((upper * np.uint64(below)) >> np.uint64(32)).astype(np.int64)

    def signed(self, purpose: str, epoch: int, count: int) -> npt.NDArray[np.float64]:
        """Uniform multiples of 2**-52 from -1 to just below 1: float64 `[count]`, alike on every machine."""
        return (self.raw(purpose, epoch, count) >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1

    def bits(self, purpose: str, epoch: int, count: int) -> npt.NDArray[np.int64]:
        """Fair coin tosses, the top bits: int64 `[count]` of 0 and 1."""
        return (self.raw(purpose, epoch, count) >> np.uint64(63)).astype(np.int64)
