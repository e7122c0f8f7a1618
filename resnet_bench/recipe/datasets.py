"""What is known of CIFAR-10 and CIFAR-100 before any file is opened."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class DatasetFacts:
    """The published facts of a dataset; checksums and file names are those that torchvision uses.

    Attributes:
        name: Name in recipes and on the command line, also the folder's name.
        class_names: Official names; a class's index is its place here.
        train_size: Number of training images.
        test_size: Number of test images.
        fingerprint: Content fingerprint of the complete dataset (see `resnet_bench.data.dataset.Dataset`).
        archive_url: Where the Python archive is published.
        archive_md5: Checksum of the archive that torchvision states.
        archive_sha256: SHA-256 of the same file, as Keras and TensorFlow Datasets state it.
        archive_folder: The folder inside the archive.
        train_batches: Pickled training batches inside that folder, each with its MD5.
        test_batches: The same for the test images.
        meta_batch: The pickled list of class names, with its MD5.
        meta_key: Key of the class names in `meta_batch`.
        label_key: Key of the labels in a batch.
        label_column: Name of the label column in the hub's Parquet files.
        image_size: Height and width in pixels.
    """

    name: str
    class_names: tuple[str, ...]
    train_size: int
    test_size: int
    fingerprint: str
    archive_url: str
    archive_md5: str
    archive_sha256: str
    archive_folder: str
    train_batches: tuple[tuple[str, str], ...]
    test_batches: tuple[tuple[str, str], ...]
    meta_batch: tuple[str, str]
    meta_key: str
    label_key: str
    label_column: str
    image_size: int = 32

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def archive_filename(self) -> str:
        """File name of the archive, the last part of its address."""
        return self.archive_url.rpartition("/")[2]


_CIFAR10 = DatasetFacts(
    name="cifar10",
    class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    train_size=50_000,
    test_size=10_000,
    fingerprint="be76494ec31bfdca8315e571fa33c4d02fc36260bd6ae1f331e9a250770d3e81",
    archive_url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    archive_md5="c58f30108f718f92721af3b95e74349a",
    archive_sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    archive_folder="cifar-10-batches-py",
    train_batches=(
        ("data_batch_1", "c99cafc152244af753f735de768cd75f"),
        ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
        ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
        ("data_batch_4", "634d18415352ddfa80567beed471001a"),
        ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
    ),
    test_batches=(("test_batch", "40351d587109b95175f43aff81a1287e"),),
    meta_batch=("batches.meta", "5ff9c542aee3614f3951f8cda6e48888"),
    meta_key="label_names",
    label_key="labels",
    label_column="label",
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
    fingerprint="57e3d7f66cdb62305cadb6ff3696821c52e1bad1f36d9a9f4802a5c41f130e48",
    archive_url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
    archive_sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    archive_folder="cifar-100-python",
    train_batches=(("train", "16019d7e3df5f24257cddd939b257f8d"),),
    test_batches=(("test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),),
    meta_batch=("meta", "7973b15100ade9c7d40fb424638fde48"),
    meta_key="fine_label_names",
    label_key="fine_labels",
    label_column="fine_label",
)

DATASETS: Mapping[str, DatasetFacts] = MappingProxyType({info.name: info for info in (_CIFAR10, _CIFAR100)})
"""Every dataset that a recipe may name."""
