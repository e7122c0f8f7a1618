"""Evaluation by the source's protocol and the standard one, compared with the same thing written out."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from torch import nn

from resnet_bench.data.dataset import Dataset, Split
from resnet_bench.data.loader import ResidentLoader
from resnet_bench.models.catalogue import build
from resnet_bench.recipe.settings import TestTimeAugmentation as Augmented
from resnet_bench.training.evaluation import evaluate_tta, measure, tta_views
from resnet_bench.training.events import Evaluated, Finished
from resnet_bench.training.loop import train
from tests.training.conftest import PLAIN, tiny_recipe

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    network = build("resnet9", num_classes=10, options={"dropout": 0.5})
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
    measured = measure(network, batches.epoch(0), PLAIN, mode=mode)
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


@pytest.mark.parametrize("together", [20, 7])
def test_averages_over_batches_do_not_need_the_images_in_these_batches(
    images: Dataset, network: nn.Module, together: int
) -> None:
    expected = measure(network, loader(images, 20, 8).epoch(0), PLAIN, mode="eval", keep_probabilities=True)
    found = measure(
        network, loader(images, 20, together).epoch(0), PLAIN, mode="eval", keep_probabilities=True, batches_of=8
    )
    assert found.images == expected.images
    assert (found.accuracy_over_images, found.accuracy_over_batches) == (
        expected.accuracy_over_images,
        expected.accuracy_over_batches,
    )
    assert found.averaged("batches") == pytest.approx(expected.averaged("batches"), rel=1e-5)
    assert found.averaged("images") == pytest.approx(expected.averaged("images"), rel=1e-5)
    assert (found.labels == expected.labels).all()


def test_an_over_weighted_last_batch_changes_the_number(images: Dataset, network: nn.Module) -> None:
    measured = measure(network, loader(images, 9, 8).epoch(0), PLAIN, mode="eval")
    assert measured.loss_over_batches != measured.loss_over_images


def test_batch_statistics_depend_on_the_company_and_eval_mode_does_not(images: Dataset, network: nn.Module) -> None:
    alone, together = loader(images, 20, 5), loader(images, 20, 20)
    in_eval = [measure(network, batches.epoch(0), PLAIN, mode="eval").loss_over_images for batches in (alone, together)]
    assert in_eval[0] == pytest.approx(in_eval[1], rel=1e-5)
    without_dropout = build("resnet9", num_classes=10)
    by_batch = [
        measure(without_dropout, batches.epoch(0), PLAIN, mode="batch_statistics").loss_over_images
        for batches in (alone, together)
    ]
    assert by_batch[0] != pytest.approx(by_batch[1], rel=1e-3)


def test_the_mode_that_the_network_was_in_comes_back(images: Dataset, network: nn.Module) -> None:
    for training in (True, False):
        network.train(training)
        measure(network, loader(images, 8, 8).epoch(0), PLAIN, mode="eval")
        assert network.training is training


def test_probabilities_come_in_the_order_of_the_images(images: Dataset, network: nn.Module) -> None:
    measured = measure(network, loader(images, 20, 8).epoch(0), PLAIN, mode="eval", keep_probabilities=True)
    assert measured.probabilities.shape == (20, 10)
    assert measured.probabilities.sum(1) == pytest.approx(1.0, abs=1e-5)
    assert (measured.labels == images.test.labels[:20].numpy()).all()
    accuracy = (measured.probabilities.argmax(1) == measured.labels).mean()
    assert accuracy == pytest.approx(measured.accuracy_over_images)


@pytest.mark.parametrize(
    "augmentation", [{"mirror": True}, {"mirror": False, "shift": 2}, {"mirror": True, "shift": 1}]
)
@torch.no_grad()
def test_views_are_averaged_as_written_out(images: Dataset, network: nn.Module, augmentation: dict) -> None:
    """With the weights of the record scripts: half on the image where it lies, a quarter on each moved one."""
    views = Augmented(**augmentation)
    measured = evaluate_tta(network, loader(images, 20, 8).epoch(0), PLAIN, views)
    network.eval()
    batch, labels = next(loader(images, 20, 20).epoch(0))

    def mirrored(x: torch.Tensor) -> torch.Tensor:
        return (network(x) + network(x.flip(-1))) / 2 if views.mirror else network(x)

    expected = mirrored(batch)
    if views.shift:
        moved = [
            TF.crop(TF.pad(batch, views.shift, padding_mode="reflect"), start, start, 32, 32)
            for start in (0, 2 * views.shift)
        ]
        expected = expected / 2 + (mirrored(moved[0]) + mirrored(moved[1])) / 4
    assert measured.predicted.tolist() == expected.argmax(1).tolist()
    assert measured.accuracy == (expected.argmax(1) == labels).sum().item() / 20


def test_the_weights_of_the_views_add_up_to_one() -> None:
    image = torch.ones(1, 3, 8, 8)
    for mirror, shift in ((True, 0), (True, 1), (False, 3)):
        views = list(tta_views(image, Augmented(mirror=mirror, shift=shift)))
        assert sum(weight for _, weight in views) == 1
        assert all(view.shape == image.shape for view, _ in views)


def test_batches_of_the_archives_test_set_are_the_published_ones_and_predictions_keep_their_place(
    images: Dataset,
) -> None:
    recipe = tiny_recipe(
        data={"test_images": 32},
        training={"epochs": 1},
        evaluation={"mode": "batch_statistics", "batch_size": 8},
    )
    assert images.test.rows is not None
    published = images.test.take(np.argsort(images.test.rows.numpy()))

    def trained(dataset: Dataset) -> tuple[Evaluated, Finished]:
        events = list(train(recipe, PLAIN, 0, dataset))
        (evaluated,) = [event for event in events if isinstance(event, Evaluated)]
        assert isinstance(events[-1], Finished)
        return evaluated, events[-1]

    canonical, in_place = trained(images)
    archive, kept = trained(dataclasses.replace(images, source="torchvision archive"))
    by_hand, _ = trained(dataclasses.replace(images, test=published))
    assert archive.loss == by_hand.loss != canonical.loss
    assert archive.loss_standard == canonical.loss_standard
    assert kept.predictions is not None
    assert in_place.predictions is not None
    assert np.array_equal(kept.predictions.labels, images.test.labels.numpy())
    assert np.array_equal(kept.predictions.probabilities, in_place.predictions.probabilities)
