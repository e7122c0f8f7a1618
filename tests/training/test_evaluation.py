"""Evaluation, the source's way and the plain way, against the same thing written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnet_bench import models
from resnet_bench.data import Dataset, ResidentLoader, Split
from resnet_bench.training.evaluation import measure
from tests.training.conftest import PLAIN

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    network = models.build("resnet9", num_classes=10, options={"dropout": 0.5})
    # Running statistics that differ from any batch's, so that the two modes cannot be confused.
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network


def loader(images: Dataset, count: int, batch_size: int) -> ResidentLoader:
    split = Split(images.test.images[:count], images.test.labels[:count])
    return ResidentLoader(split, batch_size=batch_size, mean=MEAN, std=STD)


@torch.no_grad()
def written_out(network, batches):
    batches = list(batches)
    losses, correct, sizes = [], [], []
    for batch, labels in batches:
        outputs = network(batch)
        losses.append(F.cross_entropy(outputs, labels).item())
        correct.append((outputs.argmax(1) == labels).sum().item())
        sizes.append(len(labels))
    total = sum(sizes)
    return (
        sum(correct) / total,
        sum(c / s for c, s in zip(correct, sizes, strict=True)) / len(sizes),
        sum(loss * s for loss, s in zip(losses, sizes, strict=True)) / total,
        sum(losses) / len(losses),
    )


@pytest.mark.parametrize("mode", ["eval", "batch_statistics"])
def test_measures_what_a_written_out_loop_measures(images: Dataset, network: nn.Module, mode: str) -> None:
    """Batches of 8, 8 and 4: the last one is over-weighted where batches are averaged."""
    batches = loader(images, 20, 8)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    torch.manual_seed(1)
    measured = measure(network, batches, PLAIN, mode=mode)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())

    network.train(mode == "batch_statistics")
    torch.manual_seed(1)
    expected = written_out(network, batches.epoch(0))
    network.load_state_dict(before)
    found = (
        measured.accuracy_over_images,
        measured.accuracy_over_batches,
        measured.loss_over_images,
        measured.loss_over_batches,
    )
    assert found == pytest.approx(expected, rel=1e-5)
    assert measured.averaged("batches") == (measured.accuracy_over_batches, measured.loss_over_batches)


def test_an_over_weighted_last_batch_changes_the_number(images: Dataset, network: nn.Module) -> None:
    measured = measure(network, loader(images, 9, 8), PLAIN, mode="eval")
    assert measured.loss_over_batches != measured.loss_over_images


def test_batch_statistics_depend_on_the_company_and_eval_mode_does_not(images: Dataset, network: nn.Module) -> None:
    alone, together = loader(images, 20, 5), loader(images, 20, 20)
    in_eval = [measure(network, batches, PLAIN, mode="eval").loss_over_images for batches in (alone, together)]
    assert in_eval[0] == pytest.approx(in_eval[1], rel=1e-5)
    without_dropout = models.build("resnet9", num_classes=10)
    by_batch = [
        measure(without_dropout, batches, PLAIN, mode="batch_statistics").loss_over_images
        for batches in (alone, together)
    ]
    assert by_batch[0] != pytest.approx(by_batch[1], rel=1e-3)


def test_the_mode_that_the_network_was_in_comes_back(images: Dataset, network: nn.Module) -> None:
    for training in (True, False):
        network.train(training)
        measure(network, loader(images, 8, 8), PLAIN, mode="eval")
        assert network.training is training


def test_probabilities_come_in_the_order_of_the_images(images: Dataset, network: nn.Module) -> None:
    measured = measure(network, loader(images, 20, 8), PLAIN, mode="eval", keep_probabilities=True)
    assert measured.probabilities.shape == (20, 10)
    assert measured.probabilities.sum(1) == pytest.approx(1.0, abs=1e-5)
    assert (measured.labels == images.test.labels[:20].numpy()).all()
    accuracy = (measured.probabilities.argmax(1) == measured.labels).mean()
    assert accuracy == pytest.approx(measured.accuracy_over_images)
