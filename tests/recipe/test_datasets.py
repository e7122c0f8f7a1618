import pytest

from resnet_bench.recipe.datasets import DATASETS


@pytest.mark.parametrize(("name", "num_classes"), [("cifar10", 10), ("cifar100", 100)])
def test_classes_are_named_in_alphabetical_order(name: str, num_classes: int) -> None:
    info = DATASETS[name]
    assert info.name == name
    assert info.num_classes == num_classes
    assert list(info.class_names) == sorted(set(info.class_names))
    assert (info.train_size, info.test_size, info.image_size) == (50_000, 10_000, 32)
