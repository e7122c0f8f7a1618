import pytest
from torchvision.datasets import CIFAR10, CIFAR100

from resnet_bench.recipe.datasets import DATASETS


@pytest.mark.parametrize(("name", "reference"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_files_and_checksums_are_torchvisions(name: str, reference: type[CIFAR10]) -> None:
    info = DATASETS[name]
    assert info.archive_url == reference.url
    assert info.archive_filename == reference.filename
    assert info.archive_folder == reference.base_folder
    assert info.archive_md5 == reference.tgz_md5
    assert [list(batch) for batch in info.train_batches] == reference.train_list
    assert [list(batch) for batch in info.test_batches] == reference.test_list
    assert info.meta_batch == (reference.meta["filename"], reference.meta["md5"])
    assert info.meta_key == reference.meta["key"]


@pytest.mark.parametrize(("name", "num_classes"), [("cifar10", 10), ("cifar100", 100)])
def test_classes_are_named_in_alphabetical_order(name: str, num_classes: int) -> None:
    info = DATASETS[name]
    assert info.name == name
    assert info.num_classes == num_classes
    assert list(info.class_names) == sorted(set(info.class_names))
    assert (info.train_size, info.test_size, info.image_size) == (50_000, 10_000, 32)
