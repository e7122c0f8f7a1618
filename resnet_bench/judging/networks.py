"""Compare two trained networks on the same images.

This is about two networks, never about two recipes: a recipe's verdict rests on seeds. Two seeds of one recipe disagree
on many images, so their churn is the floor under any other.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class NetworkComparison:
    """What two networks predict for the same images.

    Attributes:
        both_right: Images that both classify correctly.
        only_first: Images that only the first classifies correctly.
        only_second: Images that only the second classifies correctly.
        both_wrong: Images that neither classifies correctly.
        p: Two-sided p of McNemar's exact test that both are right equally often.
        differing: Positions of the images whose predictions differ, int64 [D].
    """

    both_right: int
    only_first: int
    only_second: int
    both_wrong: int
    p: float
    differing: Labels

    @property
    def images(self) -> int:
        """Number of images."""
        return self.both_right + self.only_first + self.only_second + self.both_wrong

    @property
    def churn(self) -> float:
        """Share of images whose predictions differ, right or wrong (M. Milani Fard et al., NeurIPS 2016)."""
        return len(self.differing) / self.images

    @property
    def difference(self) -> float:
        """Accuracy of the second minus that of the first, in percentage points."""
        return 100 * (self.only_second - self.only_first) / self.images


def compare_networks(labels: Labels, first: Labels, second: Labels) -> NetworkComparison:
    """Compare the predictions of two networks.

    Args:
        labels: True classes, int64 [N] with N above 0.
        first: Classes that the first network predicts, int64 [N].
        second: Classes that the second network predicts, int64 [N].

    Raises:
        ValueError: The three differ in shape, or there are no images.
    """
    if not labels.shape == first.shape == second.shape or labels.ndim != 1 or not len(labels):
        raise ValueError(f"three lists of one length are compared, got {labels.shape}, {first.shape}, {second.shape}")
    right, other_right = first == labels, second == labels
    only_first, only_second = int((right & ~other_right).sum()), int((~right & other_right).sum())
    return NetworkComparison(
        both_right=int((right & other_right).sum()),
        only_first=only_first,
        only_second=only_second,
        both_wrong=int((~right & ~other_right).sum()),
        p=mcnemar(only_first, only_second),
        differing=np.flatnonzero(first != second),
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p of McNemar's exact test.

    Where only one of two networks is right, either is as likely to be it if both are equally good: the count follows a
    binomial distribution with probability one half (Q. McNemar, Psychometrika 12, 1947).

    Args:
        only_first: Images that only the first network classifies correctly.
        only_second: Images that only the second network classifies correctly.
    """
    from scipy.stats import binomtest

    disagreements = only_first + only_second
    return float(binomtest(only_first, disagreements, 0.5).pvalue) if disagreements else 1.0


def compare_classes(labels: Labels, first: Labels, second: Labels) -> dict[int, NetworkComparison]:
    """Compare two networks class by class; classes without images are left out."""
    masks = {int(label): labels == label for label in np.unique(labels)}
    return {label: compare_networks(labels[mask], first[mask], second[mask]) for label, mask in masks.items()}
