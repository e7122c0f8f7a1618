from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnet_bench.base.errors import UserError
from resnet_bench.data import generated
from resnet_bench.data.dataset import ImageLocation, generate_dataset, load_dataset, load_images
from resnet_bench.data.loader import ResidentLoader
from resnet_bench.recipe.settings import Augmentation

GOLDEN_10 = "0500c7c82144241a8b2aa54705ca39840fb215d28eafa0a00a985370df33a349"
GOLDEN_100 = "bbaecce50fdeb40c52ee2b466a2ea88ca1423ec9f9c8da35ec453cb44d1c577b"


def test_golden_fingerprints() -> None:
    """Generated images are the same on every machine and in every release."""
    assert generate_dataset("cifar10", train_size=100, test_size=50).fingerprint == GOLDEN_10
    assert generate_dataset("cifar100", train_size=100, test_size=50).fingerprint == GOLDEN_100
    assert generate_dataset("cifar10", train_size=100, test_size=50, seed=1).fingerprint != GOLDEN_10


@pytest.mark.parametrize(("name", "num_classes"), [("cifar10", 10), ("cifar100", 100)])
def test_shape_and_balance(name: str, num_classes: int) -> None:
    dataset = generate_dataset(name, train_size=1000, test_size=200)
    assert (dataset.source, dataset.generated, dataset.official) == ("generated", True, False)
    assert dataset.train.images.shape == (1000, 3, 32, 32)
    assert dataset.train.images.dtype == torch.uint8
    assert dataset.train.labels.bincount().tolist() == [1000 // num_classes] * num_classes
    assert dataset.test.labels.bincount().tolist() == [200 // num_classes] * num_classes
    assert len(np.unique(dataset.train.images.flatten(1).numpy(), axis=0)) == 1000


def test_load_falls_back_to_full_size_and_says_so(tmp_path: Path) -> None:
    messages: list[str] = []
    dataset = load_dataset("cifar10", tmp_path, allow_generated=True, progress=messages.append)
    assert dataset.generated
    assert (len(dataset.train), len(dataset.test)) == (50_000, 10_000)
    assert any("GENERATED IMAGES" in message and "resnet-bench data prepare" in message for message in messages)
    with pytest.raises(UserError):
        load_dataset("cifar10", tmp_path)


@pytest.mark.parametrize(("name", "chance"), [("cifar10", 0.1), ("cifar100", 0.01)])
def test_a_small_network_learns_in_one_epoch(name: str, chance: float) -> None:
    dataset = generate_dataset(name)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 32, 4, stride=4),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 64, round(1 / chance)),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    normalisation = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    augmentation = Augmentation(crop_padding=2, padding_mode="reflect", flip=True)
    train = ResidentLoader(dataset.train, batch_size=64, augmentation=augmentation, shuffle=True, **normalisation)
    for images, labels in train.epoch(0):
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    network.eval()
    test = ResidentLoader(dataset.test, batch_size=256, **normalisation)
    with torch.no_grad():
        correct = sum(int((network(images).argmax(1) == labels).sum()) for images, labels in test.epoch(0))
    assert correct / len(dataset.test) > 5 * chance


def test_large_sets_are_generated_once_for_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = ImageLocation(tmp_path / "nowhere", generated=(9_000, 1_000))
    first = load_images("cifar10", images)
    monkeypatch.setattr(generated, "draw_images", lambda *_: pytest.fail("generated again"))
    again = load_images("cifar10", images)
    assert (again.fingerprint, again.location) == (first.fingerprint, first.location)
    assert torch.equal(again.train.images, first.train.images)
    assert again.generated
    with pytest.raises(pytest.fail.Exception, match="generated again"):
        load_images("cifar10", ImageLocation(tmp_path, generated=(9_000, 1_001)))


def test_sets_are_generated_where_no_cache_can_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    images = ImageLocation(tmp_path, generated=(9_000, 1_000), cache_folder=tmp_path / "file")
    messages: list[str] = []
    assert len(load_images("cifar10", images, messages.append).train) == 9_000
    assert any("cannot be kept" in message for message in messages)


def test_small_sets_leave_no_files(tmp_path: Path, user_cache_folder: Path) -> None:
    load_images("cifar10", ImageLocation(tmp_path, generated=(60, 20)))
    assert not list(user_cache_folder.glob("cifar10-*"))
