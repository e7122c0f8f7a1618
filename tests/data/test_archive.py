import pytest
from torchvision.datasets import CIFAR10, CIFAR100

from resnet_bench.data.archive import ARCHIVES


@pytest.mark.parametrize(("name", "reference"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_files_and_checksums_are_torchvisions(name: str, reference: type[CIFAR10]) -> None:
    archive = ARCHIVES[name]
    assert archive.url == reference.url
    assert archive.filename == reference.filename
    assert archive.folder == reference.base_folder
    assert archive.md5 == reference.tgz_md5
    assert [list(batch) for batch in archive.train_batches] == reference.train_list
    assert [list(batch) for batch in archive.test_batches] == reference.test_list
    assert archive.meta_batch == (reference.meta["filename"], reference.meta["md5"])
    assert archive.meta_key == reference.meta["key"]
