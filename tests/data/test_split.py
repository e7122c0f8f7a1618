import numpy as np
import pytest

from resnet_bench.data.split import split_train_validation


@pytest.mark.parametrize(("size", "validation_size", "seed"), [(50_000, 5_000, 42), (7, 3, 0), (5, 0, 1), (5, 5, 1)])
def test_equals_the_articles_code(size: int, validation_size: int, seed: int) -> None:
    indices = list(range(size))
    np.random.seed(seed)
    np.random.shuffle(indices)
    train, validation = split_train_validation(size, validation_size=validation_size, seed=seed)
    assert validation.tolist() == indices[:validation_size]
    assert train.tolist() == indices[validation_size:]


def test_global_random_state_is_left_alone() -> None:
    np.random.seed(7)
    expected = np.random.random()
    np.random.seed(7)
    split_train_validation(100, validation_size=10, seed=42)
    assert np.random.random() == expected


@pytest.mark.parametrize("validation_size", [-1, 11])
def test_impossible_sizes_are_refused(validation_size: int) -> None:
    with pytest.raises(ValueError, match="cannot validate"):
        split_train_validation(10, validation_size=validation_size, seed=0)
