"""The seeded split of a training set into train and validation."""

import numpy as np
import numpy.typing as npt


def split_train_validation(
    size: int, *, validation_size: int, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Shuffles `range(size)` as `np.random.seed(seed); np.random.shuffle(indices)` does and cuts it in two.

    The first `validation_size` shuffled indices validate and the others train, as in the article on ResNet-34. Its
    indices count the images of torchvision's CIFAR-10 and these count images in canonical order: the same sizes and
    the same kind of split, not the same images.

    Args:
        size: Number of images.
        validation_size: How many of them validate, from 0 to `size`.
        seed: Seed of NumPy's legacy generator, from 0 to 2**32 - 1.

    Returns:
        Indices that train, int64 `[size - validation_size]`, and indices that validate, int64 `[validation_size]`.
        No global random state is touched.
    """
    if not 0 <= validation_size <= size:
        raise ValueError(f"{validation_size} of {size} images cannot validate")
    indices = np.arange(size, dtype=np.int64)
    np.random.RandomState(seed).shuffle(indices)
    return indices[validation_size:], indices[:validation_size]
