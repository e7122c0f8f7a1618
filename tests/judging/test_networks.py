"""Two trained networks on the same images."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_bench.judging.networks import compare_classes, compare_networks, mcnemar


def as_labels(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_each_image_is_counted_once() -> None:
    found = compare_networks(as_labels(0, 0, 1, 1, 2), as_labels(0, 0, 1, 2, 1), as_labels(0, 1, 0, 1, 0))
    assert (found.both_right, found.only_first, found.only_second, found.both_wrong) == (1, 2, 1, 1)
    assert found.differing.tolist() == [1, 2, 3, 4]
    assert found.churn == pytest.approx(0.8)
    assert found.difference == pytest.approx(-20.0)


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_exact_binomial_test(only_first: int, only_second: int) -> None:
    total, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(total, k) for k in range(fewer + 1)) / 2**total
    assert mcnemar(only_first, only_second) == pytest.approx(min(1.0, 2 * tail))


def test_equally_good_networks_are_told_apart_no_more_often_than_the_level() -> None:
    random = np.random.default_rng(0)
    labels = np.zeros(500, dtype=np.int64)
    alarms = 0
    for _ in range(400):
        first, second = ((random.random(500) < 0.1).astype(np.int64) for _ in range(2))
        alarms += compare_networks(labels, first, second).p < 0.05
    assert alarms / 400 <= 0.07


def test_classes_add_up_to_all_images() -> None:
    random = np.random.default_rng(1)
    labels, first, second = (random.integers(0, 4, 200) for _ in range(3))
    whole, parts = compare_networks(labels, first, second), compare_classes(labels, first, second)
    assert sum(part.only_first for part in parts.values()) == whole.only_first
    assert sum(part.images for part in parts.values()) == 200


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="one length"):
        compare_networks(as_labels(0, 1), as_labels(0), as_labels(0, 1))
    with pytest.raises(ValueError, match="one length"):
        compare_networks(as_labels(), as_labels(), as_labels())
