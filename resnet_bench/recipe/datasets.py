"""The facts of each dataset: names, sizes, classes, channel statistics, fingerprint."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

RGBStatistic = tuple[float, float, float]
Fit = Literal["exact", "crop", "resize"]


@dataclass(frozen=True)
class DatasetFacts:
    """What a dataset is, before any of its files is opened.

    Attributes:
        name: Name in recipes and on the command line, also the folder's name.
        class_names: Official names; a class's label is its index here.
        train_size: Number of training images.
        test_size: Number of test images.
        image_size: Height and width of an image in pixels.
        mean: Mean of each channel over the training images, of pixels between 0 and 1; None for your own dataset,
            whose file gives it to the recipe.
        std: Standard deviation of each channel, likewise.
        fingerprint: Content fingerprint of the complete dataset (see `resnet_bench.data.content.fingerprint`); None
            for your own dataset.
        fit: How an image is brought to the size: ``crop`` resizes the shorter side and cuts the center out, ``resize``
            resizes both sides, and ``exact`` refuses images of another size.
        path: The folder of a recipe that names one; None where files are found by name.
        hub: Name and configuration of the dataset on the Hugging Face Hub, if it is there.
        label_column: The column of its Parquet files that has the labels.
    """

    name: str
    class_names: tuple[str, ...]
    train_size: int
    test_size: int
    image_size: int
    mean: RGBStatistic | None
    std: RGBStatistic | None
    fingerprint: str | None
    fit: Fit = "exact"
    path: str | None = None
    hub: tuple[str, str] | None = None
    label_column: str = "label"

    @property
    def built_in(self) -> bool:
        """Whether the published images are known; all others are your own dataset."""
        return self.fingerprint is not None

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


_CIFAR10 = DatasetFacts(
    name="cifar10",
    class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    train_size=50_000,
    test_size=10_000,
    image_size=32,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    fingerprint="be76494ec31bfdca8315e571fa33c4d02fc36260bd6ae1f331e9a250770d3e81",
    hub=("uoft-cs/cifar10", "plain_text"),
)

_CIFAR100_CLASS_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""

_CIFAR100 = DatasetFacts(
    name="cifar100",
    class_names=tuple(_CIFAR100_CLASS_NAMES.split()),
    train_size=50_000,
    test_size=10_000,
    image_size=32,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    fingerprint="57e3d7f66cdb62305cadb6ff3696821c52e1bad1f36d9a9f4802a5c41f130e48",
    hub=("uoft-cs/cifar100", "cifar100"),
    label_column="fine_label",
)

DATASETS: Mapping[str, DatasetFacts] = MappingProxyType({facts.name: facts for facts in (_CIFAR10, _CIFAR100)})
"""The datasets that are built in; `resnet_bench.recipe.dataset_files` finds all others."""


def is_published(dataset: str, fingerprint: str | None) -> bool:
    """Check by their fingerprint whether images are exactly those of a built-in dataset, all of them and unaltered."""
    return dataset in DATASETS and fingerprint == DATASETS[dataset].fingerprint


TEST_LABELS: dict[str, str] = {
    "cifar10": "3c23516efa5ec10a5e1127d82ed8f93ac84f6a3c7a721bc81c7c1aeed64736d5",
    "cifar100": "7e4c9f78d3f12986c0b1fc6f08cefff8610c56467c72970842046a9fb4dedde3",
}
"""SHA-256 of the test labels that records are checked with, in canonical order, one byte each: nobody can bring
easier ones."""
