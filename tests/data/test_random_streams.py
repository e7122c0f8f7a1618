import itertools
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from resnet_bench.data.random_streams import RandomStream

# Results are deterministic: a test that passes once passes always, and a biased draw is far below this.
SMALLEST_P_VALUE = 1e-3


def test_golden_values() -> None:
    """These numbers decide which images every published run saw: they may change only with the stream's version."""
    stream = RandomStream(42, "train")
    assert stream.raw("order", 0, 3).tolist() == [6885601250239045427, 5464768625534826409, 8265930848152374301]
    assert stream.permutation(3, 10).tolist() == [8, 4, 2, 5, 6, 3, 7, 9, 0, 1]
    assert stream.integers("top", 3, 10, below=9).tolist() == [4, 3, 4, 4, 7, 6, 8, 7, 3, 1]
    assert stream.bits("flip", 3, 10).tolist() == [1, 0, 0, 1, 1, 0, 1, 1, 1, 0]
    assert stream.signed("brightness", 3, 3).tolist() == [-0.007865032504571046, 0.898337967107272, 0.25766817218445204]


def test_a_number_depends_on_its_position_alone() -> None:
    stream = RandomStream(1, "train")
    assert np.array_equal(stream.raw("flip", 5, 1000)[:10], stream.raw("flip", 5, 10))


def test_seed_stream_purpose_and_epoch_each_give_other_numbers() -> None:
    drawn = [
        tuple(RandomStream(seed, name).raw(purpose, epoch, 4).tolist())
        for seed in (0, 1, 2**64 - 1)
        for name in ("train", "test")
        for purpose in ("order", "flip")
        for epoch in (0, 1, 500)
    ]
    assert len(set(itertools.chain.from_iterable(drawn))) == 4 * len(drawn)


@pytest.mark.parametrize("below", [2, 9, 10, 81])
def test_integers_are_uniform(below: int) -> None:
    values = RandomStream(0, "train").integers("top", 0, 100_000, below)
    assert values.min() == 0
    assert values.max() == below - 1
    assert stats.chisquare(np.bincount(values)).pvalue > SMALLEST_P_VALUE


def test_signed_numbers_are_uniform_between_minus_one_and_one() -> None:
    values = RandomStream(0, "train").signed("contrast", 0, 100_000)
    assert -1 <= values.min() < -0.999
    assert 0.999 < values.max() < 1
    assert stats.kstest(values, stats.uniform(-1, 2).cdf).pvalue > SMALLEST_P_VALUE


def test_bits_are_fair_within_and_across_epochs() -> None:
    stream = RandomStream(0, "train")
    assert stats.chisquare(np.bincount(stream.bits("flip", 0, 100_000))).pvalue > SMALLEST_P_VALUE
    first_of_each_epoch = np.array([stream.bits("flip", epoch, 1)[0] for epoch in range(5000)])
    assert stats.chisquare(np.bincount(first_of_each_epoch)).pvalue > SMALLEST_P_VALUE


def test_every_permutation_is_equally_likely() -> None:
    stream = RandomStream(0, "train")
    counts = Counter(tuple(stream.permutation(epoch, 4).tolist()) for epoch in range(12_000))
    assert len(counts) == 24
    assert stats.chisquare(list(counts.values())).pvalue > SMALLEST_P_VALUE


def test_purposes_and_epochs_are_independent() -> None:
    stream = RandomStream(0, "train")
    top, left = (stream.integers(purpose, 0, 50_000, 9) for purpose in ("top", "left"))
    next_top = stream.integers("top", 1, 50_000, 9)
    for other in (left, next_top):
        table = np.zeros((9, 9))
        np.add.at(table, (top, other), 1)
        assert stats.chi2_contingency(table).pvalue > SMALLEST_P_VALUE


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match="seed"):
        RandomStream(seed, "train")
